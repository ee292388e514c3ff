/* status_print.c - a status as text for a person, or as one JSON object. */
#include "runner/status.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- for a person ---- */

static bool is_live(const struct status_worker *w)
{
    return strcmp(w->state, "silent") != 0 && strcmp(w->state, "ended") != 0 &&
           strcmp(w->state, "lost") != 0;
}

static int count_live(const struct status *s)
{
    int n = 0;
    for (int i = 0; i < s->n_workers; i++)
        n += is_live(&s->worker[i]);
    return n;
}

static void print_counts(FILE *out, const char *what, const struct status_counts *c)
{
    char n[32];
    fprintf(out, "  %-10s %s of ", what, format_count(n, c->done));
    fprintf(out, "%s done", format_count(n, c->total));
    if (c->running)
        fprintf(out, ", %s running", format_count(n, c->running));
    if (c->failed)
        fprintf(out, ", %s failed", format_count(n, c->failed));
    if (c->pending)
        fprintf(out, ", %s pending", format_count(n, c->pending));
    fprintf(out, "\n");
}

static void print_rates(FILE *out, const struct status *s)
{
    char rate[32], window[32], eta[32], tps[32];
    if (s->rate_window_s <= 0)
        return;
    if (s->samples_per_s < 100)
        snprintf(rate, sizeof(rate), "%.3g", s->samples_per_s);
    else
        format_count(rate, (int64_t)llround(s->samples_per_s));
    fprintf(out, "  %-10s %s samples/s, %s output tok/s (last %s)\n", "rate", rate,
            format_count(tps, (int64_t)llround(s->output_tps)),
            format_seconds(window, s->rate_window_s));
    if (s->samples.pending)
        fprintf(out, "  %-10s %s\n", "ETA",
                isfinite(s->eta_s) ? format_seconds(eta, s->eta_s) : "not known");
}

static void print_workers(FILE *out, const struct status *s)
{
    static const char *const names[] = {"host", "rank",    "job",  "device", "state",
                                        "task", "samples", "busy", "seen"};
    static const bool is_number[ARRAY_LEN(names)] = {[1] = true, [5] = true, [6] = true};
    if (s->n_workers == 0)
        return;
    fprintf(out, "\n");
    struct table *table = table_open(out, TABLE_TEXT, ARRAY_LEN(names), names);
    for (int i = 0; i < s->n_workers; i++) {
        const struct status_worker *w = &s->worker[i];
        char rank[32], task[32], samples[32], busy[32], seen[32], ago[40];
        snprintf(rank, sizeof(rank), "%d", w->rank);
        snprintf(task, sizeof(task), "%d", w->task_index);
        snprintf(samples, sizeof(samples), "%lld", (long long)w->n_done);
        snprintf(busy, sizeof(busy), "%.0f %%", 100 * w->busy);
        snprintf(ago, sizeof(ago), "%s ago", format_seconds(seen, w->seen_s));
        const char *values[ARRAY_LEN(names)] = {
            w->host, rank, w->job, w->device, w->state, w->task_index < 0 ? NULL : task,
            samples, busy, ago};
        table_add(table, values, is_number);
    }
    (void)table_close(table); /* the caller asks the stream */
}

static void print_events(FILE *out, const struct status *s)
{
    static const char *const names[] = {"last events (UTC)", "kind", "times", "detail"};
    static const bool is_number[ARRAY_LEN(names)] = {[2] = true};
    if (s->n_events == 0)
        return;
    fprintf(out, "\n");
    struct table *table = table_open(out, TABLE_TEXT, ARRAY_LEN(names), names);
    for (int i = 0; i < s->n_events; i++) {
        const struct status_event *e = &s->event[i];
        char at[32], times[32];
        snprintf(at, sizeof(at), "%.19s", e->at); /* without milliseconds */
        snprintf(times, sizeof(times), "%lld", (long long)e->n);
        const char *values[ARRAY_LEN(names)] = {at, e->kind, times, e->detail};
        table_add(table, values, is_number);
    }
    (void)table_close(table);
}

/* The indices as sbatch takes them: "3,7-9". */
static char *format_indices(const int *index, int n)
{
    struct str spec = {0};
    for (int i = 0; i < n;) {
        int last = i;
        while (last + 1 < n && index[last + 1] == index[last] + 1)
            last++;
        str_appendf(&spec, "%s%d", i ? "," : "", index[i]);
        if (last > i)
            str_appendf(&spec, "-%d", index[last]);
        i = last + 1;
    }
    return spec.data;
}

static void print_missing(FILE *out, const struct status *s)
{
    char *spec = format_indices(s->missing, s->n_missing);
    fprintf(
        out,
        "  or by the %d of the %d workers of the job array that have not finished their share:\n"
        "      sbatch --array=%s --export=ALL,QUIRE_ARRAY_COUNT=%d SCRIPT\n",
        s->n_missing, s->array_count, spec, s->array_count);
    free(spec);
}

static void print_next(FILE *out, const struct status *s)
{
    int n_live = count_live(s);
    bool unfinished = s->tasks.done < s->tasks.total;
    const char *config = s->config ? s->config : "CONFIG";
    fprintf(out, "\nnext\n");
    if (!unfinished)
        fprintf(out, "  everything is done: `quire results %s`\n", s->db);
    if (s->tasks.failed)
        fprintf(out, "  `quire results %s --failed` says why tasks failed\n", s->db);
    if (unfinished && n_live)
        fprintf(out, "  %d worker%s at it; `quire run %s` does what is left once %s ended\n",
                n_live, n_live == 1 ? " is" : "s are", config,
                n_live == 1 ? "it has" : "they have");
    else if (unfinished)
        fprintf(out, "  `quire run %s` does what is missing\n", config);
    if (s->n_missing)
        print_missing(out, s);
}

static void print_text(FILE *out, const struct status *s)
{
    fprintf(out, "experiment %s: ", s->experiment);
    if (s->n_files == 0)
        fprintf(out, "there are no results in %s yet\n", s->db);
    else if (s->n_files == 1)
        fprintf(out, "%s\n", s->db);
    else
        fprintf(out, "%s, %d files\n", s->db, s->n_files);
    print_counts(out, "tasks", &s->tasks);
    print_counts(out, "samples", &s->samples);
    print_rates(out, s);
    print_workers(out, s);
    print_events(out, s);
    print_next(out, s);
}

/* ---- for a program ---- */

/* null for what is not known. */
static json_t *number_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* JSON is UTF-8; a host name or a message need not be. */
static json_t *text_json(const char *text)
{
    json_t *valid = json_string(text);
    if (valid)
        return valid;
    char *ascii = xstrdup(text);
    for (char *c = ascii; *c; c++)
        if (*c & 0x80)
            *c = '?';
    valid = json_string(ascii);
    free(ascii);
    return valid;
}

static json_t *counts_json(const struct status_counts *c)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "total", (json_int_t)c->total, "done",
                     (json_int_t)c->done, "running", (json_int_t)c->running, "failed",
                     (json_int_t)c->failed, "pending", (json_int_t)c->pending);
}

static json_t *workers_json(const struct status *s)
{
    json_t *list = json_array();
    for (int i = 0; i < s->n_workers; i++) {
        const struct status_worker *w = &s->worker[i];
        json_array_append_new(
            list, json_pack("{s:o, s:i, s:o, s:o, s:o, s:o, s:I, s:o, s:o}", "host",
                            text_json(w->host), "rank", w->rank, "job", text_json(w->job), "device",
                            text_json(w->device), "state", text_json(w->state), "task",
                            w->task_index < 0 ? json_null() : json_integer(w->task_index),
                            "samples", (json_int_t)w->n_done, "busy", number_or_null(w->busy),
                            "seen_s", number_or_null(w->seen_s)));
    }
    return list;
}

static json_t *events_json(const struct status *s)
{
    json_t *list = json_array();
    for (int i = 0; i < s->n_events; i++) {
        const struct status_event *e = &s->event[i];
        json_array_append_new(list, json_pack("{s:o, s:o, s:o, s:I}", "at", text_json(e->at),
                                              "kind", text_json(e->kind), "detail",
                                              text_json(e->detail), "count", (json_int_t)e->n));
    }
    return list;
}

static json_t *array_json(const struct status *s)
{
    if (s->array_count == 0)
        return json_null();
    char *spec = format_indices(s->missing, s->n_missing);
    json_t *missing = json_array();
    for (int i = 0; i < s->n_missing; i++)
        json_array_append_new(missing, json_integer(s->missing[i]));
    json_t *array = json_pack("{s:i, s:o, s:s}", "count", s->array_count, "missing", missing,
                              "spec", spec ? spec : "");
    free(spec);
    return array;
}

static void print_json(FILE *out, const struct status *s)
{
    json_t *status =
        json_pack("{s:o, s:o, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "experiment",
                  text_json(s->experiment), "db", text_json(s->db), "files", s->n_files, "tasks",
                  counts_json(&s->tasks), "samples", counts_json(&s->samples), "rate_window_s",
                  number_or_null(s->rate_window_s > 0 ? s->rate_window_s : NAN), "samples_per_s",
                  number_or_null(s->samples_per_s), "output_tps", number_or_null(s->output_tps),
                  "eta_s", number_or_null(s->eta_s), "workers", workers_json(s), "events",
                  events_json(s), "array", array_json(s));
    assert(status);
    json_dumpf(status, out, JSON_COMPACT | JSON_REAL_PRECISION(6));
    fputc('\n', out);
    json_decref(status);
}

void status_print(FILE *out, const struct status *s, enum table_format format)
{
    assert(format == TABLE_TEXT || format == TABLE_JSON);
    if (format == TABLE_JSON)
        print_json(out, s);
    else
        print_text(out, s);
}
