/* work.h - the tasks of an experiment with their prompts, keys and what is still to do. */
#ifndef QUIRE_WORK_H
#define QUIRE_WORK_H

#include "runner/decision.h"
#include "runner/store.h"
#include "runner/task.h"

struct work {
    struct task *task;
    const struct prompt_set *prompts; /* shared between tasks; NULL when it could not be made */
    char *error;                      /* why the task cannot run (NULL: it can)               */
    int64_t task_id;                  /* row id; 0 until work_list_resume                     */
    bool *done;    /* [n_samples] prompt-major: finished, or the share of another worker  */
    int n_samples; /* of the task                                                         */
    int n_share;   /* of these, what this worker of a job array has to see to: all at first */
    int n_pending; /* of its share, not finished                                          */
};

/* Tasks that share a loaded model, in the order of the task list. */
struct model_group {
    struct work *work; /* [n] */
    int n;
    struct decision decision; /* the device; the rest is chosen for each engine */
    struct model_info info;   /* from model_describe; empty when that failed    */
};

/* Tasks that run in the same batches: of one model and with equal engine settings; under
 * `schedule: exclusive` one task alone. Tasks that cannot run are in no group. */
struct engine_group {
    const struct model_group *model;
    struct work **work; /* [n] in the order of the task list; borrowed */
    int n;
};

struct work_list {
    struct task_list tasks;
    struct model_group *group;
    int n_groups;
    struct engine_group *engine_group;
    int n_engine_groups;
    char digest[SHA256_HEX_LEN + 1]; /* of the keys of all tasks: the same on every rank */
    struct prompt_set **set;         /* owned */
    int n_sets;
};

/* Expands the tasks, chooses each model's device, describes the models and loads each prompt set
 * once. A model or prompt set that cannot be read becomes the `error` of its tasks, not an error of
 * the list; so does a device that the policy refuses, unless it is strict. Keys are set. */
int work_list_make(struct work_list *out, struct config *c, const struct decision_policy *policy);
void work_list_free(struct work_list *list);

/* Warns of each model that gets messages and has no chat template for them. */
void work_list_warn(const struct work_list *list);

/* Keeps the samples of worker `index` of a job array of `count` workers: a contiguous part of the
 * list in the order of its groups, of about the same cost for each. A function of the list, the
 * index and the count alone, so workers need not talk to each other. */
void work_list_take_share(struct work_list *list, int index, int count);

/* Enters models, prompts and tasks into the store. */
int work_list_record(struct work_list *list, struct store *store, int64_t experiment_id);
/* Finds out which samples are finished in a store; may be called for several, one after another. */
int work_list_find_done(struct work_list *list, struct store *store);

/* Sums over all tasks that can run. */
int64_t work_list_share(const struct work_list *list);
int64_t work_list_pending(const struct work_list *list);

/* The engine for these tasks: their settings, with max_model_len: auto as the longest sequence that
 * they can make (at most what the model was made for), and no more sequences at once than they have
 * samples, so that memory is not planned for what nobody asked for. */
void work_engine_options(struct engine_options *out, const struct decision *d,
                         const struct engine_group *group, const struct model_info *info);

/* The longest sequence of a task in tokens, prompt and output. */
int work_longest_sequence(const struct work *w);
/* What the user asked this task to generate for a prompt: its own length, or sampling.max_tokens.
 */
int work_max_tokens(const struct work *w, int prompt);
/* What one sample of a prompt is expected to cost, in eighths of an output token of its model: a
 * step of one sequence streams the weights that a whole chunk of a prompt shares. */
int64_t work_sample_cost(const struct work *w, int prompt);
/* The model's options with the device that was decided for its group. */
void work_model_options(const struct model_group *group, struct model_options *out);
/* "models/Qwen3-0.6B": the path or architecture as configured. */
const char *work_model_name(const struct work *w);

#endif
