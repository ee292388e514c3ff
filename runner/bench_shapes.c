/* bench_shapes.c - see bench.h: the shapes that attention is measured at.
 *
 * Lists have names, so that tables of different days and machines have the same rows:
 *
 *   minivllm   prefill and decode as MinivLLM's benchmark programs run them: float16, 32/8 heads of
 *              128, pages of 16
 *   crossover  its sweep of short prompts, where simple kernels are still ahead
 *   model      bf16 shapes of models of 0.6 to 8 billion parameters, up to 16k tokens; for GPUs
 *   four-way   the shapes at which flash, memory-efficient and eager attention are compared
 */
#include "runner/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BATCH      4096
#define MAX_HEADS      256
#define MAX_KV_LEN     (1 << 20)
#define MAX_BLOCK_SIZE 4096

enum list { LIST_MINIVLLM, LIST_CROSSOVER, LIST_MODEL, LIST_FOUR_WAY, N_LISTS };
static const char *const list_names[N_LISTS] = {"minivllm", "crossover", "model", "four-way"};
static const char *const cache_names[] = {"warm", "cold"};

/* Shapes of `sizes` at each of `heads`. */
struct named_list {
    enum bench_noun noun;
    enum list list;
    enum dtype dtype;
    int block_size;
    int sizes[12][2]; /* batch, length; 0: the end     */
    int heads[3][3];  /* n_heads, n_kv_heads, head_dim */
    bool is_default, warm, cold;
};

static const struct named_list lists[] = {
    {.noun = BENCH_PREFILL,
     .list = LIST_MINIVLLM,
     .dtype = DTYPE_F16,
     .block_size = 16,
     .sizes = {{2, 60}, {4, 64}, {2, 1024}, {1, 4096}},
     .heads = {{32, 8, 128}},
     .is_default = true,
     .warm = true,
     .cold = true},
    {.noun = BENCH_PREFILL,
     .list = LIST_CROSSOVER,
     .dtype = DTYPE_F16,
     .block_size = 16,
     .sizes = {{2, 16},
               {2, 32},
               {2, 48},
               {2, 64},
               {2, 80},
               {2, 96},
               {2, 112},
               {2, 128},
               {2, 192},
               {2, 256},
               {2, 512},
               {2, 1024}},
     .heads = {{32, 8, 128}},
     .is_default = true,
     .warm = true},
    {.noun = BENCH_PREFILL,
     .list = LIST_MODEL,
     .dtype = DTYPE_BF16,
     .block_size = 64,
     .sizes = {{16, 1024}, {8, 2048}, {4, 4096}, {2, 8192}, {1, 16384}, {1, 512}},
     .heads = {{32, 8, 128}, {16, 8, 128}, {32, 32, 64}},
     .cold = true},
    {.noun = BENCH_DECODE,
     .list = LIST_MINIVLLM,
     .dtype = DTYPE_F16,
     .block_size = 16,
     .sizes = {{2, 60}, {1, 512}, {16, 256}, {4, 2048}},
     .heads = {{32, 8, 128}},
     .is_default = true,
     .warm = true,
     .cold = true},
    {.noun = BENCH_DECODE,
     .list = LIST_MODEL,
     .dtype = DTYPE_BF16,
     .block_size = 64,
     .sizes = {{1, 512},
               {8, 512},
               {64, 512},
               {256, 512},
               {1, 2048},
               {8, 2048},
               {64, 2048},
               {256, 2048},
               {1, 32768},
               {8, 32768},
               {64, 8192}},
     .heads = {{32, 8, 128}},
     .cold = true},
    {.noun = BENCH_ATTENTION,
     .list = LIST_FOUR_WAY,
     .dtype = DTYPE_F16,
     .block_size = 64,
     .sizes = {{1, 512}},
     .heads = {{1, 1, 64}},
     .is_default = true,
     .warm = true},
    {.noun = BENCH_ATTENTION,
     .list = LIST_FOUR_WAY,
     .dtype = DTYPE_F16,
     .block_size = 64,
     .sizes = {{16, 64}},
     .heads = {{12, 12, 64}},
     .is_default = true,
     .warm = true},
};

/* ---- what a shape costs ---- */

void bench_shape_label(char out[64], const struct bench_shape *s)
{
    char heads[24], length[24];
    if (s->n_heads == s->n_kv_heads)
        snprintf(heads, sizeof(heads), "H%d", s->n_heads);
    else
        snprintf(heads, sizeof(heads), "H%d/%d", s->n_heads, s->n_kv_heads);
    bool decode = s->q_len == 1 && s->kv_len > 1;
    snprintf(length, sizeof(length), decode ? "ctx%d" : "S%d", s->kv_len);
    int n = snprintf(out, 64, "B%d %s %s D%d", s->batch, heads, length, s->head_dim);
    if (decode)
        snprintf(out + n, 64 - (size_t)n, " page%d", s->block_size);
}

double bench_shape_flops(const struct bench_shape *s)
{
    double keys = s->q_len * (s->kv_len - (s->q_len - 1) / 2.0);
    return 4 * keys * s->batch * s->n_heads * s->head_dim;
}

double bench_shape_kv_bytes(const struct bench_shape *s)
{
    return 2.0 * s->batch * s->kv_len * s->n_kv_heads * s->head_dim * (double)dtype_bytes(s->dtype);
}

/* ---- texts of the command line ---- */

/* The next item of a list that ends with a comma or the text, of *len bytes; NULL at the end. */
static const char *next_item(const char **text, size_t *len)
{
    const char *item = *text;
    if (!item)
        return NULL;
    *len = strcspn(item, ",");
    *text = item[*len] ? item + *len + 1 : NULL;
    return item;
}

int bench_parse_ints(int out[BENCH_MAX_LIST], const char *option, const char *text, int low,
                     int high)
{
    int n = 0;
    size_t len;
    for (const char *item; (item = next_item(&text, &len)) != NULL;) {
        char number[24];
        int64_t value;
        snprintf(number, sizeof(number), "%.*s", (int)MIN(len, sizeof(number)), item);
        if (!parse_int64(&value, number) || value < low || value > high)
            return err_set(ERR_CONFIG,
                           "--%s has '%.*s'; expected numbers from %d to %d, separated by commas",
                           option, (int)len, item, low, high);
        if (n == BENCH_MAX_LIST)
            return err_set(ERR_CONFIG, "--%s has more than %d values", option, BENCH_MAX_LIST);
        out[n++] = (int)value;
    }
    return n;
}

int bench_parse_names(int out[BENCH_MAX_LIST], const char *option, const char *text,
                      const char *const *names, size_t n_names)
{
    int n = 0;
    size_t len;
    for (const char *item; (item = next_item(&text, &len)) != NULL;) {
        size_t at = 0;
        while (at < n_names && (strlen(names[at]) != len || strncmp(item, names[at], len) != 0))
            at++;
        if (at == n_names) {
            struct str valid = {0};
            for (size_t i = 0; i < n_names; i++)
                str_appendf(&valid, "%s%s", i ? ", " : "", names[i]);
            err_set(ERR_CONFIG, "--%s has '%.*s'; expected %s", option, (int)len, item, valid.data);
            str_free(&valid);
            return -1;
        }
        if (n == BENCH_MAX_LIST)
            return err_set(ERR_CONFIG, "--%s has more than %d values", option, BENCH_MAX_LIST);
        out[n++] = (int)at;
    }
    return n;
}

/* ---- lists ---- */

struct shapes {
    struct bench_shape *shape;
    size_t n, capacity;
};

static void push(struct shapes *shapes, const struct bench_shape *s)
{
    array_reserve(&shapes->shape, &shapes->capacity, shapes->n + 1, sizeof(*s));
    shapes->shape[shapes->n++] = *s;
}

/* What the command line says of every shape, lists included. */
struct choices {
    int dtype[BENCH_MAX_LIST], block_size[BENCH_MAX_LIST], cache[BENCH_MAX_LIST];
    int n_dtypes, n_block_sizes, n_caches; /* 0: not given */
    int dtype_now;                         /* of the shapes that are being made; -1: their own */
};

/* A shape with each of the chosen pages and caches. */
static void push_choices(struct shapes *shapes, struct bench_shape s, const struct choices *c)
{
    if (c->dtype_now >= 0)
        s.dtype = (enum dtype)c->dtype_now;
    for (int b = 0; b < MAX(c->n_block_sizes, 1); b++) {
        for (int i = 0; i < MAX(c->n_caches, 1); i++) {
            if (c->n_block_sizes)
                s.block_size = c->block_size[b];
            if (c->n_caches)
                s.cold = c->cache[i] == 1;
            push(shapes, &s);
        }
    }
}

static void push_list(struct shapes *shapes, const struct named_list *l, const struct choices *c)
{
    for (size_t h = 0; h < ARRAY_LEN(l->heads) && l->heads[h][0]; h++) {
        for (size_t i = 0; i < ARRAY_LEN(l->sizes) && l->sizes[i][0]; i++) {
            struct bench_shape s = {.batch = l->sizes[i][0],
                                    .n_heads = l->heads[h][0],
                                    .n_kv_heads = l->heads[h][1],
                                    .q_len = l->noun == BENCH_DECODE ? 1 : l->sizes[i][1],
                                    .kv_len = l->sizes[i][1],
                                    .head_dim = l->heads[h][2],
                                    .block_size = l->block_size,
                                    .dtype = l->dtype};
            for (int cold = 0; cold < 2; cold++) {
                s.cold = cold == 1;
                if (c->n_caches ? cold == 0 : (cold ? l->cold : l->warm))
                    push_choices(shapes, s, c);
            }
        }
    }
}

static int push_lists(struct shapes *shapes, enum bench_noun noun, const char *names,
                      const struct choices *c)
{
    int wanted[BENCH_MAX_LIST], n_wanted = 0;
    if (names && (n_wanted = bench_parse_names(wanted, "list", names, list_names, N_LISTS)) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        bool is_wanted = !names && lists[i].is_default;
        for (int w = 0; w < n_wanted; w++)
            is_wanted |= wanted[w] == (int)lists[i].list;
        if (is_wanted && lists[i].noun == noun)
            push_list(shapes, &lists[i], c);
    }
    if (shapes->n == 0)
        return err_set(ERR_CONFIG, "--list %s: this bench has no such list", names);
    return 0;
}

/* ---- sweeps ---- */

struct axis {
    int value[BENCH_MAX_LIST], n;
};

static int read_axis(struct axis *a, const char *option, const char *text, int usual, int high)
{
    *a = (struct axis){{usual}, 1};
    if (text)
        a->n = bench_parse_ints(a->value, option, text, 1, high);
    return a->n < 0 ? -1 : 0;
}

static int check_shape(const struct bench_shape *s)
{
    if (s->n_heads % s->n_kv_heads != 0)
        return err_set(ERR_CONFIG, "--heads %d is no multiple of --kv-heads %d", s->n_heads,
                       s->n_kv_heads);
    if (s->head_dim % 8 != 0)
        return err_set(ERR_CONFIG, "--head-dim has %d; expected a multiple of 8", s->head_dim);
    if ((int64_t)s->batch * s->q_len > ENGINE_MAX_BATCHED_TOKENS)
        return err_set(ERR_CONFIG, "%d sequences of %d tokens are more than %d tokens", s->batch,
                       s->q_len, ENGINE_MAX_BATCHED_TOKENS);
    return 0;
}

struct axes {
    struct axis batch, heads, kv_heads, len, head_dim;
};

/* Value i of each axis, the last fastest; i counts over the whole product. */
static struct bench_shape shape_at(const struct axes *a, bool same_heads, bool decode, int i)
{
    struct bench_shape s = {.block_size = 64, .dtype = DTYPE_F16};
    s.head_dim = a->head_dim.value[i % a->head_dim.n];
    i /= a->head_dim.n;
    s.kv_len = a->len.value[i % a->len.n];
    i /= a->len.n;
    s.n_kv_heads = a->kv_heads.value[i % a->kv_heads.n];
    i /= a->kv_heads.n;
    s.n_heads = a->heads.value[i % a->heads.n];
    i /= a->heads.n;
    s.batch = a->batch.value[i];
    s.n_kv_heads = same_heads ? s.n_heads : s.n_kv_heads;
    s.q_len = decode ? 1 : s.kv_len;
    return s;
}

static int push_sweep(struct shapes *shapes, enum bench_noun noun, const struct bench_sweep *sweep,
                      const struct choices *c)
{
    struct axes a;
    bool decode = noun == BENCH_DECODE || sweep->decode;
    bool model_shaped = noun != BENCH_ATTENTION;
    bool same_heads = !sweep->kv_heads && (!model_shaped || sweep->heads);
    const char *lens = sweep->decode ? sweep->decode : sweep->seq;
    if (read_axis(&a.batch, "batch", sweep->batch, 1, MAX_BATCH) != 0 ||
        read_axis(&a.heads, "heads", sweep->heads, model_shaped ? 32 : 1, MAX_HEADS) != 0 ||
        read_axis(&a.kv_heads, "kv-heads", sweep->kv_heads, model_shaped ? 8 : 1, MAX_HEADS) != 0 ||
        read_axis(&a.len, sweep->decode ? "decode" : "seq", lens, 512, MAX_KV_LEN) != 0 ||
        read_axis(&a.head_dim, "head-dim", sweep->head_dim, model_shaped ? 128 : 64,
                  BENCH_MAX_DIM) != 0)
        return -1;
    int64_t n = (int64_t)a.batch.n * a.heads.n * a.kv_heads.n * a.len.n * a.head_dim.n;
    if (n > BENCH_MAX_SHAPES)
        return err_set(ERR_CONFIG, "this makes %lld shapes; at most %d", (long long)n,
                       BENCH_MAX_SHAPES);
    for (int i = 0; i < n; i++) {
        struct bench_shape s = shape_at(&a, same_heads, decode, i);
        if (check_shape(&s) != 0)
            return -1;
        push_choices(shapes, s, c);
    }
    return 0;
}

static int read_choices(struct choices *c, const struct bench_sweep *sweep)
{
    const char *dtypes[DTYPE_N];
    for (int d = 0; d < DTYPE_N; d++)
        dtypes[d] = dtype_name((enum dtype)d);
    *c = (struct choices){0};
    if (sweep->dtype &&
        (c->n_dtypes = bench_parse_names(c->dtype, "dtype", sweep->dtype, dtypes, DTYPE_N)) < 0)
        return -1;
    if (sweep->cache && (c->n_caches = bench_parse_names(c->cache, "cache", sweep->cache,
                                                         cache_names, ARRAY_LEN(cache_names))) < 0)
        return -1;
    if (sweep->block_size &&
        (c->n_block_sizes = bench_parse_ints(c->block_size, "block-size", sweep->block_size, 16,
                                             MAX_BLOCK_SIZE)) < 0)
        return -1;
    for (int i = 0; i < c->n_block_sizes; i++)
        if (c->block_size[i] % 16 != 0)
            return err_set(ERR_CONFIG, "--block-size has %d; expected a multiple of 16",
                           c->block_size[i]);
    return 0;
}

int bench_shapes_make(struct bench_shape **out, enum bench_noun noun,
                      const struct bench_sweep *sweep)
{
    struct choices c;
    struct shapes shapes = {0};
    bool sweeps = sweep->batch || sweep->heads || sweep->kv_heads || sweep->seq || sweep->decode ||
                  sweep->head_dim;
    if (read_choices(&c, sweep) != 0)
        return -1;
    if (sweep->decode && (noun != BENCH_ATTENTION || sweep->seq))
        return err_set(ERR_CONFIG,
                       "--decode is for `bench attention`, in the place of --seq; `bench decode` "
                       "takes context lengths from --seq");
    if (sweeps && sweep->list)
        return err_set(ERR_CONFIG, "--list has its own shapes: drop it, or --batch, --heads, ...");
    for (int d = 0; d < MAX(c.n_dtypes, 1); d++) { /* a device is opened for each type */
        c.dtype_now = c.n_dtypes ? c.dtype[d] : -1;
        int rc = sweeps ? push_sweep(&shapes, noun, sweep, &c)
                        : push_lists(&shapes, noun, sweep->list, &c);
        if (rc != 0) {
            free(shapes.shape);
            return -1;
        }
    }
    *out = shapes.shape;
    return (int)shapes.n;
}
