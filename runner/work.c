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
    out->device_options.index = group->decision.gpu;
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

/* Chooses the device of the group's model and describes the model on it: on the CPU where the GPU
 * has no arithmetic of its type. */
static int describe_model(struct model_group *group, struct tokenizer **tokenizer,
                          const struct decision_policy *policy)
{
    struct model_options options;
    if (decision_choose_device(&group->decision, &group->work[0].task->settings, policy) != 0)
        return -1;
    do {
        work_model_options(group, &options);
        if (model_describe(&group->info, tokenizer, &options) == 0)
            return 0;
    } while (decision_use_cpu(&group->decision, policy) == 0);
    return -1;
}

/* Prompts and keys of the group's tasks; not described: why is the error of all of them. */
static void prepare_tasks(struct work_list *list, struct config *c, struct model_group *group,
                          bool described, const struct tokenizer *tokenizer)
{
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
        w->n_share = w->n_pending = w->n_samples;
        w->done = xcalloc((size_t)w->n_samples, sizeof(*w->done));
    }
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
    struct tokenizer *tokenizer = NULL;
    bool described = describe_model(group, &tokenizer, policy) == 0;
    if (!described && policy->strict && err_get_kind() == ERR_RESOURCE)
        return -1;
    prepare_tasks(list, c, group, described, tokenizer);
    tokenizer_close(tokenizer);
    return 0;
}

/* The engine group of an earlier task that this one can join, or a new one. */
static struct engine_group *place_work(struct work_list *list, const struct model_group *model,
                                       const struct task *task, bool packed)
{
    for (int e = 0; e < list->n_engine_groups && packed; e++) {
        struct engine_group *group = &list->engine_group[e];
        if (group->model == model && task_same_engine(group->work[0]->task, task))
            return group;
    }
    size_t n = (size_t)list->n_engine_groups++;
    list->engine_group = xrealloc_array(list->engine_group, n + 1, sizeof(*list->engine_group));
    list->engine_group[n] = (struct engine_group){.model = model};
    return &list->engine_group[n];
}

static void make_engine_groups(struct work_list *list, bool packed)
{
    for (int g = 0; g < list->n_groups; g++) {
        struct model_group *model = &list->group[g];
        for (int i = 0; i < model->n; i++) {
            struct work *w = &model->work[i];
            if (w->error)
                continue;
            struct engine_group *group = place_work(list, model, w->task, packed);
            group->work = xrealloc_array(group->work, (size_t)group->n + 1, sizeof(struct work *));
            group->work[group->n++] = w;
        }
    }
}

static void set_digest(struct work_list *list)
{
    struct sha256 *h = sha256_open();
    for (int i = 0; i < list->tasks.n; i++)
        sha256_add_text(h, list->tasks.task[i].key);
    sha256_final(h, list->digest);
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
    make_engine_groups(out, c->schedule == SCHEDULE_PACKED);
    set_digest(out);
    return 0;
}

void work_list_free(struct work_list *list)
{
    for (int g = 0; g < list->n_groups; g++) {
        for (int i = 0; i < list->group[g].n; i++) {
            free(list->group[g].work[i].error);
            free(list->group[g].work[i].done);
        }
        free(list->group[g].work);
    }
    for (int i = 0; i < list->n_sets; i++)
        prompt_set_free(list->set[i]);
    for (int e = 0; e < list->n_engine_groups; e++)
        free(list->engine_group[e].work);
    free(list->engine_group);
    free(list->group);
    free(list->set);
    task_list_free(&list->tasks);
    *list = (struct work_list){0};
}

static bool lacks_template(const struct model_group *group)
{
    for (int i = 0; i < group->n; i++)
        if (group->work[i].prompts && group->work[i].prompts->no_template)
            return true;
    return false;
}

void work_list_warn(const struct work_list *list)
{
    for (int g = 0; g < list->n_groups; g++)
        if (lacks_template(&list->group[g]))
            log_warning(PROMPTS_NO_TEMPLATE, work_model_name(&list->group[g].work[0]));
}

static int64_t put_model(struct store *store, const struct model_group *group, const char *name)
{
    const struct model_info *info = &group->info;
    struct store_model row = {.path = name,
                              .arch = info->arch,
                              .fingerprint = info->fingerprint,
                              .dtype =
                                  info->arch[0] ? weight_name(info->dtype, info->quantization) : "",
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

static int record_work(struct work *w, struct store *store, int64_t experiment_id, int64_t model_id)
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
    return w->task_id < 0 ? -1 : 0;
}

int work_list_record(struct work_list *list, struct store *store, int64_t experiment_id)
{
    for (int g = 0; g < list->n_groups; g++) {
        struct model_group *group = &list->group[g];
        int64_t model_id = put_model(store, group, work_model_name(&group->work[0]));
        if (model_id < 0)
            return -1;
        for (int i = 0; i < group->n; i++)
            if (record_work(&group->work[i], store, experiment_id, model_id) != 0)
                return -1;
    }
    return store_commit(store);
}

int work_list_find_done(struct work_list *list, struct store *store)
{
    for (int g = 0; g < list->n_groups; g++) {
        for (int i = 0; i < list->group[g].n; i++) {
            struct work *w = &list->group[g].work[i];
            if (w->n_samples == 0)
                continue;
            int n = store_find_done(store, w->task->key, w->done, w->prompts->n,
                                    (int)w->task->settings.sampling.n);
            if (n < 0)
                return -1;
            w->n_pending -= n;
        }
    }
    return 0;
}

/* ---- the share of one worker ---- */

/* Millions of parameters, at least one: integers, so that every machine cuts at the same place. */
static uint64_t model_cost(const struct engine_group *group)
{
    return group->model->info.n_params / 1000000 + 1;
}

static uint64_t list_cost(const struct work_list *list)
{
    uint64_t total = 0;
    for (int e = 0; e < list->n_engine_groups; e++) {
        const struct engine_group *group = &list->engine_group[e];
        for (int i = 0; i < group->n; i++) {
            const struct work *w = group->work[i];
            uint64_t n = (uint64_t)w->task->settings.sampling.n;
            for (int p = 0; p < w->prompts->n; p++)
                total += n * (uint64_t)work_sample_cost(w, p) * model_cost(group);
        }
    }
    return total;
}

/* The part [first, last) of a line of costs, and where the walk along it stands. */
struct share {
    unsigned __int128 first, last; /* times two, so that the middle of a sample is a whole number */
    uint64_t passed;
};

static void take_share(struct work *w, struct share *share, uint64_t cost_of_model)
{
    int n = (int)w->task->settings.sampling.n;
    for (int i = 0; i < w->n_samples; i++) {
        uint64_t cost = (uint64_t)work_sample_cost(w, i / n) * cost_of_model;
        unsigned __int128 middle = 2 * (unsigned __int128)share->passed + cost;
        share->passed += cost;
        if (middle >= share->first && middle < share->last)
            continue;
        w->n_share--;
        w->n_pending -= !w->done[i];
        w->done[i] = true;
    }
}

void work_list_take_share(struct work_list *list, int index, int count)
{
    unsigned __int128 total = 2 * (unsigned __int128)list_cost(list);
    struct share share = {.first = total * (unsigned)index / (unsigned)count,
                          .last = total * ((unsigned)index + 1) / (unsigned)count};
    for (int e = 0; e < list->n_engine_groups; e++)
        for (int i = 0; i < list->engine_group[e].n; i++)
            take_share(list->engine_group[e].work[i], &share, model_cost(&list->engine_group[e]));
}

int64_t work_list_share(const struct work_list *list)
{
    int64_t n = 0;
    for (int g = 0; g < list->n_groups; g++)
        for (int i = 0; i < list->group[g].n; i++)
            n += list->group[g].work[i].n_share;
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

int64_t work_sample_cost(const struct work *w, int prompt)
{
    return 8 * (int64_t)work_max_tokens(w, prompt) + w->prompts->prompt[prompt].n_ids;
}

void work_engine_options(struct engine_options *out, const struct decision *d,
                         const struct engine_group *group, const struct model_info *info)
{
    int longest = 2; /* the shortest sequence there is: one token in, one out */
    int64_t n_samples = 0;
    decision_engine_options(d, &group->work[0]->task->settings, out);
    for (int i = 0; i < group->n; i++) {
        longest = MAX(longest, work_longest_sequence(group->work[i]));
        n_samples += group->work[i]->n_samples;
    }
    if (!out->max_model_len)
        out->max_model_len = MIN(longest, info->max_position);
    out->max_num_seqs = (int)MIN(out->max_num_seqs, n_samples);
}
