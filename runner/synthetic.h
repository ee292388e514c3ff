/* synthetic.h - prompts of random token ids, for speed tests: fixed lengths, uniformly drawn
 * lengths, or the lengths of a recorded trace.
 *
 * The ids (and uniform lengths) are drawn with Python's generator in the order of the published
 * benchmark scripts: for each prompt its length, then its ids; after all prompts, all output
 * lengths. So a workload that such a script draws can be named by its numbers and checked by
 * prompts.synthetic.expect.
 */
#ifndef QUIRE_SYNTHETIC_H
#define QUIRE_SYNTHETIC_H

#include "runner/prompts.h"

#define SYNTHETIC_MAX_LEN    (1 << 22) /* tokens of one prompt or output */
#define SYNTHETIC_MAX_TOKENS ((int64_t)1 << 29)

/* Checks c->synthetic: the keys that its kind of lengths needs, and no others. ERR_CONFIG. */
int synthetic_check(const struct config *c);

/* Draws the prompts into an array of *n that the caller frees with its prompts' ids and errors. A
 * row of a trace that is not two lengths becomes a prompt with `error`. ERR_CONFIG: ids outside the
 * vocabulary, too many tokens; ERR_DATA: a bad file, or not what `expect` says. */
int synthetic_draw(struct prompt **out, int *n, const struct config *c, int vocab,
                   const char *model_name);

#endif
