/* attention_plan.cu - cuts a decode step into pieces: see attention_plan.cuh.
 *
 * One block of threads; the sequences are taken PLAN_THREADS at a time, a thread to each. The
 * pieces are counted first, by size, and written in a second pass. Places within a size are handed
 * out as they come: the order of the pieces changes no result.
 */
#include "kernels/cuda/attention_plan.cuh"

#define PLAN_THREADS 1024
#define PLAN_WARPS   (PLAN_THREADS / 32)
#define N_SIZES      (TILES_PER_CHUNK + 1)

/* Index of the sizes, in the order of the list. */
#define SIZE_PAIR        0 /* a pair of several chunks, in one piece */
#define SIZE_OF(n_tiles) (TILES_PER_CHUNK + 1 - (n_tiles))
#define SIZE_FULL        SIZE_OF(TILES_PER_CHUNK)

/* A sequence's part of the plan. */
struct plan_seq {
    int kv_len, token, tile, end_tile;
    int n_chunks;   /* 0: it takes no part                                    */
    bool is_cut;    /* into chunks                                            */
    int slot;       /* of the first chunk of its first pair                   */
    int first;      /* where its pieces begin: pairs, or first chunks of them */
    int full, last; /* and the chunks in the middle, and the last ones        */
};

struct plan_board {
    int n_of_size[N_SIZES]; /* then where the next piece of the size goes */
    int n_slots, longest;
    int sums[PLAN_WARPS];
    struct plan_seq seq[PLAN_THREADS];
};

static __device__ struct plan_seq plan_look(const struct attention_params *p, int seq)
{
    struct plan_seq s = {};
    if (seq >= p->n_seqs)
        return s;
    int token = p->q_start[seq], end = p->q_start[seq + 1];
    s.kv_len = p->kv_len[seq];
    if (end - token != 1)
        return s;
    s.token = token;
    s.tile = plan_first_tile(s.kv_len, p->window);
    s.end_tile = plan_end_tile(s.kv_len);
    s.n_chunks = (s.end_tile - 1) / TILES_PER_CHUNK - s.tile / TILES_PER_CHUNK + 1;
    return s;
}

/* Takes places for the pieces of a sequence, or counts them in the first pass. */
static __device__ void plan_take_places(struct plan_board *board, struct plan_seq *s, int n_pairs)
{
    if (s->n_chunks == 0)
        return;
    if (!s->is_cut) {
        int size = s->n_chunks > 1 ? SIZE_PAIR : SIZE_OF(s->end_tile - s->tile);
        s->first = atomicAdd(&board->n_of_size[size], n_pairs);
        return;
    }
    int last_chunk = (s->end_tile - 1) / TILES_PER_CHUNK * TILES_PER_CHUNK;
    s->first = atomicAdd(&board->n_of_size[SIZE_OF(next_chunk(s->tile) - s->tile)], n_pairs);
    s->full = atomicAdd(&board->n_of_size[SIZE_FULL], n_pairs * (s->n_chunks - 2));
    s->last = atomicAdd(&board->n_of_size[SIZE_OF(s->end_tile - last_chunk)], n_pairs);
}

/* What the passes over the sequences share. */
struct plan_work {
    const struct attention_params *p;
    int n_blocks, n_pairs; /* of threads of the decode kernel; pairs of a sequence       */
    int n_chunks;          /* of all sequences that have several, over their pairs       */
    int n_chunks_ahead;    /* of those before this turn's first sequence                 */
};

/* Sequences of several chunks are cut while those behind them have few enough. */
static __device__ void plan_cut(struct plan_work *w, struct plan_board *board, struct plan_seq *s)
{
    int n = s->n_chunks > 1 ? s->n_chunks * w->n_pairs : 0, sum;
    int end = w->n_chunks_ahead + block_prefix_sum<PLAN_WARPS>(n, &sum, board->sums);
    s->is_cut = n > 0 && w->n_chunks - end < plan_cut_chunks(w->n_blocks, board->longest);
    w->n_chunks_ahead += sum;
    __syncthreads();
}

static __device__ void plan_measure(struct plan_work *w, struct plan_board *board)
{
    if (threadIdx.x < N_SIZES)
        board->n_of_size[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        board->n_slots = board->longest = 0;
    __syncthreads();
    for (int first = 0; first < w->p->n_seqs; first += PLAN_THREADS) {
        int n = plan_look(w->p, first + threadIdx.x).n_chunks, sum;
        block_prefix_sum<PLAN_WARPS>(n > 1 ? n * w->n_pairs : 0, &sum, board->sums);
        w->n_chunks += sum;
        atomicMax(&board->longest, n);
        __syncthreads();
    }
}

/* Counts the pieces of each size, and turns the counts into where the sizes begin. */
static __device__ void plan_count(struct plan_work *w, struct plan_board *board)
{
    w->n_chunks_ahead = 0;
    for (int first = 0; first < w->p->n_seqs; first += PLAN_THREADS) {
        struct plan_seq s = plan_look(w->p, first + threadIdx.x);
        plan_cut(w, board, &s);
        plan_take_places(board, &s, w->n_pairs);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int n = 0, n_long = board->n_of_size[SIZE_PAIR];
        for (int i = 0; i < N_SIZES; i++) {
            int begin = n;
            n += board->n_of_size[i];
            board->n_of_size[i] = begin;
        }
        w->p->plan->n_pieces = n;
        w->p->plan->n_taken = w->p->plan->n_ended = 0;
        w->p->plan->n_own = plan_own_pieces(n, w->n_blocks, n_long == 0);
    }
    __syncthreads();
}

/* Piece `number` of a sequence, of all of its chunks and pairs. */
static __device__ void plan_write_piece(struct decode_piece *pieces, const struct plan_seq *s,
                                        int seq, int number, int n_pairs)
{
    int chunk = number / n_pairs, pair = number % n_pairs;
    struct decode_piece piece = {seq,       pair,     s->tile, s->end_tile,
                                 s->kv_len, s->token, NO_SLOT, s->n_chunks};
    int place = s->first + pair;
    if (s->is_cut) {
        bool is_first = chunk == 0, is_last = chunk == s->n_chunks - 1;
        piece.slot = s->slot + pair * s->n_chunks;
        if (!is_first)
            piece.tile = (s->tile / TILES_PER_CHUNK + chunk) * TILES_PER_CHUNK;
        if (!is_last)
            piece.end_tile = next_chunk(piece.tile);
        if (is_last)
            place = s->last + pair;
        else if (!is_first)
            place = s->full + (chunk - 1) * n_pairs + pair;
    }
    pieces[place] = piece;
}

/* A warp to each of the n sequences from `first` on, which are on the board. */
static __device__ void plan_write_seqs(const struct plan_work *w, const struct plan_board *board,
                                       int first, int n)
{
    struct decode_piece *pieces = plan_pieces(w->p->plan);
    int *arrivals = plan_arrivals(w->p), n_pairs = w->n_pairs;
    for (int i = threadIdx.x / 32; i < n; i += PLAN_WARPS) {
        const struct plan_seq *s = &board->seq[i];
        int n_pieces = n_pairs * (s->is_cut ? s->n_chunks : s->n_chunks > 0);
        for (int number = threadIdx.x % 32; number < n_pieces; number += 32) {
            plan_write_piece(pieces, s, first + i, number, n_pairs);
            if (s->is_cut)
                arrivals[s->slot + number] = 0;
        }
    }
}

static __global__ void __launch_bounds__(PLAN_THREADS)
    plan_kernel(const struct attention_params p, int n_blocks, int n_pairs)
{
    __shared__ struct plan_board board;
    struct plan_work w = {&p, n_blocks, n_pairs, 0, 0};
    next_kernel_start();
    plan_measure(&w, &board);
    previous_kernel_wait(); /* the attention before it may still read the plan before it */
    plan_count(&w, &board);
    w.n_chunks_ahead = 0;
    for (int first = 0; first < p.n_seqs; first += PLAN_THREADS) {
        struct plan_seq s = plan_look(&p, first + threadIdx.x);
        plan_cut(&w, &board, &s);
        plan_take_places(&board, &s, n_pairs);
        if (s.is_cut)
            s.slot = atomicAdd(&board.n_slots, s.n_chunks * n_pairs);
        board.seq[threadIdx.x] = s;
        __syncthreads();
        plan_write_seqs(&w, &board, first, min(PLAN_THREADS, p.n_seqs - first));
        __syncthreads();
    }
    __threadfence(); /* the decode kernel may read it ahead of its wait for the kernel before it */
}

void attention_plan(const struct cuda_device *d, const struct attention_params *p)
{
    int n_pairs = p->n_kv_heads * row_groups(p->heads_per_kv);
    cuda_launch_early(d, plan_kernel, dim3(1), PLAN_THREADS, 0, *p,
                      MIN(d->n_sms, MAX_DECODE_BLOCKS), n_pairs);
}
