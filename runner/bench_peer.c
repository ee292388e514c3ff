/* bench_peer.c - see bench.h: rows of other programs, by lines of JSON.
 *
 * A peer makes the inputs itself and sends rows of its output back, which are held against the same
 * reference as ours: a peer that computes something else gets no place beside us. It is run once
 * for all shapes, after our own measurements, when our memory is free again.
 */
#include "runner/bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a shell answers for a command that it cannot run, or not find. */
#define STATUS_CANNOT_RUN 126
#define STATUS_NOT_FOUND  127

/* ---- requests ---- */

void bench_peer_request(struct str *out, int id, const struct bench_shape *s,
                        const struct bench_expected *e, double seconds)
{
    json_t *rows = json_array();
    for (int i = 0; i < e->n_rows; i++)
        json_array_append_new(rows, json_pack("[ii]", e->token[i], e->head[i]));
    json_t *request = json_pack(
        "{si si si si si si si ss sb sf ss sf so}", "id", id, "batch", s->batch, "heads",
        s->n_heads, "kv_heads", s->n_kv_heads, "q_len", s->q_len, "kv_len", s->kv_len, "head_dim",
        s->head_dim, "dtype", dtype_name(s->dtype), "causal", 1, "scale", 1 / sqrt(s->head_dim),
        "cache", s->cold ? "cold" : "warm", "seconds", seconds, "rows", rows);
    char *line = json_dumps(request, JSON_COMPACT);
    str_appendf(out, "%s\n", line);
    free(line);
    json_decref(request);
}

/* ---- answers ---- */

/* A member that is a number above 0, or `fallback` when there is none. */
static int read_positive(double *out, const json_t *line, const char *name, double fallback)
{
    const json_t *value = json_object_get(line, name);
    *out = value ? json_number_value(value) : fallback;
    if (value && !(json_is_number(value) && *out > 0))
        return err_set(ERR_DATA, "\"%s\" is no number above 0", name);
    return 0;
}

static int read_output(struct bench_measurement *m, const json_t *output)
{
    size_t n = json_array_size(output), width = json_array_size(json_array_get(output, 0));
    if (n == 0 || n > BENCH_SAMPLE_ROWS || width == 0 || width > BENCH_MAX_DIM)
        return err_set(ERR_DATA, "\"output\" is no list of 1 to %d rows of 1 to %d numbers",
                       BENCH_SAMPLE_ROWS, BENCH_MAX_DIM);
    m->n_rows = (int)n;
    m->head_dim = (int)width;
    m->output = xcalloc(n * width, sizeof(*m->output));
    for (size_t i = 0; i < n * width; i++) {
        const json_t *row = json_array_get(output, i / width);
        const json_t *value = json_array_get(row, i % width);
        bool valid = json_array_size(row) == width;
        if (!valid || (!json_is_number(value) && !json_is_null(value))) {
            free(m->output);
            m->output = NULL;
            return err_set(ERR_DATA, "\"output\" has rows of different lengths, or no numbers");
        }
        m->output[i] = json_is_null(value) ? NAN : json_number_value(value);
    }
    return 0;
}

static int read_measurement(struct bench_measurement *m, const json_t *line)
{
    struct bench_spread *s = &m->latency_s;
    m->state = BENCH_OK;
    if (!json_object_get(line, "latency_s"))
        return err_set(ERR_DATA, "neither \"latency_s\", \"available\": false nor \"error\"");
    if (read_positive(&s->median, line, "latency_s", NAN) != 0 ||
        read_positive(&s->p10, line, "p10_s", NAN) != 0 ||
        read_positive(&s->p90, line, "p90_s", NAN) != 0 ||
        read_positive(&m->memory_bytes, line, "memory_bytes", NAN) != 0)
        return -1;
    return read_output(m, json_object_get(line, "output"));
}

static int read_answer(struct bench_measurement *m, const json_t *line)
{
    const json_t *id = json_object_get(line, "id"), *error = json_object_get(line, "error");
    const char *kernel = json_string_value(json_object_get(line, "kernel"));
    const char *reason = json_string_value(json_object_get(line, "reason"));
    *m = (struct bench_measurement){.id = -1, .memory_bytes = NAN};
    if (!json_is_object(line))
        return err_set(ERR_DATA, "no JSON object");
    if (id && (!json_is_integer(id) || json_integer_value(id) < 0 ||
               json_integer_value(id) >= BENCH_MAX_SHAPES))
        return err_set(ERR_DATA, "\"id\" is not one that was asked for");
    if (id)
        m->id = (int)json_integer_value(id);
    snprintf(m->kernel, sizeof(m->kernel), "%.47s", kernel ? kernel : "");
    if (json_is_false(json_object_get(line, "available"))) {
        m->state = BENCH_NOT_AVAILABLE;
        snprintf(m->note, sizeof(m->note), "%.180s", reason ? reason : "");
        return 0;
    }
    if (error) {
        m->state = BENCH_FAILED;
        snprintf(m->note, sizeof(m->note), "%.180s",
                 json_is_string(error) ? json_string_value(error) : "it says \"error\"");
        return 0;
    }
    return read_measurement(m, line);
}

int bench_peer_parse(struct bench_measurement *out, const char *line)
{
    json_error_t where;
    json_t *json = json_loads(line, JSON_REJECT_DUPLICATES, &where);
    if (!json)
        return err_set(ERR_DATA, "%s at column %d", where.text, where.column);
    int rc = read_answer(out, json);
    json_decref(json);
    return rc;
}

/* ---- the command ---- */

/* The output of `sh -c command` with `input` on its standard input; the caller frees. NULL with
 * ERR_RESOURCE. */
static char *run_command(const char *command, const struct str *input, int *status)
{
    FILE *in = tmpfile();
    int pipe_ends[2];
    struct str text = {0};
    char bytes[4096];
    if (!in || fwrite(input->data, 1, input->len, in) != input->len || fflush(in) != 0 ||
        fseek(in, 0, SEEK_SET) != 0 || pipe(pipe_ends) != 0) {
        if (in)
            fclose(in);
        err_set(ERR_RESOURCE, "cannot talk to it: %s", strerror(errno));
        return NULL;
    }
    pid_t child = fork();
    if (child == 0) {
        if (dup2(fileno(in), STDIN_FILENO) >= 0 && dup2(pipe_ends[1], STDOUT_FILENO) >= 0) {
            close(pipe_ends[0]);
            close(pipe_ends[1]);
            execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        }
        _exit(STATUS_CANNOT_RUN);
    }
    close(pipe_ends[1]);
    str_append_c(&text, "");
    for (ssize_t n; child > 0 && (n = read(pipe_ends[0], bytes, sizeof(bytes))) != 0;) {
        if (n > 0)
            str_append(&text, bytes, (size_t)n);
        else if (errno != EINTR)
            break;
    }
    close(pipe_ends[0]);
    fclose(in);
    while (child > 0 && waitpid(child, status, 0) < 0 && errno == EINTR) {
    }
    if (child > 0)
        return text.data;
    str_free(&text);
    err_set(ERR_RESOURCE, "cannot start it: %s", strerror(errno));
    return NULL;
}

/* ---- rows ---- */

struct peer {
    const char *name; /* of rows that no kernel has a name for: the command */
    const struct bench_shape *shape;
    const struct bench_expected *expected;
    int n;
    bool *answered; /* [n] */
    struct bench_rows *rows;
};

static struct bench_row *add_row(const struct peer *p, int id, const char *kernel,
                                 enum bench_state state, const char *note)
{
    const struct bench_shape *s = &p->shape[id];
    struct bench_row *row = bench_rows_add(p->rows, id, kernel[0] ? kernel : p->name);
    bench_shape_label(row->shape, s);
    row->dtype = s->dtype;
    row->cache = s->cold ? "cold" : "warm";
    row->n_tokens = (double)s->batch * s->q_len;
    row->flops = bench_shape_flops(s);
    row->bytes = bench_shape_kv_bytes(s);
    row->state = state;
    snprintf(row->note, sizeof(row->note), "%.180s", note);
    return row;
}

static void add_for_all(const struct peer *p, const char *kernel, enum bench_state state,
                        const char *note)
{
    for (int i = 0; i < p->n; i++) {
        if (!p->answered[i])
            add_row(p, i, kernel, state, note);
        p->answered[i] = true;
    }
}

static void add_measurement(const struct peer *p, const struct bench_measurement *m)
{
    const struct bench_shape *s = &p->shape[m->id];
    const struct bench_expected *e = &p->expected[m->id];
    struct bench_row *row = add_row(p, m->id, m->kernel, m->state, m->note);
    p->answered[m->id] = true;
    if (m->state != BENCH_OK)
        return;
    row->memory_bytes = m->memory_bytes;
    row->error = INFINITY;
    if (m->n_rows == e->n_rows && m->head_dim == s->head_dim)
        row->error = bench_error(e, m->output, s->head_dim);
    if (row->error <= bench_tolerance(s->dtype)) {
        row->latency_s = m->latency_s;
        return;
    }
    row->state = BENCH_WRONG;
    snprintf(row->note, sizeof(row->note), "error above %g: its time does not count",
             bench_tolerance(s->dtype));
}

static void add_line(const struct peer *p, const char *line)
{
    struct bench_measurement m;
    char note[192];
    if (bench_peer_parse(&m, line) != 0) {
        snprintf(note, sizeof(note), "bad line: %.150s", err_get());
        err_clear();
        add_row(p, 0, "", BENCH_FAILED, note);
        return;
    }
    if (m.id >= p->n || (m.id < 0 && m.state == BENCH_OK))
        add_row(p, 0, m.kernel, BENCH_FAILED, "bad line: \"id\" is not one that was asked for");
    else if (m.id < 0)
        add_for_all(p, m.kernel, m.state, m.note);
    else
        add_measurement(p, &m);
    free(m.output);
}

/* Shapes without an answer get a row that says why. */
static void add_rest(const struct peer *p, int status)
{
    char note[64];
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (code == STATUS_CANNOT_RUN || code == STATUS_NOT_FOUND) {
        add_for_all(p, "", BENCH_NOT_AVAILABLE, "the command cannot be run");
        return;
    }
    snprintf(note, sizeof(note), "no answer; it ended with status %d", code);
    add_for_all(p, "", BENCH_FAILED, note);
}

void bench_peer_run(struct bench_rows *rows, const char *command, const struct bench_shape *shape,
                    int n, double seconds)
{
    struct bench_expected *expected = xcalloc((size_t)n, sizeof(*expected));
    struct peer p = {.name = command,
                     .shape = shape,
                     .expected = expected,
                     .n = n,
                     .answered = xcalloc((size_t)n, sizeof(bool)),
                     .rows = rows};
    struct str requests = {0};
    int status = 0;
    for (int i = 0; i < n; i++) {
        bench_expect(&expected[i], &shape[i]);
        bench_peer_request(&requests, i, &shape[i], &expected[i], seconds);
    }
    fflush(stdout); /* the child must not write what waits there */
    char *answers = run_command(command, &requests, &status), *rest = answers;
    if (!answers) {
        add_for_all(&p, "", BENCH_FAILED, err_get());
        err_clear();
    }
    for (char *line; rest && (line = strsep(&rest, "\n")) != NULL;)
        if (line[strspn(line, " \t\r")])
            add_line(&p, line);
    add_rest(&p, status);
    free(answers);
    str_free(&requests);
    free(p.answered);
    free(expected);
}
