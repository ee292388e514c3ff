/* store_views.c - the views of a results database: answers that users ask for by name.
 *
 * Ids are in the order in which rows came into a file, which after a merge is not the order of
 * time: what is latest is decided by when the run started.
 */
#include "runner/config.h"
#include "runner/store_internal.h"

#include <stdlib.h>
#include <string.h>

struct view {
    const char *name;
    const char *select;
};

/* One row per task: what its last launch came to, whatever its end was. A launch is a run, or all
 * workers of a job array; each of its ranks that worked at the task has an attempt, the last of
 * which counts. Numbers are summed over them; run_s goes from when the first began to generate (its
 * end less its run_s) to when the last ended, so that it is run_s where there is one attempt. What
 * cannot be summed (percentiles, the engine) is that of the attempt with the most samples. */
static const char latest_attempts[] =
    "WITH ended AS ("
    " SELECT a.*, r.started_at AS run_at, r.slurm_array_task_id AS worker,"
    "  coalesce('array ' || r.slurm_array_job_id, r.run_key) AS launch"
    " FROM attempts a JOIN runs r USING (run_id) WHERE a.state IN ('done', 'failed', 'stopped')),"
    " launched AS ("
    " SELECT *, first_value(launch) OVER"
    "  (PARTITION BY task_id ORDER BY run_at DESC, attempt_id DESC) AS last_launch,"
    "  row_number() OVER (PARTITION BY task_id, launch, worker, rank"
    "   ORDER BY run_at DESC, attempt_id DESC) AS nth"
    " FROM ended),"
    " summed AS ("
    " SELECT *, row_number() OVER (PARTITION BY task_id ORDER BY n_samples DESC, attempt_id) AS place,"
    "  count(*) OVER t AS n_workers,"
    "  CASE max(CASE state WHEN 'failed' THEN 2 WHEN 'stopped' THEN 1 ELSE 0 END) OVER t"
    "   WHEN 2 THEN 'failed' WHEN 1 THEN 'stopped' ELSE 'done' END AS end_state,"
    "  86400 * (max(julianday(ended_at)) OVER t"
    "   - min(julianday(ended_at) - coalesce(run_s, 0) / 86400) OVER t) AS span_s,"
    "  max(degraded) OVER t AS any_degraded, max(degraded_reason) OVER t AS any_reason,"
    "  max(shared_batch) OVER t AS any_shared, max(error) OVER t AS any_error,"
    "  min(started_at) OVER t AS first_started_at, max(ended_at) OVER t AS last_ended_at,"
    "  max(load_s) OVER t AS max_load_s, max(init_s) OVER t AS max_init_s,"
    "  sum(n_samples) OVER t AS sum_samples, sum(n_failed) OVER t AS sum_failed,"
    "  sum(prompt_tokens) OVER t AS sum_prompt, sum(cached_tokens) OVER t AS sum_cached,"
    "  sum(output_tokens) OVER t AS sum_output, sum(preemptions) OVER t AS sum_preemptions,"
    "  sum(steps) OVER t AS sum_steps, max(memory_peak_bytes) OVER t AS max_memory"
    " FROM launched WHERE launch = last_launch AND nth = 1"
    " WINDOW t AS (PARTITION BY task_id)),"
    " timed AS ("
    " SELECT *, CASE WHEN n_workers = 1 THEN run_s ELSE span_s END AS time_s FROM summed"
    " WHERE place = 1)"
    " SELECT attempt_id, task_id, run_id, n_workers, end_state AS state, engine_used,"
    "  attention_used, device_used, dtype_used, decision_reason, any_degraded AS degraded,"
    "  any_reason AS degraded_reason, any_shared AS shared_batch, any_error AS error,"
    "  first_started_at AS started_at, last_ended_at AS ended_at, max_load_s AS load_s,"
    "  max_init_s AS init_s, time_s AS run_s, sum_samples AS n_samples, sum_failed AS n_failed,"
    "  sum_prompt AS prompt_tokens, sum_cached AS cached_tokens, sum_output AS output_tokens,"
    "  CASE WHEN n_workers = 1 THEN output_tps WHEN time_s > 0 THEN sum_output / time_s END"
    "   AS output_tps,"
    "  CASE WHEN n_workers = 1 THEN total_tps"
    "   WHEN time_s > 0 THEN (sum_output + sum_prompt) / time_s END AS total_tps,"
    "  ttft_p50_s, ttft_p90_s, ttft_p99_s, tpot_p50_s, tpot_p90_s, tpot_p99_s, e2e_p50_s,"
    "  e2e_p90_s, e2e_p99_s, kv_blocks, kv_blocks_peak, sum_preemptions AS preemptions,"
    "  max_memory AS memory_peak_bytes, sum_steps AS steps, batch_seqs_mean"
    " FROM timed";

static const struct view views[] = {
    {"latest_attempts", latest_attempts},

    /* Numbers are those of the last launch: after a resume, of the samples that were missing then.
     */
    {"throughput",
     "SELECT t.task_index, t.label, m.name AS model, a.engine_used, a.attention_used,"
     " a.decision_reason, t.replication, a.n_samples, a.output_tokens, a.run_s, a.output_tps,"
     " a.total_tps, a.degraded, a.state, a.shared_batch, e.name AS experiment"
     " FROM tasks t JOIN latest_attempts a USING (task_id) JOIN models m USING (model_id)"
     " JOIN experiments e USING (experiment_id)"
     " ORDER BY t.experiment_id, t.task_index"},

    {"latency",
     "SELECT t.task_index, t.label, m.name AS model, a.engine_used, a.attention_used,"
     " t.replication, a.n_samples, a.ttft_p50_s, a.ttft_p90_s, a.ttft_p99_s, a.tpot_p50_s,"
     " a.tpot_p90_s, a.tpot_p99_s, a.e2e_p50_s, a.e2e_p90_s, a.e2e_p99_s, e.name AS experiment"
     " FROM tasks t JOIN latest_attempts a USING (task_id) JOIN models m USING (model_id)"
     " JOIN experiments e USING (experiment_id)"
     " ORDER BY t.experiment_id, t.task_index"},

    /* A task is done when all its samples are, failed when its last attempt is over and left
     * failures, and otherwise pending. A task without samples is one whose model or prompts could
     * not be read. */
    {"progress",
     "WITH counted AS ("
     " SELECT t.experiment_id, t.n_samples,"
     "  (SELECT count(*) FROM samples s WHERE s.task_id = t.task_id AND s.error IS NULL) AS ok,"
     "  (SELECT count(*) FROM samples s WHERE s.task_id = t.task_id AND s.error IS NOT NULL) AS bad,"
     "  (SELECT a.state FROM attempts a JOIN runs r USING (run_id) WHERE a.task_id = t.task_id"
     "   ORDER BY r.started_at DESC, a.attempt_id DESC LIMIT 1) AS state"
     " FROM tasks t),"
     " judged AS ("
     " SELECT *, CASE WHEN n_samples > 0 AND ok = n_samples THEN 'done'"
     "  WHEN state = 'failed' OR (n_samples > 0 AND ok + bad = n_samples) THEN 'failed'"
     "  ELSE 'pending' END AS verdict"
     " FROM counted)"
     " SELECT e.experiment_id, e.name AS experiment, count(*) AS tasks,"
     " sum(verdict = 'done') AS tasks_done, sum(verdict = 'failed') AS tasks_failed,"
     " sum(verdict = 'pending') AS tasks_pending, sum(n_samples) AS samples,"
     " sum(ok) AS samples_done, sum(bad) AS samples_failed,"
     " sum(n_samples - ok - bad) AS samples_pending"
     " FROM judged JOIN experiments e USING (experiment_id) GROUP BY e.experiment_id"},

    {"fallbacks",
     "SELECT a.started_at AS at, 'attempt' AS source, e.name AS experiment, t.task_index, t.label,"
     " a.engine_used, a.attention_used, a.device_used, a.degraded_reason AS reason"
     " FROM attempts a JOIN tasks t USING (task_id) JOIN experiments e USING (experiment_id)"
     " WHERE a.degraded"
     " UNION ALL "
     "SELECT v.at, 'event', e.name, t.task_index, t.label, a.engine_used, a.attention_used,"
     " a.device_used, v.detail"
     " FROM events v JOIN runs r USING (run_id)"
     " JOIN experiments e ON e.experiment_id = r.experiment_id"
     " LEFT JOIN attempts a ON a.attempt_id = v.attempt_id"
     " LEFT JOIN tasks t ON t.task_id = a.task_id"
     " WHERE v.kind = 'fallback' ORDER BY 1"},
};

/* Each finished task with its eager counterpart: the first finished task that differs from it in
 * the attention kernel alone, with the same settings and the same work on the same kind of machine.
 * Sorting finds it (to compare all pairs of tasks takes half a minute where there are 5000). The
 * columns of the settings come between the two parts. */
static const char attention_speedup_head[] =
    "WITH compared AS ("
    " SELECT t.experiment_id, t.task_index, t.label, m.name AS model, t.replication,"
    "  a.attention_used, a.output_tps, first_value(a.attention_used) OVER same AS first_used,"
    "  first_value(t.task_index) OVER same AS eager_task_index,"
    "  first_value(a.output_tps) OVER same AS eager_tps, e.name AS experiment"
    " FROM latest_attempts a JOIN tasks t USING (task_id) JOIN runs r USING (run_id)"
    " JOIN environments n USING (environment_id) JOIN models m USING (model_id)"
    " JOIN experiments e ON e.experiment_id = t.experiment_id"
    " WHERE a.state = 'done' AND a.output_tps > 0"
    " WINDOW same AS (PARTITION BY a.n_samples, a.n_workers, a.engine_used, a.device_used,"
    "  a.dtype_used, n.cpu, n.gpu, n.n_threads, t.model_id, t.prompts_id, t.replication";
static const char attention_speedup_tail[] =
    "  ORDER BY a.attention_used IS NOT 'eager', t.experiment_id, t.task_index))"
    " SELECT task_index, label, model, replication, attention_used, output_tps, eager_task_index,"
    " eager_tps, output_tps / eager_tps AS speedup, experiment FROM compared"
    " WHERE attention_used <> 'eager' AND first_used = 'eager' ORDER BY experiment_id, task_index";

static const char attention_key[] = "engine.attention";

static int make_view(struct store *s, const char *name, const char *select)
{
    char *sql = xasprintf("DROP VIEW IF EXISTS %s; CREATE VIEW %s AS %s", name, name, select);
    int rc = store_exec(s, "make a view", sql);
    free(sql);
    return rc;
}

static int make_attention_speedup(struct store *s)
{
    struct str sql = {0};
    str_append_c(&sql, attention_speedup_head);
    for (size_t i = 0; i < config_n_keys(); i++) {
        const struct config_key *key = config_get_key(i);
        if (!key->per_task || strcmp(key->path, attention_key) == 0)
            continue;
        char *name = store_column_name(key->path);
        str_appendf(&sql, ", t.%s", name);
        free(name);
    }
    str_append_c(&sql, attention_speedup_tail);
    int rc = make_view(s, "attention_speedup", sql.data);
    str_free(&sql);
    return rc;
}

int store_make_views(struct store *s)
{
    for (size_t i = 0; i < ARRAY_LEN(views); i++)
        if (make_view(s, views[i].name, views[i].select) != 0)
            return -1;
    return make_attention_speedup(s);
}
