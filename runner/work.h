/* work.h - the tasks of an experiment with their prompts, keys and what is still to do. */
#ifndef QUIRE_WORK_H
#define QUIRE_WORK_H

#include "runner/attempt.h"
#include "runner/decision.h"
#include "runner/store.h"
#include "runner/task.h"

struct work {
    struct task *task;
    const struct prompt_set *prompts; /* shared between tasks; NULL when it could not be made */
    char *error;                      /* why the task cannot run (NULL: it can)               */
    int64_t task_id;                  /* row id; 0 until work_list_resume                     */
    bool *done;                       /* [prompts->n * n] prompt-major                        */
    int n_samples, n_pending;
    struct attempt attempt;
};

/* Tasks that share a loaded model, in the order of the task list. */
struct model_group {
    struct work *work; /* [n] */
    int n;
    struct decision decision; /* the device; the rest is chosen for each engine */
    struct model_info info;   /* from model_describe; empty when that failed    */
};

struct work_list {
    struct task_list tasks;
    struct model_group *group;
    int n_groups;
    struct prompt_set **set; /* owned */
    int n_sets;
};

/* Expands the tasks, chooses each model's device, describes the models and loads each prompt set
 * once. A model or prompt set that cannot be read becomes the `error` of its tasks, not an error of
 * the list; so does a device that the policy refuses, unless it is strict. Keys are set. */
int work_list_make(struct work_list *out, struct config *c, const struct decision_policy *policy);
void work_list_free(struct work_list *list);

/* Enters models, prompts and tasks into the store and finds out which samples are finished. */
int work_list_resume(struct work_list *list, struct store *store, int64_t experiment_id);

/* Sums over all tasks that can run. */
int64_t work_list_samples(const struct work_list *list);
int64_t work_list_pending(const struct work_list *list);

struct work_filter {
    bool packed;       /* tasks with equal engine settings together; false: one task at a time */
    bool pending_only; /* leave out tasks with nothing to do                                   */
};

/* Takes the next task of the group that is not `taken` and can run, and under `packed` those that
 * can share its engine, into out[group->n]. Returns how many; 0 at the end. */
int work_collect(struct work **out, const struct model_group *group, bool *taken,
                 const struct work_filter *filter);

/* The engine for these tasks: their settings, with max_model_len: auto as the longest sequence that
 * they can make (at most what the model was made for), and no more sequences at once than they have
 * samples, so that memory is not planned for what nobody asked for. */
void work_engine_options(struct engine_options *out, const struct decision *d,
                         struct work *const *works, int n, const struct model_info *info);

/* The longest sequence of a task in tokens, prompt and output. */
int work_longest_sequence(const struct work *w);
/* What the user asked this task to generate for a prompt: its own length, or sampling.max_tokens.
 */
int work_max_tokens(const struct work *w, int prompt);
/* The model's options with the device that was decided for its group. */
void work_model_options(const struct model_group *group, struct model_options *out);
/* "models/Qwen3-0.6B": the path or architecture as configured. */
const char *work_model_name(const struct work *w);

#endif
