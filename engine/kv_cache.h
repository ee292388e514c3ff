/* kv_cache.h - which blocks of KV memory belong to which sequence.
 *
 * Bookkeeping only: it never touches device memory. A block is block_size consecutive token slots.
 * A block is free, owned (by one or more sequences), or cached: owned by nobody, but its contents
 * are still known by a chained hash and can be found again until the memory is needed; the block
 * unused for longest goes first. Full blocks of a sequence enter the prefix cache when
 * kv_cache_commit says that their tokens have been computed. A hash match is confirmed by comparing
 * token ids and the parent block: a collision never gives wrong text.
 *
 * Beside the blocks of the device there may be blocks in host memory. A sequence that is swapped
 * out owns host blocks and no others; nobody shares them, and they are not findable.
 *
 * Invariant (kv_cache_check): references add up over all sequences; every block is in exactly one
 * of the three states; a cached or shared block is full; every host block is free or has one owner.
 */
#ifndef QUIRE_KV_CACHE_H
#define QUIRE_KV_CACHE_H

#include "engine/util.h"
#include "kernels/backend.h"

#define KV_MAX_BLOCKS (1 << 24)

struct kv_cache;

/* The blocks of one sequence. Zero-initialise (kv_seq_init reserves the table so that growing it
 * allocates nothing). */
struct kv_seq {
    int *block; /* [n_blocks] block ids in token order */
    int n_blocks, max_blocks;
    int n_committed; /* tokens known to be computed       */
    uint64_t chain;  /* hash of the full blocks among them */
    /* Swapped out: the tokens that host blocks hold, and the first of those; others are linked. */
    int n_host_tokens, n_host_blocks, host_first;
};

struct kv_cache_options {
    int n_blocks, block_size;
    bool prefix_caching;
    int hash_bits;     /* 0: all 64; fewer make collisions frequent, for tests */
    int n_host_blocks; /* 0: nothing can be swapped out                        */
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

/* Makes room for tokens [first, first + n) of the sequence: adds blocks at the end and replaces the
 * block that holds `first` by a private copy when it is shared (then *copy is filled in and
 * *n_copies is 1, otherwise 0): the device must copy it before the step writes to it. false and no
 * change at all when there are not enough blocks. */
bool kv_cache_reserve(struct kv_cache *c, struct kv_seq *seq, int first, int n,
                      struct kv_copy *copy, int *n_copies);

/* The sequence's tokens [0, n_tokens) are computed: full blocks among them become findable. A block
 * whose text is findable already is given back and replaced in the table by the known one, so that
 * no text is kept twice. token: all of the sequence's ids. */
void kv_cache_commit(struct kv_cache *c, struct kv_seq *seq, const int *token, int n_tokens);

/* Gives all blocks back (the sequence finished or is preempted), host blocks excepted. */
void kv_cache_release(struct kv_cache *c, struct kv_seq *seq);

/* Gives the blocks of a sequence that has a token left to compute back, but first takes a host
 * block for each that holds computed tokens. Returns the number of copies, device to host, that
 * copy[] receives (at most the sequence's blocks); they must be made before anything writes to the
 * blocks. 0, and no change at all: there are not enough host blocks, or nothing is computed. A
 * block that others share is copied like any other: they may all be gone when the sequence comes
 * back. */
int kv_cache_swap_out(struct kv_cache *c, struct kv_seq *seq, struct kv_copy *copy);

/* Brings back what was swapped out, after kv_cache_find_prefix and a kv_cache_reserve of all that
 * they left: its tokens count as computed again, and the host blocks are given back. Returns the
 * number of copies, host to device, that copy[] receives: only of blocks that were not found. They
 * must be made before the step, before blocks are copied on the device, and before a host block is
 * written again. 0 when nothing was swapped out. token: all of the sequence's ids. */
int kv_cache_swap_in(struct kv_cache *c, struct kv_seq *seq, const int *token,
                     struct kv_copy *copy);

/* Gives the host blocks of a sequence back that will not come back (accepts one without). */
void kv_cache_drop_host(struct kv_cache *c, struct kv_seq *seq);

/* Blocks that kv_cache_reserve could hand out now: free and cached ones. */
int kv_cache_available(const struct kv_cache *c);

struct kv_cache_stats {
    int n_blocks, free, used, cached; /* free + used + cached = n_blocks */
    int used_peak;
    long lookups_tokens, hit_tokens; /* over all kv_cache_find_prefix calls */
    long evictions, copies;
    int host_blocks, host_used, host_used_peak;
    long n_swapped_out, n_swapped_in; /* sequences                                      */
    long blocks_out, blocks_in;       /* copied to and from host memory                  */
};
void kv_cache_get_stats(const struct kv_cache *c, struct kv_cache_stats *out);

/* Asserts the invariant; seqs[n] are all sequences that hold blocks of either kind. For tests and
 * debug builds. */
void kv_cache_check(const struct kv_cache *c, const struct kv_seq *const *seqs, int n);

#endif
