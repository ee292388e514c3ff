/* The forward pass against other implementations' logits, and that its bits depend on nothing else.
 *
 * A small engine of its own (struct world) runs sequences through a paged cache whose blocks are
 * shuffled, in steps of any size.
 */
#include "tests/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

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

/* One thread where a test does not say otherwise: on a busy machine the tiny steps of these models
 * would wait for each other's threads longer than they compute. */
static struct model *open_on(const char *path, const char *dtype, struct device_options device)
{
    struct model *m;
    /* An instruction set and int8 are the CPU's. */
    bool int8 = strcmp(dtype, INT8) == 0;
    const struct model_options options = {.path = path,
                                          .dtype = int8 ? "auto" : dtype,
                                          .quantization =
                                              int8 ? QUANTIZATION_INT8 : QUANTIZATION_NONE,
                                          .device = device.isa || int8 ? DEVICE_CPU : test_device(),
                                          .device_options = device};
    log_set_level("warning");
    if (model_open(&m, &options) != 0)
        fail_msg("%s", err_get());
    return m;
}

static struct model *open_model(const char *path, const char *dtype)
{
    return open_on(path, dtype, (struct device_options){.n_threads = 1});
}

/* Deals the blocks 0 .. n_seqs * max_blocks - 1 to the sequences in a shuffled order. */
static void deal_blocks(struct world *w)
{
    int n = w->n_seqs * w->max_blocks;
    int *deck = xcalloc((size_t)n, sizeof(*deck));
    for (int i = 0; i < n; i++) {
        int j = (int)(mix64((uint64_t)i) % (uint64_t)(i + 1));
        deck[i] = deck[j];
        deck[j] = i;
    }
    for (int s = 0; s < w->n_seqs; s++) {
        w->seq[s].block = xcalloc((size_t)w->max_blocks, sizeof(int));
        memcpy(w->seq[s].block, deck + s * w->max_blocks, (size_t)w->max_blocks * sizeof(int));
    }
    free(deck);
}

/* A world for steps of up to max_tokens tokens and sequences of up to max_len. */
static void world_open(struct world *w, struct model *m, int n_seqs, int max_tokens, int max_len)
{
    struct device *d = m->device;
    const struct model_arch *arch = &m->arch;
    *w = (struct world){.m = m, .n_seqs = n_seqs, .kv_dtype = DTYPE_F32};
    w->max_blocks = CEIL_DIV(max_len, BLOCK_SIZE);
    deal_blocks(w);
    assert_int_equal(activations_init(&w->a, m, max_tokens, max_tokens), 0);
    size_t bytes = (size_t)(n_seqs * w->max_blocks * BLOCK_SIZE * arch->n_kv_heads) *
                   (size_t)arch->head_dim * sizeof(float);
    w->kv = xcalloc((size_t)arch->n_layers, sizeof(*w->kv));
    for (int i = 0; i < arch->n_layers; i++) {
        w->kv[i].k = d->ops->alloc(d, bytes);
        w->kv[i].v = d->ops->alloc(d, bytes);
    }
    const struct step_limits limits = {
        .max_tokens = max_tokens,
        .max_seqs = n_seqs,
        .max_rows = max_tokens,
        .max_kv_len = max_len,
        .max_width = MAX(MAX(arch->hidden, arch->ffn), arch->n_heads * arch->head_dim),
        .vocab = arch->vocab,
        .shape = {arch->n_heads, arch->n_kv_heads, arch->head_dim, BLOCK_SIZE, w->kv_dtype},
    };
    assert_int_equal(d->ops->reserve(d, &limits), 0);
}

static void world_close(struct world *w)
{
    struct device *d = w->m->device;
    for (int i = 0; i < w->m->arch.n_layers; i++) {
        d->ops->free(d, w->kv[i].k);
        d->ops->free(d, w->kv[i].v);
    }
    for (int s = 0; s < w->n_seqs; s++)
        free(w->seq[s].block);
    free(w->kv);
    activations_free(&w->a, w->m);
}

/* The arrays of one step, for at most 4096 tokens. */
struct step {
    int token[4096], position[4096], slot[4096], row[4096];
    int q_start[MAX_SEQS + 1], kv_len[MAX_SEQS];
};

/* Writes the next n[s] tokens of each sequence into the step, and its logits rows backwards. */
static void fill_step(struct step *step, struct batch *batch, struct world *w, const int *n)
{
    int t = 0;
    for (int s = 0; s < w->n_seqs; s++) {
        struct seq *seq = &w->seq[s];
        step->q_start[s] = t;
        for (int i = 0; i < n[s]; i++, t++) {
            int p = seq->n_done++;
            assert_in_range(p, 0, seq->n_ids - 1);
            step->token[t] = seq->ids[p];
            step->position[t] = p;
            step->slot[t] = seq->block[p / BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE;
        }
        step->kv_len[s] = seq->n_done;
        batch->max_q_len = MAX(batch->max_q_len, n[s]);
        batch->max_kv_len = MAX(batch->max_kv_len, seq->n_done);
    }
    step->q_start[w->n_seqs] = batch->n_tokens = t;
    for (int i = 0; i < t; i++)
        step->row[i] = t - 1 - i;
}

static const int *to_device(struct device *d, const int *host, int n)
{
    int *memory = d->ops->alloc(d, (size_t)n * sizeof(int));
    assert_non_null(memory);
    d->ops->upload(d, memory, host, (size_t)n * sizeof(int));
    return memory;
}

static void free_const(struct device *d, const int *memory)
{
    d->ops->free(d, (void *)(uintptr_t)memory);
}

static const int *upload_block_tables(const struct world *w)
{
    int *table = xcalloc((size_t)(w->n_seqs * w->max_blocks), sizeof(int));
    for (int s = 0; s < w->n_seqs; s++)
        memcpy(table + s * w->max_blocks, w->seq[s].block, (size_t)w->max_blocks * sizeof(int));
    const int *memory = to_device(w->m->device, table, w->n_seqs * w->max_blocks);
    free(table);
    return memory;
}

/* The logits of a step's tokens, in their order: [n_tokens, vocab]. The caller frees. */
static float *download_logits(const struct world *w, int n_tokens)
{
    struct device *d = w->m->device;
    size_t row_bytes = (size_t)w->m->arch.vocab * sizeof(float);
    float *logits = xmalloc((size_t)n_tokens * row_bytes);
    for (int t = 0; t < n_tokens; t++)
        d->ops->download(d, (char *)logits + (size_t)t * row_bytes,
                         (const char *)w->a.logits + (size_t)(n_tokens - 1 - t) * row_bytes,
                         row_bytes);
    return logits;
}

/* Computes the next n[s] tokens of each sequence; their logits: [sum of n, vocab]. */
static float *world_step(struct world *w, const int *n)
{
    struct device *d = w->m->device;
    struct step *step = xcalloc(1, sizeof(*step));
    struct batch batch = {.n_seqs = w->n_seqs, .max_blocks = w->max_blocks};
    fill_step(step, &batch, w, n);
    batch.token = to_device(d, step->token, batch.n_tokens);
    batch.position = to_device(d, step->position, batch.n_tokens);
    batch.slot = to_device(d, step->slot, batch.n_tokens);
    batch.q_start = to_device(d, step->q_start, w->n_seqs + 1);
    batch.kv_len = to_device(d, step->kv_len, w->n_seqs);
    batch.block_table = upload_block_tables(w);
    const struct forward_args args = {
        .batch = &batch,
        .logits_row = to_device(d, step->row, batch.n_tokens),
        .n_rows = batch.n_tokens,
        .attention = w->attention,
        .kv = w->kv,
        .block_size = BLOCK_SIZE,
        .kv_dtype = w->kv_dtype,
    };
    model_forward(w->m, &w->a, &args);
    float *logits = download_logits(w, batch.n_tokens);
    const int *const arrays[] = {batch.token,  batch.position,    batch.slot,     batch.q_start,
                                 batch.kv_len, batch.block_table, args.logits_row};
    for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
        free_const(d, arrays[i]);
    free(step);
    return logits;
}

/* Logits of ids[n] alone, computed `chunk` tokens at a time: [n, vocab]. The caller frees. */
static float *logits_of(struct model *m, enum attention_kind attention, enum dtype kv_dtype,
                        int *ids, int n, int chunk)
{
    struct world w;
    world_open(&w, m, 1, chunk, n);
    w.attention = attention;
    w.kv_dtype = kv_dtype;
    w.seq[0].ids = ids;
    w.seq[0].n_ids = n;
    size_t vocab = (size_t)m->arch.vocab;
    float *all = xmalloc((size_t)n * vocab * sizeof(float));
    for (int done = 0; done < n; done += chunk) {
        int now = MIN(chunk, n - done);
        float *part = world_step(&w, &now);
        memcpy(all + (size_t)done * vocab, part, (size_t)now * vocab * sizeof(float));
        free(part);
    }
    world_close(&w);
    return all;
}

static int argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

/* ---- JSON ---- */

static json_t *read_json(const char *path)
{
    json_t *root = json_read_file(path);
    if (!root)
        fail_msg("%s", err_get());
    return root;
}

/* A list of numbers. The caller frees. */
static int *read_ids(const json_t *list, int *n)
{
    *n = (int)json_array_size(list);
    int *ids = xcalloc((size_t)*n, sizeof(*ids));
    for (int i = 0; i < *n; i++)
        ids[i] = (int)json_integer_value(json_array_get(list, (size_t)i));
    return ids;
}

static double number_at(const json_t *list, size_t i)
{
    return json_number_value(json_array_get(list, i));
}

/* ---- golden logits of tiny models ---- */

/* The largest difference to the reference's rows, relative to its largest logit. */
static double relative_error(const float *logits, const json_t *rows)
{
    double error = 0, scale = 0;
    size_t n = json_array_size(rows), vocab = json_array_size(json_array_get(rows, 0));
    for (size_t t = 0; t < n; t++) {
        for (size_t i = 0; i < vocab; i++) {
            double expected = number_at(json_array_get(rows, t), i);
            error = fmax(error, fabs(logits[t * vocab + i] - expected));
            scale = fmax(scale, fabs(expected));
        }
    }
    return error / scale;
}

/* A tiny model of tests/golden with its reference. */
struct golden {
    struct model *m;
    json_t *root, *prompts;
};

static void golden_open_on(struct golden *g, const char *name, const char *dtype,
                           struct device_options device)
{
    char *dir = xasprintf("tests/golden/%s", name), *file = path_join(dir, "logits.json");
    g->m = open_on(dir, dtype, device);
    g->root = read_json(file);
    g->prompts = json_object_get(g->root, "prompts");
    free(file);
    free(dir);
}

static void golden_open(struct golden *g, const char *name, const char *dtype)
{
    golden_open_on(g, name, dtype, (struct device_options){.n_threads = 1});
}

static void golden_close(struct golden *g)
{
    json_decref(g->root);
    model_close(g->m);
}

/* The largest error over the reference's prompts. */
static double golden_error(const struct golden *g, enum attention_kind attention,
                           enum dtype kv_dtype, int chunk)
{
    double error = 0;
    for (size_t i = 0; i < json_array_size(g->prompts); i++) {
        const json_t *prompt = json_array_get(g->prompts, i);
        int n;
        int *ids = read_ids(json_object_get(prompt, "prompt_ids"), &n);
        float *logits = logits_of(g->m, attention, kv_dtype, ids, n, MIN(chunk, n));
        error = fmax(error, relative_error(logits, json_object_get(prompt, "logits")));
        free(logits);
        free(ids);
    }
    return error;
}

static const char *const golden_names[] = {
    "llama3",  "llama-linear", "llama-bias",   "llama-yarn",
    "mistral", "qwen2",        "qwen2-window", "qwen3",
};

static void f32_logits_are_those_of_the_reference(void **state)
{
    (void)state;
    static const int chunks[] = {1, 3, 17, 4096};
    for (size_t i = 0; i < ARRAY_LEN(golden_names); i++) {
        struct golden g;
        golden_open(&g, golden_names[i], "float32");
        double error = 0;
        for (int kind = 0; kind < ATTENTION_N; kind++) {
            for (size_t c = 0; c < ARRAY_LEN(chunks); c++)
                error =
                    fmax(error, golden_error(&g, (enum attention_kind)kind, DTYPE_F32, chunks[c]));
        }
        print_message("%s: relative error %.2g\n", golden_names[i], error);
        assert_true(error < 1e-5);
        golden_close(&g);
    }
}

static void a_softcap_far_above_the_scores_changes_nothing_and_a_low_one_much(void **state)
{
    (void)state;
    struct golden g;
    golden_open(&g, "qwen3", "float32");
    for (int kind = 0; kind < ATTENTION_N; kind++) {
        g.m->arch.softcap = 1e5f;
        assert_true(golden_error(&g, (enum attention_kind)kind, DTYPE_F32, 17) < 1e-5);
        g.m->arch.softcap = 0.1f; /* all keys weigh nearly the same */
        assert_true(golden_error(&g, (enum attention_kind)kind, DTYPE_F32, 17) > 0.1);
    }
    golden_close(&g);
}

/* Rounding a number to bfloat16 changes it by up to 2^-9 of itself, to float16 by up to 2^-12. */
static void short_dtypes_stay_near_the_reference(void **state)
{
    (void)state;
    static const struct {
        enum dtype dtype, kv_dtype;
        double tolerance;
    } cases[] = {
        {DTYPE_BF16, DTYPE_F32, 0.04},
        {DTYPE_BF16, DTYPE_BF16, 0.04},
        {DTYPE_F16, DTYPE_F32, 0.005},
        {DTYPE_F16, DTYPE_F16, 0.005},
    };
    for (size_t i = 0; i < ARRAY_LEN(golden_names); i++) {
        for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
            struct golden g;
            golden_open(&g, golden_names[i], dtype_name(cases[c].dtype));
            double error = golden_error(&g, ATTENTION_FLASH, cases[c].kv_dtype, 4096);
            print_message("%s in %s, KV in %s: relative error %.2g\n", golden_names[i],
                          dtype_name(cases[c].dtype), dtype_name(cases[c].kv_dtype), error);
            assert_true(error < cases[c].tolerance);
            golden_close(&g);
        }
    }
}

static void every_instruction_set_gives_the_reference(void **state)
{
    (void)state;
    static const char *const isas[] = {"plain", "avx2", "avx512", "avx512vnni", "avx512bf16"};
    for (size_t k = 0; k < ARRAY_LEN(isas); k++) {
        const struct device_options device = {.n_threads = 1, .isa = isas[k]};
        struct device_info info;
        if (device_describe(&info, DEVICE_CPU, &device) != 0) {
            print_message("not on this machine: %s\n", err_get());
            continue;
        }
        for (size_t i = 0; i < ARRAY_LEN(golden_names); i++) {
            struct golden f32, bf16;
            golden_open_on(&f32, golden_names[i], "float32", device);
            golden_open_on(&bf16, golden_names[i], "bfloat16", device);
            assert_true(golden_error(&f32, ATTENTION_FLASH, DTYPE_F32, 17) < 1e-5);
            assert_true(golden_error(&bf16, ATTENTION_FLASH, DTYPE_BF16, 17) < 0.04);
            golden_close(&f32);
            golden_close(&bf16);
        }
    }
}

/* ---- greedy continuations ---- */

/* The reference's prompts, continued greedily side by side in one batch. */
struct continuation {
    int *ids; /* [n_prompt + n_greedy] */
    int n_prompt, n_greedy;
};

static size_t read_continuations(struct continuation *c, const json_t *prompts)
{
    size_t n = json_array_size(prompts);
    assert_in_range(n, 1, MAX_SEQS);
    for (size_t i = 0; i < n; i++) {
        const json_t *prompt = json_array_get(prompts, i);
        int *greedy = read_ids(json_object_get(prompt, "greedy_ids"), &c[i].n_greedy);
        int *ids = read_ids(json_object_get(prompt, "prompt_ids"), &c[i].n_prompt);
        c[i].ids = xrealloc_array(ids, (size_t)(c[i].n_prompt + c[i].n_greedy), sizeof(int));
        memcpy(c[i].ids + c[i].n_prompt, greedy, (size_t)c[i].n_greedy * sizeof(int));
        free(greedy);
    }
    return n;
}

/* What checks the logits that gave greedy id `step` of a prompt; false ends that prompt's check. */
typedef bool (*step_check)(const json_t *prompt, int step, int expected, const float *logits,
                           int vocab);

/* Feeds every prompt and then, token by token, its reference ids. */
static void follow_reference(struct model *m, enum attention_kind attention, const json_t *prompts,
                             step_check check)
{
    struct continuation c[MAX_SEQS];
    size_t n_seqs = read_continuations(c, prompts);
    int n[MAX_SEQS], n_tokens = 0, longest = 0, n_greedy = c[0].n_greedy, vocab = m->arch.vocab;
    bool live[MAX_SEQS];
    for (size_t s = 0; s < n_seqs; s++) {
        n[s] = c[s].n_prompt;
        n_tokens += n[s];
        longest = MAX(longest, n[s] + n_greedy);
        live[s] = true;
    }
    struct world w;
    world_open(&w, m, (int)n_seqs, n_tokens, longest);
    w.attention = attention;
    for (size_t s = 0; s < n_seqs; s++) {
        w.seq[s].ids = c[s].ids;
        w.seq[s].n_ids = c[s].n_prompt + n_greedy;
    }
    for (int step = 0; step < n_greedy; step++) {
        float *logits = world_step(&w, n);
        int row = -1;
        for (size_t s = 0; s < n_seqs; s++) {
            row += n[s];
            n[s] = 1;
            live[s] =
                live[s] && check(json_array_get(prompts, s), step, c[s].ids[c[s].n_prompt + step],
                                 logits + (size_t)row * (size_t)vocab, vocab);
        }
        free(logits);
    }
    world_close(&w);
    for (size_t s = 0; s < n_seqs; s++)
        free(c[s].ids);
}

static bool id_is_the_reference(const json_t *prompt, int step, int expected, const float *logits,
                                int vocab)
{
    (void)prompt;
    (void)step;
    assert_int_equal(argmax(logits, vocab), expected);
    return true;
}

static void greedy_ids_of_tiny_models_are_those_of_the_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(golden_names); i++) {
        struct golden g;
        golden_open(&g, golden_names[i], "float32");
        for (int kind = 0; kind < ATTENTION_N; kind++)
            follow_reference(g.m, (enum attention_kind)kind, g.prompts, id_is_the_reference);
        golden_close(&g);
    }
}

/* ---- trained models ---- */

static const char *const trained_names[] = {"stories260k-llama", "tinystories-656k-bf16"};

/* f32: the id, and the five largest logits. */
static bool step_is_the_reference(const json_t *prompt, int step, int expected, const float *logits,
                                  int vocab)
{
    const json_t *detail = json_array_get(json_object_get(prompt, "steps"), (size_t)step);
    const json_t *top = json_object_get(detail, "top5");
    const json_t *top_logits = json_object_get(detail, "logits5");
    for (size_t i = 0; i < json_array_size(top); i++) {
        int id = (int)json_integer_value(json_array_get(top, i));
        assert_in_range(id, 0, vocab - 1);
        assert_float_equal(logits[id], number_at(top_logits, i), 1e-3);
    }
    assert_int_equal(argmax(logits, vocab), expected);
    return true;
}

/* bf16: the ids up to the first step that hangs on rounding. */
static bool clear_step_is_the_reference(const json_t *prompt, int step, int expected,
                                        const float *logits, int vocab)
{
    const json_t *detail = json_array_get(json_object_get(prompt, "steps"), (size_t)step);
    const json_t *margin = json_object_get(detail, "margin");
    assert_non_null(margin);
    if (json_number_value(margin) < 0.1)
        return false;
    assert_int_equal(argmax(logits, vocab), expected);
    return true;
}

static void follow_trained(const char *dtype, step_check check)
{
    for (size_t i = 0; i < ARRAY_LEN(trained_names); i++) {
        char *dir_name = xasprintf("models/%s", trained_names[i]);
        char *file_name = xasprintf("reference/%s.json", trained_names[i]);
        char *dir = test_data_path(dir_name), *file = test_data_path(file_name);
        free(file_name);
        free(dir_name);
        if (!dir || !file)
            skip();
        struct model *m = open_model(dir, dtype);
        json_t *root = read_json(file);
        for (int kind = 0; kind < ATTENTION_N; kind++)
            follow_reference(m, (enum attention_kind)kind, json_object_get(root, "prompts"), check);
        json_decref(root);
        model_close(m);
        free(file);
        free(dir);
    }
}

static void trained_models_in_f32_give_every_reference_id(void **state)
{
    (void)state;
    follow_trained("float32", step_is_the_reference);
}

static void trained_models_in_bf16_give_the_clear_reference_ids(void **state)
{
    (void)state;
    follow_trained("bfloat16", clear_step_is_the_reference);
}

static double nll(const float *logits, int vocab, int id)
{
    double max = logits[argmax(logits, vocab)], sum = 0;
    for (int i = 0; i < vocab; i++)
        sum += exp(logits[i] - max);
    return log(sum) + max - logits[id];
}

static void check_nll(struct model *m, const json_t *text)
{
    int n, vocab = m->arch.vocab;
    int *ids = read_ids(json_object_get(text, "ids"), &n);
    const json_t *expected = json_object_get(text, "token_nll");
    assert_int_equal(json_array_size(expected), n - 1);
    float *logits = logits_of(m, ATTENTION_FLASH, DTYPE_F32, ids, n, 64);
    for (int t = 0; t + 1 < n; t++)
        assert_float_equal(nll(logits + (size_t)t * (size_t)vocab, vocab, ids[t + 1]),
                           number_at(expected, (size_t)t), 1e-3);
    free(logits);
    free(ids);
}

static void real_texts_are_as_likely_as_in_the_reference(void **state)
{
    (void)state;
    char *file = test_data_path("reference/tinystories_sample_nll.json");
    if (!file)
        skip();
    json_t *root = read_json(file), *models = json_object_get(root, "models"), *texts;
    const char *name;
    json_object_foreach(models, name, texts)
    {
        char *dir_name = xasprintf("models/%s", name), *dir = test_data_path(dir_name);
        free(dir_name);
        if (!dir)
            skip();
        struct model *m = open_model(dir, "float32");
        for (size_t i = 0; i < json_array_size(texts); i++)
            check_nll(m, json_array_get(texts, i));
        model_close(m);
        free(dir);
    }
    json_decref(root);
    free(file);
}

/* ---- int8 weights ---- */

/* The mean negative log-likelihood of a text's tokens. */
static double mean_nll(struct model *m, const json_t *text)
{
    int n, vocab = m->arch.vocab;
    int *ids = read_ids(json_object_get(text, "ids"), &n);
    float *logits = logits_of(m, ATTENTION_FLASH, DTYPE_F32, ids, n, 64);
    double sum = 0;
    for (int t = 0; t + 1 < n; t++)
        sum += nll(logits + (size_t)t * (size_t)vocab, vocab, ids[t + 1]);
    free(logits);
    free(ids);
    return sum / (n - 1);
}

static double mean_of(const json_t *numbers)
{
    double sum = 0;
    for (size_t i = 0; i < json_array_size(numbers); i++)
        sum += number_at(numbers, i);
    return sum / (double)json_array_size(numbers);
}

static void int8_weights_hardly_change_how_likely_real_texts_are(void **state)
{
    (void)state;
    char *file = test_data_path("reference/tinystories_sample_nll.json");
    if (!file)
        skip();
    json_t *root = read_json(file), *models = json_object_get(root, "models"), *texts;
    const char *name;
    json_object_foreach(models, name, texts)
    {
        char *dir_name = xasprintf("models/%s", name), *dir = test_data_path(dir_name);
        free(dir_name);
        if (!dir)
            skip();
        struct model *m = open_model(dir, INT8);
        double difference = 0, expected = 0;
        size_t n = json_array_size(texts);
        for (size_t i = 0; i < n; i++) {
            const json_t *text = json_array_get(texts, i);
            double of_text = mean_of(json_object_get(text, "token_nll"));
            expected += of_text / (double)n;
            difference += (mean_nll(m, text) - of_text) / (double)n;
        }
        print_message("%s in int8: NLL %.4f, %+.4f\n", name, expected + difference, difference);
        assert_true(fabs(difference) < 0.02);
        model_close(m);
        free(dir);
    }
    json_decref(root);
    free(file);
}

static struct {
    int same, clear, n;
} greedy;

static bool count_greedy(const json_t *prompt, int step, int expected, const float *logits,
                         int vocab)
{
    const json_t *detail = json_array_get(json_object_get(prompt, "steps"), (size_t)step);
    bool same = argmax(logits, vocab) == expected;
    greedy.n++;
    greedy.same += same;
    if (json_number_value(json_object_get(detail, "margin")) >= 0.5) {
        greedy.clear++;
        assert_true(same);
    }
    return true;
}

static void int8_weights_mostly_give_the_reference_ids(void **state)
{
    (void)state;
    memset(&greedy, 0, sizeof(greedy));
    follow_trained(INT8, count_greedy);
    print_message("%d of %d greedy ids are the reference's\n", greedy.same, greedy.n);
}

static void int8_weights_stay_near_the_reference_on_every_instruction_set(void **state)
{
    (void)state;
    static const char *const isas[] = {"plain", "avx2", "avx512", "avx512vnni", "avx512bf16"};
    for (size_t k = 0; k < ARRAY_LEN(isas); k++) {
        const struct device_options device = {.n_threads = 1, .isa = isas[k]};
        struct device_info info;
        if (device_describe(&info, DEVICE_CPU, &device) != 0)
            continue;
        for (size_t i = 0; i < ARRAY_LEN(golden_names); i++) {
            struct golden g;
            golden_open_on(&g, golden_names[i], INT8, device);
            double error = golden_error(&g, ATTENTION_FLASH, DTYPE_F32, 17);
            print_message("%s: %s in int8: relative error %.2g\n", isas[k], golden_names[i], error);
            assert_true(error < 0.5);
            golden_close(&g);
        }
    }
}

/* ---- invariance ---- */

static void check_chunks(struct model *m, enum attention_kind attention, enum dtype kv_dtype)
{
    static const int chunks[] = {1, 3, 15, 16, 17};
    enum { N = 40 };
    int ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = (int)(mix64((uint64_t)i) % (uint64_t)m->arch.vocab);
    float *whole = logits_of(m, attention, kv_dtype, ids, N, N);
    for (size_t c = 0; c < ARRAY_LEN(chunks); c++) {
        float *parts = logits_of(m, attention, kv_dtype, ids, N, chunks[c]);
        assert_memory_equal(parts, whole, (size_t)N * (size_t)m->arch.vocab * sizeof(float));
        free(parts);
    }
    free(whole);
}

static void chunks_of_a_prompt_give_the_same_bits_as_the_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(golden_names); i++) {
        for (int dtype = 0; dtype < DTYPE_N; dtype++) {
            struct golden g;
            golden_open(&g, golden_names[i], dtype_name((enum dtype)dtype));
            for (int kind = 0; kind < ATTENTION_N; kind++)
                check_chunks(g.m, (enum attention_kind)kind, (enum dtype)dtype);
            g.m->arch.softcap = 2;
            check_chunks(g.m, ATTENTION_FLASH, (enum dtype)dtype);
            golden_close(&g);
        }
    }
}

static void a_sequence_in_a_batch_gives_the_same_bits_as_alone(void **state)
{
    (void)state;
    enum { N_SEQS = 5, MAX_LEN = 40 };
    static const int lengths[N_SEQS] = {17, 1, 40, 16, 3};
    int ids[N_SEQS][MAX_LEN], n_tokens = 0;
    struct model *m = open_model("tests/golden/mistral", "bfloat16");
    struct world w;
    for (int s = 0; s < N_SEQS; s++)
        n_tokens += lengths[s];
    world_open(&w, m, N_SEQS, n_tokens, MAX_LEN);
    for (int s = 0; s < N_SEQS; s++) {
        for (int i = 0; i < MAX_LEN; i++)
            ids[s][i] = (int)(mix64((uint64_t)(s * MAX_LEN + i)) % 97);
        w.seq[s].ids = ids[s];
        w.seq[s].n_ids = lengths[s];
    }
    float *together = world_step(&w, lengths), *part = together;
    for (int s = 0; s < N_SEQS; s++) {
        float *alone = logits_of(m, ATTENTION_FLASH, DTYPE_F32, ids[s], lengths[s], lengths[s]);
        size_t n = (size_t)lengths[s] * (size_t)m->arch.vocab;
        assert_memory_equal(alone, part, n * sizeof(float));
        part += n;
        free(alone);
    }
    free(together);
    world_close(&w);
    model_close(m);
}

static void the_number_of_threads_changes_no_bit(void **state)
{
    (void)state;
    enum { N = 40 };
    static const char path[] = "tests/golden/qwen2-window";
    int ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = (int)(mix64((uint64_t)i) % 96);
    for (int dtype = 0; dtype < DTYPE_N; dtype++) {
        const char *name = dtype_name((enum dtype)dtype);
        struct model *one = open_model(path, name);
        float *expected = logits_of(one, ATTENTION_FLASH, (enum dtype)dtype, ids, N, 17);
        for (int n_threads = 2; n_threads <= 3; n_threads++) {
            struct model *m = open_on(path, name, (struct device_options){.n_threads = n_threads});
            float *logits = logits_of(m, ATTENTION_FLASH, (enum dtype)dtype, ids, N, 17);
            assert_memory_equal(logits, expected,
                                (size_t)N * (size_t)m->arch.vocab * sizeof(float));
            free(logits);
            model_close(m);
        }
        free(expected);
        model_close(one);
    }
}

static struct model *open_random(enum device_kind kind, const char *dtype)
{
    struct model *m;
    const struct model_options options = {.path = "configs/models/qwen3-0.6b.json",
                                          .dtype = dtype,
                                          .random_init = true,
                                          .device = kind};
    if (model_open(&m, &options) != 0)
        fail_msg("%s", err_get());
    return m;
}

/* The largest difference of two sets of logits, relative to the largest logit. */
static double distance(const float *a, const float *b, size_t n)
{
    double error = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        error = fmax(error, fabs((double)a[i] - b[i]));
        scale = fmax(scale, fabs((double)b[i]));
    }
    return error / scale;
}

static void a_gpu_gives_the_logits_of_the_cpu_on_a_real_shape(void **state)
{
    (void)state;
    enum { N = 40 };
    static const struct {
        enum dtype dtype;
        double tolerance;
    } cases[] = {{DTYPE_F32, 1e-3}, {DTYPE_BF16, 0.05}};
    int ids[N];
    if (test_device() == DEVICE_CPU) {
        print_message("there is no other device to compare with: QUIRE_TEST_DEVICE=cuda\n");
        skip();
    }
    for (int i = 0; i < N; i++)
        ids[i] = (int)(mix64((uint64_t)i) % 10000);
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        const char *name = dtype_name(cases[c].dtype);
        struct model *cpu = open_random(DEVICE_CPU, name), *gpu = open_random(DEVICE_CUDA, name);
        size_t n = (size_t)N * (size_t)cpu->arch.vocab;
        float *expected = logits_of(cpu, ATTENTION_FLASH, cases[c].dtype, ids, N, N);
        float *logits = logits_of(gpu, ATTENTION_FLASH, cases[c].dtype, ids, N, N);
        double error = distance(logits, expected, n);
        print_message("Qwen3-0.6B shape, random weights, %s: relative error %.2g\n", name, error);
        assert_true(error < cases[c].tolerance);
        free(expected);
        free(logits);
        model_close(cpu);
        model_close(gpu);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_logits_are_those_of_the_reference),
        cmocka_unit_test(a_softcap_far_above_the_scores_changes_nothing_and_a_low_one_much),
        cmocka_unit_test(short_dtypes_stay_near_the_reference),
        cmocka_unit_test(every_instruction_set_gives_the_reference),
        cmocka_unit_test(greedy_ids_of_tiny_models_are_those_of_the_reference),
        cmocka_unit_test(trained_models_in_f32_give_every_reference_id),
        cmocka_unit_test(trained_models_in_bf16_give_the_clear_reference_ids),
        cmocka_unit_test(real_texts_are_as_likely_as_in_the_reference),
        cmocka_unit_test(int8_weights_hardly_change_how_likely_real_texts_are),
        cmocka_unit_test(int8_weights_mostly_give_the_reference_ids),
        cmocka_unit_test(int8_weights_stay_near_the_reference_on_every_instruction_set),
        cmocka_unit_test(chunks_of_a_prompt_give_the_same_bits_as_the_whole),
        cmocka_unit_test(a_sequence_in_a_batch_gives_the_same_bits_as_alone),
        cmocka_unit_test(the_number_of_threads_changes_no_bit),
        cmocka_unit_test(a_gpu_gives_the_logits_of_the_cpu_on_a_real_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
