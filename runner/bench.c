/* bench.c - the `bench` command: what is asked for, and rows as a table and in a database.
 *
 * Rows are printed at the end, when the ceilings that they are held against are known: those are
 * measured before the first and after the last shape of a type, and the larger one counts.
 */
#include "runner/bench.h"
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/config.h"
#include "runner/host.h"
#include "runner/store.h"
#include "runner/table.h"
#include "runner/version.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MODEL "configs/models/qwen3-0.6b.json"
#define MAX_SECONDS   3600
#define MAX_PROMPT    ENGINE_MAX_BATCHED_TOKENS

static const char *const noun_names[BENCH_N_NOUNS] = {"prefill", "decode", "attention", "engine"};
static const char *const kernel_names[ATTENTION_N] = {"flash", "memory_efficient", "eager"};

struct options {
    const char *noun_name, *command_line;
    enum bench_noun noun;
    struct bench_sweep sweep;
    const char *kernels, *device, *format, *db, *model, *quantization, *workload, *trace;
    struct cli_list peers;
    double seconds;
    int64_t threads, prefill, prompt, output, repeats; /* 0: not given */
    unsigned kernel_mask;                              /* 0: not given */
    enum table_format table_format;
};

/* All that a run of the command has measured. */
struct bench {
    const struct options *options;
    enum device_kind device;
    struct bench_shape *shape; /* [n_shapes] */
    int n_shapes;
    struct bench_rows rows;
    struct bench_ceiling ceiling;
};

/* ---- a row's numbers ---- */

/* What follows from a row and the ceilings; NaN where something is missing. */
struct derived {
    double tokens_per_s, tflops, peak_share, gbps, bandwidth_share, roofline_share, ratio;
};

static double positive(double x)
{
    return x > 0 ? x : NAN;
}

static struct derived derive(const struct bench *b, const struct bench_row *row)
{
    double s = row->latency_s.median;
    double peak = positive(b->ceiling.tflops[bench_rate_of(row->dtype, row->quantization)]);
    double read = positive(b->ceiling.read_gbps);
    struct derived d = {.tokens_per_s = positive(row->n_tokens) / s,
                        .tflops = 1e-12 * positive(row->flops) / s,
                        .gbps = 1e-9 * positive(row->bytes) / s,
                        .ratio = s / bench_fastest_s(&b->rows, row->group)};
    double least_s = fmax(1e-12 * row->flops / peak, 1e-9 * row->bytes / read);
    d.peak_share = d.tflops / peak;
    d.bandwidth_share = d.gbps / read;
    d.roofline_share = (row->roofline_s > 0 ? row->roofline_s : least_s) / s;
    return d;
}

/* ---- output ---- */

/* NULL for a row of no type: what the device reads. */
static const char *dtype_text(const struct bench_row *row)
{
    return row->dtype < DTYPE_N ? weight_name(row->dtype, row->quantization) : NULL;
}

static const char *const columns[] = {
    "shape",        "kernel",      "dtype",      "cache",  "state",   "us",
    "us_p10",       "us_p90",      "tok/s",      "tflops", "of_peak", "gbps",
    "of_bandwidth", "of_roofline", "memory_mib", "error",  "ratio",   "note",
};
#define N_COLUMNS      ARRAY_LEN(columns)
#define N_TEXT_COLUMNS 5 /* before the numbers; the note is the last one */

struct output {
    const struct bench *bench;
    struct table *table;
    struct store *store; /* NULL: none */
    int64_t environment_id;
};

static void print_row(struct table *t, const struct bench_row *row, const struct derived *d)
{
    const double number[] = {1e6 * row->latency_s.median,
                             1e6 * row->latency_s.p10,
                             1e6 * row->latency_s.p90,
                             d->tokens_per_s,
                             d->tflops,
                             d->peak_share,
                             d->gbps,
                             d->bandwidth_share,
                             d->roofline_share,
                             row->memory_bytes / 1048576,
                             row->error,
                             d->ratio};
    _Static_assert(ARRAY_LEN(number) + N_TEXT_COLUMNS + 1 == N_COLUMNS, "a value for each column");
    const char *values[N_COLUMNS] = {row->shape, row->kernel, dtype_text(row),
                                     row->cache[0] ? row->cache : NULL,
                                     bench_state_name(row->state)};
    bool is_number[N_COLUMNS] = {false};
    char text[ARRAY_LEN(number)][32];
    for (size_t i = 0; i < ARRAY_LEN(number); i++) {
        snprintf(text[i], sizeof(text[i]), "%.6g", number[i]);
        values[N_TEXT_COLUMNS + i] = isfinite(number[i]) ? text[i] : NULL;
        is_number[N_TEXT_COLUMNS + i] = true;
    }
    values[N_COLUMNS - 1] = row->note[0] ? row->note : NULL;
    table_add(t, values, is_number);
}

static int store_row(const struct output *out, const struct bench_row *row, const struct derived *d)
{
    return store_put_benchmark(
        out->store, &(struct store_benchmark){.environment_id = out->environment_id,
                                              .command = out->bench->options->command_line,
                                              .bench = out->bench->options->noun_name,
                                              .shape = row->shape,
                                              .kernel = row->kernel,
                                              .dtype = dtype_text(row),
                                              .cache = row->cache,
                                              .state = bench_state_name(row->state),
                                              .note = row->note,
                                              .latency_s = row->latency_s.median,
                                              .p10_s = row->latency_s.p10,
                                              .p90_s = row->latency_s.p90,
                                              .tokens_per_s = d->tokens_per_s,
                                              .tflops = d->tflops,
                                              .peak_share = d->peak_share,
                                              .gbps = d->gbps,
                                              .bandwidth_share = d->bandwidth_share,
                                              .roofline_share = d->roofline_share,
                                              .memory_bytes = row->memory_bytes,
                                              .error = row->error,
                                              .ratio = d->ratio,
                                              .version = QUIRE_VERSION,
                                              .git_commit = version_git_commit(),
                                              .git_dirty = version_git_dirty()});
}

static int put_row(const struct output *out, const struct bench_row *row, const struct derived *d)
{
    print_row(out->table, row, d);
    return out->store ? store_row(out, row, d) : 0;
}

/* What the shares are of, as rows of their own: so a stored share can be checked. */
static int put_ceilings(const struct output *out)
{
    const struct bench_ceiling *c = &out->bench->ceiling;
    for (int i = -1; i < BENCH_N_RATES; i++) {
        struct derived d = {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
        struct bench_row row = {.kernel = "ceiling",
                                .cache = "",
                                .dtype = i < 0 ? DTYPE_N : (enum dtype)(i % DTYPE_N),
                                .quantization =
                                    i == BENCH_INT8 ? QUANTIZATION_INT8 : QUANTIZATION_NONE,
                                .latency_s = {NAN, NAN, NAN},
                                .memory_bytes = NAN,
                                .error = NAN};
        *(i < 0 ? &d.gbps : &d.tflops) = i < 0 ? c->read_gbps : c->tflops[i];
        snprintf(row.shape, sizeof(row.shape), "%s", i < 0 ? "read" : "multiply");
        if ((i < 0 ? c->read_gbps : c->tflops[i]) > 0 && put_row(out, &row, &d) != 0)
            return -1;
    }
    return 0;
}

/* Group by group: a peer's rows come after ours of the same shape. */
static int put_rows(const struct output *out)
{
    const struct bench_rows *rows = &out->bench->rows;
    int last = -1;
    for (size_t i = 0; i < rows->n; i++)
        last = MAX(last, rows->row[i].group);
    for (int group = 0; group <= last; group++) {
        for (size_t i = 0; i < rows->n; i++) {
            const struct bench_row *row = &rows->row[i];
            struct derived d = derive(out->bench, row);
            if (row->group == group && put_row(out, row, &d) != 0)
                return -1;
        }
    }
    return put_ceilings(out);
}

static int open_store(struct output *out)
{
    const struct options *o = out->bench->options;
    struct host_facts host;
    struct device_info cpu, gpu = {0};
    struct device_options options = {.n_threads = (int)o->threads,
                                     .isa = config_get_environment("QUIRE_CPU_ISA")};
    host_get_facts(&host);
    if (device_describe(&cpu, DEVICE_CPU, &options) != 0 ||
        (out->bench->device == DEVICE_CUDA &&
         device_describe(&gpu, DEVICE_CUDA, &(struct device_options){0}) != 0) ||
        store_open(&out->store, o->db, STORE_WRITE) != 0)
        return -1;
    out->environment_id = host_put_environment(out->store, &host, &cpu, &gpu);
    return out->environment_id < 0 ? -1 : 0;
}

static int print_rows(const struct bench *b)
{
    struct output out = {.bench = b};
    int rc = b->options->db ? open_store(&out) : 0;
    if (rc == 0) {
        out.table = table_open(stdout, b->options->table_format, (int)N_COLUMNS, columns);
        rc = put_rows(&out);
    }
    if (table_close(out.table) != 0)
        rc = -1;
    if (store_close(out.store) != 0)
        rc = -1;
    return rc;
}

/* ---- measuring ---- */

static struct device *open_device(const struct bench *b, enum dtype act_dtype)
{
    const struct backend *backend = backend_find(b->device);
    return backend ? backend->open(
                         &(struct device_options){.act_dtype = act_dtype,
                                                  .n_threads = (int)b->options->threads,
                                                  .isa = config_get_environment("QUIRE_CPU_ISA")})
                   : NULL;
}

/* The shapes first .. end, which have one type, on one device. */
static int run_shapes(struct bench *b, int first, int end)
{
    const struct options *o = b->options;
    enum dtype dtype = b->shape[first].dtype;
    unsigned kernels = o->kernel_mask ? o->kernel_mask : (1u << ATTENTION_N) - 1;
    struct device *device = open_device(b, dtype);
    if (!device)
        return -1;
    int rc = bench_ceiling_measure(&b->ceiling, device, dtype, QUANTIZATION_NONE);
    for (int i = first; i < end && rc == 0; i++) {
        char label[64];
        bench_shape_label(label, &b->shape[i]);
        log_info("%s, %s: shape %d of %d", label, dtype_name(dtype), i + 1, b->n_shapes);
        bench_attention_run(&b->rows, i, device, &b->shape[i], kernels, o->seconds);
    }
    if (rc == 0)
        rc = bench_ceiling_measure(&b->ceiling, device, dtype, QUANTIZATION_NONE);
    device->ops->close(device);
    return rc;
}

static int run_kernels(struct bench *b)
{
    const struct options *o = b->options;
    b->n_shapes = bench_shapes_make(&b->shape, o->noun, &o->sweep);
    if (b->n_shapes < 0)
        return -1;
    for (int first = 0, end; first < b->n_shapes; first = end) {
        for (end = first + 1; end < b->n_shapes && b->shape[end].dtype == b->shape[first].dtype;)
            end++;
        if (run_shapes(b, first, end) != 0)
            return -1;
    }
    for (size_t i = 0; i < o->peers.n; i++) {
        log_info("peer: %s", o->peers.text[i]);
        bench_peer_run(&b->rows, o->peers.text[i], b->shape, b->n_shapes, o->seconds);
    }
    return 0;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static int run_engine(struct bench *b)
{
    const struct options *o = b->options;
    char *path = config_find_model(o->model ? o->model : DEFAULT_MODEL);
    struct bench_engine_options options = {
        .model = {.path = path,
                  .random_init = ends_with(path, ".json"),
                  .device = b->device,
                  .device_options = {.n_threads = (int)o->threads,
                                     .isa = config_get_environment("QUIRE_CPU_ISA")}},
        .dtypes = o->sweep.dtype,
        .quantizations = o->quantization,
        .batches = o->sweep.batch,
        .workload = o->workload,
        .n_prefill = o->prefill ? (int)o->prefill : 512,
        .n_prompt = o->prompt ? (int)o->prompt : 128,
        .n_output = o->output ? (int)o->output : 64,
        .repeats = o->repeats ? (int)o->repeats : 3,
        .kernels = o->kernel_mask,
    };
    int rc = o->trace ? trace_open(&options.trace, o->trace, 0, "quire bench engine") : 0;
    if (rc == 0)
        rc = bench_engine_run(&b->rows, &b->ceiling, &options);
    trace_log_end(options.trace);
    trace_close(options.trace);
    free(path);
    return rc;
}

/* The code of the command: 1 when a row is wrong or failed. */
static int conclude(const struct bench *b)
{
    size_t n_bad = 0;
    for (size_t i = 0; i < b->rows.n; i++)
        n_bad += b->rows.row[i].state == BENCH_WRONG || b->rows.row[i].state == BENCH_FAILED;
    if (n_bad == 0)
        return 0;
    return err_set(ERR_RUN, "%zu of %zu rows are wrong or failed; their notes say why", n_bad,
                   b->rows.n);
}

/* ---- the command ---- */

static int choose_device(enum device_kind *out, const char *name)
{
    static const char *const names[] = {"cpu", "cuda", "auto"};
    int found[BENCH_MAX_LIST];
    int n = bench_parse_names(found, "device", name, names, ARRAY_LEN(names));
    if (n < 0)
        return -1;
    *out = found[0] == 0 ? DEVICE_CPU : DEVICE_CUDA;
    if (n != 1)
        return err_set(ERR_CONFIG, "--device is '%s'; expected one of auto, cpu, cuda", name);
    if (found[0] == 0 || backend_find(DEVICE_CUDA))
        return 0;
    if (found[0] == 1)
        return -1;
    log_info("%s; measuring the CPU", err_get());
    err_clear();
    *out = DEVICE_CPU;
    return 0;
}

/* Options that say nothing to this noun are mistakes. */
static int check_noun(const struct options *o)
{
    const struct {
        const char *name;
        bool given, for_engine;
    } option[] = {
        {"heads", o->sweep.heads, false},
        {"kv-heads", o->sweep.kv_heads, false},
        {"seq", o->sweep.seq, false},
        {"decode", o->sweep.decode, false},
        {"head-dim", o->sweep.head_dim, false},
        {"block-size", o->sweep.block_size, false},
        {"cache", o->sweep.cache, false},
        {"list", o->sweep.list, false},
        {"peer", o->peers.n > 0, false},
        {"model", o->model, true},
        {"quantization", o->quantization, true},
        {"workload", o->workload, true},
        {"trace", o->trace, true},
        {"prefill", o->prefill, true},
        {"prompt", o->prompt, true},
        {"output", o->output, true},
        {"repeats", o->repeats, true},
    };
    bool engine = o->noun == BENCH_ENGINE;
    for (size_t i = 0; i < ARRAY_LEN(option); i++)
        if (option[i].given && option[i].for_engine != engine)
            return err_set(ERR_CONFIG, "--%s does not belong to `quire bench %s`", option[i].name,
                           o->noun_name);
    if (o->workload && (o->sweep.batch || o->prefill || o->prompt || o->output))
        return err_set(ERR_CONFIG, "--workload has its own batch and lengths");
    return 0;
}

static int check_numbers(const struct options *o)
{
    const struct {
        const char *name;
        int64_t value, low, high;
    } option[] = {
        {"threads", o->threads, 0, 1024},
        {"prefill", o->prefill, 0, MAX_PROMPT},
        {"prompt", o->prompt, 0, MAX_PROMPT},
        {"output", o->output, 0, MAX_PROMPT},
        {"repeats", o->repeats, 0, BENCH_MAX_REPEATS},
    };
    for (size_t i = 0; i < ARRAY_LEN(option); i++)
        if (option[i].value < option[i].low || option[i].value > option[i].high)
            return err_set(ERR_CONFIG, "--%s is %lld; expected at most %lld", option[i].name,
                           (long long)option[i].value, (long long)option[i].high);
    if (!(o->seconds > 0 && o->seconds <= MAX_SECONDS))
        return err_set(ERR_CONFIG, "--seconds is %g; expected more than 0 and at most %d",
                       o->seconds, MAX_SECONDS);
    return 0;
}

static int check_options(struct options *o)
{
    int found[BENCH_MAX_LIST];
    if (bench_parse_names(found, "bench", o->noun_name, noun_names, BENCH_N_NOUNS) != 1) {
        const char *near = nearest_name(o->noun_name, noun_names, BENCH_N_NOUNS);
        return err_set(ERR_CONFIG,
                       "there is no `quire bench %s`; expected prefill, decode, attention or "
                       "engine%s%s%s",
                       o->noun_name, near ? "; did you mean " : "", near ? near : "",
                       near ? "?" : "");
    }
    o->noun = (enum bench_noun)found[0];
    int n =
        o->kernels ? bench_parse_names(found, "kernels", o->kernels, kernel_names, ATTENTION_N) : 0;
    if (n < 0 || (o->format && table_format_find(&o->table_format, o->format) != 0))
        return -1;
    for (int i = 0; i < n; i++)
        o->kernel_mask |= 1u << found[i];
    return check_noun(o) == 0 ? check_numbers(o) : -1;
}

static int run_bench(struct options *o)
{
    struct bench b = {.options = o};
    if (check_options(o) != 0 || choose_device(&b.device, o->device) != 0)
        return (int)err_get_kind();
    int rc = o->noun == BENCH_ENGINE ? run_engine(&b) : run_kernels(&b);
    if (rc == 0)
        rc = print_rows(&b);
    if (rc == 0)
        rc = conclude(&b);
    bench_rows_free(&b.rows);
    free(b.shape);
    return rc == 0 ? 0 : (int)err_get_kind();
}

/* The long table of options is the manual. */
int command_bench(int argc, char **argv)
{
    struct options o = {.device = "auto", .seconds = 1};
    const struct cli_option options[] = {
        {"batch", "LIST", "sequences; lists are separated by commas (engine: 1,8,32,64)", CLI_TEXT,
         &o.sweep.batch},
        {"heads", "LIST", "query heads", CLI_TEXT, &o.sweep.heads},
        {"kv-heads", "LIST", "key and value heads (default: as many as query heads)", CLI_TEXT,
         &o.sweep.kv_heads},
        {"seq", "LIST", "tokens of each sequence; decode: context lengths", CLI_TEXT, &o.sweep.seq},
        {"decode", "LIST", "attention: one query each after these context lengths", CLI_TEXT,
         &o.sweep.decode},
        {"head-dim", "LIST", "numbers per head: a multiple of 8, at most 256", CLI_TEXT,
         &o.sweep.head_dim},
        {"dtype", "LIST", "float32, bfloat16, float16 (engine: and auto)", CLI_TEXT,
         &o.sweep.dtype},
        {"block-size", "LIST", "tokens per KV block", CLI_TEXT, &o.sweep.block_size},
        {"cache", "LIST", "warm: the same keys again; cold: keys come from memory", CLI_TEXT,
         &o.sweep.cache},
        {"list", "LIST", "shapes by name: minivllm, crossover, model, four-way", CLI_TEXT,
         &o.sweep.list},
        {"kernels", "LIST", "flash, memory_efficient, eager (default: all; engine: auto)", CLI_TEXT,
         &o.kernels},
        {"seconds", "S", "how long each kernel is measured at each shape (1)", CLI_NUMBER,
         &o.seconds},
        {"peer", "COMMAND", "another program's rows (README: peers); may be repeated", CLI_LIST,
         &o.peers},
        {"model", "PATH", "engine: a model directory, or a .json shape with random weights",
         CLI_TEXT, &o.model},
        {"quantization", "LIST", "engine: none (default), int8 (CPU only)", CLI_TEXT,
         &o.quantization},
        {"prefill", "N", "engine: prompt tokens of the prefill case (512)", CLI_INT, &o.prefill},
        {"prompt", "N", "engine: prompt tokens of decode cases (128)", CLI_INT, &o.prompt},
        {"output", "N", "engine: output tokens of decode cases (64)", CLI_INT, &o.output},
        {"workload", "CONFIG", "engine: all prompts of a config in one batch instead", CLI_TEXT,
         &o.workload},
        {"trace", "FILE", "engine: write a timeline of all steps (README: traces)", CLI_TEXT,
         &o.trace},
        {"repeats", "N", "engine: alternating runs of each case (3)", CLI_INT, &o.repeats},
        {"device", "NAME", "auto (default), cpu or cuda", CLI_TEXT, &o.device},
        {"threads", "N", "CPU threads (0: all)", CLI_INT, &o.threads},
        {"format", "NAME", "table (default), csv, json, jsonl or md", CLI_TEXT, &o.format},
        {"db", "FILE", "add the rows to a results database (table `benchmarks`)", CLI_TEXT, &o.db},
    };
    const struct cli_command command = {
        .name = "bench",
        .arguments = "prefill|decode|attention|engine",
        .n_arguments = 1,
        .doc =
            "Measures attention kernels, or a whole model, on this machine. Every result is\n"
            "checked before it is timed; a wrong one is a row without a time, and exit code 1.\n\n"
            "    quire bench attention --peer 'python3 tests/peers/torch_attention.py'\n"
            "    quire bench attention --batch 1,16 --heads 32 --kv-heads 8 --seq 512,2048\n"
            "    quire bench decode --cache cold --format md --db results/bench.db\n"
            "    quire bench engine --model configs/models/qwen3-0.6b.json --dtype bfloat16\n\n"
            "columns: us is the median of a call (engine: of prefill, of a decode step, of a\n"
            "workload), us_p10 and us_p90 are percentiles; of_peak, of_bandwidth and\n"
            "of_roofline are shares of what this run measured (rows `ceiling`); error is the\n"
            "norm of the difference to double precision over the norm; ratio is to the fastest.",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    char *command_line = cli_join(argc, argv);
    o.command_line = command_line;
    enum cli_result parsed = cli_parse(&command, argc, argv, &o.noun_name);
    int code = parsed == CLI_OK ? run_bench(&o) : parsed == CLI_HELP ? 0 : ERR_CONFIG;
    free(command_line);
    return code;
}
