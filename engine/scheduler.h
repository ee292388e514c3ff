/* scheduler.h - which sequences run in the next step, and with how many of their tokens.
 *
 * A seq is a token timeline: prompt, then output. Waiting seqs hold no blocks (but host blocks when
 * they were swapped out); running seqs hold a lane and blocks for all tokens that they have so far.
 * The policy ranks seqs. Each step takes one token of every running seq that has only its last
 * token left to compute (decode), and fills the rest of the token budget with chunks of prompts
 * (prefill), then admits waiting seqs, each in the order of rank; a waiting seq is never overtaken
 * by one of lower rank. No decision looks at a clock, so the same submissions give the same steps.
 *
 * Preemption. When blocks run out, the running seq that ranks last gives its blocks back and waits
 * again, before all that ranked behind it. What it has computed is swapped out when the cache has
 * enough host blocks for all of it, and recomputed later otherwise.
 *
 * The next step can be put together before the tokens of the one before are known. A seq then has
 * an unknown token at its end (n_unknown), which is decoded like any other: the device knows it.
 *
 * Static batching (the standard engine): waiting seqs are admitted only when nothing runs.
 *
 * Invariant (scheduler_check): a seq that was added is waiting or running until it is finished; the
 * seq that ranks first of the running ones has tokens in every step, so every seq finishes.
 */
#ifndef QUIRE_SCHEDULER_H
#define QUIRE_SCHEDULER_H

#include "engine/engine.h"
#include "engine/kv_cache.h"

enum seq_state { SEQ_WAITING, SEQ_RUNNING, SEQ_FINISHED };

struct seq {
    uint64_t id; /* unique, in the order of submission                            */
    enum seq_state state;
    enum finish_reason reason;
    int *token;    /* [n_tokens], room for max_tokens: prompt, then output       */
    int n_unknown; /* of them at the end are sampled, but not known here yet: 0 to 2 */
    int n_prompt, n_tokens, max_tokens;
    int n_computed;  /* tokens whose K and V are in the cache                         */
    int n_scheduled; /* tokens of this step; 0 after scheduler_advance                */
    int n_cached;    /* found in the prefix cache when it was first admitted          */
    int n_preemptions;
    int lane;           /* 0..max_num_seqs - 1; -1 when not running                      */
    bool token_in_lane; /* the device has token[n_tokens - 1] in sampled[lane]         */
    bool cancelled;
    struct kv_seq kv;
    struct request request; /* prompt pointer not used after submission               */
    double submitted_s, scheduled_s, first_token_s;
    struct seq *next, *prev, *child; /* in the scheduler's heap of waiting seqs       */
};

static inline int seq_n_known(const struct seq *seq)
{
    return seq->n_tokens - seq->n_unknown;
}

struct scheduler_options {
    enum scheduling_policy policy;
    bool static_batching;
    int max_num_seqs, max_num_batched_tokens;
    int block_size;
};

struct scheduler;

/* The cache must outlive the scheduler. ERR_CONFIG when an option is out of range. */
int scheduler_open(struct scheduler **out, struct kv_cache *cache,
                   const struct scheduler_options *options);
void scheduler_close(struct scheduler *s); /* does not free the seqs */

/* Queues a seq; it is owned by the caller and must stay until it is finished. Asserts that the
 * whole cache can hold max_tokens - 1 tokens (the last one is sampled, never computed). */
void scheduler_add(struct scheduler *s, struct seq *seq);

/* What one step computes. Arrays are owned by the scheduler and valid until the next call. */
struct schedule {
    struct seq **seq; /* [n_seqs] each with n_scheduled > 0 tokens from n_computed on */
    int n_seqs, n_tokens;
    /* Copies of blocks to make before the step, one kind after the other. */
    struct kv_copy *swap_out; /* [n_swap_out] device to host   */
    struct kv_copy *swap_in;  /* [n_swap_in] host to device    */
    struct kv_copy *copy;     /* [n_copies] on the device      */
    int n_swap_out, n_swap_in, n_copies;
    int n_prefill_tokens; /* tokens of seqs that are not plain decodes */
};

/* Fills in the next step. n_seqs is 0 only when nothing is waiting or running, or when all that is
 * running has its last token, not known yet; there may be blocks to swap out even then. */
void scheduler_next(struct scheduler *s, struct schedule *out);

/* After the step: every seq's n_computed grows by n_scheduled, full blocks of known tokens enter
 * the prefix cache. */
void scheduler_advance(struct scheduler *s, const struct schedule *done);

/* Adds the token that the step has sampled for a running seq: not known yet. */
void scheduler_add_unknown(struct seq *seq);
/* The first of the unknown tokens of a seq, running or waiting again, is known now. */
void scheduler_set_known(struct scheduler *s, struct seq *seq, int id);

/* Takes a seq out, waiting or running: gives back its blocks of either kind and its lane. */
void scheduler_finish(struct scheduler *s, struct seq *seq, enum finish_reason reason);

int scheduler_n_waiting(const struct scheduler *s);
int scheduler_n_running(const struct scheduler *s);
long scheduler_n_preemptions(const struct scheduler *s);
/* Unfilled share of the slots in the running seqs' blocks, 0..1. */
double scheduler_kv_waste(const struct scheduler *s);
/* Asserts the invariants of the lists and of the cache. */
void scheduler_check(const struct scheduler *s);

#endif
