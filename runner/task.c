/* task.c - see task.h. */
#include "runner/task.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the grid's points ---- */

/* Axes that advance together, and the row at which they stand. */
struct group {
    int first, end; /* axes of the config */
    size_t n_rows, row;
};

static int make_groups(struct group group[CONFIG_MAX_GRID_KEYS], const struct config *c)
{
    int n = 0;
    for (int i = 0; i < c->n_axes; i++) {
        int zip = c->axis[i].zip_group;
        if (n > 0 && zip >= 0 && c->axis[i - 1].zip_group == zip)
            group[n - 1].end = i + 1;
        else
            group[n++] =
                (struct group){.first = i, .end = i + 1, .n_rows = c->axis[i].values->n_items};
    }
    return n;
}

/* Moves to the next point, the last group fastest; false after the last point. */
static bool next_point(struct group *group, int n_groups)
{
    for (int g = n_groups - 1; g >= 0; g--) {
        if (++group[g].row < group[g].n_rows)
            return true;
        group[g].row = 0;
    }
    return false;
}

/* "engine.attention=flash"; of a path only its last part, without the quotes around the whole. */
static void append_label(struct str *label, const struct grid_axis *axis, size_t row)
{
    char *text = config_value_text(&axis->setting[row], axis->key_index);
    const char *shown = text;
    if (strcmp(config_get_key(axis->key_index)->type, "path") == 0 && strrchr(text, '/')) {
        shown = strrchr(text, '/') + 1;
        text[strlen(text) - (text[0] == '"')] = '\0';
    }
    str_appendf(label, "%s%s=%s", label->len > 0 ? " " : "", axis->key, shown);
    free(text);
}

static void make_point(struct task *t, const struct config *c, const struct group *group,
                       int n_groups)
{
    struct str label = {0};
    str_append_c(&label, "");
    *t = (struct task){.settings = c->base};
    for (int g = 0; g < n_groups; g++) {
        for (int i = group[g].first; i < group[g].end; i++) {
            const struct grid_axis *axis = &c->axis[i];
            config_copy_value(&t->settings, &axis->setting[group[g].row], axis->key_index);
            append_label(&label, axis, group[g].row);
        }
    }
    snprintf(t->label, sizeof(t->label), "%s", label.data);
    str_free(&label);
}

static int check_size(const struct config *c, const struct group *group, int n_groups)
{
    size_t n = (size_t)c->replications;
    for (int g = 0; g < n_groups; g++) {
        if (!size_mul(&n, n, group[g].n_rows))
            n = SIZE_MAX;
        if (n > CONFIG_MAX_TASKS)
            break;
    }
    if (n <= CONFIG_MAX_TASKS)
        return 0;
    return err_set(ERR_CONFIG, "%s: the grid has more than %d tasks (replications included)",
                   c->path, CONFIG_MAX_TASKS);
}

static int add_points(struct task_list *out, size_t *capacity, const struct config *c,
                      struct group *group, int n_groups)
{
    size_t n = 0;
    do {
        struct task point;
        make_point(&point, c, group, n_groups);
        if (config_is_excluded(c, &point.settings))
            continue;
        if (config_check_settings(c, &point.settings) != 0)
            return point.label[0] ? err_prefix("at the grid's point %s", point.label) : -1;
        array_reserve(&out->task, capacity, n + (size_t)c->replications, sizeof(struct task));
        for (int r = 0; r < c->replications; r++) {
            point.id = (int)n;
            point.replication = r;
            out->task[n++] = point;
        }
        out->n = (int)n;
    } while (next_point(group, n_groups));
    return 0;
}

int task_list_make(struct task_list *out, struct config *c)
{
    struct group group[CONFIG_MAX_GRID_KEYS];
    int n_groups = make_groups(group, c);
    size_t capacity = 0;
    *out = (struct task_list){0};
    if (check_size(c, group, n_groups) != 0)
        return -1;
    int rc = add_points(out, &capacity, c, group, n_groups);
    if (rc == 0 && out->n == 0)
        rc = err_set(ERR_CONFIG, "%s: exclude leaves no task", c->path);
    if (rc != 0)
        task_list_free(out);
    return rc;
}

void task_list_free(struct task_list *list)
{
    free(list->task);
    *list = (struct task_list){0};
}

char *task_name(char buf[TASK_MAX_NAME], const struct task *t)
{
    if (t->label[0])
        snprintf(buf, TASK_MAX_NAME, "task %d (%s)", t->id, t->label);
    else
        snprintf(buf, TASK_MAX_NAME, "task %d", t->id);
    return buf;
}

/* ---- keys and seeds ---- */

void task_set_key(struct task *t, const char *model_fingerprint, const char *prompts_fingerprint)
{
    json_t *settings = config_settings_json(&t->settings);
    for (size_t i = 0; i < config_n_keys(); i++)
        if (strcmp(config_get_key(i)->type, "path") == 0)
            json_object_del(settings, config_get_key(i)->path);
    char *text = json_dumps(settings, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(settings);
    if (!text)
        die("out of memory for a JSON text");
    struct sha256 *hash = sha256_open();
    sha256_add_text(hash, "quire task 1");
    sha256_add_text(hash, text);
    sha256_add_text(hash, model_fingerprint);
    sha256_add_text(hash, prompts_fingerprint);
    char replication[16];
    snprintf(replication, sizeof(replication), "%d", t->replication);
    sha256_add_text(hash, replication);
    sha256_final(hash, t->key);
    free(text);
}

void task_sample_key(char hex[SHA256_HEX_LEN + 1], const struct task *t, int prompt, int sample)
{
    assert(t->key[0] != '\0');
    char text[SHA256_HEX_LEN + 32];
    int n = snprintf(text, sizeof(text), "%s %d %d", t->key, prompt, sample);
    sha256_of(text, (size_t)n, hex);
}

uint64_t task_sample_seed(const struct task *t, int prompt, int sample)
{
    /* mix64 is a bijection: seeds that differ in one of the four numbers alone never meet. */
    uint64_t seed = mix64((uint64_t)t->settings.sampling.seed);
    seed = mix64(seed ^ (uint64_t)t->replication);
    seed = mix64(seed ^ (uint64_t)prompt);
    return mix64(seed ^ (uint64_t)sample);
}

/* ---- what tasks share ---- */

static bool same_section(const struct task *a, const struct task *b, const char *prefix)
{
    for (size_t i = 0; i < config_n_keys(); i++)
        if (strncmp(config_get_key(i)->path, prefix, strlen(prefix)) == 0 &&
            !config_same_value(&a->settings, &b->settings, i))
            return false;
    return true;
}

bool task_same_model(const struct task *a, const struct task *b)
{
    /* A loaded model lives on its device, with its threads. */
    return same_section(a, b, "model.") && a->settings.engine.device == b->settings.engine.device &&
           a->settings.engine.num_threads == b->settings.engine.num_threads;
}

bool task_same_engine(const struct task *a, const struct task *b)
{
    /* What differs most often comes first: a grid of thousands of engines compares millions. */
    return same_section(a, b, "engine.") && task_same_model(a, b);
}

/* ---- for the engine ---- */

void task_model_options(const struct task *t, struct model_options *out)
{
    const struct settings *s = &t->settings;
    *out = (struct model_options){
        .path = s->model.path[0] ? s->model.path : s->model.architecture,
        .tokenizer = s->model.tokenizer[0] ? s->model.tokenizer : NULL,
        .dtype = s->model.dtype,
        .quantization = (enum quantization)s->model.quantization,
        .random_init = s->model.init == INIT_RANDOM,
        .init_seed = (uint64_t)s->model.seed,
        .device = DEVICE_CPU,
        .device_options = {.n_threads = config_zero_if_auto(s->engine.num_threads),
                           .isa = config_get_environment("QUIRE_CPU_ISA")},
        .weight_cache = config_get_environment("QUIRE_WEIGHT_CACHE"),
    };
}

void task_sampling(const struct task *t, struct sampling_params *out)
{
    const struct settings *s = &t->settings;
    *out = (struct sampling_params){
        .temperature = (float)s->sampling.temperature,
        .top_p = (float)s->sampling.top_p,
        .min_p = (float)s->sampling.min_p,
        .top_k = (int)s->sampling.top_k,
        .max_tokens = (int)s->sampling.max_tokens,
        .ignore_eos = s->sampling.ignore_eos,
    };
}
