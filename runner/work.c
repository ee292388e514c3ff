/* work.c - see work.h. */
#include "runner/work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool same_prompts(const struct settings *a, const struct settings *b)
{
    return strcmp(a->prompts.file, b->prompts.file) == 0 &&
           strcmp(a->prompts.field, b->prompts.field) == 0 &&
           strcmp(a->prompts.system, b->prompts.system) == 0 &&
           a->prompts.chat == b->prompts.chat && a->prompts.limit == b->prompts.limit &&
           a->prompts.offset == b->prompts.offset;
}

void work_model_options(const struct model_group *group, struct model_options *out)
{
    task_model_options(group->work[0].task, out);
    out->device = group->decision.device;
}

const char *work_model_name(const struct work *w)
{
    const struct settings *s = &w->task->settings;
    return s->model.path[0] ? s->model.path : s->model.architecture;
}

/* The prompt set of a task: one that an earlier task of the same model loaded, or a new one. */
static const struct prompt_set *find_or_load_prompts(struct work_list *list, struct config *c,
                                                     const struct model_group *group, int i,
                                                     const struct tokenizer *tokenizer)
{
    const struct work *w = &group->work[i];
    for (int j = 0; j < i; j++)
        if (group->work[j].prompts &&
            same_prompts(&group->work[j].task->settings, &w->task->settings))
            return group->work[j].prompts;
    struct prompt_set *set;
    if (prompt_set_load(&set, c, &w->task->settings, tokenizer, group->info.vocab,
                        work_model_name(w)) != 0)
        return NULL;
    list->set = xrealloc_array(list->set, (size_t)list->n_sets + 1, sizeof(*list->set));
    list->set[list->n_sets++] = set;
    return set;
}

/* refused: why there is no device for the group, or NULL. */
static void describe_group(struct work_list *list, struct config *c, struct model_group *group,
                           const char *refused)
{
    struct model_options options;
    struct tokenizer *tokenizer = NULL;
    work_model_options(group, &options);
    bool described = !refused && model_describe(&group->info, &tokenizer, &options) == 0;
    if (refused)
        err_set(ERR_RESOURCE, "%s", refused);
    for (int i = 0; i < group->n; i++) {
        struct work *w = &group->work[i];
        if (described)
            w->prompts = find_or_load_prompts(list, c, group, i, tokenizer);
        if (!w->prompts)
            w->error = xstrdup(err_get());
        /* A task whose model or prompts cannot be read is named by where they should be. */
        char *missing = xasprintf("unreadable:%s", work_model_name(w));
        task_set_key(w->task, described ? group->info.fingerprint : missing,
                     w->prompts ? w->prompts->fingerprint : "unreadable");
        free(missing);
        w->n_samples = w->prompts ? w->prompts->n * (int)w->task->settings.sampling.n : 0;
        w->n_pending = w->n_samples;
        w->done = xcalloc((size_t)w->n_samples, sizeof(*w->done));
    }
    tokenizer_close(tokenizer);
}

/* Adds a task to the group with its model, or to a new one. */
static void place_task(struct work_list *list, struct task *task)
{
    struct model_group *group = NULL;
    for (int g = 0; g < list->n_groups && !group; g++)
        if (task_same_model(list->group[g].work[0].task, task))
            group = &list->group[g];
    if (!group) {
        list->group = xrealloc_array(list->group, (size_t)list->n_groups + 1, sizeof(*group));
        group = &list->group[list->n_groups++];
        *group = (struct model_group){0};
    }
    group->work = xrealloc_array(group->work, (size_t)group->n + 1, sizeof(*group->work));
    group->work[group->n++] = (struct work){.task = task};
}

static int prepare_group(struct work_list *list, struct config *c, struct model_group *group,
                         const struct decision_policy *policy)
{
    char *refused = NULL;
    if (decision_choose_device(&group->decision, &group->work[0].task->settings, policy) != 0) {
        if (policy->strict)
            return -1;
        refused = xstrdup(err_get());
    }
    describe_group(list, c, group, refused);
    free(refused);
    return 0;
}

int work_list_make(struct work_list *out, struct config *c, const struct decision_policy *policy)
{
    *out = (struct work_list){0};
    if (task_list_make(&out->tasks, c) != 0)
        return -1;
    for (int i = 0; i < out->tasks.n; i++)
        place_task(out, &out->tasks.task[i]);
    for (int g = 0; g < out->n_groups; g++)
        if (prepare_group(out, c, &out->group[g], policy) != 0)
            return -1;
    return 0;
}

void work_list_free(struct work_list *list)
{
    for (int g = 0; g < list->n_groups; g++) {
        for (int i = 0; i < list->group[g].n; i++) {
            free(list->group[g].work[i].error);
            free(list->group[g].work[i].done);
            attempt_free(&list->group[g].work[i].attempt);
        }
        free(list->group[g].work);
    }
    for (int i = 0; i < list->n_sets; i++)
        prompt_set_free(list->set[i]);
    free(list->group);
    free(list->set);
    task_list_free(&list->tasks);
    *list = (struct work_list){0};
}

static int64_t put_model(struct store *store, const struct model_group *group, const char *name)
{
    const struct model_info *info = &group->info;
    struct store_model row = {.path = name,
                              .arch = info->arch,
                              .fingerprint = info->fingerprint,
                              .dtype = info->arch[0] ? dtype_name(info->dtype) : "",
                              .n_params = (int64_t)info->n_params,
                              .weight_bytes = (int64_t)info->weight_bytes};
    char missing[ERR_MAX_LEN];
    if (!info->fingerprint[0]) {
        snprintf(missing, sizeof(missing), "unreadable:%s", name);
        row.fingerprint = missing;
    }
    return store_put_model(store, &row);
}

static int64_t put_prompts(struct store *store, const struct prompt_set *set)
{
    struct store_prompts row = {.source = set ? set->source : "unreadable",
                                .fingerprint = set ? set->fingerprint : "unreadable",
                                .n_prompts = set ? set->n : 0,
                                .n_tokens = set ? prompt_set_tokens(set, NULL) : 0};
    return store_put_prompts(store, &row);
}

static int resume_work(struct work *w, struct store *store, int64_t experiment_id, int64_t model_id)
{
    int64_t prompts_id = put_prompts(store, w->prompts);
    if (prompts_id < 0)
        return -1;
    json_t *settings = config_settings_json(&w->task->settings);
    char *text = json_dumps(settings, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    json_decref(settings);
    w->task_id = store_put_task(store, &(struct store_task){.experiment_id = experiment_id,
                                                            .model_id = model_id,
                                                            .prompts_id = prompts_id,
                                                            .key = w->task->key,
                                                            .label = w->task->label,
                                                            .settings_json = text,
                                                            .task_index = w->task->id,
                                                            .replication = w->task->replication,
                                                            .n_samples = w->n_samples});
    free(text);
    if (w->task_id < 0)
        return -1;
    if (w->n_samples == 0)
        return 0;
    int done = store_find_done(store, w->task->key, w->done, w->prompts->n,
                               (int)w->task->settings.sampling.n);
    if (done < 0)
        return -1;
    w->n_pending = w->n_samples - done;
    return 0;
}

int work_list_resume(struct work_list *list, struct store *store, int64_t experiment_id)
{
    for (int g = 0; g < list->n_groups; g++) {
        struct model_group *group = &list->group[g];
        int64_t model_id = put_model(store, group, work_model_name(&group->work[0]));
        if (model_id < 0)
            return -1;
        for (int i = 0; i < group->n; i++)
            if (resume_work(&group->work[i], store, experiment_id, model_id) != 0)
                return -1;
    }
    return store_commit(store);
}

int64_t work_list_samples(const struct work_list *list)
{
    int64_t n = 0;
    for (int g = 0; g < list->n_groups; g++)
        for (int i = 0; i < list->group[g].n; i++)
            n += list->group[g].work[i].n_samples;
    return n;
}

int64_t work_list_pending(const struct work_list *list)
{
    int64_t n = 0;
    for (int g = 0; g < list->n_groups; g++)
        for (int i = 0; i < list->group[g].n; i++)
            n += list->group[g].work[i].n_pending;
    return n;
}

int work_max_tokens(const struct work *w, int prompt)
{
    int own = w->prompts->prompt[prompt].max_tokens;
    return own ? own : (int)w->task->settings.sampling.max_tokens;
}

int work_longest_sequence(const struct work *w)
{
    int longest = 0;
    for (int i = 0; w->prompts && i < w->prompts->n; i++)
        longest = MAX(longest, w->prompts->prompt[i].n_ids + work_max_tokens(w, i));
    return longest;
}

int work_collect(struct work **out, const struct model_group *group, bool *taken,
                 const struct work_filter *filter)
{
    int n = 0;
    for (int i = 0; i < group->n; i++) {
        struct work *w = &group->work[i];
        if (taken[i] || w->error || (filter->pending_only && w->n_pending == 0))
            continue;
        if (n && (!filter->packed || !task_same_engine(out[0]->task, w->task)))
            continue;
        taken[i] = true;
        out[n++] = w;
    }
    return n;
}

void work_engine_options(struct engine_options *out, const struct decision *d,
                         struct work *const *works, int n, const struct model_info *info)
{
    int longest = 2; /* the shortest sequence there is: one token in, one out */
    int64_t n_samples = 0;
    decision_engine_options(d, &works[0]->task->settings, out);
    for (int i = 0; i < n; i++) {
        longest = MAX(longest, work_longest_sequence(works[i]));
        n_samples += works[i]->n_samples;
    }
    if (!out->max_model_len)
        out->max_model_len = MIN(longest, info->max_position);
    out->max_num_seqs = (int)MIN(out->max_num_seqs, n_samples);
}
