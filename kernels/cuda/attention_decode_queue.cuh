/* attention_decode_queue.cuh - the pieces of the plan on their way to the warps of a block of
 * threads (attention_decode_hopper.cuh).
 *
 * One warp feeds: it takes pieces from the plan and puts them into a queue in shared memory as
 * runs, which are the tiles of one chunk of a piece, with the rows of the cache where their keys
 * are. That takes three trips to the L2 cache one behind the other, each as long as the copies of
 * two or three tiles when all multiprocessors read. So a block's first pieces are read at its
 * start, while the memory is idle, and behind short ones the next are read ahead.
 */
#ifndef QUIRE_CUDA_ATTENTION_DECODE_QUEUE_CUH
#define QUIRE_CUDA_ATTENTION_DECODE_QUEUE_CUH

#include "kernels/cuda/attention_plan.cuh"

#define N_TAKERS       3               /* warps that compute                             */
#define N_COPIERS      ATTENTION_WARPS /* warps that copy, each a group of a tile's keys */
#define QUEUE_RUNS     8
#define RUN_GROUPS     (TILES_PER_CHUNK * N_COPIERS)
#define DECODE_READERS (N_TAKERS + N_COPIERS)

static_assert(RUN_GROUPS == 32, "a lane of the feed finds each");

/* Tiles of one chunk of a piece. None: there are no more. */
struct __align__(16) decode_run
{
    struct decode_piece piece;
    int tile, end_tile;
    int turn;            /* of the takers: halves of the pieces before      */
    int n_ahead;         /* tiles of the runs before                        */
    int stage, parity;   /* of the ring: where the first tile goes          */
    int row[RUN_GROUPS]; /* of the cache, as rows of head_dim: of the groups of 16 keys */
};

struct decode_runs {
    struct decode_run run[QUEUE_RUNS]; /* run n is at n % QUEUE_RUNS         */
    uint64_t fed[QUEUE_RUNS];          /* copy barriers: a run is there      */
    uint64_t passed[QUEUE_RUNS];       /* and all who read it have done so   */
    int n_copied;                      /* tiles whose copies have begun      */
    struct decode_piece hand[FEED_HAND];
};

#if PTX_HOPPER

/* By one warp, before a barrier of the block. */
static __device__ __forceinline__ void runs_init(struct decode_runs *runs)
{
    int i = threadIdx.x % 32;
    if (i < QUEUE_RUNS) {
        copy_barrier_init(shared_address(&runs->fed[i]), 1);
        copy_barrier_init(shared_address(&runs->passed[i]), DECODE_READERS);
    }
    if (i == 0)
        runs->n_copied = 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Run n, once it is there. By whole warps. */
static __device__ __forceinline__ const struct decode_run *runs_wait(struct decode_runs *runs,
                                                                     int n)
{
    copy_barrier_wait(shared_address(&runs->fed[n % QUEUE_RUNS]), n / QUEUE_RUNS % 2);
    __syncwarp();
    return &runs->run[n % QUEUE_RUNS];
}

/* Its place may be used again as far as this warp is concerned. */
static __device__ __forceinline__ void runs_pass(struct decode_runs *runs, int n)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        copy_barrier_arrive(shared_address(&runs->passed[n % QUEUE_RUNS]));
}

/* What those who compute need of a run, into registers. */
static __device__ __forceinline__ void run_read(struct decode_run *to,
                                                const struct decode_run *from)
{
    to->piece = from->piece;
    to->tile = from->tile;
    to->end_tile = from->end_tile;
    to->turn = from->turn;
    to->n_ahead = from->n_ahead;
    to->stage = from->stage;
    to->parity = from->parity;
}

static __device__ __forceinline__ int runs_copied(const struct decode_runs *runs)
{
    return *(const volatile int *)&runs->n_copied;
}

/* ---- feeding --------------------------------------------------------------------------------- */

/* The next piece is put into the queue when no more than this many tiles are left to copy; one of
 * more tiles is not even taken before, so that others can have it. */
#define FEED_AHEAD_TILES 4

static __device__ __forceinline__ bool piece_is_short(const struct decode_piece *piece)
{
    return piece->end_tile - piece->tile <= FEED_AHEAD_TILES;
}

/* What the warp that feeds knows. */
struct decode_feed {
    const struct attention_params *p;
    struct decode_runs *runs;
    int n_stages;
    int n_runs, n_halves, n_tiles; /* fed so far; halves of pieces           */
    int stage, parity;             /* of the ring: where the next tile goes  */
    int n_in_plan, n_own;          /* pieces                                 */
    int n_numbers;                 /* of pieces that are this block's        */
    bool is_shared;                /* whether there are others than own ones */
    int hand_row[FEED_HAND];       /* of the pieces in hand                  */
};

/* The row of the cache of this lane's group of a run that begins with first_tile; anything when the
 * group is beyond the last key. */
static __device__ __forceinline__ int find_row(const struct attention_params *p,
                                               const struct decode_piece *piece, int first_tile)
{
    unsigned key = first_tile * ATTENTION_TILE + threadIdx.x % 32 * GROUP_KEYS,
             size = (unsigned)p->block_size;
    int index = (int)(key / size), kv_head = piece->pair / row_groups(p->heads_per_kv);
    int at = min(index, p->max_blocks - 1);
    int block = p->block_table[(size_t)piece->seq * p->max_blocks + at];
    return (block * p->n_kv_heads + kv_head) * p->block_size + (int)(key - index * size);
}

/* Puts a run into the queue, the end of the list as one without tiles. row: this lane's group's. */
static __device__ __forceinline__ void
feed_run(struct decode_feed *f, const struct decode_piece *piece, int tile, int end_tile, int row)
{
    int n = f->n_runs++, lane = threadIdx.x % 32;
    struct decode_run *run = &f->runs->run[n % QUEUE_RUNS];
    copy_barrier_wait(shared_address(&f->runs->passed[n % QUEUE_RUNS]), n / QUEUE_RUNS % 2 ^ 1);
    run->row[lane] = row;
    if (lane == 0) {
        run->piece = *piece;
        run->tile = tile;
        run->end_tile = end_tile;
        run->turn = f->n_halves;
        run->n_ahead = f->n_tiles;
        run->stage = f->stage;
        run->parity = f->parity;
    }
    __syncwarp();
    if (lane == 0)
        copy_barrier_arrive(shared_address(&f->runs->fed[n % QUEUE_RUNS]));
    f->n_tiles += end_tile - tile;
    for (f->stage += end_tile - tile; f->stage >= f->n_stages; f->stage -= f->n_stages)
        f->parity ^= 1;
}

/* row: of the piece's first run. */
static __device__ __forceinline__ void feed_piece(struct decode_feed *f,
                                                  const struct decode_piece *piece, int row)
{
    for (int tile = piece->tile; tile < piece->end_tile;) {
        int end_tile = min(next_chunk(tile), piece->end_tile);
        if (tile > piece->tile)
            row = find_row(f->p, piece, tile);
        feed_run(f, piece, tile, end_tile, row);
        tile = end_tile;
    }
    f->n_halves += piece->n_halves;
}

/* The number of the n-th piece that a block owns: the list is dealt out to and fro. */
static __device__ __forceinline__ int own_number(int n)
{
    return n * gridDim.x + (n % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

/* The number of the block's next piece, in lane 0: one of its own, then whatever is next in the
 * list. That is still on its way from the L2 cache when the function returns. Its counts may be in
 * use until the kernel before this one ends, which may be the same kernel. */
static __device__ __forceinline__ int feed_number(struct decode_feed *f)
{
    int n = f->n_numbers++, number = f->n_in_plan;
    if (n < f->n_own)
        return own_number(n);
    if (!f->is_shared)
        return number;
    previous_kernel_wait();
    if (threadIdx.x % 32 == 0)
        number = f->n_own * gridDim.x + atomicAdd(&f->p->plan->n_taken, 1);
    return number;
}

/* The piece with the number that lane 0 has; none beyond the end of the list. */
static __device__ __forceinline__ struct decode_piece feed_read(const struct decode_feed *f,
                                                                int number)
{
    struct decode_piece piece = {};
    number = __shfl_sync(~0u, number, 0);
    if (number < f->n_in_plan)
        piece = piece_read(plan_pieces(f->p->plan) + number);
    return piece;
}

/* Until the queue is short enough for more. */
static __device__ __forceinline__ void feed_wait(const struct decode_feed *f)
{
    while (f->n_tiles - runs_copied(f->runs) > FEED_AHEAD_TILES)
        continue;
    __syncwarp();
}

/* The last block that finds the list at its end puts the counts back. */
static __device__ __forceinline__ void feed_end(const struct decode_feed *f)
{
    struct attention_plan *plan = f->p->plan;
    int n_blocks = f->n_own == 0 ? gridDim.x : min((int)gridDim.x, f->n_in_plan);
    __threadfence(); /* a number that nobody waited for is counted before */
    if (threadIdx.x % 32 == 0 && atomicAdd(&plan->n_ended, 1) == n_blocks - 1)
        plan->n_taken = plan->n_ended = 0;
}

/* Reads the plan and the block's first pieces. They are the only ones that are there without delay,
 * and so are the rows of their keys: later on a trip to the L2 cache takes as long as the copies of
 * two or three tiles. */
static __device__ __forceinline__ void feed_begin(struct decode_feed *f,
                                                  const struct attention_params *p)
{
    int lane = threadIdx.x % 32, number = own_number(lane);
    struct decode_piece piece = {};
    if (lane < FEED_HAND && number < p->max_pieces)
        piece = piece_read(plan_pieces(p->plan) + number);
    f->p = p;
    f->n_in_plan = __ldcg(&p->plan->n_pieces);
    f->n_own = __ldcg(&p->plan->n_own);
    f->is_shared = f->n_in_plan > f->n_own * (int)gridDim.x;
    bool exists = lane < min(f->n_own, FEED_HAND) && number < f->n_in_plan;
    if (exists)
        f->runs->hand[lane] = piece;
    f->n_numbers = __popc(__ballot_sync(~0u, exists));
    __syncwarp();
#pragma unroll
    for (int i = 0; i < FEED_HAND; i++) {
        if (i < f->n_numbers)
            f->hand_row[i] = find_row(p, &f->runs->hand[i], f->runs->hand[i].tile);
    }
}

/* Feeds them; returns whether the last one is short. */
static __device__ __forceinline__ bool feed_hand(struct decode_feed *f)
{
    struct decode_piece piece = {};
#pragma unroll
    for (int i = 0; i < FEED_HAND; i++) {
        if (i < f->n_numbers) {
            piece = f->runs->hand[i];
            feed_piece(f, &piece, f->hand_row[i]);
        }
    }
    return piece_is_short(&piece);
}

/* By one warp. Behind a short piece the rows of one, the next one and the number of the one after
 * that are on their way at the same time. */
static __device__ __forceinline__ void decode_feed_runs(struct decode_feed *f)
{
    const int not_taken = -1;
    int number = not_taken; /* of the next piece */
    bool has_own = f->n_numbers > 0, takes = has_own || f->n_own == 0;
    struct decode_piece piece = {};
    if (has_own && !feed_hand(f))
        feed_wait(f);
    if (takes)
        piece = feed_read(f, feed_number(f));
    while (piece.tile < piece.end_tile) {
        bool is_short = piece_is_short(&piece);
        int row = find_row(f->p, &piece, piece.tile);
        struct decode_piece next = {};
        if (is_short) {
            next = feed_read(f, number == not_taken ? feed_number(f) : number);
            number = feed_number(f);
        }
        feed_wait(f);
        feed_piece(f, &piece, row);
        if (!is_short) {
            feed_wait(f);
            next = feed_read(f, number == not_taken ? feed_number(f) : number);
            number = not_taken;
        }
        piece = next;
    }
    feed_run(f, &piece, 0, 0, 0);
    next_kernel_start();
    if (takes && f->is_shared)
        feed_end(f);
}

#endif

#endif
