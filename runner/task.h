/* task.h - from an experiment to its list of tasks.
 *
 * Task ids count the grid's product in the YAML's key order, last key fastest, replication
 * innermost, excluded points left out. plan, run and Slurm arrays all use task_list_make, so an id
 * means the same everywhere. A task's key is the SHA-256 of its resolved settings, its model's and
 * prompts' fingerprints and its replication: it names the same work in any database.
 */
#ifndef QUIRE_TASK_H
#define QUIRE_TASK_H

#include "runner/config.h"
#include "runner/prompts.h"

struct task {
    int id;          /* 0-based position in the list */
    int replication; /* 0-based                      */
    struct settings settings;
    char label[256]; /* "engine.attention=flash sampling.temperature=0.6", grid keys only */
    char key[SHA256_HEX_LEN + 1]; /* set by task_set_key */
};

struct task_list {
    struct task *task;
    int n;
};

int task_list_make(struct task_list *out, struct config *c);
void task_list_free(struct task_list *list);

#define TASK_MAX_NAME 320 /* bytes */

/* "task 3 (engine.attention=flash)", or "task 0" where there is no grid; returns buf. */
char *task_name(char buf[TASK_MAX_NAME], const struct task *t);

/* Computes the key. Settings that cannot change an output's meaning (device, threads, pool size,
 * batch limits, scheduling policy) stay in: a task is a measured configuration, not only a text.
 * Paths are left out: fingerprints name the contents. */
void task_set_key(struct task *t, const char *model_fingerprint, const char *prompts_fingerprint);

/* SHA-256 (hex) of (task key, prompt index, sample index). */
void task_sample_key(char hex[SHA256_HEX_LEN + 1], const struct task *t, int prompt, int sample);

/* The seed of one sample: a function of (sampling.seed, replication, prompt index, sample index)
 * alone, so that models, kernels and engines are compared on the same draws. */
uint64_t task_sample_seed(const struct task *t, int prompt, int sample);

/* True when both tasks can share a loaded model (and an engine). */
bool task_same_model(const struct task *a, const struct task *b);
bool task_same_engine(const struct task *a, const struct task *b);

/* What the engine is asked for; choices (auto) resolved by run.c's decision. */
void task_model_options(const struct task *t, struct model_options *out);
void task_sampling(const struct task *t, struct sampling_params *out);

#endif
