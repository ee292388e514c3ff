/* status.c - see status.h. Whatever the runs wrote is asked of the store in SQL; what they have not
 * begun is in the plan alone.
 *
 * An attempt that is "running" in the database may be one that was cut off, so a run counts as live
 * only while its workers are seen.
 */
#include "runner/status.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RATE_MIN_SAMPLES 30 /* fewer than these say little about the rate */

/* What every question can use: `seen`, the workers with how long ago they were seen, and `live`,
 * the runs with a worker that was seen just now. */
static const char prelude[] =
    "WITH seen AS (SELECT *, max(0, 86400 * (julianday('now') - julianday(seen_at))) AS seen_s"
    "  FROM workers),"
    " live AS (SELECT run_id, 86400 * (julianday('now') - julianday(min(r.started_at))) AS age_s"
    "  FROM runs r JOIN seen w USING (run_id) WHERE r.ended_at IS NULL"
    "  AND w.state NOT IN ('ended', 'lost') AND w.seen_s <= %g GROUP BY run_id), ";

/* ---- reading rows ---- */

/* Runs the prelude and the rest of a WITH statement, which printf fills in. */
static int query(struct store *store, store_row_fn row, void *user, const char *format, ...)
    PRINTF_LIKE(4, 5);

static int query(struct store *store, store_row_fn row, void *user, const char *format, ...)
{
    struct str sql = {0};
    char *rest;
    va_list args;
    va_start(args, format);
    if (vasprintf(&rest, format, args) < 0)
        die("out of memory: a statement");
    va_end(args);
    str_appendf(&sql, prelude, STATUS_SILENT_SECONDS);
    str_append_c(&sql, rest);
    int rc = store_query(store, sql.data, row, user);
    str_free(&sql);
    free(rest);
    return rc;
}

static int64_t integer_at(const char *const *values, int i)
{
    int64_t value = 0;
    return values[i] && parse_int64(&value, values[i]) ? value : 0;
}

static double real_at(const char *const *values, int i)
{
    double value = 0;
    return values[i] && parse_double(&value, values[i]) ? value : 0;
}

static char *text_at(const char *const *values, int i)
{
    return xstrdup(values[i] ? values[i] : "");
}

/* ---- tasks ---- */

enum task_state { TASK_DONE, TASK_RUNNING, TASK_FAILED, TASK_PENDING };

struct task_row {
    char *key;
    int64_t n_samples, n_done, n_failed;
    enum task_state state;
};

struct task_rows {
    struct task_row *row; /* [n] sorted by key */
    size_t n, capacity;
};

static void task_rows_free(struct task_rows *rows)
{
    for (size_t i = 0; i < rows->n; i++)
        free(rows->row[i].key);
    free(rows->row);
}

static int add_task(void *user, int n, const char *const *names, const char *const *values,
                    const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    struct task_rows *rows = user;
    if (!values)
        return 0;
    array_reserve(&rows->row, &rows->capacity, rows->n + 1, sizeof(*rows->row));
    rows->row[rows->n++] = (struct task_row){.key = text_at(values, 0),
                                             .n_samples = integer_at(values, 1),
                                             .n_done = integer_at(values, 2),
                                             .n_failed = integer_at(values, 3),
                                             .state = (enum task_state)integer_at(values, 4)};
    return 0;
}

/* A changed experiment of the same name leaves tasks behind that no plan has any more: of each name
 * the one that ran last counts. (SQLite takes other columns from the row of max().) */
static int read_tasks(struct task_rows *rows, struct store *store, bool all)
{
    return query(
        store, add_task, rows,
        "latest AS (SELECT r.experiment_id, max(r.started_at) FROM runs r"
        "  JOIN experiments e USING (experiment_id) GROUP BY e.name),"
        " counted AS (SELECT t.task_id, t.key, t.n_samples,"
        "  count(s.sample_id) - count(s.error) AS ok, count(s.error) AS bad"
        "  FROM tasks t LEFT JOIN samples s USING (task_id)"
        "  WHERE %d OR t.experiment_id IN (SELECT experiment_id FROM latest) GROUP BY t.task_id)"
        " SELECT key, n_samples, ok, bad, CASE WHEN n_samples > 0 AND ok >= n_samples THEN %d"
        " WHEN EXISTS (SELECT 1 FROM attempts a JOIN live USING (run_id)"
        "  WHERE a.task_id = c.task_id AND a.state = 'running') THEN %d"
        " WHEN (n_samples > 0 AND ok + bad >= n_samples) OR 'failed' = (SELECT a.state"
        "  FROM attempts a WHERE a.task_id = c.task_id ORDER BY a.started_at DESC, a.attempt_id DESC"
        "  LIMIT 1) THEN %d ELSE %d END FROM counted c ORDER BY key",
        all, TASK_DONE, TASK_RUNNING, TASK_FAILED, TASK_PENDING);
}

static void count_task(struct status *s, const struct task_row *row)
{
    int64_t *of_state[] = {[TASK_DONE] = &s->tasks.done,
                           [TASK_RUNNING] = &s->tasks.running,
                           [TASK_FAILED] = &s->tasks.failed,
                           [TASK_PENDING] = &s->tasks.pending};
    s->tasks.total++;
    ++*of_state[row->state];
    s->samples.total += row->n_samples;
    s->samples.done += row->n_done;
    s->samples.failed += row->n_failed;
    s->samples.pending += MAX(row->n_samples - row->n_done - row->n_failed, 0);
}

static int compare_keys(const void *key, const void *row)
{
    return strcmp(key, ((const struct task_row *)row)->key);
}

static const struct task_row *find_task(const struct task_rows *rows, const struct work *w)
{
    return rows->n ? bsearch(w->task->key, rows->row, rows->n, sizeof(*rows->row), compare_keys)
                   : NULL;
}

/* A model or prompt file that is only readable on the compute nodes has no fingerprint here, and
 * its tasks cannot be found by their keys. Returns such a task's work, or NULL. */
static const struct work *find_unreadable(const struct task_rows *rows,
                                          const struct work_list *plan)
{
    for (int g = 0; g < plan->n_groups; g++) {
        for (int i = 0; i < plan->group[g].n; i++) {
            const struct work *w = &plan->group[g].work[i];
            if (w->error && !find_task(rows, w))
                return w;
        }
    }
    return NULL;
}

static void count_plan(struct status *s, const struct task_rows *rows, const struct work_list *plan)
{
    for (int g = 0; g < plan->n_groups; g++) {
        for (int i = 0; i < plan->group[g].n; i++) {
            const struct work *w = &plan->group[g].work[i];
            const struct task_row *row = find_task(rows, w);
            const struct task_row unknown = {.n_samples = w->n_samples, .state = TASK_PENDING};
            count_task(s, row ? row : &unknown);
        }
    }
}

/* Counts the tasks of the plan, or those of the database when there is no plan (any more). */
static int count_tasks(struct status *s, struct store *store, struct work_list **plan)
{
    struct task_rows rows = {0};
    if (read_tasks(&rows, store, *plan != NULL) != 0) {
        task_rows_free(&rows);
        return -1;
    }
    const struct work *unreadable = *plan ? find_unreadable(&rows, *plan) : NULL;
    if (unreadable) {
        log_warning(
            "only what the results have is counted, because the plan cannot be made here: %s",
            unreadable->error);
        *plan = NULL;
    }
    for (size_t i = 0; i < rows.n && !*plan; i++)
        count_task(s, &rows.row[i]);
    if (*plan)
        count_plan(s, &rows, *plan);
    task_rows_free(&rows);
    return 0;
}

/* ---- rates ---- */

struct recent {
    int64_t n_samples;
    double window_s, output_tps;
};

static int read_recent(void *user, int n, const char *const *names, const char *const *values,
                       const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    if (values)
        *(struct recent *)user =
            (struct recent){integer_at(values, 0), real_at(values, 1), real_at(values, 2)};
    return 0;
}

/* What the live runs did in their last window_s seconds, or since the first of them began. Tokens
 * are those that the engines counted in the last minute; those of finished samples lag behind by a
 * sample's time, and stand in while there are no others. */
static int query_recent(struct recent *out, struct store *store, double window_s)
{
    return query(
        store, read_recent, out,
        "recent AS (SELECT min(%.1f, max(1, max(age_s))) AS window_s FROM live),"
        " ticks AS (SELECT avg(t.output_tps) AS tps FROM live JOIN timeseries t USING (run_id)"
        "  WHERE t.t_s >= (SELECT max(u.t_s) FROM timeseries u WHERE u.run_id = live.run_id) - 60"
        "  GROUP BY run_id)"
        " SELECT count(s.sample_id), window_s,"
        " coalesce((SELECT sum(tps) FROM ticks), sum(s.n_output_tokens) / window_s)"
        " FROM recent LEFT JOIN samples s ON s.error IS NULL"
        " AND s.attempt_id IN (SELECT attempt_id FROM attempts JOIN live USING (run_id))"
        " AND s.finished_at >="
        " strftime('%%Y-%%m-%%dT%%H:%%M:%%fZ', julianday('now') - window_s / 86400)",
        window_s);
}

static int read_rates(struct status *s, struct store *store)
{
    static const double windows_s[] = {60, 300, 3600};
    struct recent recent = {0};
    for (size_t i = 0; i < ARRAY_LEN(windows_s) && recent.n_samples < RATE_MIN_SAMPLES; i++)
        if (query_recent(&recent, store, windows_s[i]) != 0)
            return -1;
    if (recent.window_s <= 0)
        return 0;
    s->rate_window_s = recent.window_s;
    s->samples_per_s = (double)recent.n_samples / recent.window_s;
    s->output_tps = recent.output_tps;
    if (s->samples_per_s > 0)
        s->eta_s = (double)s->samples.pending / s->samples_per_s;
    return 0;
}

/* ---- workers and events ---- */

static int add_worker(void *user, int n, const char *const *names, const char *const *values,
                      const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    struct status *s = user;
    if (!values)
        return 0;
    s->worker = xrealloc_array(s->worker, (size_t)s->n_workers + 1, sizeof(*s->worker));
    s->worker[s->n_workers++] =
        (struct status_worker){.host = text_at(values, 0),
                               .job = text_at(values, 1),
                               .device = text_at(values, 2),
                               .state = text_at(values, 3),
                               .rank = (int)integer_at(values, 4),
                               .task_index = values[5] ? (int)integer_at(values, 5) : -1,
                               .n_done = integer_at(values, 6),
                               .busy = real_at(values, 7),
                               .seen_s = real_at(values, 8)};
    return 0;
}

/* A silent worker is of interest until its successor has begun: a later run on the same database,
 * which for a shard has the same array index. */
static int read_workers(struct status *s, struct store *store)
{
    return query(store, add_worker, s,
                 "shown AS (SELECT w.*, r.started_at AS begun_at, r.slurm_job_id,"
                 "  r.slurm_array_job_id, r.slurm_array_task_id, w.seen_s > %g AS is_silent"
                 "  FROM seen w JOIN runs r USING (run_id) WHERE r.ended_at IS NULL)"
                 " SELECT host, coalesce(slurm_array_job_id || '_' || slurm_array_task_id,"
                 "  slurm_job_id), device, CASE WHEN is_silent AND state NOT IN ('ended', 'lost')"
                 "  THEN 'silent' ELSE state END, rank, task_index, n_done,"
                 "  CASE WHEN wall_s > 0 THEN busy_s / wall_s END, seen_s"
                 " FROM shown WHERE NOT is_silent OR (seen_s <= %g AND NOT EXISTS"
                 "  (SELECT 1 FROM runs q WHERE q.started_at > begun_at"
                 "  AND q.slurm_array_task_id IS shown.slurm_array_task_id))"
                 " ORDER BY begun_at, run_id, rank",
                 STATUS_SILENT_SECONDS, STATUS_FORGET_SECONDS);
}

static int add_event(void *user, int n, const char *const *names, const char *const *values,
                     const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    struct status *s = user;
    if (!values)
        return 0;
    s->event = xrealloc_array(s->event, (size_t)s->n_events + 1, sizeof(*s->event));
    s->event[s->n_events++] = (struct status_event){text_at(values, 0), text_at(values, 1),
                                                    text_at(values, 2), integer_at(values, 3)};
    return 0;
}

/* Equal events are one, as when all tasks of all workers fall back for one reason. */
static int read_events(struct status *s, struct store *store)
{
    return query(store, add_event, s,
                 "listed AS (SELECT at, kind, detail FROM events UNION ALL"
                 "  SELECT ended_at, 'ended', 'a run on ' || coalesce(host, '?') || ' ended with"
                 " exit code ' || exit_code FROM runs WHERE exit_code IS NOT NULL),"
                 " last AS (SELECT max(at) AS at, kind, detail, count(*) AS n FROM listed"
                 "  GROUP BY kind, detail ORDER BY max(at) DESC LIMIT %d)"
                 " SELECT at, kind, detail, n FROM last ORDER BY at",
                 STATUS_MAX_EVENTS);
}

/* ---- the job array ---- */

/* The workers of the largest array that wrote shards: the N of IIII-of-NNNN.db; 0 without shards.
 */
static int find_array_count(const struct store_files *files)
{
    int largest = 0;
    for (int i = 0; i < files->n; i++) {
        const char *slash = strrchr(files->path[i], '/');
        int index, count, end = 0;
        if (sscanf(slash ? slash + 1 : files->path[i], "%d-of-%d.db%n", &index, &count, &end) ==
                2 &&
            end > 0)
            largest = MAX(largest, count);
    }
    return largest;
}

/* Sets which samples are finished from marks[], in the order of the groups; NULL: none is. */
static void restore_marks(struct work_list *plan, const bool *marks)
{
    for (int g = 0; g < plan->n_groups; g++) {
        for (int i = 0; i < plan->group[g].n; i++) {
            struct work *w = &plan->group[g].work[i];
            w->n_share = w->n_pending = w->n_samples;
            for (int k = 0; k < w->n_samples; k++) {
                w->done[k] = marks ? *marks++ : false;
                w->n_pending -= w->done[k];
            }
        }
    }
}

static bool *save_marks(const struct work_list *plan)
{
    bool *marks = xcalloc((size_t)MAX(work_list_share(plan), 1), sizeof(*marks)), *at = marks;
    for (int g = 0; g < plan->n_groups; g++) {
        for (int i = 0; i < plan->group[g].n; i++) {
            const struct work *w = &plan->group[g].work[i];
            memcpy(at, w->done, (size_t)w->n_samples * sizeof(*at));
            at += w->n_samples;
        }
    }
    return marks;
}

/* The workers with something left to do in their share of the plan. */
static int find_missing(struct status *s, struct store *store, struct work_list *plan)
{
    if (s->array_count == 0)
        return 0;
    restore_marks(plan, NULL);
    if (work_list_find_done(plan, store) != 0)
        return -1;
    bool *finished = save_marks(plan);
    s->missing = xcalloc((size_t)s->array_count, sizeof(*s->missing));
    for (int i = 0; i < s->array_count; i++) {
        restore_marks(plan, finished);
        work_list_take_share(plan, i, s->array_count);
        if (work_list_pending(plan) > 0)
            s->missing[s->n_missing++] = i;
    }
    free(finished);
    return 0;
}

/* ---- the whole ---- */

static int print_name(void *user, int n, const char *const *names, const char *const *values,
                      const bool *is_number)
{
    (void)n, (void)names, (void)is_number;
    struct str *list = user;
    if (values && values[0])
        str_appendf(list, "%s%s", list->len ? ", " : "", values[0]);
    return 0;
}

static int read_names(struct status *s, struct store *store)
{
    struct str names = {0};
    int rc = store_query(store, "SELECT DISTINCT name FROM experiments ORDER BY experiment_id",
                         print_name, &names);
    s->experiment = xstrdup(names.data ? names.data : "");
    str_free(&names);
    return rc;
}

static int read_store(struct status *s, struct store *store, struct work_list *plan)
{
    if ((!s->experiment && read_names(s, store) != 0) || count_tasks(s, store, &plan) != 0 ||
        read_rates(s, store) != 0 || read_workers(s, store) != 0 || read_events(s, store) != 0)
        return -1;
    return plan ? find_missing(s, store, plan) : 0;
}

int status_read(struct status *out, const char *db, const struct config *config,
                struct work_list *plan)
{
    *out = (struct status){.db = xstrdup(db),
                           .config = config ? xstrdup(config->path) : NULL,
                           .experiment = config ? xstrdup(config->experiment) : NULL,
                           .samples_per_s = NAN,
                           .output_tps = NAN,
                           .eta_s = NAN};
    struct store_files files;
    struct store *store;
    if (store_list_files(&files, db) != 0)
        return -1;
    out->n_files = files.n;
    out->array_count = plan ? find_array_count(&files) : 0;
    store_files_free(&files);
    if (out->n_files == 0 && plan) {
        count_plan(out, &(struct task_rows){0}, plan);
        return 0;
    }
    if (out->n_files == 0)
        return err_set(ERR_DATA,
                       "%s: there are no results (no such file, and no shards of it); `quire run "
                       "CONFIG` makes them, and `quire status CONFIG` shows what it will do",
                       db);
    if (store_open(&store, db, STORE_READ_NUMBERS) != 0)
        return -1;
    int rc = read_store(out, store, plan);
    return store_close(store) != 0 ? -1 : rc;
}

void status_free(struct status *s)
{
    for (int i = 0; i < s->n_workers; i++) {
        free(s->worker[i].host);
        free(s->worker[i].job);
        free(s->worker[i].device);
        free(s->worker[i].state);
    }
    for (int i = 0; i < s->n_events; i++) {
        free(s->event[i].at);
        free(s->event[i].kind);
        free(s->event[i].detail);
    }
    free(s->worker);
    free(s->event);
    free(s->missing);
    free(s->experiment);
    free(s->db);
    free(s->config);
    *s = (struct status){0};
}
