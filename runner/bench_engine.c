/* bench_engine.c - see bench.h: tokens per second of whole models, beside the roofline.
 *
 * Cases alternate within a repeat, and the ceilings are measured before each repeat, because other
 * programs use the machine, too. Before anything is timed, sequences of the largest batch must have
 * the tokens that they have alone: the speed of an engine that computes something else is of no
 * interest.
 */
#include "runner/bench.h"
#include "runner/decision.h"
#include "runner/prompts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BATCHED_TOKENS 2048
#define ID_LIMIT           10000 /* of prompts' ids, as in the published workloads */

/* Sequences that start together, and what is timed of them. */
struct engine_case {
    char label[64];
    const struct prompt *prompt; /* [n] */
    int n, max_seqs, max_batched_tokens;
    float temperature;
    enum { TIME_PREFILL, TIME_DECODE, TIME_ALL } timed;
    double sample[BENCH_MAX_REPEATS]; /* seconds: of prefill, of a decode step, of everything */
    double kv_token_bytes, memory_bytes;
};

struct bench {
    const struct bench_engine_options *options;
    struct bench_rows *rows;
    struct bench_ceiling *ceiling;
    struct model *model;
    enum attention_kind attention;
    struct engine_case *item; /* [n] */
    int n;
};

/* ---- prompts ---- */

/* n sequences of random ids; the caller frees them with free_prompts. */
static struct prompt *make_prompts(int n, int n_in, int n_out, int vocab)
{
    struct prompt *prompt = xcalloc((size_t)n, sizeof(*prompt));
    for (int i = 0; i < n; i++) {
        prompt[i] = (struct prompt){
            .ids = xcalloc((size_t)n_in, sizeof(int)), .n_ids = n_in, .max_tokens = n_out};
        for (int k = 0; k < n_in; k++)
            prompt[i].ids[k] =
                (int)(mix64((uint64_t)i << 32 | (uint64_t)k) % (uint64_t)MIN(vocab, ID_LIMIT));
    }
    return prompt;
}

static void free_prompts(const struct prompt *prompt, int n)
{
    for (int i = 0; i < n; i++)
        free(prompt[i].ids);
    free((void *)(uintptr_t)prompt);
}

/* ---- runs ---- */

struct tokens {
    int *id;
    int n;
};

static void keep_token(void *user, int id)
{
    struct tokens *t = user;
    t->id[t->n++] = id;
}

static int open_engine(struct engine **e, const struct bench *b, const struct engine_case *c)
{
    int longest = 0;
    for (int i = 0; i < c->n; i++)
        longest = MAX(longest, c->prompt[i].n_ids + c->prompt[i].max_tokens);
    struct engine_options options = {.fast = true,
                                     .attention = b->attention,
                                     .max_num_seqs = c->max_seqs,
                                     .max_num_batched_tokens = c->max_batched_tokens,
                                     .max_model_len = longest,
                                     .trace = b->options->trace};
    bool is_info = log_get_level() == LOG_INFO; /* where the log has a line of each case already */
    if (is_info)
        (void)log_set_level("warning");
    int rc = engine_open(e, b->model, &options);
    if (is_info)
        (void)log_set_level("info");
    return rc;
}

static int submit(struct engine *e, const struct engine_case *c, int i, struct tokens *out)
{
    const struct prompt *p = &c->prompt[i];
    struct request request = {.prompt = p->ids,
                              .n_prompt = p->n_ids,
                              .sampling = {.temperature = c->temperature,
                                           .max_tokens = p->max_tokens,
                                           .ignore_eos = true},
                              .seed = (uint64_t)i,
                              .on_token = out ? keep_token : NULL,
                              .user = out};
    return engine_submit(e, &request, NULL);
}

/* Runs prompts first, first + step, ... to their ends; out[i] receives the tokens of prompt i. */
static int run_prompts(struct engine *e, const struct engine_case *c, int first, int step,
                       struct tokens *out)
{
    for (int i = first; i < c->n; i += step)
        if (submit(e, c, i, out ? &out[i] : NULL) != 0)
            return -1;
    int rc;
    while ((rc = engine_step(e)) > 0) {
    }
    return rc;
}

/* Prefill and decode are timed when the same prompts have run once and memory is there: the first
 * touch of its pages took half of a prefill's time on a machine of 16 cores. A workload is timed as
 * it is. */
static int measure(const struct bench *b, struct engine_case *c, int repeat)
{
    struct engine *e;
    struct engine_stats before, stats;
    struct bench_memory memory;
    bench_memory_mark(&memory, model_get_info(b->model)->device.kind);
    if (open_engine(&e, b, c) != 0)
        return -1;
    int rc = c->timed == TIME_ALL ? 0 : run_prompts(e, c, 0, 1, NULL);
    engine_get_stats(e, &before);
    double began_s = time_monotonic_s();
    if (rc == 0)
        rc = run_prompts(e, c, 0, 1, NULL);
    double all_s = time_monotonic_s() - began_s;
    trace_end(b->options->trace, TRACE_HOST, c->label, began_s);
    engine_get_stats(e, &stats);
    const struct memory_plan *plan = engine_get_plan(e);
    c->kv_token_bytes = (double)plan->block_bytes / plan->block_size;
    c->memory_bytes = bench_memory_used(&memory);
    if (memory.kind != DEVICE_CPU) /* the mark came after the weights */
        c->memory_bytes += (double)plan->weight_bytes;
    engine_close(e);
    int n_steps = c->prompt[0].max_tokens - 1; /* all decode cases have equal lengths */
    c->sample[repeat] = c->timed == TIME_ALL ? all_s
                        : c->timed == TIME_PREFILL
                            ? stats.prefill_s - before.prefill_s
                            : (stats.decode_s - before.decode_s) / MAX(n_steps, 1);
    return rc;
}

/* ---- check ---- */

/* Two sequences of the batch against themselves alone. Returns whether they are equal, -1 when the
 * engine fails. */
static int tokens_agree(const struct bench *b, const struct engine_case *c)
{
    struct engine *e = NULL;
    struct tokens *together = xcalloc((size_t)c->n, sizeof(*together));
    struct tokens *alone = xcalloc((size_t)c->n, sizeof(*alone));
    for (int i = 0; i < c->n; i++) {
        together[i].id = xcalloc((size_t)c->prompt[i].max_tokens, sizeof(int));
        alone[i].id = xcalloc((size_t)c->prompt[i].max_tokens, sizeof(int));
    }
    int agree = 1, rc = open_engine(&e, b, c);
    if (rc == 0)
        rc = run_prompts(e, c, 0, 1, together);
    for (int i = 0; i < c->n && rc == 0; i += MAX(c->n / 2, 1)) {
        rc = run_prompts(e, c, i, c->n, alone);
        agree &= alone[i].n == together[i].n &&
                 memcmp(alone[i].id, together[i].id, (size_t)alone[i].n * sizeof(int)) == 0;
    }
    engine_close(e);
    for (int i = 0; i < c->n; i++) {
        free(together[i].id);
        free(alone[i].id);
    }
    free(together);
    free(alone);
    return rc == 0 ? agree : -1;
}

/* ---- rows ---- */

static void fill_row(struct bench_row *row, const struct bench *b, struct engine_case *c)
{
    const struct model_info *info = model_get_info(b->model);
    int *n_in = xcalloc((size_t)c->n, sizeof(int)), *n_out = xcalloc((size_t)c->n, sizeof(int));
    double n_outputs = 0;
    for (int i = 0; i < c->n; i++) {
        n_in[i] = c->prompt[i].n_ids;
        n_out[i] = c->prompt[i].max_tokens;
        n_outputs += n_out[i];
    }
    struct bench_load load = {n_in, n_out, c->n, c->kv_token_bytes};
    struct bench_roofline r;
    bench_roofline_of(&r, info, &load, b->ceiling);
    row->state = BENCH_OK;
    row->latency_s = bench_spread_of(c->sample, (size_t)b->options->repeats);
    row->memory_bytes = c->memory_bytes;
    if (c->timed == TIME_PREFILL) {
        row->n_tokens = n_in[0];
        row->flops = r.prefill_flops;
        row->roofline_s = r.prefill_s;
    } else if (c->timed == TIME_DECODE) {
        double n_steps = (double)MAX(r.n_steps, 1);
        row->n_tokens = c->n;
        row->flops = r.decode_flops / n_steps;
        row->bytes = r.decode_bytes / n_steps;
        row->roofline_s = r.decode_s / n_steps;
    } else {
        row->n_tokens = n_outputs;
        row->flops = r.prefill_flops + r.decode_flops;
        row->bytes = r.decode_bytes;
        row->roofline_s = r.prefill_s + r.decode_s;
    }
    free(n_in);
    free(n_out);
}

static struct bench_row *add_row(const struct bench *b, int i)
{
    const struct model_info *info = model_get_info(b->model);
    struct bench_row *row = bench_rows_add(b->rows, i, attention_name(b->attention));
    snprintf(row->shape, sizeof(row->shape), "%s", b->item[i].label);
    row->dtype = info->dtype;
    row->quantization = info->quantization;
    return row;
}

static int measure_ceiling(const struct bench *b)
{
    const struct model_info *info = model_get_info(b->model);
    const struct backend *backend = backend_find(info->device.kind);
    struct device_options options = b->options->model.device_options;
    options.act_dtype = info->act_dtype;
    struct device *device = backend->open(&options);
    int rc =
        device ? bench_ceiling_measure(b->ceiling, device, info->dtype, info->quantization) : -1;
    if (device)
        backend->close(device);
    return rc;
}

static int run_cases(struct bench *b)
{
    const struct engine_case *largest = &b->item[0];
    for (int i = 0; i < b->n; i++)
        largest = b->item[i].n > largest->n ? &b->item[i] : largest;
    const struct model_info *info = model_get_info(b->model);
    const char *name = weight_name(info->dtype, info->quantization);
    log_info("%s, %s: checked alone and in a batch", largest->label, name);
    int agree = tokens_agree(b, largest);
    for (int repeat = 0; repeat < b->options->repeats && agree == 1; repeat++) {
        int rc = measure_ceiling(b);
        for (int i = 0; i < b->n && rc == 0; i++) {
            log_info("%s, %s: round %d of %d", b->item[i].label, name, repeat + 1,
                     b->options->repeats);
            rc = measure(b, &b->item[i], repeat);
        }
        if (rc != 0)
            return -1;
    }
    for (int i = 0; i < b->n && agree >= 0; i++) {
        struct bench_row *row = add_row(b, i);
        if (agree == 1) {
            fill_row(row, b, &b->item[i]);
            continue;
        }
        row->state = BENCH_WRONG;
        snprintf(row->note, sizeof(row->note),
                 "a sequence differs alone and in a batch: not timed");
    }
    return agree < 0 ? -1 : 0;
}

/* ---- cases ---- */

/* All prompts go through one step, so that every other step is one of decode alone. */
static void make_decode(struct engine_case *c, const struct bench_engine_options *o, int batch,
                        int vocab)
{
    *c = (struct engine_case){.prompt = make_prompts(batch, o->n_prompt, o->n_output, vocab),
                              .n = batch,
                              .max_seqs = batch,
                              .max_batched_tokens = MAX(batch * o->n_prompt, MAX_BATCHED_TOKENS),
                              .timed = TIME_DECODE};
    snprintf(c->label, sizeof(c->label), "decode B%d %d+%d", batch, o->n_prompt, o->n_output);
}

static int make_cases(struct bench *b, int vocab)
{
    const struct bench_engine_options *o = b->options;
    int batch[BENCH_MAX_LIST];
    int n =
        bench_parse_ints(batch, "batch", o->batches ? o->batches : "1,8,32,64", 1, ENGINE_MAX_SEQS);
    if (n < 0)
        return -1;
    for (int i = 0; i < n; i++)
        if ((int64_t)batch[i] * o->n_prompt > ENGINE_MAX_BATCHED_TOKENS)
            return err_set(ERR_CONFIG, "%d prompts of %d tokens do not fit one step of %d tokens",
                           batch[i], o->n_prompt, ENGINE_MAX_BATCHED_TOKENS);
    b->item = xcalloc((size_t)n + 1, sizeof(*b->item));
    b->n = n + 1;
    b->item[0] = (struct engine_case){.prompt = make_prompts(1, o->n_prefill, 1, vocab),
                                      .n = 1,
                                      .max_seqs = 1,
                                      .max_batched_tokens = MAX_BATCHED_TOKENS,
                                      .timed = TIME_PREFILL};
    snprintf(b->item[0].label, sizeof(b->item[0].label), "prefill %d", o->n_prefill);
    for (int i = 0; i < n; i++)
        make_decode(&b->item[i + 1], o, batch[i], vocab);
    return 0;
}

/* One case: all prompts of a config, as they are published. */
static int make_workload(struct bench *b, int vocab)
{
    struct config *config;
    struct prompt_set *set;
    const char *path = b->options->workload;
    if (config_load(&config, path, NULL, 0) != 0)
        return -1;
    if (prompt_set_load(&set, config, &config->base, NULL, vocab, b->options->model.path) != 0) {
        config_close(config);
        return -1;
    }
    struct prompt *prompt = xcalloc((size_t)set->n, sizeof(*prompt));
    b->item = xcalloc(1, sizeof(*b->item));
    b->n = 1;
    b->item[0] = (struct engine_case){
        .prompt = prompt,
        .n = set->n,
        .max_seqs = (int)config->base.engine.max_num_seqs,
        .max_batched_tokens = config_zero_if_auto(config->base.engine.max_num_batched_tokens),
        .temperature = (float)config->base.sampling.temperature,
        .timed = TIME_ALL};
    snprintf(b->item[0].label, sizeof(b->item[0].label), "%.60s", config->experiment);
    int rc = set->n > 0 ? 0 : err_set(ERR_CONFIG, "%s: there are no prompts", path);
    for (int i = 0; i < set->n; i++) {
        const struct prompt *p = &set->prompt[i];
        prompt[i] = (struct prompt){
            .ids = xcalloc((size_t)MAX(p->n_ids, 1), sizeof(int)),
            .n_ids = p->n_ids,
            .max_tokens = p->max_tokens ? p->max_tokens : (int)config->base.sampling.max_tokens};
        if (p->error)
            rc = err_set(ERR_DATA, "%s: prompt %d: %s", path, i, p->error);
        else if (p->n_ids > 0)
            memcpy(prompt[i].ids, p->ids, (size_t)p->n_ids * sizeof(int));
    }
    prompt_set_free(set);
    config_close(config);
    return rc;
}

static int run_attention(struct bench *b)
{
    const struct model_info *info = model_get_info(b->model);
    int rc = b->options->workload ? make_workload(b, info->vocab) : make_cases(b, info->vocab);
    if (rc == 0)
        rc = run_cases(b);
    for (int i = 0; i < b->n && b->item; i++)
        free_prompts(b->item[i].prompt, b->item[i].n);
    free(b->item);
    b->item = NULL;
    return rc;
}

static int run_model(struct bench *b)
{
    const struct device_info *device = &model_get_info(b->model)->device;
    unsigned kernels = b->options->kernels;
    char why[DECISION_REASON_MAX];
    if (kernels == 0)
        kernels = 1u << decision_auto_attention(device);
    for (int k = 0; k < ATTENTION_N; k++) {
        b->attention = (enum attention_kind)k;
        if (!(kernels & 1u << k))
            continue;
        if (decision_can_attend(device, b->attention, why)) {
            if (run_attention(b) != 0)
                return -1;
            continue;
        }
        struct bench_row *row = bench_rows_add(b->rows, 0, attention_name(b->attention));
        snprintf(row->shape, sizeof(row->shape), "all");
        snprintf(row->note, sizeof(row->note), "%.180s", why);
        row->dtype = model_get_info(b->model)->dtype;
        row->quantization = model_get_info(b->model)->quantization;
        row->state = BENCH_NOT_AVAILABLE;
    }
    return 0;
}

/* One way to store the matrices. */
static int run_stored(struct bench *b, const struct model_options *model)
{
    if (model_open(&b->model, model) != 0)
        return -1;
    int rc = run_model(b);
    model_close(b->model);
    return rc;
}

int bench_engine_run(struct bench_rows *rows, struct bench_ceiling *ceiling,
                     const struct bench_engine_options *options)
{
    static const char *const dtypes[] = {"auto", "float32", "bfloat16", "float16"};
    static const char *const quantizations[] = {"none", "int8"};
    struct model_options model = options->model;
    struct bench b = {.options = options, .rows = rows, .ceiling = ceiling};
    int dtype[BENCH_MAX_LIST], quantization[BENCH_MAX_LIST];
    int n_dtypes = bench_parse_names(dtype, "dtype", options->dtypes ? options->dtypes : "auto",
                                     dtypes, ARRAY_LEN(dtypes));
    int n_quantizations = bench_parse_names(
        quantization, "quantization", options->quantizations ? options->quantizations : "none",
        quantizations, ARRAY_LEN(quantizations));
    if (n_dtypes < 0 || n_quantizations < 0)
        return -1;
    for (int i = 0; i < n_dtypes * n_quantizations; i++) {
        model.dtype = dtypes[dtype[i / n_quantizations]];
        model.quantization = (enum quantization)quantization[i % n_quantizations];
        if (run_stored(&b, &model) != 0)
            return -1;
    }
    return 0;
}
