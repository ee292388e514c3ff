/* kv_cache.h - which blocks of KV memory belong to which sequence.
 *
 * Bookkeeping only: it never touches device memory. A block is block_size consecutive token slots.
 * A block is free, owned (by one or more sequences), or cached: owned by nobody, but its contents
 * are still known by a chained hash and can be found again until the memory is needed; the block
 * unused for longest goes first. Full blocks of a sequence enter the prefix cache when
 * kv_cache_commit says that their tokens have been computed. A hash match is confirmed by comparing
 * token ids and the parent block: a collision never gives wrong text.
 *
 * Invariant (kv_cache_check): references add up over all sequences; every block is in exactly one
 * of the three states; a cached or shared block is full.
 */
#ifndef QUIRE_KV_CACHE_H
#define QUIRE_KV_CACHE_H

#include "engine/util.h"

#define KV_MAX_BLOCKS (1 << 24)

struct kv_cache;

/* The blocks of one sequence. Zero-initialise (kv_seq_init reserves the table so that growing it
 * allocates nothing). */
struct kv_seq {
    int *block; /* [n_blocks] block ids in token order */
    int n_blocks, max_blocks;
    int n_committed; /* tokens known to be computed       */
    uint64_t chain;  /* hash of the full blocks among them */
};

struct kv_cache_options {
    int n_blocks, block_size;
    bool prefix_caching;
    int hash_bits; /* 0: all 64; fewer make collisions frequent, for tests */
};

/* ERR_CONFIG when an option is out of range. */
int kv_cache_open(struct kv_cache **out, const struct kv_cache_options *options);
void kv_cache_close(struct kv_cache *c);

void kv_seq_init(struct kv_seq *seq, int max_blocks);
void kv_seq_free(struct kv_seq *seq);

/* Starts a sequence: takes references to the longest run of known blocks that is a prefix of
 * token[n_tokens]. Returns the tokens found, at most n_tokens - 1 (the last token must be computed
 * to have logits): when every block was found, the last one is shared and kv_cache_reserve copies
 * it on write. The sequence must hold no blocks. */
int kv_cache_find_prefix(struct kv_cache *c, struct kv_seq *seq, const int *token, int n_tokens);

/* A block that must be copied, on the device, before the step writes to dst. */
struct kv_copy {
    int src, dst;
};

/* Makes room for tokens [first, first + n) of the sequence: adds blocks at the end and replaces the
 * block that holds `first` by a private copy when it is shared (then *copy is filled in and
 * *n_copies is 1, otherwise 0). false and no change at all when there are not enough blocks. */
bool kv_cache_reserve(struct kv_cache *c, struct kv_seq *seq, int first, int n,
                      struct kv_copy *copy, int *n_copies);

/* The sequence's tokens [0, n_tokens) are computed: full blocks among them become findable. A block
 * whose text is findable already is given back and replaced in the table by the known one, so that
 * no text is kept twice. token: all of the sequence's ids. */
void kv_cache_commit(struct kv_cache *c, struct kv_seq *seq, const int *token, int n_tokens);

/* Gives all blocks back (the sequence finished or is preempted). */
void kv_cache_release(struct kv_cache *c, struct kv_seq *seq);

/* Blocks that kv_cache_reserve could hand out now: free and cached ones. */
int kv_cache_available(const struct kv_cache *c);

struct kv_cache_stats {
    int n_blocks, free, used, cached; /* free + used + cached = n_blocks */
    int used_peak;
    long lookups_tokens, hit_tokens; /* over all kv_cache_find_prefix calls */
    long evictions, copies;
};
void kv_cache_get_stats(const struct kv_cache *c, struct kv_cache_stats *out);

/* Asserts the invariant; seqs[n] are all sequences that hold blocks. For tests and debug builds. */
void kv_cache_check(const struct kv_cache *c, const struct kv_seq *const *seqs, int n);

#endif
