/* attention.h - attention on a CUDA device: the entry for the backend's table, and its scratch.
 *
 * The scratch memory belongs to attention alone: it starts with counters that every launch leaves
 * at zero again, so no other operation may write to it. reserve() takes
 * cuda_attention_workspace() bytes with the device current, sets them to zero once, and keeps
 * address and size in struct cuda_device (attention_workspace, attention_workspace_bytes).
 */
#ifndef QUIRE_CUDA_ATTENTION_H
#define QUIRE_CUDA_ATTENTION_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct device;
struct attention_args;
struct step_limits;

/* Bytes of scratch for steps within these limits, on the current device. */
size_t cuda_attention_workspace(const struct step_limits *limits);

/* As the table's entries: the plan of a step's decodes is made once, ahead of the layers' calls
 * with the same window. */
void cuda_attention_plan(struct device *device, const struct attention_args *args);

/* As the table's entry: enqueues on the device's stream. The launches depend on the sizes of the
 * batch (n_tokens, n_seqs, max_blocks, max_q_len) and never on the contents of its arrays, so that
 * they can be recorded in a graph. kind falls back to the slower path for dtypes and head sizes
 * that its kernel lacks. */
void cuda_attention(struct device *device, const struct attention_args *args);

#ifdef __cplusplus
}
#endif

#endif
