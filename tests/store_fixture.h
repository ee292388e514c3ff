/* store_fixture.h - a results database filled by hand, for the tests of the store and its readers.
 */
#ifndef QUIRE_STORE_FIXTURE_H
#define QUIRE_STORE_FIXTURE_H

#include "runner/store.h"
#include "tests/testing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fixture {
    struct store *store;
    int64_t experiment, environment, run, model, prompts;
    const char *array_job, *array_task; /* of the next run; NULL: none */
    int rank;                           /* of the next attempt         */
};

static inline void fixture_begin_run(struct fixture *f)
{
    f->run = store_begin_run(f->store, &(struct store_run){.experiment_id = f->experiment,
                                                           .environment_id = f->environment,
                                                           .argv = "quire run demo.yaml",
                                                           .host = "node1",
                                                           .slurm_job_id = "",
                                                           .slurm_array_job_id = f->array_job,
                                                           .slurm_array_task_id = f->array_task,
                                                           .mpi_size = 1,
                                                           .pid = 17});
    assert_true(f->run > 0);
}

/* Opens a database for writing as attempt `restart_count` of a Slurm job ("": of none) and enters
 * what tasks refer to. */
static inline void fixture_open_as(struct fixture *f, const char *path, const char *job,
                                   int restart_count)
{
    *f = (struct fixture){.store = NULL};
    if (store_open_as(&f->store, path, &(struct store_owner){job, restart_count}) != 0)
        fail_msg("%s", err_get());
    f->experiment = store_put_experiment(
        f->store, &(struct store_experiment){.name = "demo",
                                             .config_path = "configs/demo.yaml",
                                             .config_text = "experiment: demo\n",
                                             .resolved_json = "{}",
                                             .version = "0.1.0",
                                             .git_commit = "0123abcd"});
    f->environment =
        store_put_environment(f->store, &(struct store_environment){.host = "node1",
                                                                    .os = "Linux",
                                                                    .cpu = "a CPU",
                                                                    .cpu_isa = "avx2",
                                                                    .gpu = "",
                                                                    .driver = "",
                                                                    .cuda = "",
                                                                    .compute_capability = "",
                                                                    .n_threads = 2,
                                                                    .memory_bytes = 1 << 30});
    f->model = store_put_model(f->store, &(struct store_model){.path = "models/Tiny-1M/",
                                                               .arch = "LlamaForCausalLM",
                                                               .fingerprint = "f00d",
                                                               .dtype = "bfloat16",
                                                               .n_params = 1000000,
                                                               .weight_bytes = 2000000});
    f->prompts = store_put_prompts(
        f->store, &(struct store_prompts){
                      .source = "list", .fingerprint = "beef", .n_prompts = 2, .n_tokens = 10});
    assert_true(f->experiment > 0 && f->environment > 0 && f->model > 0 && f->prompts > 0);
    fixture_begin_run(f);
}

static inline void fixture_open(struct fixture *f, const char *path)
{
    fixture_open_as(f, path, "", 0);
}

static inline void fixture_close(struct fixture *f)
{
    assert_int_equal(store_close(f->store), 0);
    f->store = NULL;
}

struct fixture_task {
    int index, replication, n_samples;
    const char *attention; /* the setting */
    double temperature;
};

/* Its key is "task-INDEX". */
static inline int64_t fixture_task(struct fixture *f, struct fixture_task t)
{
    char key[32], label[128], settings[256];
    snprintf(key, sizeof(key), "task-%d", t.index);
    snprintf(label, sizeof(label), "engine.attention=%s sampling.temperature=%g", t.attention,
             t.temperature);
    snprintf(
        settings, sizeof(settings),
        "{\"engine.attention\": \"%s\", \"sampling.temperature\": %.17g,"
        " \"sampling.max_tokens\": 8, \"sampling.ignore_eos\": true, \"prompts.system\": \"\"}",
        t.attention, t.temperature);
    int64_t id = store_put_task(f->store, &(struct store_task){.experiment_id = f->experiment,
                                                               .model_id = f->model,
                                                               .prompts_id = f->prompts,
                                                               .key = key,
                                                               .label = label,
                                                               .settings_json = settings,
                                                               .task_index = t.index,
                                                               .replication = t.replication,
                                                               .n_samples = t.n_samples});
    assert_true(id > 0);
    return id;
}

static inline int64_t fixture_attempt(struct fixture *f, int64_t task, const char *attention_used,
                                      const char *degraded_reason)
{
    int64_t id =
        store_begin_attempt(f->store, &(struct store_attempt){.task_id = task,
                                                              .run_id = f->run,
                                                              .rank = f->rank,
                                                              .engine_used = "fast",
                                                              .attention_used = attention_used,
                                                              .device_used = "cpu",
                                                              .dtype_used = "bfloat16",
                                                              .decision_reason = "as asked",
                                                              .degraded_reason = degraded_reason,
                                                              .degraded = *degraded_reason != 0});
    assert_true(id > 0);
    return id;
}

/* Ends an attempt that made n_samples samples of 10 tokens at this many tokens a second. */
static inline void fixture_end_attempt(struct fixture *f, int64_t attempt, const char *state,
                                       int n_samples, double output_tps)
{
    struct store_attempt_end end = {.state = state,
                                    .error = strcmp(state, "failed") == 0 ? "no memory" : "",
                                    .load_s = 0.5,
                                    .run_s = output_tps > 0 ? 10 * n_samples / output_tps : 0,
                                    .prompt_tokens = 5 * n_samples,
                                    .output_tokens = 10 * n_samples,
                                    .n_samples = n_samples,
                                    .output_tps = output_tps,
                                    .total_tps = 1.5 * output_tps,
                                    .ttft_s = {0.1, 0.2, 0.3},
                                    .tpot_s = {NAN, NAN, NAN},
                                    .e2e_s = {1, 2, 3}};
    assert_int_equal(store_end_attempt(f->store, attempt, &end), 0);
}

/* A sample of two token ids whose hash is `hash`, or a failed one when error is not "". */
static inline int fixture_sample(struct fixture *f, int64_t task, int64_t attempt, int prompt,
                                 const char *hash, const char *error)
{
    static const int ids[] = {7, 151643};
    char key[64];
    snprintf(key, sizeof(key), "sample-%d-%d", (int)task, prompt);
    bool failed = *error != '\0';
    return store_put_sample(f->store,
                            &(struct store_sample){.task_id = task,
                                                   .attempt_id = attempt,
                                                   .key = key,
                                                   .prompt_index = prompt,
                                                   .n_prompt_tokens = 5,
                                                   .n_output_tokens = failed ? 0 : 2,
                                                   .prompt = "What is 1 + 1?",
                                                   .text = failed ? NULL : "It is 2.",
                                                   .ids = failed ? NULL : ids,
                                                   .finish_reason = failed ? "error" : "stop",
                                                   .output_sha256 = failed ? "" : hash,
                                                   .error = error,
                                                   .ttft_s = 0.25,
                                                   .tpot_s = NAN,
                                                   .e2e_s = 0.5});
}

static inline int fixture_append_row(void *user, int n, const char *const *names,
                                     const char *const *values, const bool *is_number)
{
    (void)names, (void)is_number;
    for (int i = 0; i < n && values; i++)
        str_appendf(user, "%s%s", values[i] ? values[i] : "NULL", i + 1 < n ? "|" : "\n");
    return 0;
}

/* Fails unless the statement gives these rows: "a|b\nc|NULL\n". */
static inline void assert_rows(struct store *s, const char *sql, const char *expected)
{
    struct str rows = {0};
    str_append_c(&rows, "");
    if (store_query(s, sql, fixture_append_row, &rows) != 0)
        fail_msg("%s: %s", sql, err_get());
    assert_string_equal(rows.data, expected);
    str_free(&rows);
}

#endif
