/* attention_plan.cu - cuts a decode step into pieces: see attention_plan.cuh.
 *
 * One block of threads; the sequences are taken PLAN_THREADS at a time, a thread to each. The
 * pieces are counted first, by size, and written in a second pass. Places within a size are handed
 * out as they come: the order of the pieces changes no result.
 *
 * Groups are found among neighbours: how many chunks a sequence has in common with the one before
 * it is all that is looked at. The samples of a prompt are neighbours, and so are prompts that
 * follow each other: the batch is in the order in which they came. No result depends on groups.
 */
#include "kernels/cuda/attention_plan.cuh"

#define PLAN_THREADS 512
#define PLAN_WARPS   (PLAN_THREADS / 32)
#define N_SIZES      (TILES_PER_CHUNK + 3)

/* Index of the sizes, in the order of the list. */
#define SIZE_SHARED       0 /* all that a group shares, for a pair; then chunks of it */
#define SIZE_SHARED_CHUNK 1
#define SIZE_PAIR         2 /* a pair of several chunks, in one piece */
#define SIZE_OF(n_tiles)  (TILES_PER_CHUNK + 3 - (n_tiles))

/* What is planned together: what a group shares, or what a sequence has beyond that. */
struct plan_part {
    /* The first pair, were it one piece. n_chunks 0: there is nothing to do. */
    struct decode_piece all;
    bool is_cut;           /* into chunks                                              */
    int pair_slots;        /* that a pair parks its own chunks in, over its halves     */
    int shared_pair_slots; /* the same of what its group shares                        */
    /* Where its pieces begin in the list: its pairs, or their first chunks, the chunks in the
     * middle, and the last ones. */
    int first, full, last;
};

/* A sequence's parts of the plan, and its place in its group. */
struct plan_seq {
    struct plan_part shared; /* of a group's first sequence */
    struct plan_part own;
    int lead, member, n_members; /* lead: of the turn's sequences */
};

struct plan_board {
    int n_of_size[N_SIZES]; /* then where the next piece of the size goes */
    int n_slots, longest;
    int sums[PLAN_WARPS];
    unsigned begins[PLAN_WARPS];   /* bits: sequences that begin a run of groups    */
    int n_alike[PLAN_THREADS + 1]; /* chunks in common with the sequence before     */
    struct plan_part part[PLAN_THREADS];
};

/* Parked chunks of one kind: of all sequences, and of those before this turn's first one. */
struct plan_total {
    int n, n_ahead;
};

/* What the passes over the sequences share. */
struct plan_work {
    const struct attention_params *p;
    int n_blocks, n_pairs; /* of threads of the decode kernel; pairs of a sequence */
    bool has_groups;
    int n_saved; /* chunks that groups need not read */
    struct plan_total shared, own;
    int turn;            /* the first sequence of the turn at hand, or NO_TURN */
    struct plan_seq seq; /* this thread's, of that                             */
};

#define NO_TURN (-1)

static __device__ struct plan_seq plan_look(const struct attention_params *p, int seq)
{
    struct plan_seq s = {};
    struct decode_piece *all = &s.own.all;
    if (seq >= p->n_seqs)
        return s;
    all->token = p->q_start[seq];
    int end = p->q_start[seq + 1];
    all->kv_len = p->kv_len[seq];
    if (end - all->token != 1)
        return s;
    all->seq = seq;
    all->tile = plan_first_tile(all->kv_len, p->window);
    all->end_tile = plan_end_tile(all->kv_len);
    all->n_chunks = (all->end_tile - 1) / TILES_PER_CHUNK - all->tile / TILES_PER_CHUNK + 1;
    all->slot = NO_SLOT;
    all->n_seqs = 1;
    all->n_halves = row_halves(p->heads_per_kv);
    return s;
}

/* ---- groups ---------------------------------------------------------------------------------- */

/* Chunks that a sequence and the one before it may have in common, were all of their blocks the
 * same: the first one is, and all of these keys are older than either's newest. All is loaded
 * together, as far as the sequences exist. */
static __device__ int plan_most_alike(const struct attention_params *p, int seq)
{
    if (seq < 1 || seq >= p->n_seqs)
        return 0;
    const int *blocks = p->block_table + (size_t)seq * p->max_blocks;
    const int *start = p->q_start + seq;
    int kv_len = min(p->kv_len[seq - 1], p->kv_len[seq]);
    bool are_decodes = (start[1] - start[0] == 1) & (start[0] - start[-1] == 1);
    bool begin_alike = blocks[0] == blocks[-p->max_blocks];
    return are_decodes & begin_alike ? max(0, kv_len - 1) / ATTENTION_CHUNK : 0;
}

/* How many of the first n_chunks they have in common. By a warp. */
static __device__ int warp_count_alike(const struct attention_params *p, int seq, int n_chunks)
{
    const int *blocks = p->block_table + (size_t)seq * p->max_blocks;
    int n_blocks = CEIL_DIV(n_chunks * ATTENTION_CHUNK, p->block_size);
    for (int first = 0; first < n_blocks; first += 32) {
        int i = min(first + (int)threadIdx.x % 32, n_blocks - 1);
        unsigned differ = __ballot_sync(~0u, blocks[i] != blocks[i - p->max_blocks]);
        if (differ)
            return (first + __ffs(differ) - 1) * p->block_size / ATTENTION_CHUNK;
    }
    return n_chunks;
}

/* Counts the chunks that each sequence has in common with the one before it. */
static __device__ void plan_count_alike(const struct plan_work *w, struct plan_board *board)
{
    int t = threadIdx.x;
    for (int first = 0; first < w->p->n_seqs; first += PLAN_THREADS) {
        board->n_alike[t] = plan_most_alike(w->p, first + t);
        __syncthreads();
        for (int i = t / 32; i < min(PLAN_THREADS, w->p->n_seqs - first); i += PLAN_WARPS) {
            int n = board->n_alike[i];
            if (n == 0)
                continue;
            n = warp_count_alike(w->p, first + i, n);
            if (t % 32 == 0)
                board->n_alike[i] = n;
        }
        __syncthreads();
        if (first + t < w->p->n_seqs)
            plan_alike(w->p)[first + t] = board->n_alike[t];
        __syncthreads();
    }
}

static __device__ bool plan_begins(const struct plan_board *board, int t)
{
    return board->begins[t / 32] >> t % 32 & 1;
}

/* Finds the group of a sequence; how many chunks it shares. Runs of sequences begin where one has
 * less in common with the one before it than with the one behind it, and are cut into groups as
 * large as one piece can serve. */
static __device__ int plan_find_group(const struct plan_work *w, struct plan_board *board,
                                      struct plan_seq *s)
{
    int t = threadIdx.x, seq = s->own.all.seq, most = group_seqs(w->p->heads_per_kv);
    board->n_alike[t] = s->own.all.n_chunks > 0 && t > 0 ? plan_alike(w->p)[seq] : 0;
    if (t == 0)
        board->n_alike[PLAN_THREADS] = 0;
    __syncthreads();
    bool begins = board->n_alike[t] == 0 || board->n_alike[t] < board->n_alike[t + 1];
    unsigned mask = __ballot_sync(~0u, begins);
    if (t % 32 == 0)
        board->begins[t / 32] = mask;
    __syncthreads();
    int word = t / 32;
    for (mask &= ~0u >> (31 - t % 32); mask == 0; mask = board->begins[word])
        word--; /* the first sequence of all begins one */
    s->member = (t - (32 * word + 31 - __clz(mask))) % most;
    s->lead = t - s->member;
    int n_shared = INT_MAX, n = 1;
    for (; n < most && s->lead + n < PLAN_THREADS && !plan_begins(board, s->lead + n); n++)
        n_shared = min(n_shared, board->n_alike[s->lead + n]);
    s->n_members = n;
    return n > 1 ? n_shared : 0;
}

/* Takes the chunks that a group shares out of its sequences' own parts. */
static __device__ void plan_group(const struct plan_work *w, struct plan_board *board,
                                  struct plan_seq *s)
{
    int n_shared = plan_find_group(w, board, s), n_together = taker_seqs(w->p->heads_per_kv);
    struct decode_piece *own = &s->own.all, *shared = &s->shared.all;
    if (n_shared == 0)
        return;
    if (s->member == 0) {
        *shared = *own;
        shared->end_tile = n_shared * TILES_PER_CHUNK;
        shared->n_chunks = n_shared;
        shared->n_seqs = s->n_members;
        shared->n_halves = CEIL_DIV(s->n_members, n_together);
    }
    own->tile = n_shared * TILES_PER_CHUNK;
    own->n_chunks -= n_shared;
    own->first_row = s->member % n_together * w->p->heads_per_kv;
    own->n_sharing = min(n_together, s->n_members - s->member / n_together * n_together);
}

/* The parts of this thread's sequence of a turn. Most steps have one turn only, which is looked at
 * once. */
static __device__ struct plan_seq *plan_turn(struct plan_work *w, struct plan_board *board,
                                             int first)
{
    if (w->turn != first) {
        w->turn = first;
        w->seq = plan_look(w->p, first + threadIdx.x);
        if (w->has_groups)
            plan_group(w, board, &w->seq);
    }
    return &w->seq;
}

/* Tells the sequences of a group where it parks what it shares. */
static __device__ void plan_share_slots(const struct plan_work *w, struct plan_board *board,
                                        struct plan_seq *s)
{
    board->part[threadIdx.x] = s->shared;
    __syncthreads();
    if (s->own.all.n_sharing > 0) {
        const struct plan_part *shared = &board->part[s->lead];
        int half = s->member / taker_seqs(w->p->heads_per_kv);
        s->own.all.n_shared = shared->all.n_chunks;
        s->own.all.shared_slot = shared->all.slot + half * shared->all.n_chunks;
        s->own.shared_pair_slots = shared->pair_slots;
    }
    __syncthreads();
}

/* ---- counting -------------------------------------------------------------------------------- */

/* Takes places for the pieces of a part, or counts them in the first pass. */
static __device__ void plan_take_places(struct plan_board *board, struct plan_part *part,
                                        int n_pairs)
{
    const struct decode_piece *all = &part->all;
    int n = all->n_chunks;
    if (n == 0)
        return;
    if (all->n_seqs > 1) {
        int size = part->is_cut ? SIZE_SHARED_CHUNK : SIZE_SHARED;
        part->first = atomicAdd(&board->n_of_size[size], n_pairs * (part->is_cut ? n : 1));
        part->full = part->first + n_pairs;
        part->last = part->first + n_pairs * (n - 1);
    } else if (!part->is_cut) {
        int size = n > 1 ? SIZE_PAIR : SIZE_OF(all->end_tile - all->tile);
        part->first = atomicAdd(&board->n_of_size[size], n_pairs);
    } else {
        int last_chunk = (all->end_tile - 1) / TILES_PER_CHUNK * TILES_PER_CHUNK;
        int first_size = SIZE_OF(next_chunk(all->tile) - all->tile);
        part->first = atomicAdd(&board->n_of_size[first_size], n_pairs);
        part->full = atomicAdd(&board->n_of_size[SIZE_OF(TILES_PER_CHUNK)], n_pairs * (n - 2));
        part->last = atomicAdd(&board->n_of_size[SIZE_OF(all->end_tile - last_chunk)], n_pairs);
    }
}

/* What a part parks when it is cut. */
static __device__ int plan_parked(const struct plan_work *w, const struct plan_part *part)
{
    int n = part->all.n_chunks;
    return n <= 1 ? 0 : n * w->n_pairs * (part->all.n_seqs > 1 ? part->all.n_halves : 1);
}

/* Parts of several chunks are cut while those behind them have few enough. */
static __device__ void plan_cut(const struct plan_work *w, struct plan_total *total,
                                struct plan_board *board, struct plan_part *part)
{
    int n = plan_parked(w, part), sum;
    int end = total->n_ahead + block_prefix_sum<PLAN_WARPS>(n, &sum, board->sums);
    part->is_cut = n > 0 && total->n - end < plan_cut_chunks(w->n_blocks, board->longest);
    total->n_ahead += sum;
    __syncthreads();
}

/* The parts of a turn's sequence, cut, and with places in the list. */
static __device__ struct plan_seq *plan_next(struct plan_work *w, struct plan_board *board,
                                             int first)
{
    struct plan_seq *s = plan_turn(w, board, first);
    if (w->has_groups)
        plan_cut(w, &w->shared, board, &s->shared);
    plan_cut(w, &w->own, board, &s->own);
    plan_take_places(board, &s->shared, w->n_pairs);
    plan_take_places(board, &s->own, w->n_pairs);
    return s;
}

/* Sum of `value` over the threads. */
static __device__ int plan_sum(struct plan_board *board, int value)
{
    int sum;
    block_prefix_sum<PLAN_WARPS>(value, &sum, board->sums);
    __syncthreads();
    return sum;
}

/* Adds up what would be parked if everything was cut, and what groups save. */
static __device__ void plan_measure(struct plan_work *w, struct plan_board *board)
{
    if (threadIdx.x == 0)
        board->longest = 0;
    w->shared.n = w->own.n = w->n_saved = 0;
    w->turn = NO_TURN;
    __syncthreads();
    for (int first = 0; first < w->p->n_seqs; first += PLAN_THREADS) {
        const struct plan_seq *s = plan_turn(w, board, first);
        const struct plan_part *shared = &s->shared;
        if (w->has_groups) {
            w->shared.n += plan_sum(board, plan_parked(w, shared));
            w->n_saved += plan_sum(board, (shared->all.n_seqs - 1) * shared->all.n_chunks);
        }
        atomicMax(&board->longest, max(s->own.all.n_chunks, shared->all.n_chunks));
        w->own.n += plan_sum(board, plan_parked(w, &s->own));
    }
    w->n_saved *= w->n_pairs;
}

/* Measures, and finds out whether there are groups, and whether they pay: they save a fifth of the
 * chunks, and more than one for each block. With fewer it takes longer to wait for what is parked:
 * of 64 sequences of 1088 keys (64/8 heads, two in a group), which had 512 in common, attention
 * took 56.9 us in place of 53.2, and of 8 of 2048 keys with 1984 16.0 in place of 14.4. */
static __device__ void plan_begin(struct plan_work *w, struct plan_board *board, bool shares)
{
    int n_alike = 0;
    if (threadIdx.x < N_SIZES)
        board->n_of_size[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        board->n_slots = 0;
    for (int seq = threadIdx.x; shares && seq < w->p->n_seqs; seq += PLAN_THREADS)
        n_alike += plan_most_alike(w->p, seq);
    w->has_groups = false;
    plan_measure(w, board);
    previous_kernel_wait(); /* the attention before it may still read the plan before it */
    if (!__syncthreads_or(n_alike > 0) || w->own.n <= w->n_blocks)
        return;
    int n_before = w->own.n;
    plan_count_alike(w, board);
    w->has_groups = true;
    plan_measure(w, board);
    if (w->n_saved > w->n_blocks && w->n_saved > n_before / 5)
        return;
    w->has_groups = false;
    plan_measure(w, board);
}

/* Counts the pieces of each size, and turns the counts into where the sizes begin. */
static __device__ void plan_count(struct plan_work *w, struct plan_board *board)
{
    w->shared.n_ahead = w->own.n_ahead = 0;
    for (int first = 0; first < w->p->n_seqs; first += PLAN_THREADS)
        plan_next(w, board, first);
    w->shared.n_ahead = w->own.n_ahead = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        int n = 0, n_long = board->n_of_size[SIZE_SHARED] + board->n_of_size[SIZE_PAIR];
        for (int i = 0; i < N_SIZES; i++) {
            int begin = n;
            n += board->n_of_size[i];
            board->n_of_size[i] = begin;
        }
        w->p->plan->n_pieces = n;
        w->p->plan->n_taken = w->p->plan->n_ended = 0;
        w->p->plan->n_own = w->has_groups ? 0 : plan_own_pieces(n, w->n_blocks, n_long == 0);
    }
    __syncthreads();
}

/* ---- writing --------------------------------------------------------------------------------- */

/* A part that is cut parks its chunks; what a group shares is parked in any case. */
static __device__ void plan_take_slots(const struct plan_work *w, struct plan_board *board,
                                       struct plan_part *part)
{
    struct decode_piece *all = &part->all;
    bool is_shared = all->n_seqs > 1;
    if (all->n_chunks == 0 || (!part->is_cut && !is_shared))
        return;
    if (!part->is_cut)
        all->n_chunks = 1;
    part->pair_slots = all->n_chunks * (is_shared ? all->n_halves : 1);
    all->slot = atomicAdd(&board->n_slots, part->pair_slots * w->n_pairs);
}

/* The pieces of a part, of one of its pairs. */
static __device__ void plan_write_pair(const struct plan_work *w, const struct plan_part *part,
                                       int pair)
{
    struct decode_piece piece = part->all, *pieces = plan_pieces(w->p->plan);
    int place = part->first + pair, end_tile = piece.end_tile;
    int n = piece.n_chunks == 0 ? 0 : part->is_cut ? piece.n_chunks : 1;
    piece.pair = pair;
    piece.slot += pair * part->pair_slots;
    piece.shared_slot += pair * part->shared_pair_slots;
    for (int i = 0; i < part->pair_slots; i++)
        plan_arrivals(w->p)[piece.slot + i] = 0;
    for (; piece.chunk < n; piece.chunk++) {
        bool is_last = piece.chunk == n - 1;
        if (!is_last)
            piece.end_tile = next_chunk(piece.tile);
        else
            piece.end_tile = end_tile;
        if (is_last && n > 1)
            place = part->last + pair;
        pieces[place] = piece;
        place = part->full + piece.chunk * w->n_pairs + pair;
        piece.tile = piece.end_tile;
    }
}

/* A thread to each pair of the parts that n threads have. */
static __device__ void plan_write(const struct plan_work *w, struct plan_board *board,
                                  const struct plan_part *own, int n)
{
    board->part[threadIdx.x] = *own;
    __syncthreads();
    for (int i = threadIdx.x; i < n * w->n_pairs; i += PLAN_THREADS)
        plan_write_pair(w, &board->part[i / w->n_pairs], i % w->n_pairs);
    __syncthreads();
}

static __global__ void __launch_bounds__(PLAN_THREADS)
    plan_kernel(const struct attention_params p, int n_blocks, int n_pairs, bool shares)
{
    __shared__ struct plan_board board;
    struct plan_work w;
    w.p = &p;
    w.n_blocks = n_blocks;
    w.n_pairs = n_pairs;
    plan_begin(&w, &board, shares);
    plan_count(&w, &board);
    for (int first = 0; first < p.n_seqs; first += PLAN_THREADS) {
        struct plan_seq *s = plan_next(&w, &board, first);
        int n = min(PLAN_THREADS, p.n_seqs - first);
        plan_take_slots(&w, &board, &s->shared);
        plan_take_slots(&w, &board, &s->own);
        if (w.has_groups) {
            plan_share_slots(&w, &board, s);
            plan_write(&w, &board, &s->shared, n);
        }
        plan_write(&w, &board, &s->own, n);
    }
    /* The decode kernel reads it ahead of its wait for the kernel before it, which may be this one:
     * nobody may start before the plan is there. */
    __threadfence();
}

void attention_plan(const struct cuda_device *d, const struct attention_params *p, bool shares)
{
    int n_pairs = p->n_kv_heads * row_groups(p->heads_per_kv);
    cuda_launch_early(d, plan_kernel, dim3(1), PLAN_THREADS, 0, *p,
                      MIN(d->n_sms, MAX_DECODE_BLOCKS), n_pairs, shares && p->n_seqs > 1);
}
