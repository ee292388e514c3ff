/* test_bench.c - the bench command's parts: statistics, roofline, shapes, inputs, timing, peers.
 *
 * Numbers of the generator and of the roofline are those of a Python program with integers of any
 * size; those of workload N were published before this code was written.
 */
#include "runner/bench.h"
#include "runner/prompts.h"
#include "tests/ops_reference.h"
#include "tests/store_fixture.h"

#include <math.h>

/* ---- statistics ---- */

static void percentiles_lie_between_the_order_statistics(void **state)
{
    (void)state;
    double eleven[] = {11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6};
    struct bench_spread s = bench_spread_of(eleven, ARRAY_LEN(eleven));
    assert_float_equal(s.median, 6, 0);
    assert_float_equal(s.p10, 2, 0);
    assert_float_equal(s.p90, 10, 0);
    double two[] = {3, 1};
    s = bench_spread_of(two, 2);
    assert_float_equal(s.median, 2, 1e-15);
    assert_float_equal(s.p10, 1.2, 1e-15);
    assert_float_equal(s.p90, 2.8, 1e-15);
    double one[] = {7};
    s = bench_spread_of(one, 1);
    assert_true(s.median == 7 && s.p10 == 7 && s.p90 == 7);
}

static void the_fastest_row_is_the_fastest_that_is_right(void **state)
{
    (void)state;
    static const struct {
        int group;
        enum bench_state state;
        double s;
    } cases[] = {{0, BENCH_OK, 3},    {0, BENCH_WRONG, 1},  {0, BENCH_OK, 2},
                 {1, BENCH_OK, 0.5},  {0, BENCH_FAILED, 1}, {0, BENCH_NOT_AVAILABLE, 1},
                 {2, BENCH_FAILED, 1}};
    struct bench_rows rows = {0};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct bench_row *row = bench_rows_add(&rows, cases[i].group, "flash");
        row->state = cases[i].state;
        row->latency_s.median = cases[i].s;
    }
    assert_true(bench_fastest_s(&rows, 0) == 2);
    assert_true(bench_fastest_s(&rows, 1) == 0.5);
    assert_true(isnan(bench_fastest_s(&rows, 2)));
    bench_rows_free(&rows);
}

/* ---- roofline ---- */

static void the_roofline_of_two_small_sequences(void **state)
{
    (void)state;
    const struct model_info model = {.n_layers = 2,
                                     .hidden = 8,
                                     .ffn = 16,
                                     .n_heads = 4,
                                     .n_kv_heads = 2,
                                     .head_dim = 4,
                                     .vocab = 32,
                                     .dtype = DTYPE_BF16};
    const struct bench_load load = {(const int[]){3, 5}, (const int[]){2, 4}, 2, 64};
    struct bench_ceiling fast_arithmetic = {.read_gbps = 1, .tflops = {[DTYPE_BF16] = 1}};
    struct bench_ceiling fast_memory = {.read_gbps = 1000, .tflops = {[DTYPE_BF16] = 1e-6}};
    struct bench_roofline r;
    bench_roofline_of(&r, &model, &load, &fast_arithmetic);
    assert_float_equal(r.prefill_s, 2.6752e-08, 1e-20);
    assert_float_equal(r.decode_s, 1.2352e-05, 1e-17);
    assert_float_equal(r.decode_flops, 17536, 0);
    assert_float_equal(r.decode_bytes, 12352, 0);
    assert_int_equal(r.n_steps, 3);
    bench_roofline_of(&r, &model, &load, &fast_memory);
    assert_float_equal(r.prefill_s, 0.026752, 1e-12);
    assert_float_equal(r.decode_s, 0.0143360016, 1e-12);
    bench_roofline_of(&r, &model, &load, &(struct bench_ceiling){0});
    assert_true(r.prefill_s == 0 && r.decode_s == 0 && r.decode_flops == 17536);
}

/* Published: 13.85 TB of keys and values, a total of about 3.5 s, 38,000 tokens/s. */
static void the_roofline_of_workload_n_is_the_published_one(void **state)
{
    (void)state;
    const struct model_info model = {.n_layers = 28,
                                     .hidden = 1024,
                                     .ffn = 3072,
                                     .n_heads = 16,
                                     .n_kv_heads = 8,
                                     .head_dim = 128,
                                     .vocab = 151936,
                                     .dtype = DTYPE_BF16};
    const struct bench_ceiling h200 = {.read_gbps = 4602, .tflops = {[DTYPE_BF16] = 796}};
    struct config *config;
    struct prompt_set *set;
    assert_int_equal(config_load(&config, "configs/workload_n.yaml", NULL, 0), 0);
    assert_int_equal(prompt_set_load(&set, config, &config->base, NULL, model.vocab, "0.6B"), 0);
    int *n_in = xcalloc((size_t)set->n, sizeof(int)), *n_out = xcalloc((size_t)set->n, sizeof(int));
    for (int i = 0; i < set->n; i++) {
        n_in[i] = set->prompt[i].n_ids;
        n_out[i] = set->prompt[i].max_tokens;
    }
    struct bench_load load = {n_in, n_out, set->n, 4.0 * 28 * 8 * 128};
    struct bench_roofline r;
    bench_roofline_of(&r, &model, &load, &h200);
    assert_float_equal(r.prefill_s, 0.1722008704, 1e-9);
    assert_float_equal(r.decode_s, 3.3018118018, 1e-9);
    assert_float_equal(133966 / (r.prefill_s + r.decode_s), 38562.3, 0.1);
    free(n_in);
    free(n_out);
    prompt_set_free(set);
    config_close(config);
}

/* ---- shapes ---- */

static void the_costs_of_a_shape_count_what_each_query_sees(void **state)
{
    (void)state;
    char label[64];
    struct bench_shape s = {.batch = 2,
                            .n_heads = 6,
                            .n_kv_heads = 3,
                            .q_len = 4,
                            .kv_len = 4,
                            .head_dim = 8,
                            .block_size = 16,
                            .dtype = DTYPE_BF16};
    assert_float_equal(bench_shape_flops(&s), 4.0 * (1 + 2 + 3 + 4) * 2 * 6 * 8, 0);
    assert_float_equal(bench_shape_kv_bytes(&s), 2.0 * 2 * 4 * 3 * 8 * 2, 0);
    bench_shape_label(label, &s);
    assert_string_equal(label, "B2 H6/3 S4 D8");
    s.q_len = 1;
    s.n_kv_heads = 6;
    s.dtype = DTYPE_F32;
    assert_float_equal(bench_shape_flops(&s), 4.0 * 4 * 2 * 6 * 8, 0);
    assert_float_equal(bench_shape_kv_bytes(&s), 2.0 * 2 * 4 * 6 * 8 * 4, 0);
    bench_shape_label(label, &s);
    assert_string_equal(label, "B2 H6 ctx4 D8 page16");
}

static void without_flags_the_shapes_are_the_published_ones(void **state)
{
    (void)state;
    static const struct {
        enum bench_noun noun;
        int n;
        const char *first, *last;
    } cases[] = {
        {BENCH_ATTENTION, 2, "B1 H1 S512 D64", "B16 H12 S64 D64"},
        {BENCH_PREFILL, 2 * 4 + 12, "B2 H32/8 S60 D128", "B2 H32/8 S1024 D128"},
        {BENCH_DECODE, 2 * 4, "B2 H32/8 ctx60 D128 page16", "B4 H32/8 ctx2048 D128 page16"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct bench_shape *shape;
        char label[64];
        int n = bench_shapes_make(&shape, cases[i].noun, &(struct bench_sweep){0});
        assert_int_equal(n, cases[i].n);
        bench_shape_label(label, &shape[0]);
        assert_string_equal(label, cases[i].first);
        bench_shape_label(label, &shape[n - 1]);
        assert_string_equal(label, cases[i].last);
        assert_int_equal(shape[0].dtype, DTYPE_F16);
        free(shape);
    }
}

static void lists_on_the_command_line_make_products(void **state)
{
    (void)state;
    struct bench_shape *shape;
    struct bench_sweep sweep = {.batch = "1,3",
                                .heads = "8",
                                .kv_heads = "2,4",
                                .decode = "17,100",
                                .dtype = "float32,bfloat16",
                                .cache = "cold,warm",
                                .block_size = "16"};
    int n = bench_shapes_make(&shape, BENCH_ATTENTION, &sweep);
    assert_int_equal(n, 2 * 2 * 2 * 2 * 2);
    for (int i = 0; i < n; i++) {
        assert_int_equal(shape[i].dtype, i < n / 2 ? DTYPE_F32 : DTYPE_BF16);
        assert_int_equal(shape[i].cold, i % 2 == 0);
        assert_int_equal(shape[i].q_len, 1);
        assert_int_equal(shape[i].kv_len, i / 2 % 2 ? 100 : 17);
        assert_int_equal(shape[i].n_kv_heads, i / 4 % 2 ? 4 : 2);
        assert_int_equal(shape[i].batch, i / 8 % 2 ? 3 : 1);
    }
    free(shape);
    n = bench_shapes_make(&shape, BENCH_PREFILL, &(struct bench_sweep){.heads = "4", .seq = "33"});
    assert_int_equal(n, 1);
    assert_int_equal(shape[0].n_kv_heads, 4);
    assert_int_equal(shape[0].q_len, 33);
    assert_int_equal(shape[0].head_dim, 128);
    free(shape);
}

static void shapes_that_cannot_be_are_refused_with_their_option(void **state)
{
    (void)state;
    static const struct {
        struct bench_sweep sweep;
        const char *part;
    } cases[] = {
        {{.batch = "0"}, "--batch has '0'"},
        {{.batch = ""}, "--batch has ''"},
        {{.batch = "1,,2"}, "--batch has ''"},
        {{.batch = "4097"}, "from 1 to 4096"},
        {{.seq = "1e3"}, "--seq has '1e3'"},
        {{.seq = "99999999999999999999"}, "--seq has"},
        {{.seq = "1048576"}, "more than 262144 tokens"},
        {{.heads = "6", .kv_heads = "4"}, "no multiple"},
        {{.head_dim = "12"}, "multiple of 8"},
        {{.head_dim = "264"}, "from 1 to 256"},
        {{.dtype = "bf16"}, "expected float32, bfloat16, float16"},
        {{.cache = "hot"}, "expected warm, cold"},
        {{.block_size = "24"}, "multiple of 16"},
        {{.decode = "8", .seq = "8"}, "in the place of --seq"},
        {{.list = "four-way", .batch = "2"}, "--list has its own shapes"},
        {{.list = "five-way"}, "--list has 'five-way'"},
        {{.list = "crossover"}, "no such list"},
    };
    struct bench_shape *shape;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(bench_shapes_make(&shape, BENCH_ATTENTION, &cases[i].sweep), -1);
        assert_error(ERR_CONFIG, cases[i].part);
    }
}

/* ---- inputs ---- */

static void inputs_are_those_that_other_programs_make(void **state)
{
    (void)state;
    static const uint64_t index[] = {0, 1, 2, 1000003};
    static const float expected[3][4] = {{-1.53125f, -0.3125f, -1.375f, 1.78125f},
                                         {-1.1875f, -0.1875f, -1.03125f, 0.5f},
                                         {1.53125f, -1.0625f, 1.84375f, 1.5625f}};
    for (int s = 0; s < 3; s++)
        for (size_t i = 0; i < ARRAY_LEN(index); i++)
            assert_true(bench_value((enum bench_stream)(s + 1), index[i]) == expected[s][i]);
}

static void every_type_holds_every_input_exactly(void **state)
{
    (void)state;
    for (int d = 0; d < DTYPE_N; d++) {
        for (int k = -64; k < 64; k++) {
            char array[3 * sizeof(float)];
            float back, value = (float)k / 32;
            memset(array, 0x55, sizeof(array));
            bench_store_value(array, 1, (enum dtype)d, value);
            dtype_to_f32(&back, array + dtype_bytes((enum dtype)d), (enum dtype)d, 1);
            assert_true(back == value);
            assert_int_equal(array[0], 0x55);
            assert_int_equal(array[2 * dtype_bytes((enum dtype)d)], 0x55);
        }
    }
}

/* Against the reference of the operations' tests, over arrays instead of indices. */
static void assert_expected(const struct bench_shape *s)
{
    size_t d = (size_t)s->head_dim, stride = (size_t)s->n_kv_heads * d;
    size_t n_q = (size_t)(s->batch * s->q_len * s->n_heads) * d;
    size_t n_kv = (size_t)(s->batch * s->kv_len) * stride;
    float *q = xcalloc(n_q, sizeof(*q)), *k = xcalloc(n_kv, sizeof(*k));
    float *v = xcalloc(n_kv, sizeof(*v));
    struct bench_expected *e = xcalloc(1, sizeof(*e));
    for (size_t i = 0; i < n_q; i++)
        q[i] = bench_value(BENCH_Q, i);
    for (size_t i = 0; i < n_kv; i++) {
        k[i] = bench_value(BENCH_K, i);
        v[i] = bench_value(BENCH_V, i);
    }
    bench_expect(e, s);
    assert_int_equal(e->n_rows, MIN(s->batch * s->q_len * s->n_heads, BENCH_SAMPLE_ROWS));
    for (int i = 0; i < e->n_rows; i++) {
        int seq = e->token[i] / s->q_len, kv_head = e->head[i] / (s->n_heads / s->n_kv_heads);
        size_t kv = (size_t)(seq * s->kv_len) * stride + (size_t)kv_head * d;
        double want[BENCH_MAX_DIM];
        struct reference_attention a = {.q =
                                            q + (size_t)(e->token[i] * s->n_heads + e->head[i]) * d,
                                        .k = k + kv,
                                        .v = v + kv,
                                        .stride = stride,
                                        .head_dim = s->head_dim,
                                        .last = s->kv_len - s->q_len + e->token[i] % s->q_len,
                                        .scale = 1 / sqrt((double)d)};
        reference_attend(want, &a);
        for (size_t j = 0; j < d; j++)
            assert_near(e->out[i][j], want[j], 1e-12, "expected row", j);
        for (int j = 0; j < i; j++)
            assert_false(e->token[i] == e->token[j] && e->head[i] == e->head[j]);
    }
    free(q);
    free(k);
    free(v);
    free(e);
}

static void expected_rows_are_those_of_the_reference(void **state)
{
    (void)state;
    static const struct bench_shape shapes[] = {
        {.batch = 1, .n_heads = 1, .n_kv_heads = 1, .q_len = 1, .kv_len = 1, .head_dim = 8},
        {.batch = 3, .n_heads = 4, .n_kv_heads = 2, .q_len = 17, .kv_len = 17, .head_dim = 16},
        {.batch = 5, .n_heads = 6, .n_kv_heads = 1, .q_len = 1, .kv_len = 65, .head_dim = 24},
        {.batch = 2, .n_heads = 2, .n_kv_heads = 2, .q_len = 3, .kv_len = 63, .head_dim = 256},
    };
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        assert_expected(&shapes[i]);
}

static void an_error_is_relative_and_nothing_that_is_no_number_passes(void **state)
{
    (void)state;
    struct bench_expected *e = xcalloc(1, sizeof(*e));
    e->n_rows = 2;
    e->out[0][0] = 3;
    e->out[1][1] = 4;
    double got[] = {3, 0, 0, 4};
    assert_true(bench_error(e, got, 2) == 0);
    got[2] = 0.5;
    assert_float_equal(bench_error(e, got, 2), 0.1, 1e-15);
    got[2] = NAN;
    assert_true(isinf(bench_error(e, got, 2)));
    free(e);
}

/* ---- timing ---- */

struct counter {
    int n_calls, period;
};

static void count_call(void *context, int i)
{
    struct counter *c = context;
    assert_in_range(i, 0, c->period - 1);
    c->n_calls++;
}

static void every_contestant_is_called_and_has_a_spread(void **state)
{
    (void)state;
    struct device *device = backend_cpu.open(&(struct device_options){.n_threads = 1});
    struct counter counter[2] = {{.period = 1}, {.period = 5}};
    struct bench_contestant c[2] = {
        {.call = count_call, .context = &counter[0], .period = 1},
        {.call = count_call, .context = &counter[1], .period = 5},
    };
    assert_int_equal(bench_time(device, c, 2, 0.001), 0);
    for (int i = 0; i < 2; i++) {
        assert_true(counter[i].n_calls >= 5);
        assert_true(c[i].latency_s.p10 <= c[i].latency_s.median);
        assert_true(c[i].latency_s.median <= c[i].latency_s.p90);
    }
    backend_cpu.close(device);
}

static void the_kernels_of_the_cpu_are_right_at_odd_shapes(void **state)
{
    (void)state;
    static const struct bench_shape shapes[] = {
        {.batch = 3,
         .n_heads = 4,
         .n_kv_heads = 2,
         .q_len = 17,
         .kv_len = 17,
         .head_dim = 64,
         .block_size = 16,
         .dtype = DTYPE_F32},
        {.batch = 2,
         .n_heads = 3,
         .n_kv_heads = 1,
         .q_len = 1,
         .kv_len = 65,
         .head_dim = 40,
         .block_size = 64,
         .dtype = DTYPE_F16,
         .cold = true},
        {.batch = 1,
         .n_heads = 2,
         .n_kv_heads = 2,
         .q_len = 1,
         .kv_len = 1,
         .head_dim = 8,
         .block_size = 16,
         .dtype = DTYPE_BF16},
    };
    struct device *device = backend_cpu.open(&(struct device_options){.n_threads = 2});
    struct bench_rows rows = {0};
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        bench_attention_run(&rows, (int)i, device, &shapes[i], (1u << ATTENTION_N) - 1, 0.001);
    assert_int_equal(rows.n, ARRAY_LEN(shapes) * ATTENTION_N);
    for (size_t i = 0; i < rows.n; i++) {
        const struct bench_row *row = &rows.row[i];
        if (strcmp(row->kernel, "memory_efficient") == 0) {
            assert_int_equal(row->state, BENCH_NOT_AVAILABLE);
            continue;
        }
        if (row->state != BENCH_OK)
            fail_msg("%s %s: %s", row->shape, row->kernel, row->note);
        assert_true(row->error <= bench_tolerance(row->dtype) && row->latency_s.median > 0);
        assert_true(row->memory_bytes > 0);
    }
    bench_rows_free(&rows);
    backend_cpu.close(device);
}

/* ---- peers ---- */

static void a_request_says_all_that_a_peer_needs(void **state)
{
    (void)state;
    const struct bench_shape s = {.batch = 2,
                                  .n_heads = 4,
                                  .n_kv_heads = 2,
                                  .q_len = 1,
                                  .kv_len = 60,
                                  .head_dim = 16,
                                  .dtype = DTYPE_F16,
                                  .cold = true};
    struct bench_expected *e = xcalloc(1, sizeof(*e));
    struct str line = {0};
    e->n_rows = 2;
    e->token[1] = 1;
    e->head[1] = 3;
    bench_peer_request(&line, 7, &s, e, 0.5);
    assert_string_equal(
        line.data,
        "{\"id\":7,\"batch\":2,\"heads\":4,\"kv_heads\":2,\"q_len\":1,\"kv_len\":60,\"head_dim\":16,"
        "\"dtype\":\"float16\",\"causal\":true,\"scale\":0.25,\"cache\":\"cold\",\"seconds\":0.5,"
        "\"rows\":[[0,0],[1,3]]}\n");
    str_free(&line);
    free(e);
}

static void an_answer_is_read(void **state)
{
    (void)state;
    struct bench_measurement m;
    assert_int_equal(bench_peer_parse(&m, "{\"id\": 3, \"kernel\": \"fast\", \"latency_s\": 2e-6,"
                                          " \"p90_s\": 3e-6, \"memory_bytes\": 1024,"
                                          " \"output\": [[1, -2.5], [null, 4]]}"),
                     0);
    assert_int_equal(m.id, 3);
    assert_int_equal(m.state, BENCH_OK);
    assert_string_equal(m.kernel, "fast");
    assert_true(m.latency_s.median == 2e-6 && m.latency_s.p90 == 3e-6);
    assert_true(isnan(m.latency_s.p10) && m.memory_bytes == 1024);
    assert_int_equal(m.n_rows, 2);
    assert_int_equal(m.head_dim, 2);
    assert_true(m.output[1] == -2.5 && isnan(m.output[2]) && m.output[3] == 4);
    free(m.output);
    assert_int_equal(bench_peer_parse(&m, "{\"available\": false, \"reason\": \"no GPU\"}"), 0);
    assert_int_equal(m.id, -1);
    assert_int_equal(m.state, BENCH_NOT_AVAILABLE);
    assert_string_equal(m.note, "no GPU");
    assert_null(m.output);
    assert_int_equal(bench_peer_parse(&m, "{\"id\": 0, \"error\": \"out of memory\"}"), 0);
    assert_int_equal(m.state, BENCH_FAILED);
    assert_string_equal(m.note, "out of memory");
}

static void an_answer_that_is_none_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *line, *part;
    } cases[] = {
        {"torch 2.11", "at column"},
        {"[1]", "no JSON object"},
        {"{}", "neither \"latency_s\""},
        {"{\"id\": \"0\"}", "\"id\""},
        {"{\"id\": -1}", "\"id\""},
        {"{\"id\": 1, \"id\": 2}", "duplicate"},
        {"{\"latency_s\": 0, \"output\": [[1]]}", "\"latency_s\" is no number above 0"},
        {"{\"latency_s\": \"1\", \"output\": [[1]]}", "\"latency_s\" is no number above 0"},
        {"{\"latency_s\": 1, \"p10_s\": -1, \"output\": [[1]]}", "\"p10_s\""},
        {"{\"latency_s\": 1}", "\"output\" is no list"},
        {"{\"latency_s\": 1, \"output\": []}", "\"output\" is no list"},
        {"{\"latency_s\": 1, \"output\": [1]}", "\"output\" is no list"},
        {"{\"latency_s\": 1, \"output\": [[1], [1, 2]]}", "different lengths"},
        {"{\"latency_s\": 1, \"output\": [[\"1\"]]}", "no numbers"},
    };
    struct bench_measurement m;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(bench_peer_parse(&m, cases[i].line), -1);
        assert_error(ERR_DATA, cases[i].part);
    }
}

/* ---- the database ---- */

static void a_stored_row_has_null_for_what_is_not_known(void **state)
{
    (void)state;
    char *path = test_path("bench.db"), *other = test_path("other.db");
    struct fixture f, g;
    struct store_benchmark b = {.command = "quire bench attention",
                                .bench = "attention",
                                .shape = "B1 H1 S512 D64",
                                .kernel = "flash",
                                .dtype = "float16",
                                .cache = "",
                                .state = "wrong",
                                .note = "error above 0.002",
                                .latency_s = NAN,
                                .p10_s = NAN,
                                .p90_s = NAN,
                                .tokens_per_s = NAN,
                                .tflops = 1.5,
                                .peak_share = 0.25,
                                .error = INFINITY,
                                .version = "0.1.0",
                                .git_commit = "abc"};
    fixture_open(&f, path);
    b.environment_id = f.environment;
    assert_int_equal(store_put_benchmark(f.store, &b), 0);
    const char *sql = "SELECT kernel, cache, state, latency_s, error, tflops, peak_share, host"
                      " FROM benchmarks JOIN environments USING (environment_id)";
    assert_rows(f.store, sql, "flash|NULL|wrong|NULL|NULL|1.5|0.25|node1\n");
    fixture_close(&f);

    struct store_merge_counts counts;
    fixture_open(&g, other);
    for (int i = 0; i < 2; i++) /* what is merged already is not doubled */
        assert_int_equal(store_merge(g.store, path, &counts), 0);
    assert_rows(g.store, sql, "flash|NULL|wrong|NULL|NULL|1.5|0.25|node1\n");
    fixture_close(&g);
    free(path);
    free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_lie_between_the_order_statistics),
        cmocka_unit_test(the_fastest_row_is_the_fastest_that_is_right),
        cmocka_unit_test(the_roofline_of_two_small_sequences),
        cmocka_unit_test(the_roofline_of_workload_n_is_the_published_one),
        cmocka_unit_test(the_costs_of_a_shape_count_what_each_query_sees),
        cmocka_unit_test(without_flags_the_shapes_are_the_published_ones),
        cmocka_unit_test(lists_on_the_command_line_make_products),
        cmocka_unit_test(shapes_that_cannot_be_are_refused_with_their_option),
        cmocka_unit_test(inputs_are_those_that_other_programs_make),
        cmocka_unit_test(every_type_holds_every_input_exactly),
        cmocka_unit_test(expected_rows_are_those_of_the_reference),
        cmocka_unit_test(an_error_is_relative_and_nothing_that_is_no_number_passes),
        cmocka_unit_test(every_contestant_is_called_and_has_a_spread),
        cmocka_unit_test(the_kernels_of_the_cpu_are_right_at_odd_shapes),
        cmocka_unit_test(a_request_says_all_that_a_peer_needs),
        cmocka_unit_test(an_answer_is_read),
        cmocka_unit_test(an_answer_that_is_none_is_refused),
        cmocka_unit_test(a_stored_row_has_null_for_what_is_not_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
