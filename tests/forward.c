/* forward.c - see forward.h. */
#include "tests/forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct model *open_model_on(const char *path, const char *dtype, struct device_options device)
{
    /* An instruction set and int8 are the CPU's. */
    bool int8 = strcmp(dtype, INT8) == 0;
    const struct model_options options = {.path = path,
                                          .dtype = int8 ? "auto" : dtype,
                                          .quantization =
                                              int8 ? QUANTIZATION_INT8 : QUANTIZATION_NONE,
                                          .device = device.isa || int8 ? DEVICE_CPU : test_device(),
                                          .device_options = device};
    log_set_level("warning");
    return test_open_model(&options);
}

struct model *open_model(const char *path, const char *dtype)
{
    return open_model_on(path, dtype, (struct device_options){.n_threads = 1});
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

void world_open(struct world *w, struct model *m, int n_seqs, int max_tokens, int max_len)
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

void world_close(struct world *w)
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
float *world_step(struct world *w, const int *n)
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

float *logits_of(struct model *m, enum attention_kind attention, enum dtype kv_dtype, int *ids,
                 int n, int chunk)
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

int argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

double nll(const float *logits, int vocab, int id)
{
    double max = logits[argmax(logits, vocab)], sum = 0;
    for (int i = 0; i < vocab; i++)
        sum += exp(logits[i] - max);
    return log(sum) + max - logits[id];
}

/* ---- JSON ---- */

json_t *read_json(const char *path)
{
    json_t *root = json_read_file(path);
    if (!root)
        fail_msg("%s", err_get());
    return root;
}

int *read_ids(const json_t *list, int *n)
{
    *n = (int)json_array_size(list);
    int *ids = xcalloc((size_t)*n, sizeof(*ids));
    for (int i = 0; i < *n; i++)
        ids[i] = (int)json_integer_value(json_array_get(list, (size_t)i));
    return ids;
}

double number_at(const json_t *list, size_t i)
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

void golden_open_on(struct golden *g, const char *name, const char *dtype,
                    struct device_options device)
{
    char *dir = xasprintf("tests/golden/%s", name), *file = path_join(dir, "logits.json");
    g->m = open_model_on(dir, dtype, device);
    g->root = read_json(file);
    g->prompts = json_object_get(g->root, "prompts");
    free(file);
    free(dir);
}

void golden_open(struct golden *g, const char *name, const char *dtype)
{
    golden_open_on(g, name, dtype, (struct device_options){.n_threads = 1});
}

void golden_close(struct golden *g)
{
    json_decref(g->root);
    model_close(g->m);
}

double golden_error(const struct golden *g, enum attention_kind attention, enum dtype kv_dtype,
                    int chunk)
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
const char *const GOLDEN_NAMES[N_GOLDEN] = {
    "llama3",  "llama-linear", "llama-bias",   "llama-yarn",
    "mistral", "qwen2",        "qwen2-window", "qwen3",
};

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

void follow_reference(struct model *m, enum attention_kind attention, const json_t *prompts,
                      step_check check)
{
    struct continuation c[MAX_SEQS] = {0};
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
static const char *const trained_names[] = {"stories260k-llama", "tinystories-656k-bf16"};
void follow_trained(const char *dtype, step_check check)
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
