/* test_kv_cache.c - the block bookkeeping, by hand-made cases and by random operations.
 *
 * The random test runs the cache beside a naive one that knows texts, not blocks, and beside a
 * pretended device memory in which every slot holds a fingerprint of all text up to its token: a
 * block that was handed out twice, copied late or found for another text shows as a wrong value.
 */
#include "engine/kv_cache.h"
#include "tests/testing.h"

#include <string.h>

static const int TEXT[] = {5, 6, 7, 8, 9, 10, 11, 12, 13};

/* ---- cases by hand ---- */

struct fixture {
    struct kv_cache *cache;
    struct kv_seq a, b;
};

static void setup(struct fixture *f, int n_blocks, int block_size)
{
    struct kv_cache_options options = {
        .n_blocks = n_blocks, .block_size = block_size, .prefix_caching = true, .n_host_blocks = 3};
    assert_int_equal(kv_cache_open(&f->cache, &options), 0);
    kv_seq_init(&f->a, 8);
    kv_seq_init(&f->b, 8);
}

static void teardown(struct fixture *f)
{
    kv_cache_check(f->cache, (const struct kv_seq *const[]){&f->a, &f->b}, 2);
    kv_cache_release(f->cache, &f->a);
    kv_cache_release(f->cache, &f->b);
    kv_cache_check(f->cache, NULL, 0);
    kv_seq_free(&f->a);
    kv_seq_free(&f->b);
    kv_cache_close(f->cache);
}

/* Computes all of token[n] that the sequence does not have yet; returns the blocks copied. */
static int compute(struct fixture *f, struct kv_seq *seq, const int *token, int n)
{
    struct kv_copy copy;
    int n_copies, first = seq->n_committed;
    assert_true(kv_cache_reserve(f->cache, seq, first, n - first, &copy, &n_copies));
    kv_cache_commit(f->cache, seq, token, n);
    return n_copies;
}

static struct kv_cache_stats stats_of(const struct fixture *f)
{
    struct kv_cache_stats stats;
    kv_cache_get_stats(f->cache, &stats);
    return stats;
}

static void a_block_is_freed_when_its_last_owner_leaves(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, 5, 2);
    compute(&f, &f.a, TEXT, 5);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, TEXT, 5), 4);
    assert_int_equal(stats_of(&f).used, 3);
    kv_cache_release(f.cache, &f.a);
    assert_int_equal(stats_of(&f).used, 2);
    assert_int_equal(stats_of(&f).free, 3); /* a half-filled block is not worth keeping */
    kv_cache_release(f.cache, &f.b);
    assert_int_equal(stats_of(&f).used, 0);
    assert_int_equal(stats_of(&f).cached, 2);
    assert_int_equal(stats_of(&f).used_peak, 3);
    assert_int_equal(kv_cache_available(f.cache), 5);
    teardown(&f);
}

static void the_last_token_is_always_left_to_compute(void **state)
{
    (void)state;
    static const int found[] = {0, 0, 0, 2, 3, 3, 5, 6, 6}; /* by length of the second text */
    struct fixture f;
    setup(&f, 4, 3);
    compute(&f, &f.a, TEXT, 8);
    for (int n = 1; n <= 8; n++) {
        assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, TEXT, n), found[n]);
        kv_cache_release(f.cache, &f.b);
    }
    assert_int_equal(stats_of(&f).lookups_tokens, 36);
    assert_int_equal(stats_of(&f).hit_tokens, 25);
    teardown(&f);
}

static void a_shared_last_block_is_copied_before_it_is_written(void **state)
{
    (void)state;
    struct fixture f;
    struct kv_copy copy;
    int n_copies;
    setup(&f, 4, 2);
    compute(&f, &f.a, TEXT, 4);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, TEXT, 4), 3);
    int shared = f.b.block[1];
    assert_int_equal(shared, f.a.block[1]);
    assert_true(kv_cache_reserve(f.cache, &f.b, 3, 1, &copy, &n_copies));
    assert_int_equal(n_copies, 1);
    assert_int_equal(copy.src, shared);
    assert_int_equal(copy.dst, f.b.block[1]);
    assert_int_not_equal(copy.dst, shared);
    assert_int_equal(f.a.block[1], shared);
    assert_int_equal(stats_of(&f).copies, 1);
    teardown(&f);
}

static void a_block_that_nobody_shares_is_written_in_place(void **state)
{
    (void)state;
    struct fixture f;
    setup(&f, 2, 2); /* no third block for a copy: the only sequence must still be able to run */
    compute(&f, &f.a, TEXT, 4);
    kv_cache_release(f.cache, &f.a);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.a, TEXT, 4), 3);
    assert_int_equal(compute(&f, &f.a, TEXT, 4), 0);
    assert_int_equal(stats_of(&f).used, 2);
    teardown(&f);
}

static void equal_texts_computed_side_by_side_are_kept_once(void **state)
{
    (void)state;
    struct fixture f;
    struct kv_copy copy;
    int n_copies;
    setup(&f, 6, 2);
    assert_true(kv_cache_reserve(f.cache, &f.a, 0, 5, &copy, &n_copies));
    assert_true(kv_cache_reserve(f.cache, &f.b, 0, 5, &copy, &n_copies));
    assert_int_equal(stats_of(&f).used, 6);
    kv_cache_commit(f.cache, &f.a, TEXT, 5);
    kv_cache_commit(f.cache, &f.b, TEXT, 5);
    assert_int_equal(stats_of(&f).used, 4);
    assert_int_equal(f.a.block[0], f.b.block[0]);
    assert_int_equal(f.a.block[1], f.b.block[1]);
    assert_int_not_equal(f.a.block[2], f.b.block[2]);
    teardown(&f);
}

static void the_block_unused_for_longest_is_evicted_first(void **state)
{
    (void)state;
    static const int other[] = {1, 2, 3, 4}, third[] = {20, 21, 22, 23, 24};
    struct fixture f;
    setup(&f, 4, 2);
    compute(&f, &f.a, TEXT, 4);
    compute(&f, &f.b, other, 4);
    kv_cache_release(f.cache, &f.a);
    kv_cache_release(f.cache, &f.b);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.a, TEXT, 2), 1); /* now used more recently */
    kv_cache_release(f.cache, &f.a);
    compute(&f, &f.a, third, 5);
    assert_int_equal(stats_of(&f).evictions, 3);
    kv_cache_release(f.cache, &f.a);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.a, TEXT, 4), 2);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, other, 4), 0);
    teardown(&f);
}

static void a_refused_reservation_changes_nothing(void **state)
{
    (void)state;
    struct fixture f;
    struct kv_copy copy;
    int n_copies = 7;
    setup(&f, 3, 2);
    compute(&f, &f.a, TEXT, 4);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, TEXT, 4), 3);
    struct kv_cache_stats before = stats_of(&f);
    assert_false(kv_cache_reserve(f.cache, &f.b, 3, 3, &copy, &n_copies)); /* copy + 1, 1 there */
    assert_int_equal(n_copies, 0);
    struct kv_cache_stats after = stats_of(&f);
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(f.b.n_blocks, 2);
    assert_true(kv_cache_reserve(f.cache, &f.b, 3, 1, &copy, &n_copies));
    teardown(&f);
}

/* ---- swapping, by hand ---- */

/* What a scheduler does to bring a sequence of n tokens back; returns the copies from the host. */
static int bring_back(struct fixture *f, struct kv_seq *seq, int n, struct kv_copy *in)
{
    struct kv_copy copy;
    int n_copies, n_found = kv_cache_find_prefix(f->cache, seq, TEXT, n);
    assert_true(kv_cache_reserve(f->cache, seq, n_found, n - n_found, &copy, &n_copies));
    return kv_cache_swap_in(f->cache, seq, TEXT, in);
}

static void a_swapped_sequence_leaves_all_its_blocks_to_others(void **state)
{
    (void)state;
    static const int other[] = {1, 2, 3, 4, 5, 6};
    struct fixture f;
    struct kv_copy out[3], in[3];
    setup(&f, 3, 2);
    compute(&f, &f.a, TEXT, 5);
    const int left[] = {f.a.block[0], f.a.block[1], f.a.block[2]};
    assert_int_equal(kv_cache_swap_out(f.cache, &f.a, out), 3);
    assert_int_equal(kv_cache_available(f.cache), 3);
    compute(&f, &f.b, other, 6); /* takes all blocks: nothing of the text can be found */
    kv_cache_release(f.cache, &f.b);
    assert_int_equal(bring_back(&f, &f.a, 6, in), 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(out[i].src, left[i]);
        assert_int_equal(in[i].src, out[i].dst);
        assert_int_equal(in[i].dst, f.a.block[i]);
    }
    assert_int_equal(f.a.n_committed, 5);
    assert_int_equal(stats_of(&f).host_used, 0);
    assert_int_equal(stats_of(&f).host_used_peak, 3);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, TEXT, 5), 4); /* findable as before */
    teardown(&f);
}

static void what_the_prefix_cache_still_has_is_not_copied_back(void **state)
{
    (void)state;
    static const int other[] = {1, 2};
    struct fixture f;
    struct kv_copy out[3], in[3];
    setup(&f, 4, 2);
    compute(&f, &f.a, TEXT, 5);
    assert_int_equal(kv_cache_swap_out(f.cache, &f.a, out), 3);
    compute(&f, &f.b, other, 2); /* the free blocks first: both full ones of the text stay */
    assert_int_equal(bring_back(&f, &f.a, 6, in), 1);
    assert_int_equal(in[0].src, out[2].dst);
    assert_int_equal(in[0].dst, f.a.block[2]);
    assert_int_equal(stats_of(&f).blocks_out, 3);
    assert_int_equal(stats_of(&f).blocks_in, 1);
    teardown(&f);
}

static void a_shared_block_survives_its_other_owner(void **state)
{
    (void)state;
    static const int other[] = {1, 2, 3, 4, 5, 6};
    struct fixture f;
    struct kv_copy out[3], in[3];
    setup(&f, 3, 2);
    compute(&f, &f.a, TEXT, 4);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, TEXT, 5), 4);
    compute(&f, &f.b, TEXT, 5);
    assert_int_equal(f.a.block[0], f.b.block[0]);
    assert_int_equal(kv_cache_swap_out(f.cache, &f.b, out), 3);
    assert_int_equal(stats_of(&f).used, 2); /* its first owner still reads them */
    kv_cache_release(f.cache, &f.a);
    compute(&f, &f.a, other, 6);
    kv_cache_release(f.cache, &f.a);
    assert_int_equal(bring_back(&f, &f.b, 6, in), 3);
    assert_int_equal(f.b.n_committed, 5);
    teardown(&f);
}

static void a_sequence_that_others_have_overtaken_needs_nothing_from_the_host(void **state)
{
    (void)state;
    struct fixture f;
    struct kv_copy out[3], in[3];
    setup(&f, 6, 2);
    compute(&f, &f.a, TEXT, 3);
    assert_int_equal(kv_cache_swap_out(f.cache, &f.a, out), 2);
    compute(&f, &f.b, TEXT, 8);
    assert_int_equal(bring_back(&f, &f.a, 8, in), 0);
    assert_int_equal(f.a.n_committed, 7);
    assert_int_equal(stats_of(&f).host_used, 0);
    teardown(&f);
}

static void what_does_not_fit_into_host_memory_stays(void **state)
{
    (void)state;
    struct fixture f;
    struct kv_copy out[4];
    setup(&f, 8, 2);
    compute(&f, &f.a, TEXT, 7); /* four blocks, three host blocks */
    struct kv_cache_stats before = stats_of(&f);
    assert_int_equal(kv_cache_swap_out(f.cache, &f.a, out), 0);
    struct kv_cache_stats after = stats_of(&f);
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(f.a.n_blocks, 4);
    compute(&f, &f.b, TEXT, 3);
    assert_int_equal(kv_cache_swap_out(f.cache, &f.b, out), 2);
    kv_cache_drop_host(f.cache, &f.b);
    kv_cache_drop_host(f.cache, &f.b);
    assert_int_equal(stats_of(&f).host_used, 0);
    assert_int_equal(kv_cache_swap_out(f.cache, &f.b, out), 0); /* nothing is computed */
    teardown(&f);
}

static void nothing_is_found_when_prefix_caching_is_off(void **state)
{
    (void)state;
    struct fixture f;
    kv_seq_init(&f.a, 2);
    kv_seq_init(&f.b, 2);
    struct kv_cache_options options = {.n_blocks = 4, .block_size = 2};
    assert_int_equal(kv_cache_open(&f.cache, &options), 0);
    compute(&f, &f.a, TEXT, 4);
    assert_int_equal(kv_cache_find_prefix(f.cache, &f.b, TEXT, 4), 0);
    compute(&f, &f.b, TEXT, 4);
    assert_int_equal(stats_of(&f).used, 4);
    kv_cache_release(f.cache, &f.a);
    assert_int_equal(stats_of(&f).cached, 0);
    teardown(&f);
}

static void options_out_of_range_are_refused(void **state)
{
    (void)state;
    static const struct kv_cache_options bad[] = {
        {.n_blocks = 0, .block_size = 16},
        {.n_blocks = KV_MAX_BLOCKS + 1, .block_size = 16},
        {.n_blocks = 16, .block_size = 0},
        {.n_blocks = 1 << 20, .block_size = 1 << 12},
        {.n_blocks = 16, .block_size = 16, .hash_bits = 65},
        {.n_blocks = 16, .block_size = 16, .n_host_blocks = -1},
        {.n_blocks = 16, .block_size = 16, .n_host_blocks = KV_MAX_BLOCKS + 1},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct kv_cache *cache;
        assert_int_equal(kv_cache_open(&cache, &bad[i]), -1);
        assert_null(cache);
        assert_error(ERR_CONFIG, "expected");
    }
}

/* ---- random operations ---- */

#define MAX_POOL     7
#define MAX_HOST     6
#define MAX_BLOCK    4
#define MAX_LEN      13
#define MAX_LIVE     4
#define N_OPERATIONS 5000

/* A text of whole blocks that the naive cache knows: what a findable block stands for. */
struct known {
    int text[MAX_LEN], len; /* len 0: unused entry */
    int n_owners;
    long released;
};

struct live {
    struct kv_seq kv;
    int token[MAX_LEN], n_tokens, n_computed;
    struct known *known[MAX_LEN]; /* [kv.n_blocks] NULL: a block of its own that is not findable */
    int n_swapped;                /* tokens in host memory; 0: it is not swapped out */
    bool active;
};

struct world {
    struct kv_cache_options options;
    struct kv_cache *cache;
    struct live live[MAX_LIVE];
    struct known known[MAX_POOL];
    uint64_t memory[MAX_POOL][MAX_BLOCK], host[MAX_HOST][MAX_BLOCK];
    uint64_t random;
    long clock, evictions, copies, hits, swaps;
};

static int draw(struct world *w, int n)
{
    w->random++;
    return (int)(mix64(w->random) % (uint64_t)n);
}

static uint64_t fingerprint(const int *token, int position)
{
    uint64_t h = 1469598103934665603u; /* FNV-1a: unlike the hash of the cache */
    for (int i = 0; i <= position; i++)
        h = (h ^ (uint64_t)(token[i] + 1)) * 1099511628211u;
    return h;
}

static struct known *naive_find(struct world *w, const int *text, int len)
{
    for (int i = 0; i < MAX_POOL; i++) {
        struct known *k = &w->known[i];
        if (k->len == len && memcmp(k->text, text, (size_t)len * sizeof(*text)) == 0)
            return k;
    }
    return NULL;
}

static int naive_available(const struct world *w)
{
    int available = w->options.n_blocks;
    for (int i = 0; i < MAX_POOL; i++)
        available -= w->known[i].len > 0 && w->known[i].n_owners > 0;
    for (int s = 0; s < MAX_LIVE; s++) {
        for (int i = 0; i < w->live[s].kv.n_blocks; i++)
            available -= w->live[s].known[i] == NULL;
    }
    return available;
}

static int naive_cached(const struct world *w)
{
    int n = 0;
    for (int i = 0; i < MAX_POOL; i++)
        n += w->known[i].len > 0 && w->known[i].n_owners == 0;
    return n;
}

/* Takes n blocks: the free ones first, then those of the texts unused for longest. */
static void naive_take(struct world *w, int n)
{
    int n_free = naive_available(w) - naive_cached(w);
    for (; n > n_free; n--) {
        struct known *oldest = NULL;
        for (int i = 0; i < MAX_POOL; i++) {
            struct known *k = &w->known[i];
            if (k->len > 0 && k->n_owners == 0 && (!oldest || k->released < oldest->released))
                oldest = k;
        }
        assert_non_null(oldest);
        oldest->len = 0;
        w->evictions++;
    }
}

static void naive_learn(struct world *w, struct live *l, int block)
{
    int len = (block + 1) * w->options.block_size;
    struct known *k = naive_find(w, l->token, len);
    if (k != l->known[block] || !k) {
        for (int i = 0; !k && i < MAX_POOL; i++)
            k = w->known[i].len == 0 ? &w->known[i] : NULL;
        assert_non_null(k);
        k->len = len;
        memcpy(k->text, l->token, (size_t)len * sizeof(*l->token));
        k->n_owners++;
        l->known[block] = k;
    }
}

static void naive_release(struct world *w, struct live *l)
{
    for (int i = l->kv.n_blocks - 1; i >= 0; i--) {
        struct known *k = l->known[i];
        if (k && --k->n_owners == 0)
            k->released = w->clock++;
        l->known[i] = NULL;
    }
}

static void end_seq(struct world *w, struct live *l)
{
    naive_release(w, l);
    kv_cache_release(w->cache, &l->kv);
    kv_cache_drop_host(w->cache, &l->kv);
    assert_int_equal(l->kv.n_blocks, 0);
    l->n_swapped = 0;
    l->active = false;
}

static void find_prefix(struct world *w, struct live *l)
{
    int size = w->options.block_size, n_blocks = 0;
    for (int len = size; len <= l->n_tokens; len += size) {
        struct known *k = naive_find(w, l->token, len);
        if (!k)
            break;
        k->n_owners++;
        l->known[n_blocks++] = k;
    }
    l->n_computed = kv_cache_find_prefix(w->cache, &l->kv, l->token, l->n_tokens);
    assert_int_equal(l->kv.n_blocks, n_blocks);
    assert_int_equal(l->n_computed, MIN(n_blocks * size, l->n_tokens - 1));
    w->hits += l->n_computed;
}

static void start_seq(struct world *w, struct live *l)
{
    int longest = MIN(MAX_LEN, w->options.n_blocks * w->options.block_size);
    l->n_tokens = 1 + draw(w, longest);
    for (int i = 0; i < l->n_tokens; i++)
        l->token[i] = draw(w, 8) == 0; /* mostly zeros, so that prefixes are often shared */
    find_prefix(w, l);
    l->active = true;
}

/* The reservation for n tokens; false when both caches refuse it. */
static bool reserve(struct world *w, struct live *l, int n)
{
    int size = w->options.block_size, at = l->n_computed / size, n_old = l->kv.n_blocks;
    int n_new = MAX(CEIL_DIV(l->n_computed + n, size) - n_old, 0);
    bool shared = at < n_old && l->known[at] && l->known[at]->n_owners > 1;
    bool fits = n_new + shared <= naive_available(w);
    struct kv_copy copy;
    int n_copies;
    assert_int_equal(kv_cache_reserve(w->cache, &l->kv, l->n_computed, n, &copy, &n_copies), fits);
    assert_int_equal(n_copies, fits && shared);
    if (!fits)
        return false;
    l->kv.n_blocks = n_old; /* the naive count must not see the new blocks yet */
    naive_take(w, n_new + shared);
    l->kv.n_blocks = n_old + n_new;
    if (shared) {
        l->known[at]->n_owners--;
        l->known[at] = NULL;
        memcpy(w->memory[copy.dst], w->memory[copy.src], sizeof(w->memory[0]));
        w->copies++;
    }
    return true;
}

static void learn_computed(struct world *w, struct live *l, int first_block)
{
    for (int i = first_block;
         w->options.prefix_caching && i < l->n_computed / w->options.block_size; i++)
        naive_learn(w, l, i);
}

static void compute_some(struct world *w, struct live *l)
{
    int size = w->options.block_size;
    int n = 1 + draw(w, l->n_tokens - l->n_computed);
    if (!reserve(w, l, n)) {
        end_seq(w, l);
        return;
    }
    int first_block = l->n_computed / size;
    for (; n > 0; n--, l->n_computed++) {
        int at = l->n_computed;
        w->memory[l->kv.block[at / size]][at % size] = fingerprint(l->token, at);
    }
    kv_cache_commit(w->cache, &l->kv, l->token, l->n_computed);
    learn_computed(w, l, first_block);
}

static int naive_host_free(const struct world *w)
{
    int n = w->options.n_host_blocks;
    for (int s = 0; s < MAX_LIVE; s++)
        n -= CEIL_DIV(w->live[s].n_swapped, w->options.block_size);
    return n;
}

static void swap_out(struct world *w, struct live *l)
{
    struct kv_copy copy[MAX_LEN];
    int n = CEIL_DIV(l->n_computed, w->options.block_size), n_owned = l->kv.n_blocks;
    bool fits = n <= naive_host_free(w);
    assert_int_equal(kv_cache_swap_out(w->cache, &l->kv, copy), fits ? n : 0);
    if (!fits || n == 0)
        return;
    for (int i = 0; i < n; i++)
        memcpy(w->host[copy[i].dst], w->memory[copy[i].src], sizeof(w->memory[0]));
    l->kv.n_blocks = n_owned; /* the naive list of owners is as long as before */
    naive_release(w, l);
    l->kv.n_blocks = 0;
    l->n_swapped = l->n_computed;
    l->n_computed = 0;
    w->swaps++;
}

/* Brings a swapped sequence back, or leaves it where it is when there is no room. */
static void swap_in(struct world *w, struct live *l)
{
    struct kv_copy copy[MAX_HOST];
    find_prefix(w, l);
    if (!reserve(w, l, l->n_tokens - l->n_computed)) {
        naive_release(w, l);
        kv_cache_release(w->cache, &l->kv);
        l->n_computed = 0;
        return;
    }
    int size = w->options.block_size, n_found = l->n_computed;
    int n = kv_cache_swap_in(w->cache, &l->kv, l->token, copy);
    bool found_all = n_found >= l->n_swapped;
    assert_int_equal(n, found_all ? 0 : CEIL_DIV(l->n_swapped, size) - n_found / size);
    for (int i = 0; i < n; i++)
        memcpy(w->memory[copy[i].dst], w->host[copy[i].src], sizeof(w->memory[0]));
    l->n_computed = MAX(n_found, l->n_swapped);
    l->n_swapped = 0;
    learn_computed(w, l, n_found / size);
}

static void check_world(const struct world *w)
{
    const struct kv_seq *seqs[MAX_LIVE];
    for (int s = 0; s < MAX_LIVE; s++) {
        const struct live *l = &w->live[s];
        seqs[s] = &l->kv;
        for (int i = 0; l->active && i < l->n_computed; i++) {
            int block = l->kv.block[i / w->options.block_size];
            assert_true(w->memory[block][i % w->options.block_size] == fingerprint(l->token, i));
        }
    }
    kv_cache_check(w->cache, seqs, MAX_LIVE);
    struct kv_cache_stats stats;
    kv_cache_get_stats(w->cache, &stats);
    assert_int_equal(kv_cache_available(w->cache), naive_available(w));
    assert_int_equal(stats.cached, naive_cached(w));
    assert_int_equal(stats.free + stats.used + stats.cached, w->options.n_blocks);
    assert_int_equal(stats.evictions, w->evictions);
    assert_int_equal(stats.copies, w->copies);
    assert_int_equal(stats.hit_tokens, w->hits);
    assert_int_equal(stats.n_swapped_out, w->swaps);
    assert_int_equal(stats.host_blocks - stats.host_used, naive_host_free(w));
}

static void run_world(struct world *w)
{
    assert_int_equal(kv_cache_open(&w->cache, &w->options), 0);
    for (int s = 0; s < MAX_LIVE; s++)
        kv_seq_init(&w->live[s].kv, MAX_LEN);
    for (int i = 0; i < N_OPERATIONS; i++) {
        struct live *l = &w->live[draw(w, MAX_LIVE)];
        if (!l->active)
            start_seq(w, l);
        else if (l->n_swapped > 0 && draw(w, 4) > 0)
            swap_in(w, l);
        else if (l->n_swapped > 0)
            end_seq(w, l);
        else if (l->n_computed < l->n_tokens && draw(w, 6) == 0)
            swap_out(w, l);
        else if (l->n_computed < l->n_tokens)
            compute_some(w, l);
        else if (l->n_tokens < MIN(MAX_LEN, w->options.n_blocks * w->options.block_size) &&
                 draw(w, 3) > 0)
            l->token[l->n_tokens++] = draw(w, 8) == 0;
        else
            end_seq(w, l);
        check_world(w);
    }
    for (int s = 0; s < MAX_LIVE; s++) {
        if (w->live[s].active)
            end_seq(w, &w->live[s]);
        kv_seq_free(&w->live[s].kv);
    }
    assert_int_equal(kv_cache_available(w->cache), w->options.n_blocks);
    kv_cache_close(w->cache);
}

/* Every pool of 1..7 blocks of 1..4 tokens; hash_bits 1 leaves two hash values for all texts. */
static void run_all_worlds(bool prefix_caching, int hash_bits)
{
    long hits = 0, copies = 0, evictions = 0, swaps = 0;
    for (int n_blocks = 1; n_blocks <= MAX_POOL; n_blocks++) {
        for (int block_size = 1; block_size <= MAX_BLOCK; block_size++) {
            struct world w = {.options = {n_blocks, block_size, prefix_caching, hash_bits,
                                          n_blocks * block_size % (MAX_HOST + 1)},
                              .random = (uint64_t)(n_blocks * 10 + block_size) << 32};
            run_world(&w);
            hits += w.hits;
            copies += w.copies;
            evictions += w.evictions;
            swaps += w.swaps;
        }
    }
    assert_int_equal(hits > 0 && copies > 0 && evictions > 0, prefix_caching);
    assert_true(swaps > 1000);
}

static void random_operations_agree_with_a_naive_cache(void **state)
{
    (void)state;
    run_all_worlds(true, 0);
}

static void colliding_hashes_never_find_another_text(void **state)
{
    (void)state;
    run_all_worlds(true, 1);
    run_all_worlds(true, 3);
}

static void random_operations_work_without_prefix_caching(void **state)
{
    (void)state;
    run_all_worlds(false, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_block_is_freed_when_its_last_owner_leaves),
        cmocka_unit_test(the_last_token_is_always_left_to_compute),
        cmocka_unit_test(a_shared_last_block_is_copied_before_it_is_written),
        cmocka_unit_test(a_block_that_nobody_shares_is_written_in_place),
        cmocka_unit_test(equal_texts_computed_side_by_side_are_kept_once),
        cmocka_unit_test(the_block_unused_for_longest_is_evicted_first),
        cmocka_unit_test(a_refused_reservation_changes_nothing),
        cmocka_unit_test(a_swapped_sequence_leaves_all_its_blocks_to_others),
        cmocka_unit_test(what_the_prefix_cache_still_has_is_not_copied_back),
        cmocka_unit_test(a_shared_block_survives_its_other_owner),
        cmocka_unit_test(a_sequence_that_others_have_overtaken_needs_nothing_from_the_host),
        cmocka_unit_test(what_does_not_fit_into_host_memory_stays),
        cmocka_unit_test(nothing_is_found_when_prefix_caching_is_off),
        cmocka_unit_test(options_out_of_range_are_refused),
        cmocka_unit_test(random_operations_agree_with_a_naive_cache),
        cmocka_unit_test(colliding_hashes_never_find_another_text),
        cmocka_unit_test(random_operations_work_without_prefix_caching),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
