/* test_scheduler.c - whole lives of sequences on a pretended device.
 *
 * The pretended model keeps one number per slot of KV memory: a hash of the token and of the number
 * in the slot of the token before it, read through the block table. The next token is a function of
 * the number at the last position, so a wrong block, a lost copy or a token that was never computed
 * changes the output. The expected output comes from the token ids alone.
 */
#include "engine/scheduler.h"
#include "tests/testing.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SLOTS 4096
#define MAX_JOBS  64
#define MAX_LEN   40
#define MAX_STEPS 20000
#define VOCAB     3

struct job {
    struct seq seq;
    int token[MAX_LEN];
    int expected[MAX_LEN]; /* [seq.max_tokens]                                      */
    int sampled;           /* the token after the last one that was computed        */
    int finished_at;       /* position in the order of finishing, -1 before */
    int admitted_at;       /* the step of its first tokens, -1 before       */
};

struct world {
    struct kv_cache_options kv;
    struct scheduler_options options;
    struct kv_cache *cache;
    struct scheduler *scheduler;
    uint64_t memory[MAX_SLOTS], host[MAX_SLOTS];
    struct job job[MAX_JOBS];
    int n_jobs, n_finished, n_steps, n_computed;
};

static uint64_t state_after(uint64_t before, int token)
{
    return mix64(before * 31 + (uint64_t)token + 1);
}

static int token_from(uint64_t at_last_position)
{
    return (int)(at_last_position % VOCAB);
}

static void open_world(struct world *w)
{
    w->kv.block_size = w->options.block_size;
    assert_true(w->kv.n_blocks * w->kv.block_size <= MAX_SLOTS);
    assert_true(w->kv.n_host_blocks * w->kv.block_size <= MAX_SLOTS);
    assert_int_equal(kv_cache_open(&w->cache, &w->kv), 0);
    assert_int_equal(scheduler_open(&w->scheduler, w->cache, &w->options), 0);
}

static void close_world(struct world *w)
{
    struct kv_cache_stats stats;
    kv_cache_get_stats(w->cache, &stats);
    assert_int_equal(kv_cache_available(w->cache), w->kv.n_blocks);
    assert_int_equal(stats.host_used, 0);
    for (int i = 0; i < w->n_jobs; i++)
        kv_seq_free(&w->job[i].seq.kv);
    scheduler_close(w->scheduler);
    kv_cache_close(w->cache);
    free(w);
}

/* A world with room for everything, for a test to narrow down before open_world. */
static struct world *make_world(void)
{
    struct world *w = xcalloc(1, sizeof(*w));
    w->kv = (struct kv_cache_options){.n_blocks = 64, .prefix_caching = true};
    w->options = (struct scheduler_options){
        .max_num_seqs = 8, .max_num_batched_tokens = 64, .block_size = 4};
    return w;
}

/* Submits n_prompt tokens (the first `same` of them equal in all jobs) and n_output to come. */
static struct job *submit(struct world *w, int n_prompt, int n_output, int same)
{
    assert_true(w->n_jobs < MAX_JOBS && n_prompt + n_output <= MAX_LEN);
    struct job *j = &w->job[w->n_jobs];
    j->finished_at = j->admitted_at = -1;
    j->seq = (struct seq){.id = (uint64_t)w->n_jobs++,
                          .token = j->token,
                          .n_prompt = n_prompt,
                          .n_tokens = n_prompt,
                          .max_tokens = n_prompt + n_output};
    uint64_t at = 0;
    for (int i = 0; i < j->seq.max_tokens; i++) {
        if (i >= n_prompt)
            j->expected[i] = token_from(at);
        else
            j->expected[i] = i < same ? 0 : (int)(mix64(j->seq.id * 64 + (uint64_t)i) % VOCAB);
        at = state_after(at, j->expected[i]);
    }
    memcpy(j->token, j->expected, (size_t)n_prompt * sizeof(*j->token));
    kv_seq_init(&j->seq.kv, CEIL_DIV(j->seq.max_tokens, w->options.block_size));
    return j;
}

static struct job *add(struct world *w, int n_prompt, int n_output)
{
    struct job *j = submit(w, n_prompt, n_output, 0);
    scheduler_add(w->scheduler, &j->seq);
    return j;
}

static struct job *job_of(struct world *w, const struct seq *seq)
{
    return &w->job[seq->id];
}

static uint64_t *slot_of(struct world *w, const struct seq *seq, int position)
{
    int size = w->options.block_size;
    return &w->memory[seq->kv.block[position / size] * size + position % size];
}

static void copy_blocks(const struct world *w, uint64_t *dst, const uint64_t *src,
                        const struct kv_copy *copy, int n)
{
    int size = w->options.block_size;
    for (int i = 0; i < n; i++)
        memcpy(dst + copy[i].dst * size, src + copy[i].src * size, (size_t)size * sizeof(*dst));
}

/* A model reads all of the tokens before, not only the last one. */
static void check_computed(struct world *w, const struct seq *seq)
{
    uint64_t at = 0;
    for (int p = 0; p < seq->n_computed; p++) {
        at = state_after(at, seq->token[p]);
        assert_true(*slot_of(w, seq, p) == at);
    }
}

static void compute(struct world *w, const struct schedule *step)
{
    copy_blocks(w, w->host, w->memory, step->swap_out, step->n_swap_out);
    copy_blocks(w, w->memory, w->host, step->swap_in, step->n_swap_in);
    copy_blocks(w, w->memory, w->memory, step->copy, step->n_copies);
    w->n_computed += step->n_tokens;
    for (int i = 0; i < step->n_seqs; i++) {
        struct seq *seq = step->seq[i];
        check_computed(w, seq);
        for (int p = seq->n_computed; p < seq->n_computed + seq->n_scheduled; p++) {
            uint64_t before = p > 0 ? *slot_of(w, seq, p - 1) : 0;
            *slot_of(w, seq, p) = state_after(before, seq->token[p]);
        }
        int last = seq->n_computed + seq->n_scheduled - 1;
        job_of(w, seq)->sampled = token_from(*slot_of(w, seq, last));
    }
}

/* What the engine does with a sampled token. */
static void append(struct world *w, struct seq *seq)
{
    struct job *j = job_of(w, seq);
    seq->token[seq->n_tokens++] = j->sampled;
    if (seq->n_tokens < seq->max_tokens)
        return;
    scheduler_finish(w->scheduler, seq, FINISH_LENGTH);
    j->finished_at = w->n_finished++;
    assert_memory_equal(j->token, j->expected, (size_t)seq->max_tokens * sizeof(*j->token));
}

static void check_step(struct world *w, const struct schedule *step)
{
    int n_tokens = 0, n_prefill = 0;
    assert_true(step->n_tokens <= w->options.max_num_batched_tokens);
    assert_true(step->n_seqs <= w->options.max_num_seqs);
    for (int i = 0; i < step->n_seqs; i++) {
        const struct seq *seq = step->seq[i];
        struct job *j = job_of(w, seq);
        assert_true(seq->n_scheduled > 0 && seq->n_computed + seq->n_scheduled <= seq->n_tokens);
        n_tokens += seq->n_scheduled;
        if (seq->n_scheduled > 1 || seq->n_computed < seq->n_prompt)
            n_prefill += seq->n_scheduled;
        if (j->admitted_at < 0)
            j->admitted_at = w->n_steps;
    }
    assert_int_equal(n_tokens, step->n_tokens);
    assert_true(n_prefill <= step->n_prefill_tokens);
    scheduler_check(w->scheduler);
}

/* One step; false when there was nothing to do. */
static bool step_world(struct world *w)
{
    struct schedule step;
    scheduler_next(w->scheduler, &step);
    check_step(w, &step);
    compute(w, &step);
    scheduler_advance(w->scheduler, &step);
    scheduler_check(w->scheduler);
    double waste = scheduler_kv_waste(w->scheduler);
    assert_true(waste >= 0 && waste < 1);
    for (int i = 0; i < step.n_seqs; i++) {
        if (step.seq[i]->n_computed == step.seq[i]->n_tokens)
            append(w, step.seq[i]);
    }
    scheduler_check(w->scheduler);
    w->n_steps++;
    return step.n_seqs > 0;
}

static void run_to_the_end(struct world *w)
{
    while (step_world(w))
        assert_true(w->n_steps < MAX_STEPS);
    assert_int_equal(scheduler_n_running(w->scheduler), 0);
    assert_int_equal(scheduler_n_waiting(w->scheduler), 0);
}

/* ---- steps ---- */

static void a_prompt_is_cut_into_chunks_of_the_token_budget(void **state)
{
    (void)state;
    static const int chunk[] = {4, 4, 3, 1, 1};
    struct world *w = make_world();
    w->options.max_num_batched_tokens = 4;
    open_world(w);
    const struct job *j = add(w, 11, 3);
    for (size_t i = 0; i < ARRAY_LEN(chunk); i++) {
        int before = j->seq.n_computed;
        assert_true(step_world(w));
        if (j->finished_at < 0)
            assert_int_equal(j->seq.n_computed - before, chunk[i]);
    }
    assert_int_equal(j->finished_at, 0);
    close_world(w);
}

static void a_long_prompt_does_not_hold_up_those_who_decode(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->options.max_num_batched_tokens = 4;
    open_world(w);
    const struct job *talker = add(w, 2, 12);
    step_world(w);
    const struct job *reader = add(w, 20, 2);
    for (int n = 1; n <= 6; n++) {
        assert_true(step_world(w));
        assert_int_equal(talker->seq.n_tokens, 3 + n);
        assert_int_equal(reader->seq.n_computed, 3 * n);
    }
    run_to_the_end(w);
    close_world(w);
}

static void a_static_batch_is_complete_before_the_next_one_starts(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->options.static_batching = true;
    w->options.max_num_seqs = 3;
    w->options.max_num_batched_tokens = 8;
    w->options.block_size = MAX_LEN;
    w->kv = (struct kv_cache_options){.n_blocks = 3};
    open_world(w);
    for (int i = 0; i < 7; i++)
        add(w, 10, 1 + i);
    int end_of_batch = 0;
    for (int first = 0; first < 7; first += 3) {
        while (w->n_finished < MIN(first + 3, 7)) {
            assert_true(step_world(w));
            assert_int_equal(scheduler_n_waiting(w->scheduler), MAX(7 - first - 3, 0));
        }
        for (int i = first; i < MIN(first + 3, 7); i++)
            assert_true(w->job[i].admitted_at >= end_of_batch);
        end_of_batch = w->n_steps;
    }
    run_to_the_end(w);
    close_world(w);
}

static void lanes_are_given_to_one_seq_at_a_time(void **state)
{
    (void)state;
    struct world *w = make_world(); /* scheduler_check looks for lanes taken twice */
    w->options.max_num_seqs = 3;
    open_world(w);
    for (int i = 0; i < 9; i++)
        add(w, 3, 1 + i % 4);
    run_to_the_end(w);
    assert_int_equal(w->n_finished, 9);
    close_world(w);
}

/* ---- memory ---- */

static void the_seq_that_ranks_last_gives_way_and_keeps_its_tokens(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv = (struct kv_cache_options){.n_blocks = 6};
    open_world(w);
    const struct job *first = add(w, 8, 12), *second = add(w, 7, 9);
    while (second->seq.n_preemptions == 0)
        assert_true(step_world(w));
    int n_kept = second->seq.n_tokens;
    assert_true(n_kept > 7);
    assert_int_equal(second->seq.kv.n_blocks, 0);
    assert_int_equal(first->seq.n_preemptions, 0);
    run_to_the_end(w);
    assert_int_equal(first->finished_at, 0);
    assert_int_equal(scheduler_n_preemptions(w->scheduler), 1);
    close_world(w);
}

static void a_preempted_seq_finds_its_blocks_again_when_nobody_took_them(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv.n_blocks = 6;
    w->options.block_size = 4;
    open_world(w);
    add(w, 8, 6);
    const struct job *second = add(w, 8, 8);
    while (second->seq.n_preemptions == 0)
        assert_true(step_world(w));
    struct kv_cache_stats before, after;
    kv_cache_get_stats(w->cache, &before);
    run_to_the_end(w);
    kv_cache_get_stats(w->cache, &after);
    assert_true(after.hit_tokens > before.hit_tokens);
    assert_int_equal(second->seq.n_cached, 0); /* counts what was there before it came */
    close_world(w);
}

static void memory_aware_scheduling_never_preempts(void **state)
{
    (void)state;
    long n_preemptions[SCHEDULING_N];
    for (int policy = 0; policy < SCHEDULING_N; policy++) {
        struct world *w = make_world();
        w->kv.n_blocks = 8;
        w->options.policy = (enum scheduling_policy)policy;
        open_world(w);
        for (int i = 0; i < 12; i++)
            add(w, 3 + i % 5, 16);
        run_to_the_end(w);
        assert_int_equal(w->n_finished, 12);
        n_preemptions[policy] = scheduler_n_preemptions(w->scheduler);
        close_world(w);
    }
    assert_true(n_preemptions[SCHEDULING_FCFS] > 0);
    assert_int_equal(n_preemptions[SCHEDULING_MEMORY_AWARE], 0);
}

static void a_seq_that_needs_the_whole_pool_runs_even_when_all_of_it_is_cached(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv.n_blocks = 3;
    open_world(w);
    for (int i = 0; i < 3; i++) {
        struct job *j = submit(w, 12, 1, 12);
        scheduler_add(w->scheduler, &j->seq);
        run_to_the_end(w);
        assert_int_equal(j->seq.n_cached, i == 0 ? 0 : 11);
    }
    close_world(w);
}

static void seqs_with_equal_prompts_of_whole_blocks_share_and_copy(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->options.max_num_seqs = 2; /* the third one comes while another still holds the prompt */
    open_world(w);
    for (int i = 0; i < 6; i++) {
        struct job *j = submit(w, 8, 4 + 3 * (i % 3), 8);
        scheduler_add(w->scheduler, &j->seq);
    }
    run_to_the_end(w);
    struct kv_cache_stats stats;
    kv_cache_get_stats(w->cache, &stats);
    assert_true(stats.copies > 0);
    for (int i = 2; i < 6; i++)
        assert_int_equal(w->job[i].seq.n_cached, 7);
    close_world(w);
}

/* ---- swapping ---- */

static struct kv_cache_stats stats_of(const struct world *w)
{
    struct kv_cache_stats stats;
    kv_cache_get_stats(w->cache, &stats);
    return stats;
}

static void a_swapped_seq_goes_on_where_it_stopped(void **state)
{
    (void)state;
    for (int n_host_blocks = 0; n_host_blocks <= 6; n_host_blocks += 6) {
        struct world *w = make_world();
        w->kv = (struct kv_cache_options){.n_blocks = 8, .n_host_blocks = n_host_blocks};
        w->options.max_num_batched_tokens = 5; /* prompts come and go in chunks */
        open_world(w);
        for (int i = 0; i < 5; i++)
            add(w, 9, 12);
        run_to_the_end(w);
        assert_true(scheduler_n_preemptions(w->scheduler) > 0);
        assert_int_equal(stats_of(w).n_swapped_out > 0, n_host_blocks > 0);
        assert_int_equal(stats_of(w).n_swapped_in, stats_of(w).n_swapped_out);
        /* Without recomputation every token but the last is computed once. */
        assert_int_equal(w->n_computed == 5 * (9 + 12 - 1), n_host_blocks > 0);
        close_world(w);
    }
}

static void a_swapped_seq_comes_before_those_that_wait(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv = (struct kv_cache_options){.n_blocks = 6, .n_host_blocks = 6};
    open_world(w);
    const struct job *first = add(w, 8, 12), *second = add(w, 7, 9);
    while (second->seq.n_preemptions == 0)
        assert_true(step_world(w));
    assert_int_equal(stats_of(w).host_used, CEIL_DIV(second->seq.n_tokens - 1, 4));
    const struct job *small = add(w, 1, 1); /* it would fit at once */
    while (small->admitted_at < 0) {
        assert_true(second->seq.state == SEQ_WAITING || first->finished_at >= 0);
        assert_true(step_world(w));
    }
    assert_int_equal(stats_of(w).host_used, 0);
    run_to_the_end(w);
    close_world(w);
}

static void a_block_is_copied_for_a_newcomer_after_it_has_come_back(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv.n_blocks = w->kv.n_host_blocks = 6;
    open_world(w);
    add(w, 8, 16); /* to its end in the whole pool: nothing of the other one stays in the cache */
    struct job *swapped = submit(w, 8, 9, 8), *newcomer = submit(w, 8, 4, 8);
    scheduler_add(w->scheduler, &swapped->seq);
    while (swapped->seq.n_preemptions == 0)
        assert_true(step_world(w));
    scheduler_add(w->scheduler, &newcomer->seq);
    while (newcomer->admitted_at < 0) {
        assert_int_equal(stats_of(w).n_swapped_in, 0);
        assert_true(step_world(w));
    }
    assert_int_equal(stats_of(w).n_swapped_in, 1); /* in the same step */
    assert_int_equal(stats_of(w).copies, 1);
    assert_true(stats_of(w).blocks_in >= 2);
    run_to_the_end(w);
    close_world(w);
}

/* Runs two seqs until the last one gives way, or for n_steps; then adds an urgent one whose prompt
 * is that of the first. Returns the steps before the preemption. */
static int preempt_and_add(int n_steps, bool in_one_step)
{
    struct world *w = make_world();
    w->kv.n_blocks = w->kv.n_host_blocks = 6;
    w->options.policy = SCHEDULING_PRIORITY;
    open_world(w);
    struct job *first = submit(w, 8, 16, 8), *last = submit(w, 8, 9, 0),
               *urgent = submit(w, 8, 2, 8);
    last->seq.request.priority = 2;
    urgent->seq.request.priority = 1;
    scheduler_add(w->scheduler, &first->seq);
    scheduler_add(w->scheduler, &last->seq);
    while (w->n_steps < n_steps && last->seq.n_preemptions == 0)
        assert_true(step_world(w));
    int n_before = w->n_steps - 1;
    scheduler_add(w->scheduler, &urgent->seq);
    assert_true(step_world(w));
    if (in_one_step) {
        assert_int_equal(last->seq.n_preemptions, 1);
        assert_int_equal(urgent->admitted_at, n_steps);
        assert_int_equal(stats_of(w).copies, 1);
    }
    run_to_the_end(w);
    assert_int_equal(w->n_finished, 3);
    close_world(w);
    return n_before;
}

static void a_block_is_swapped_out_before_a_newcomer_takes_it(void **state)
{
    (void)state;
    int n_before = preempt_and_add(MAX_STEPS, false);
    (void)preempt_and_add(n_before, true);
}

static void a_full_host_pool_means_recomputation(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv = (struct kv_cache_options){.n_blocks = 12, .n_host_blocks = 3};
    open_world(w);
    for (int i = 0; i < 8; i++)
        add(w, 4 + i, 20);
    run_to_the_end(w);
    assert_int_equal(w->n_finished, 8);
    assert_true(stats_of(w).n_swapped_out > 0);
    assert_true(stats_of(w).n_swapped_out < scheduler_n_preemptions(w->scheduler));
    close_world(w);
}

static void a_swapped_seq_that_is_taken_out_leaves_host_memory(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv = (struct kv_cache_options){.n_blocks = 6, .n_host_blocks = 6};
    open_world(w);
    add(w, 8, 12);
    struct job *second = add(w, 7, 9);
    while (second->seq.n_preemptions == 0)
        assert_true(step_world(w));
    assert_true(stats_of(w).host_used > 0);
    scheduler_finish(w->scheduler, &second->seq, FINISH_CANCELLED);
    scheduler_check(w->scheduler);
    assert_int_equal(stats_of(w).host_used, 0);
    run_to_the_end(w);
    assert_int_equal(stats_of(w).n_swapped_in, 0);
    close_world(w);
}

/* ---- policies ---- */

static void each_policy_has_its_own_order(void **state)
{
    (void)state;
    static const int n_output[] = {16, 4, 24, 4, 12}, priority[] = {3, 2, 1, -1, 1};
    static const int order[SCHEDULING_N][5] = {
        [SCHEDULING_FCFS] = {0, 1, 2, 3, 4},
        [SCHEDULING_PRIORITY] = {3, 2, 4, 1, 0},
        [SCHEDULING_MEMORY_AWARE] = {1, 3, 4, 0, 2},
    };
    for (int policy = 0; policy < SCHEDULING_N; policy++) {
        struct world *w = make_world();
        w->options.max_num_seqs = 1;
        w->options.policy = (enum scheduling_policy)policy;
        open_world(w);
        for (int i = 0; i < 5; i++) {
            struct job *j = submit(w, 5, n_output[i], 0);
            j->seq.request.priority = priority[i];
            scheduler_add(w->scheduler, &j->seq);
        }
        run_to_the_end(w);
        for (int i = 0; i < 5; i++)
            assert_int_equal(w->job[order[policy][i]].finished_at, i);
        close_world(w);
    }
}

static void a_large_seq_is_not_overtaken_under_fcfs(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv.n_blocks = 10;
    open_world(w);
    add(w, 4, 12);
    add(w, 4, 30);
    const struct job *large = add(w, 36, 2);
    for (int i = 0; i < 20; i++)
        add(w, 2, 2); /* these would fit at once */
    run_to_the_end(w);
    for (int i = 3; i < w->n_jobs; i++)
        assert_true(w->job[i].admitted_at >= large->admitted_at);
    close_world(w);
}

static void an_urgent_seq_preempts_those_that_matter_less(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->kv = (struct kv_cache_options){.n_blocks = 8};
    w->options.policy = SCHEDULING_PRIORITY;
    open_world(w);
    struct job *casual = submit(w, 8, 16, 0), *urgent = submit(w, 8, 16, 0);
    casual->seq.request.priority = 1;
    scheduler_add(w->scheduler, &casual->seq);
    step_world(w);
    scheduler_add(w->scheduler, &urgent->seq);
    run_to_the_end(w);
    assert_true(casual->seq.n_preemptions > 0);
    assert_int_equal(urgent->seq.n_preemptions, 0);
    assert_int_equal(urgent->finished_at, 0);
    close_world(w);
}

static void a_seq_can_be_taken_out_while_it_waits_or_runs(void **state)
{
    (void)state;
    struct world *w = make_world();
    w->options.max_num_seqs = 2;
    open_world(w);
    for (int i = 0; i < 7; i++)
        add(w, 3, 8);
    step_world(w);
    scheduler_finish(w->scheduler, &w->job[1].seq, FINISH_CANCELLED); /* runs */
    scheduler_finish(w->scheduler, &w->job[4].seq, FINISH_CANCELLED); /* waits */
    scheduler_check(w->scheduler);
    assert_int_equal(w->job[1].seq.kv.n_blocks, 0);
    run_to_the_end(w);
    assert_int_equal(w->n_finished, 5);
    assert_int_equal(w->job[4].admitted_at, -1);
    close_world(w);
}

static void options_out_of_range_are_refused(void **state)
{
    (void)state;
    static const struct scheduler_options bad[] = {
        {.max_num_seqs = 0, .max_num_batched_tokens = 8, .block_size = 4},
        {.max_num_seqs = ENGINE_MAX_SEQS + 1, .max_num_batched_tokens = 8, .block_size = 4},
        {.max_num_seqs = 8, .max_num_batched_tokens = 0, .block_size = 4},
    };
    struct kv_cache *cache;
    struct kv_cache_options kv = {.n_blocks = 4, .block_size = 4};
    assert_int_equal(kv_cache_open(&cache, &kv), 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct scheduler *scheduler;
        assert_int_equal(scheduler_open(&scheduler, cache, &bad[i]), -1);
        assert_null(scheduler);
        assert_error(ERR_CONFIG, "max_num_");
    }
    kv_cache_close(cache);
}

/* ---- random worlds ---- */

struct random {
    uint64_t state;
};

static int draw(struct random *r, int n)
{
    return (int)(mix64(r->state++) % (uint64_t)n);
}

static struct world *random_world(struct random *r)
{
    struct world *w = make_world();
    w->options.block_size = 1 + draw(r, 5);
    w->kv.n_blocks = CEIL_DIV(MAX_LEN, w->options.block_size) + draw(r, 12);
    w->kv.prefix_caching = draw(r, 3) > 0;
    w->kv.hash_bits = draw(r, 2);
    w->kv.n_host_blocks = draw(r, 2) * draw(r, 20);
    w->options.policy = (enum scheduling_policy)draw(r, SCHEDULING_N);
    w->options.max_num_seqs = 1 + draw(r, 9);
    w->options.max_num_batched_tokens = 1 + draw(r, draw(r, 2) ? 8 : 80);
    if (draw(r, 5) == 0) {
        w->options.static_batching = true;
        w->options.block_size = MAX_LEN;
        w->kv = (struct kv_cache_options){.n_blocks = w->options.max_num_seqs};
    }
    open_world(w);
    return w;
}

static void submit_random(struct world *w, struct random *r)
{
    int n_prompt = 1 + draw(r, MAX_LEN - 1);
    int n_output = 1 + draw(r, MAX_LEN - n_prompt);
    int same = draw(r, n_prompt + 1);
    struct job *j = submit(w, n_prompt, n_output, same);
    j->seq.request.priority = draw(r, 3);
    scheduler_add(w->scheduler, &j->seq);
}

static void cancel_random(struct world *w, struct random *r, int *n_cancelled)
{
    struct seq *seq = &w->job[draw(r, w->n_jobs)].seq;
    if (seq->state == SEQ_FINISHED)
        return;
    scheduler_finish(w->scheduler, seq, FINISH_CANCELLED);
    ++*n_cancelled;
}

static void every_seq_finishes_with_its_own_tokens_in_random_worlds(void **state)
{
    (void)state;
    long n_preemptions = 0, n_copies = 0, n_hits = 0, n_swaps = 0;
    for (uint64_t seed = 0; seed < 600; seed++) {
        struct random r = {.state = seed << 32};
        struct world *w = random_world(&r);
        int n_jobs = 1 + draw(&r, MAX_JOBS), n_cancelled = 0;
        while (w->n_jobs < n_jobs) {
            submit_random(w, &r);
            for (int n = draw(&r, 4); n > 0; n--)
                step_world(w);
            if (draw(&r, 16) == 0)
                cancel_random(w, &r, &n_cancelled);
        }
        run_to_the_end(w);
        assert_int_equal(w->n_finished + n_cancelled, n_jobs);
        struct kv_cache_stats stats;
        kv_cache_get_stats(w->cache, &stats);
        n_preemptions += scheduler_n_preemptions(w->scheduler);
        n_copies += stats.copies;
        n_hits += stats.hit_tokens;
        n_swaps += stats.n_swapped_in;
        close_world(w);
    }
    print_message("preemptions %ld, swapped %ld, copies %ld, prefix hits %ld tokens\n",
                  n_preemptions, n_swaps, n_copies, n_hits);
    assert_true(n_preemptions > 100 && n_swaps > 100 && n_copies > 100 && n_hits > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_is_cut_into_chunks_of_the_token_budget),
        cmocka_unit_test(a_long_prompt_does_not_hold_up_those_who_decode),
        cmocka_unit_test(a_static_batch_is_complete_before_the_next_one_starts),
        cmocka_unit_test(lanes_are_given_to_one_seq_at_a_time),
        cmocka_unit_test(the_seq_that_ranks_last_gives_way_and_keeps_its_tokens),
        cmocka_unit_test(a_preempted_seq_finds_its_blocks_again_when_nobody_took_them),
        cmocka_unit_test(memory_aware_scheduling_never_preempts),
        cmocka_unit_test(a_seq_that_needs_the_whole_pool_runs_even_when_all_of_it_is_cached),
        cmocka_unit_test(seqs_with_equal_prompts_of_whole_blocks_share_and_copy),
        cmocka_unit_test(a_swapped_seq_goes_on_where_it_stopped),
        cmocka_unit_test(a_swapped_seq_comes_before_those_that_wait),
        cmocka_unit_test(a_block_is_copied_for_a_newcomer_after_it_has_come_back),
        cmocka_unit_test(a_block_is_swapped_out_before_a_newcomer_takes_it),
        cmocka_unit_test(a_full_host_pool_means_recomputation),
        cmocka_unit_test(a_swapped_seq_that_is_taken_out_leaves_host_memory),
        cmocka_unit_test(each_policy_has_its_own_order),
        cmocka_unit_test(a_large_seq_is_not_overtaken_under_fcfs),
        cmocka_unit_test(an_urgent_seq_preempts_those_that_matter_less),
        cmocka_unit_test(a_seq_can_be_taken_out_while_it_waits_or_runs),
        cmocka_unit_test(options_out_of_range_are_refused),
        cmocka_unit_test(every_seq_finishes_with_its_own_tokens_in_random_worlds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
