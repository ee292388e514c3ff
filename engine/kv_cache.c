/* kv_cache.c - see kv_cache.h.
 *
 * One record per block. Free blocks form a stack (the block used last is handed out first, because
 * its memory has been touched already). Cached blocks form a list by time of release, oldest first.
 * Findable blocks are entered in a hash table under the hash of all text up to their end.
 *
 * A table entry is confirmed by its own token ids and by its parent, the block that holds the text
 * before it. A block id is enough to name the parent, because a parent never leaves the table
 * before its children: who owns a child owns its parent too, a sequence gives its blocks back last
 * block first, and the oldest cached block is evicted first. So while an entry names a parent, that
 * id still stands for the same text, and by induction the whole prefix is equal, not only its hash.
 *
 * Host blocks need no record, only a link: to the next free one, or to the next one of their owner.
 */
#include "engine/kv_cache.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define NO_BLOCK      (-1)
#define HASH_BITS_MAX 64

struct block {
    uint64_t hash;   /* findable: of the text up to its end                       */
    int n_refs;      /* sequences that own it                                     */
    int parent;      /* findable: the block before it; NO_BLOCK: it is the first  */
    int bucket_next; /* findable: next entry of its bucket                        */
    int next, prev;  /* in the free stack (next only) or in the list of cached    */
    bool findable;
};

struct kv_cache {
    struct kv_cache_options options;
    uint64_t hash_mask;
    struct block *block; /* [n_blocks]                                            */
    int *token;          /* [n_blocks, block_size] ids of findable blocks         */
    int *bucket;         /* [n_buckets] first entry                               */
    size_t n_buckets;    /* a power of two                                        */
    int free_top, n_free;
    int oldest, newest, n_cached;
    int *host_next; /* [n_host_blocks]                                            */
    int host_top, n_host_free;
    struct kv_cache_stats stats; /* the counters; the rest is filled in on demand */
};

/* ---- free stack and list of cached blocks ---- */

static void push_free(struct kv_cache *c, int id)
{
    c->block[id].next = c->free_top;
    c->free_top = id;
    c->n_free++;
}

static int pop_free(struct kv_cache *c)
{
    int id = c->free_top;
    assert(id != NO_BLOCK);
    c->free_top = c->block[id].next;
    c->n_free--;
    return id;
}

static void push_cached(struct kv_cache *c, int id)
{
    struct block *b = &c->block[id];
    b->next = NO_BLOCK;
    b->prev = c->newest;
    if (c->newest == NO_BLOCK)
        c->oldest = id;
    else
        c->block[c->newest].next = id;
    c->newest = id;
    c->n_cached++;
}

static void remove_cached(struct kv_cache *c, int id)
{
    struct block *b = &c->block[id];
    if (b->prev == NO_BLOCK)
        c->oldest = b->next;
    else
        c->block[b->prev].next = b->next;
    if (b->next == NO_BLOCK)
        c->newest = b->prev;
    else
        c->block[b->next].prev = b->prev;
    c->n_cached--;
}

/* ---- prefix table ---- */

static int *block_tokens(const struct kv_cache *c, int id)
{
    return c->token + (size_t)id * (size_t)c->options.block_size;
}

static int *bucket_of(const struct kv_cache *c, uint64_t hash)
{
    return &c->bucket[hash & (c->n_buckets - 1)];
}

/* The hash of a text that continues the text of hash `chain` by one block. */
static uint64_t hash_block(const struct kv_cache *c, uint64_t chain, const int *token)
{
    uint64_t h = chain;
    for (int i = 0; i < c->options.block_size; i++)
        h = mix64(h + 1 + (uint32_t)token[i]);
    return h & c->hash_mask;
}

static int find_block(const struct kv_cache *c, uint64_t hash, int parent, const int *token)
{
    size_t bytes = (size_t)c->options.block_size * sizeof(*token);
    for (int id = *bucket_of(c, hash); id != NO_BLOCK; id = c->block[id].bucket_next) {
        const struct block *b = &c->block[id];
        if (b->hash == hash && b->parent == parent &&
            memcmp(block_tokens(c, id), token, bytes) == 0)
            return id;
    }
    return NO_BLOCK;
}

static void make_findable(struct kv_cache *c, int id, uint64_t hash, int parent, const int *token)
{
    struct block *b = &c->block[id];
    assert(!b->findable && b->n_refs == 1);
    assert(parent == NO_BLOCK || c->block[parent].findable);
    int *bucket = bucket_of(c, hash);
    b->hash = hash;
    b->parent = parent;
    b->bucket_next = *bucket;
    b->findable = true;
    *bucket = id;
    memcpy(block_tokens(c, id), token, (size_t)c->options.block_size * sizeof(*token));
}

static void forget(struct kv_cache *c, int id)
{
    int *link = bucket_of(c, c->block[id].hash);
    while (*link != id) {
        assert(*link != NO_BLOCK);
        link = &c->block[*link].bucket_next;
    }
    *link = c->block[id].bucket_next;
    c->block[id].findable = false;
}

/* ---- ownership ---- */

/* A block with one reference and undefined contents; the caller knows that one is available. */
static int take_block(struct kv_cache *c)
{
    if (c->n_free == 0) {
        int victim = c->oldest;
        assert(victim != NO_BLOCK);
        remove_cached(c, victim);
        forget(c, victim);
        push_free(c, victim);
        c->stats.evictions++;
    }
    int id = pop_free(c);
    c->block[id].n_refs = 1;
    return id;
}

static void add_reference(struct kv_cache *c, int id)
{
    if (c->block[id].n_refs++ == 0)
        remove_cached(c, id);
}

static void drop_reference(struct kv_cache *c, int id)
{
    struct block *b = &c->block[id];
    assert(b->n_refs > 0);
    if (--b->n_refs > 0)
        return;
    if (b->findable)
        push_cached(c, id);
    else
        push_free(c, id);
}

static void note_peak(struct kv_cache *c)
{
    int used = c->options.n_blocks - c->n_free - c->n_cached;
    c->stats.used_peak = MAX(c->stats.used_peak, used);
}

/* ---- host blocks ---- */

static void push_host(struct kv_cache *c, int id)
{
    c->host_next[id] = c->host_top;
    c->host_top = id;
    c->n_host_free++;
}

static int pop_host(struct kv_cache *c)
{
    int id = c->host_top;
    assert(id != NO_BLOCK);
    c->host_top = c->host_next[id];
    c->n_host_free--;
    return id;
}

/* Frees the first host block of a sequence; returns it. */
static int drop_first_host(struct kv_cache *c, struct kv_seq *seq)
{
    int id = seq->host_first;
    seq->host_first = c->host_next[id];
    seq->n_host_blocks--;
    push_host(c, id);
    return id;
}

/* ---- opening ---- */

static int check_options(const struct kv_cache_options *o)
{
    if (o->n_blocks < 1 || o->n_blocks > KV_MAX_BLOCKS)
        return err_set(ERR_CONFIG, "%d KV blocks; expected 1 to %d", o->n_blocks, KV_MAX_BLOCKS);
    if (o->block_size < 1 || o->block_size > INT_MAX / o->n_blocks)
        return err_set(ERR_CONFIG, "%d KV blocks of %d tokens; expected at most %d token slots",
                       o->n_blocks, o->block_size, INT_MAX);
    if (o->hash_bits < 0 || o->hash_bits > HASH_BITS_MAX)
        return err_set(ERR_CONFIG, "block hashes of %d bits; expected 0 to %d", o->hash_bits,
                       HASH_BITS_MAX);
    if (o->n_host_blocks < 0 || o->n_host_blocks > KV_MAX_BLOCKS)
        return err_set(ERR_CONFIG, "%d host blocks; expected 0 to %d", o->n_host_blocks,
                       KV_MAX_BLOCKS);
    return 0;
}

static void open_prefix_table(struct kv_cache *c)
{
    c->n_buckets = 1;
    while (c->n_buckets < (size_t)c->options.n_blocks)
        c->n_buckets *= 2;
    c->bucket = xrealloc_array(NULL, c->n_buckets, sizeof(*c->bucket));
    for (size_t i = 0; i < c->n_buckets; i++)
        c->bucket[i] = NO_BLOCK;
    c->token = xrealloc_array(NULL, (size_t)c->options.n_blocks * (size_t)c->options.block_size,
                              sizeof(*c->token));
}

int kv_cache_open(struct kv_cache **out, const struct kv_cache_options *options)
{
    *out = NULL;
    if (check_options(options) < 0)
        return -1;
    struct kv_cache *c = xcalloc(1, sizeof(*c));
    c->options = *options;
    bool all_bits = options->hash_bits == 0 || options->hash_bits == HASH_BITS_MAX;
    c->hash_mask = all_bits ? UINT64_MAX : ((uint64_t)1 << options->hash_bits) - 1;
    c->free_top = c->oldest = c->newest = c->host_top = NO_BLOCK;
    c->block = xcalloc((size_t)options->n_blocks, sizeof(*c->block));
    for (int id = options->n_blocks - 1; id >= 0; id--)
        push_free(c, id);
    c->host_next = xcalloc((size_t)options->n_host_blocks, sizeof(*c->host_next));
    for (int id = options->n_host_blocks - 1; id >= 0; id--)
        push_host(c, id);
    if (options->prefix_caching)
        open_prefix_table(c);
    *out = c;
    return 0;
}

void kv_cache_close(struct kv_cache *c)
{
    if (!c)
        return;
    free(c->token);
    free(c->bucket);
    free(c->host_next);
    free(c->block);
    free(c);
}

void kv_seq_init(struct kv_seq *seq, int max_blocks)
{
    *seq = (struct kv_seq){.max_blocks = max_blocks};
    seq->block = xrealloc_array(NULL, (size_t)max_blocks, sizeof(*seq->block));
}

void kv_seq_free(struct kv_seq *seq)
{
    free(seq->block);
    *seq = (struct kv_seq){0};
}

/* ---- the life of a sequence ---- */

int kv_cache_find_prefix(struct kv_cache *c, struct kv_seq *seq, const int *token, int n_tokens)
{
    assert(seq->n_blocks == 0 && seq->n_committed == 0 && seq->chain == 0 && n_tokens > 0);
    if (!c->options.prefix_caching)
        return 0;
    int size = c->options.block_size, parent = NO_BLOCK;
    while (n_tokens - seq->n_blocks * size >= size) {
        const int *text = token + seq->n_blocks * size;
        uint64_t hash = hash_block(c, seq->chain, text);
        int id = find_block(c, hash, parent, text);
        if (id == NO_BLOCK)
            break;
        assert(seq->n_blocks < seq->max_blocks);
        add_reference(c, id);
        seq->block[seq->n_blocks++] = parent = id;
        /* The last token is left to compute, so a block that holds it is not committed yet. */
        if (seq->n_blocks * size < n_tokens)
            seq->chain = hash;
    }
    seq->n_committed = MIN(seq->n_blocks * size, n_tokens - 1);
    c->stats.lookups_tokens += n_tokens;
    c->stats.hit_tokens += seq->n_committed;
    return seq->n_committed;
}

bool kv_cache_reserve(struct kv_cache *c, struct kv_seq *seq, int first, int n,
                      struct kv_copy *copy, int *n_copies)
{
    int size = c->options.block_size, at = first / size;
    assert(first >= 0 && n > 0 && at <= seq->n_blocks);
    int n_needed = CEIL_DIV(first + n, size);
    assert(n_needed <= seq->max_blocks);
    /* A findable block that only this sequence owns may be written in place: its slots get the
     * values that they hold already, because equal text has equal keys and values. */
    bool shared = at < seq->n_blocks && c->block[seq->block[at]].n_refs > 1;
    *n_copies = 0;
    if (MAX(n_needed - seq->n_blocks, 0) + shared > kv_cache_available(c))
        return false;
    if (shared) {
        *copy = (struct kv_copy){.src = seq->block[at], .dst = take_block(c)};
        *n_copies = 1;
        drop_reference(c, copy->src);
        seq->block[at] = copy->dst;
        c->stats.copies++;
    }
    while (seq->n_blocks < n_needed)
        seq->block[seq->n_blocks++] = take_block(c);
    note_peak(c);
    return true;
}

void kv_cache_commit(struct kv_cache *c, struct kv_seq *seq, const int *token, int n_tokens)
{
    int size = c->options.block_size;
    assert(n_tokens >= seq->n_committed && CEIL_DIV(n_tokens, size) <= seq->n_blocks);
    int first = seq->n_committed / size;
    seq->n_committed = n_tokens;
    if (!c->options.prefix_caching)
        return;
    for (int i = first; i < n_tokens / size; i++) {
        const int *text = token + i * size;
        int parent = i > 0 ? seq->block[i - 1] : NO_BLOCK;
        seq->chain = hash_block(c, seq->chain, text);
        int known = find_block(c, seq->chain, parent, text);
        if (known == seq->block[i])
            continue;
        if (known == NO_BLOCK) {
            make_findable(c, seq->block[i], seq->chain, parent, text);
            continue;
        }
        add_reference(c, known);
        drop_reference(c, seq->block[i]);
        seq->block[i] = known;
    }
}

void kv_cache_release(struct kv_cache *c, struct kv_seq *seq)
{
    /* Last block first: a block must never be evicted before the ones that continue its text. */
    for (int i = seq->n_blocks - 1; i >= 0; i--)
        drop_reference(c, seq->block[i]);
    seq->n_blocks = seq->n_committed = 0;
    seq->chain = 0;
}

int kv_cache_swap_out(struct kv_cache *c, struct kv_seq *seq, struct kv_copy *copy)
{
    int n = CEIL_DIV(seq->n_committed, c->options.block_size);
    assert(seq->n_host_blocks == 0 && n <= seq->n_blocks);
    if (n == 0 || n > c->n_host_free)
        return 0;
    seq->n_host_tokens = seq->n_committed;
    seq->n_host_blocks = n;
    seq->host_first = NO_BLOCK;
    for (int i = n - 1; i >= 0; i--) {
        int id = pop_host(c);
        c->host_next[id] = seq->host_first;
        seq->host_first = id;
        copy[i] = (struct kv_copy){.src = seq->block[i], .dst = id};
    }
    kv_cache_release(c, seq);
    c->stats.n_swapped_out++;
    c->stats.blocks_out += n;
    c->stats.host_used_peak =
        MAX(c->stats.host_used_peak, c->options.n_host_blocks - c->n_host_free);
    return n;
}

int kv_cache_swap_in(struct kv_cache *c, struct kv_seq *seq, const int *token, struct kv_copy *copy)
{
    int n_found = seq->n_committed, size = c->options.block_size, n_copies = 0;
    if (seq->n_host_blocks == 0)
        return 0;
    assert(n_found % size == 0 || n_found >= seq->n_host_tokens);
    for (int i = 0; seq->n_host_blocks > 0; i++) {
        int id = drop_first_host(c, seq);
        if (i * size >= n_found)
            copy[n_copies++] = (struct kv_copy){.src = id, .dst = seq->block[i]};
    }
    /* Others may find the blocks at once: whatever they read is read after the copies. */
    if (seq->n_host_tokens > n_found)
        kv_cache_commit(c, seq, token, seq->n_host_tokens);
    seq->n_host_tokens = 0;
    c->stats.n_swapped_in++;
    c->stats.blocks_in += n_copies;
    return n_copies;
}

void kv_cache_drop_host(struct kv_cache *c, struct kv_seq *seq)
{
    while (seq->n_host_blocks > 0)
        drop_first_host(c, seq);
    seq->n_host_tokens = 0;
}

int kv_cache_available(const struct kv_cache *c)
{
    return c->n_free + c->n_cached;
}

void kv_cache_get_stats(const struct kv_cache *c, struct kv_cache_stats *out)
{
    *out = c->stats;
    out->n_blocks = c->options.n_blocks;
    out->free = c->n_free;
    out->cached = c->n_cached;
    out->used = c->options.n_blocks - c->n_free - c->n_cached;
    out->host_blocks = c->options.n_host_blocks;
    out->host_used = c->options.n_host_blocks - c->n_host_free;
}

/* ---- invariant ---- */

static void check_references(const struct kv_cache *c, const struct kv_seq *const *seqs, int n)
{
    int *n_refs = xcalloc((size_t)c->options.n_blocks, sizeof(*n_refs));
    for (int s = 0; s < n; s++) {
        assert(seqs[s]->n_blocks <= seqs[s]->max_blocks);
        assert(seqs[s]->n_committed <= seqs[s]->n_blocks * c->options.block_size);
        for (int i = 0; i < seqs[s]->n_blocks; i++)
            n_refs[seqs[s]->block[i]]++;
    }
    for (int id = 0; id < c->options.n_blocks; id++) {
        assert(c->block[id].n_refs == n_refs[id]);
        assert(n_refs[id] <= 1 || c->block[id].findable);
    }
    free(n_refs);
}

/* Every block without an owner is in the list of its state, exactly once. */
static void check_lists(const struct kv_cache *c)
{
    int n_blocks = c->options.n_blocks, n_free = 0, n_cached = 0, n_owned = 0, prev = NO_BLOCK;
    int *place = xcalloc((size_t)n_blocks, sizeof(*place)); /* in the list of cached, from 1 */
    for (int id = c->free_top; id != NO_BLOCK; id = c->block[id].next) {
        assert(c->block[id].n_refs == 0 && !c->block[id].findable);
        n_free++;
        assert(n_free <= n_blocks);
    }
    for (int id = c->oldest; id != NO_BLOCK; id = c->block[id].next) {
        const struct block *b = &c->block[id];
        assert(b->n_refs == 0 && b->findable && b->prev == prev);
        assert(b->parent == NO_BLOCK || place[b->parent] == 0); /* evicted after this block */
        place[id] = ++n_cached;
        assert(n_cached <= n_blocks);
        prev = id;
    }
    assert(prev == c->newest && n_free == c->n_free && n_cached == c->n_cached);
    for (int id = 0; id < n_blocks; id++)
        n_owned += c->block[id].n_refs > 0;
    assert(n_free + n_cached + n_owned == n_blocks);
    free(place);
}

static void check_prefix_table(const struct kv_cache *c)
{
    int n_entries = 0, n_findable = 0;
    for (size_t i = 0; i < c->n_buckets; i++) {
        for (int id = c->bucket[i]; id != NO_BLOCK; id = c->block[id].bucket_next) {
            const struct block *b = &c->block[id];
            assert(b->findable && bucket_of(c, b->hash) == &c->bucket[i]);
            assert(b->parent == NO_BLOCK || c->block[b->parent].findable);
            assert(find_block(c, b->hash, b->parent, block_tokens(c, id)) ==
                   id); /* no text twice */
            n_entries++;
        }
    }
    for (int id = 0; id < c->options.n_blocks; id++)
        n_findable += c->block[id].findable;
    assert(n_entries == n_findable);
}

static int check_host_list(const struct kv_cache *c, int first, bool *seen)
{
    int n = 0;
    for (int id = first; id != NO_BLOCK; id = c->host_next[id]) {
        assert(id >= 0 && id < c->options.n_host_blocks && !seen[id]);
        seen[id] = true;
        n++;
    }
    return n;
}

/* Every host block is in the free stack or in the list of one sequence. */
static void check_host(const struct kv_cache *c, const struct kv_seq *const *seqs, int n)
{
    bool *seen = xcalloc((size_t)c->options.n_host_blocks, sizeof(*seen));
    int n_listed = check_host_list(c, c->host_top, seen);
    assert(n_listed == c->n_host_free);
    for (int s = 0; s < n; s++) {
        const struct kv_seq *seq = seqs[s];
        assert(seq->n_host_blocks == CEIL_DIV(seq->n_host_tokens, c->options.block_size));
        assert(seq->n_host_blocks == 0 || seq->n_blocks == 0);
        if (seq->n_host_blocks > 0) {
            int n_own = check_host_list(c, seq->host_first, seen);
            assert(n_own == seq->n_host_blocks);
            n_listed += n_own;
        }
    }
    assert(n_listed == c->options.n_host_blocks);
    free(seen);
}

void kv_cache_check(const struct kv_cache *c, const struct kv_seq *const *seqs, int n)
{
    check_references(c, seqs, n);
    check_host(c, seqs, n);
    check_lists(c);
    check_prefix_table(c);
}
