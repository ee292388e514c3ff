/* forward.h - running models through the forward pass in tests: a paged cache whose blocks are
 * shuffled, steps of any size, and the models that have logits by other implementations.
 *
 * Failures end the test. Where a dtype is named, INT8 stands for the checkpoint's with int8
 * weights.
 */
#ifndef QUIRE_FORWARD_H
#define QUIRE_FORWARD_H

#include "engine/model.h"
#include "tests/testing.h"

#define INT8       "int8" /* a model's name of a dtype that asks for its quantization */
#define BLOCK_SIZE 16
#define MAX_SEQS   8

struct seq {
    int *ids; /* [n_ids] borrowed */
    int n_ids, n_done;
    int *block; /* [max_blocks] */
};

struct world {
    struct model *m;
    struct activations a;
    struct kv_layer *kv; /* [n_layers] */
    enum dtype kv_dtype;
    enum attention_kind attention;
    struct seq seq[MAX_SEQS];
    int n_seqs, max_blocks;
};
/* A model on the device under test, or on the CPU when an instruction set or INT8 asks for it. One
 * thread where a test does not say otherwise: on a busy machine the tiny steps of these models
 * would wait for each other's threads longer than they compute. */
struct model *open_model_on(const char *path, const char *dtype, struct device_options device);
struct model *open_model(const char *path, const char *dtype);

/* A world for steps of up to max_tokens tokens and sequences of up to max_len. */
void world_open(struct world *w, struct model *m, int n_seqs, int max_tokens, int max_len);
void world_close(struct world *w);

/* Runs the next n[s] tokens of each sequence; their logits in the order of the tokens: [sum of n,
 * vocab]. The caller frees. */
float *world_step(struct world *w, const int *n);

/* Logits of ids[n] alone, computed `chunk` tokens at a time: [n, vocab]. The caller frees. */
float *logits_of(struct model *m, enum attention_kind attention, enum dtype kv_dtype, int *ids,
                 int n, int chunk);

int argmax(const float *x, int n);
/* The negative log-likelihood of a token under logits[vocab]. */
double nll(const float *logits, int vocab, int id);

/* ---- JSON ---- */

json_t *read_json(const char *path);
/* A list of numbers. The caller frees. */
int *read_ids(const json_t *list, int *n);
double number_at(const json_t *list, size_t i);

/* ---- tiny models of tests/golden, with logits ---- */

/* A tiny model of tests/golden with its reference. */
struct golden {
    struct model *m;
    json_t *root, *prompts;
};

#define N_GOLDEN 8
extern const char *const GOLDEN_NAMES[N_GOLDEN];

void golden_open_on(struct golden *g, const char *name, const char *dtype,
                    struct device_options device);
void golden_open(struct golden *g, const char *name, const char *dtype);
void golden_close(struct golden *g);
/* The largest error over the reference's prompts, relative to its largest logit. */
double golden_error(const struct golden *g, enum attention_kind attention, enum dtype kv_dtype,
                    int chunk);

/* ---- greedy continuations ---- */

/* What checks the logits that gave greedy id `step` of a prompt; false ends that prompt's check. */
typedef bool (*step_check)(const json_t *prompt, int step, int expected, const float *logits,
                           int vocab);

/* Feeds every prompt and then, token by token, its reference ids. */
void follow_reference(struct model *m, enum attention_kind attention, const json_t *prompts,
                      step_check check);
/* The same for the trained models of the shared data, with every attention kernel; skips without
 * them. */
void follow_trained(const char *dtype, step_check check);

#endif
