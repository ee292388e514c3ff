/* bench_engine.c - tokens per second of the whole engine on random weights: prefill and decode.
 *
 *   build/bench/bench_engine [ARCHITECTURE.json [DTYPE...]]
 *
 * The DTYPE int8 stands for int8 weights with a KV cache in bfloat16.
 *
 * Cases: prefill of one prompt of 512 tokens; decode of B = 1, 8, 32 sequences of 128 + 64 tokens
 * (the rate counts the steps without prefill). Each case runs REPEATS times, cases alternating; the
 * table has the median, the fastest and the slowest. Beside it: the bytes that a decode step must
 * read (weights once, keys and values of all sequences) over its time, as a share of the read
 * bandwidth measured between the runs. It checks first that two sequences of the largest batch
 * have the tokens that they have alone: numbers of an engine that computes something else are
 * worthless.
 */
#include "engine/engine.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPEATS      3
#define PREFILL      512
#define PROMPT       128
#define OUTPUT       64
#define MAX_BATCH    32
#define READ_BYTES   ((size_t)1 << 30)
#define READ_REPEATS 5

static const int batches[] = {0, 1, 8, 32}; /* 0: the prefill case */

struct measurement {
    double rate[REPEATS];  /* tokens per second                   */
    double bytes_per_step; /* mean over the run's decode steps    */
};

struct tokens {
    int id[OUTPUT];
    int n;
};

static void keep_token(void *user, int id)
{
    struct tokens *t = user;
    t->id[t->n++] = id;
}

static void fail(const char *what)
{
    fprintf(stderr, "bench_engine: %s: %s\n", what, err_get());
    exit(1);
}

/* GB/s of reading memory once with all threads, the best of a few passes. */
static double read_bandwidth(void)
{
    uint64_t *memory = malloc(READ_BYTES);
    size_t n = READ_BYTES / sizeof(*memory);
    double best_s = 1e30;
    uint64_t sum = 0;
    if (!memory)
        return 0;
#pragma omp parallel for
    for (size_t i = 0; i < n; i++)
        memory[i] = i;
    for (int r = 0; r < READ_REPEATS; r++) {
        double began_s = time_monotonic_s();
#pragma omp parallel for reduction(+ : sum)
        for (size_t i = 0; i < n; i++)
            sum += memory[i];
        best_s = MIN(best_s, time_monotonic_s() - began_s);
    }
    free(memory);
    return sum ? (double)READ_BYTES / best_s / 1e9 : 0;
}

static void submit(struct engine *e, int n_prompt, int n_output, int seq, struct tokens *out)
{
    int prompt[PREFILL];
    for (int i = 0; i < n_prompt; i++)
        prompt[i] = (int)(mix64((uint64_t)(seq * PREFILL + i)) % 10000);
    struct request request = {.prompt = prompt,
                              .n_prompt = n_prompt,
                              .sampling = {.max_tokens = n_output, .ignore_eos = true},
                              .on_token = out ? keep_token : NULL,
                              .user = out};
    if (engine_submit(e, &request, NULL) != 0)
        fail("submit");
}

static struct engine *open_engine(struct model *model, int batch)
{
    struct engine *e;
    struct engine_options options = {.fast = true,
                                     .attention = ATTENTION_FLASH,
                                     .max_num_seqs = batch,
                                     .max_num_batched_tokens = 2048,
                                     .max_model_len = PREFILL + OUTPUT};
    if (engine_open(&e, model, &options) != 0)
        fail("engine");
    return e;
}

static void run_batch(struct engine *e, int batch, int first, struct tokens *out)
{
    for (int i = 0; i < batch; i++)
        submit(e, PROMPT, OUTPUT, first + i, out ? &out[i] : NULL);
    while (engine_step(e) > 0) {
    }
}

/* Two sequences of the largest batch against themselves alone. */
static void check_tokens(struct model *model)
{
    static struct tokens together[MAX_BATCH], alone[MAX_BATCH];
    memset(together, 0, sizeof(together));
    memset(alone, 0, sizeof(alone));
    struct engine *e = open_engine(model, MAX_BATCH);
    run_batch(e, MAX_BATCH, 0, together);
    for (int i = 0; i < MAX_BATCH; i += MAX_BATCH / 2)
        run_batch(e, 1, i, &alone[i]);
    engine_close(e);
    for (int i = 0; i < MAX_BATCH; i += MAX_BATCH / 2) {
        if (memcmp(&together[i], &alone[i], sizeof(alone[i])) != 0) {
            fprintf(stderr, "bench_engine: sequence %d differs alone and in a batch\n", i);
            exit(1);
        }
    }
}

static double measure_prefill(struct model *model)
{
    struct engine *e = open_engine(model, 1);
    struct engine_stats stats;
    submit(e, PREFILL, 1, 0, NULL);
    while (engine_step(e) > 0) {
    }
    engine_get_stats(e, &stats);
    engine_close(e);
    return PREFILL / stats.prefill_s;
}

static double measure_decode(struct model *model, int batch, struct measurement *m)
{
    const struct model_info *info = model_get_info(model);
    struct engine *e = open_engine(model, batch);
    struct engine_stats stats;
    run_batch(e, batch, 0, NULL);
    engine_get_stats(e, &stats);
    double block_bytes = (double)engine_get_plan(e)->block_bytes;
    double token_bytes = block_bytes / engine_get_plan(e)->block_size;
    engine_close(e);
    double context = PROMPT + (OUTPUT + 1) / 2.0; /* mean over the decode steps */
    m->bytes_per_step = (double)info->weight_bytes + batch * context * token_bytes;
    return batch * (OUTPUT - 1) / stats.decode_s;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_row(const char *dtype, int batch, struct measurement *m, double bandwidth)
{
    char name[32];
    qsort(m->rate, REPEATS, sizeof(m->rate[0]), compare);
    double median = m->rate[REPEATS / 2];
    if (batch == 0) {
        printf("| %s | prefill %d | %.1f | %.1f .. %.1f | | |\n", dtype, PREFILL, median,
               m->rate[0], m->rate[REPEATS - 1]);
        return;
    }
    double read = m->bytes_per_step * median / batch / 1e9;
    snprintf(name, sizeof(name), "decode B = %d", batch);
    printf("| %s | %s | %.1f | %.1f .. %.1f | %.1f | %.0f %% |\n", dtype, name, median, m->rate[0],
           m->rate[REPEATS - 1], read, 100 * read / bandwidth);
}

static void bench_dtype(const char *architecture, const char *dtype)
{
    struct model *model;
    bool int8 = strcmp(dtype, "int8") == 0;
    struct model_options options = {.path = architecture,
                                    .dtype = int8 ? "bfloat16" : dtype,
                                    .quantization = int8 ? QUANTIZATION_INT8 : QUANTIZATION_NONE,
                                    .random_init = true};
    if (model_open(&model, &options) != 0)
        fail(architecture);
    struct measurement m[ARRAY_LEN(batches)] = {0};
    double bandwidth = 0;
    check_tokens(model);
    for (int r = 0; r < REPEATS; r++) {
        bandwidth = MAX(bandwidth, read_bandwidth());
        for (size_t i = 0; i < ARRAY_LEN(batches); i++)
            m[i].rate[r] =
                batches[i] ? measure_decode(model, batches[i], &m[i]) : measure_prefill(model);
    }
    for (size_t i = 0; i < ARRAY_LEN(batches); i++)
        print_row(dtype, batches[i], &m[i], bandwidth);
    printf(
        "\n%s: read bandwidth %.1f GB/s (%d threads); weights %.2f GB; the tokens of B = %d equal "
        "those of B = 1\n\n",
        dtype, bandwidth, omp_get_max_threads(), (double)model_get_info(model)->weight_bytes / 1e9,
        MAX_BATCH);
    fflush(stdout);
    model_close(model);
}

int main(int argc, char **argv)
{
    const char *architecture = argc > 1 ? argv[1] : "configs/models/qwen3-0.6b.json";
    const char *const usual[] = {"bfloat16", "float32"};
    struct device_info device;
    struct device_options options = {0};
    (void)log_set_level("warning");
    if (device_describe(&device, DEVICE_CPU, &options) != 0)
        fail("device");
    printf("%s on %s (%s, %d threads), medians of %d alternating runs\n\n", architecture,
           device.name, device.isa, device.n_threads, REPEATS);
    printf("| dtype | case | tokens/s | slowest .. fastest | GB/s | of read bandwidth |\n"
           "|---|---|---|---|---|---|\n");
    for (int i = 2; i < argc; i++)
        bench_dtype(architecture, argv[i]);
    for (size_t i = 0; i < ARRAY_LEN(usual) && argc <= 2; i++)
        bench_dtype(architecture, usual[i]);
    return 0;
}
