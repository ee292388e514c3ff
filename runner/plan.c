/* plan.c - the `plan` command: what a run would do, without loading weights or a GPU. */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/decision.h"
#include "runner/work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LISTED_TASKS 20 /* without --tasks */

struct totals {
    int64_t samples, done, prompt_tokens, output_tokens, kv_tokens;
    int longest_prompt, longest_sequence;
    int64_t n_unusable;   /* samples whose prompt cannot be used */
    const char *unusable; /* why not, of the first one; borrowed */
};

static void add_work(struct totals *t, const struct work *w)
{
    int n = (int)w->task->settings.sampling.n;
    t->samples += w->n_samples;
    t->done += w->n_samples - w->n_pending;
    t->longest_sequence = MAX(t->longest_sequence, work_longest_sequence(w));
    for (int i = 0; w->prompts && i < w->prompts->n; i++) {
        const struct prompt *p = &w->prompts->prompt[i];
        int n_ids = p->n_ids, n_out = work_max_tokens(w, i);
        t->n_unusable += p->error ? n : 0;
        t->unusable = t->unusable ? t->unusable : p->error;
        t->prompt_tokens += (int64_t)n * n_ids;
        t->output_tokens += (int64_t)n * n_out;
        t->kv_tokens += (int64_t)n * (n_ids + n_out);
        t->longest_prompt = MAX(t->longest_prompt, n_ids);
    }
}

static void print_totals(const struct totals *t)
{
    char a[32], b[32], c[32], d[32];
    printf("  samples      %s", format_count(a, t->samples));
    if (t->done)
        printf(" (%s done already)", format_count(b, t->done));
    printf("\n  tokens       %s prompt tokens (longest prompt %s), at most %s output tokens\n",
           format_count(a, t->prompt_tokens), format_count(c, t->longest_prompt),
           format_count(d, t->output_tokens));
    if (t->n_unusable)
        printf("  unusable     %s sample%s will fail: %s%s\n", format_count(a, t->n_unusable),
               t->n_unusable == 1 ? "" : "s", t->unusable,
               t->n_unusable == 1 ? "" : ", and others");
}

/* ---- settings and their origin ---- */

static const struct grid_axis *find_axis(const struct config *c, size_t key)
{
    for (int i = 0; i < c->n_axes; i++)
        if (c->axis[i].key_index == key)
            return &c->axis[i];
    return NULL;
}

static void print_key(const struct config *c, size_t i, int width)
{
    const struct grid_axis *axis = find_axis(c, i);
    char *base = config_text(c, i);
    struct str text = {0};
    str_append_c(&text, axis ? "" : base[0] ? base : "\"\"");
    for (size_t j = 0; axis && j < axis->values->n_items; j++) {
        char *value = config_value_text(&axis->setting[j], i);
        str_appendf(&text, "%s%s", j ? " | " : "", value);
        free(value);
    }
    printf("%-*s  %-24s  ", width, config_get_key(i)->path, text.data);
    char where[256];
    if (axis)
        printf("%s, %s\n", axis->zip_group >= 0 ? "zip" : "grid",
               yaml_where(where, sizeof(where), axis->values));
    else
        printf("%s\n", c->origin[i].text);
    str_free(&text);
    free(base);
}

static void print_resolved(const struct config *c)
{
    int width = 0;
    for (size_t i = 0; i < config_n_keys(); i++)
        width = MAX(width, (int)strlen(config_get_key(i)->path));
    for (size_t i = 0; i < config_n_keys(); i++)
        print_key(c, i, width);
}

/* ---- one engine ---- */

/* What the model reached in its last run with a finished task, all tasks together; 0 when there was
 * none. */
static int take_rate(void *user, int n_columns, const char *const *names, const char *const *values,
                     const bool *is_number)
{
    (void)names;
    (void)is_number;
    if (values && n_columns == 1 && values[0])
        return parse_double(user, values[0]) ? 0 : -1;
    return 0;
}

static double measured_rate(struct store *store, const struct model_info *info)
{
    double rate = 0;
    if (!store)
        return 0;
    char *sql =
        xasprintf("SELECT sum(a.output_tokens) / (86400 * (julianday(max(a.ended_at)) -"
                  " julianday(min(a.started_at)))) FROM attempts a JOIN tasks t USING (task_id)"
                  " JOIN models m USING (model_id) WHERE a.state = 'done' AND m.fingerprint = '%s'"
                  " GROUP BY a.run_id ORDER BY a.run_id DESC LIMIT 1",
                  info->fingerprint);
    if (store_query(store, sql, take_rate, &rate) != 0)
        err_clear();
    free(sql);
    return rate;
}

static void print_memory(const struct memory_plan *plan, const struct totals *t, bool fast)
{
    char a[32], b[32], c[32], d[32];
    double token_bytes = (double)plan->block_bytes / plan->block_size;
    printf("  KV need      %s per token: %s for the longest sequence (%s tokens), %s for all "
           "samples at once\n",
           format_bytes(a, token_bytes), format_bytes(b, token_bytes * t->longest_sequence),
           format_count(c, t->longest_sequence),
           format_bytes(d, token_bytes * (double)t->kv_tokens));
    printf("  memory       weights %s, activations %s, KV %s; %s allowed\n",
           format_bytes(a, (double)plan->weight_bytes),
           format_bytes(b, (double)plan->activation_bytes), format_bytes(c, (double)plan->kv_bytes),
           format_bytes(d, (double)plan->budget_bytes));
    if (plan->n_host_blocks > 0)
        printf("  swap         %s of host memory for preempted sequences\n",
               format_bytes(a, (double)plan->host_kv_bytes));
    if (fast)
        printf(
            "  engine       fast: %d KV blocks of %d tokens, sequences of up to %s tokens, %d of "
            "them at once",
            plan->n_blocks, plan->block_size, format_count(a, plan->max_model_len),
            plan->max_concurrency);
    else
        printf("  engine       standard: static batches of %d sequences of %s tokens",
               plan->n_blocks, format_count(a, plan->max_model_len));
    printf("; steps of up to %s tokens\n", format_count(b, plan->max_step_tokens));
}

static void warn_of_length(const struct totals *t, int max_model_len)
{
    char a[32];
    format_count(a, max_model_len);
    if (t->longest_prompt >= max_model_len)
        printf("  warning      prompts of %s tokens and more fail: no sequence is longer "
               "(engine.max_model_len)\n",
               a);
    if (t->longest_sequence > max_model_len)
        printf("  warning      an output ends where its sequence has %s tokens "
               "(engine.max_model_len)\n",
               a);
}

/* The plan of the engine that a run would open; false with an error: there is room for none. */
static bool plan_engine(struct memory_plan *plan, struct engine_options *options,
                        struct decision *decision, const struct engine_group *group,
                        const struct decision_policy *policy)
{
    const struct model_info *info = &group->model->info;
    work_engine_options(options, decision, group, info);
    if (engine_plan(plan, info, options) == 0)
        return true;
    if (decision_use_standard_engine(decision, policy) != 0)
        return false;
    options->fast = false;
    return engine_plan(plan, info, options) == 0;
}

/* false: its tasks cannot run here. */
static bool print_engine(const struct engine_group *group, const struct decision_policy *policy)
{
    const struct task *first = group->work[0]->task;
    const struct settings *s = &first->settings;
    const struct model_info *info = &group->model->info;
    struct decision decision = group->model->decision;
    struct engine_options options;
    struct memory_plan plan;
    struct totals totals = {0};
    for (int i = 0; i < group->n; i++)
        add_work(&totals, group->work[i]);
    char name[TASK_MAX_NAME];
    printf("\n%d task%s, one engine, from %s:\n", group->n, group->n == 1 ? "" : "s",
           task_name(name, first));
    print_totals(&totals);
    if (decision_choose_attention(&decision, s, &info->device, policy) != 0) {
        printf("  refused      %s\n", err_get());
        return false;
    }
    bool fits = plan_engine(&plan, &options, &decision, group, policy);
    printf("  device       %s: %s, %s\n", device_kind_name(decision.device), info->device.name,
           info->device.isa);
    printf("  attention    %s: %s\n", attention_name(decision.attention), decision.reason);
    if (fits)
        print_memory(&plan, &totals, options.fast);
    else
        printf("  engine       does not fit: %s\n", err_get());
    warn_of_length(&totals, options.max_model_len);
    bool can_run = fits || decision_use_cpu(&decision, policy) == 0;
    printf("  fallbacks    %s\n", decision.degraded ? decision.degraded_reason : "none");
    return can_run;
}

static bool has_error_before(const struct model_group *group, int i)
{
    for (int j = 0; j < i; j++)
        if (group->work[j].error && strcmp(group->work[j].error, group->work[i].error) == 0)
            return true;
    return false;
}

/* Each error once, with the first task that has it. Returns how many tasks have one. */
static int print_errors(const struct model_group *group)
{
    char name[TASK_MAX_NAME];
    int n = 0;
    for (int i = 0; i < group->n; i++) {
        const struct work *w = &group->work[i];
        n += w->error != NULL;
        if (w->error && !has_error_before(group, i))
            printf("  error        %s: %s\n", task_name(name, w->task), w->error);
    }
    return n;
}

static void print_time(const struct model_group *group, struct store *store)
{
    char took[32];
    struct totals pending = {0};
    for (int i = 0; i < group->n; i++)
        if (group->work[i].n_pending)
            add_work(&pending, &group->work[i]);
    double rate = measured_rate(store, &group->info);
    if (rate > 0)
        printf("  at most %s at the %.0f output tok/s that this model reached before\n",
               format_seconds(took, (double)pending.output_tokens / rate), rate);
    else
        printf("  time unknown: no finished task of this model in the results database\n");
}

/* Returns how many of its tasks cannot run here. */
static int print_model(const struct work_list *list, const struct model_group *group,
                       const struct decision_policy *policy, struct store *store)
{
    const struct model_info *info = &group->info;
    char params[32], bytes[32];
    printf("\nmodel %s\n", work_model_name(&group->work[0]));
    int n_errors = print_errors(group);
    if (n_errors == group->n)
        return n_errors;
    printf("  %s, %s parameters, %s, %s\n", info->arch,
           format_count(params, (int64_t)info->n_params),
           weight_name(info->dtype, info->quantization),
           format_bytes(bytes, (double)info->weight_bytes));
    print_time(group, store);
    for (int e = 0; e < list->n_engine_groups; e++)
        if (list->engine_group[e].model == group && !print_engine(&list->engine_group[e], policy))
            n_errors += list->engine_group[e].n;
    return n_errors;
}

/* ---- the command ---- */

static void print_tasks(const struct work_list *list, bool all)
{
    int n = all ? list->tasks.n : MIN(list->tasks.n, LISTED_TASKS);
    printf("\n");
    for (int i = 0; i < n; i++) {
        const struct task *t = &list->tasks.task[i];
        printf("  %4d  %s%sreplication %d\n", t->id, t->label, t->label[0] ? " " : "",
               t->replication);
    }
    if (n < list->tasks.n)
        printf("  ... and %d more (--tasks lists all)\n", list->tasks.n - n);
}

/* What is finished already, from the databases if there are any. */
static struct store *open_results(const struct config *c, struct work_list *list)
{
    struct store *store = NULL;
    struct store_files files;
    if (store_list_files(&files, c->results) != 0)
        return NULL;
    bool none = files.n == 0;
    store_files_free(&files);
    if (none)
        return NULL;
    if (store_open(&store, c->results, STORE_READ_NUMBERS) != 0 ||
        work_list_find_done(list, store) != 0) {
        log_warning("what is done already is not known: %s", err_get());
        err_clear();
    }
    return store;
}

static int plan_experiment(struct config *c, bool list_tasks, bool strict)
{
    struct work_list list;
    struct totals totals = {0};
    struct decision_policy policy = {.strict = strict,
                                     .allow_cpu = c->allow_cpu,
                                     .allow_standard_engine = c->allow_standard_engine};
    if (work_list_make(&list, c, &policy) != 0) {
        work_list_free(&list);
        return (int)err_get_kind();
    }
    struct store *store = open_results(c, &list);
    int n_errors = 0;
    work_list_warn(&list);
    for (int g = 0; g < list.n_groups; g++)
        for (int i = 0; i < list.group[g].n; i++)
            add_work(&totals, &list.group[g].work[i]);
    printf("experiment %s: %d task%s; results go to %s\n", c->experiment, list.tasks.n,
           list.tasks.n == 1 ? "" : "s", c->results);
    print_totals(&totals);
    print_tasks(&list, list_tasks);
    for (int g = 0; g < list.n_groups; g++)
        n_errors += print_model(&list, &list.group[g], &policy, store);
    if (n_errors)
        err_set(ERR_RUN, "%d task%s cannot run here; the reasons are above", n_errors,
                n_errors == 1 ? "" : "s");
    store_close(store);
    work_list_free(&list);
    return n_errors ? ERR_RUN : 0;
}

int command_plan(int argc, char **argv)
{
    struct cli_list sets = {0};
    const char *config_path;
    bool resolved = false, tasks = false, strict = false;
    const struct cli_option options[] = {
        {"set", "KEY=VALUE", "override a key of the config; may be repeated", CLI_LIST, &sets},
        {"resolved", NULL, "print every key with its value and where it comes from", CLI_FLAG,
         &resolved},
        {"tasks", NULL, "list all tasks", CLI_FLAG, &tasks},
        {"strict", NULL, "plan for `run --strict`", CLI_FLAG, &strict},
    };
    const struct cli_command command = {
        .name = "plan",
        .arguments = "CONFIG",
        .n_arguments = 1,
        .doc = "Shows the tasks of an experiment, its tokens, the memory plan, the device and the\n"
               "attention kernel with the reason for the choice. Loads no weights; needs no GPU.",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    struct config *c;
    enum cli_result parsed = cli_parse(&command, argc, argv, &config_path);
    if (parsed != CLI_OK)
        return parsed == CLI_HELP ? 0 : ERR_CONFIG;
    if (config_load(&c, config_path, sets.text, sets.n) != 0)
        return (int)err_get_kind();
    int code = 0;
    if (resolved)
        print_resolved(c);
    else
        code = plan_experiment(c, tasks, strict);
    config_close(c);
    return code;
}
