/* link.c - see link.h.
 *
 * A message is one byte that says what it is, and plain structures as they lie in memory: all ranks
 * run the same program on the same kind of machine. Pointers in them are replaced by what follows.
 * Up: greeting, question, opening, refusal, step, leave. Down: order, dismissal.
 *
 * A step is a pulse and the outcomes since the last one. An outcome is its structure, its token
 * ids, its text and its error, each behind its length: some 200 bytes and 8 a token.
 */
#include "runner/link.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum message {
    MESSAGE_GREETING,
    MESSAGE_QUESTION,
    MESSAGE_OPENING,
    MESSAGE_REFUSAL,
    MESSAGE_STEP,
    MESSAGE_LEAVE,
    MESSAGE_ORDER,
    MESSAGE_DISMISSAL,
};

struct question {
    int group, room;
};

struct link {
    struct cluster *cluster;
    struct desk *desk;
    struct str outcomes; /* since the last pulse */
    int n_outcomes;
    bool asked;
    pthread_mutex_t mutex; /* of what follows, which the cluster's thread writes */
    pthread_cond_t changed;
    struct order order;
    int n_stale; /* answers on their way to questions that are withdrawn */
    bool answered, dismissed;
    int exit_code;
};

/* ---- writing and reading ---- */

static void put_bytes(struct str *s, const void *data, size_t n)
{
    str_append(s, data, n);
}

static void put_block(struct str *s, const void *data, size_t n)
{
    uint32_t length = (uint32_t)n;
    put_bytes(s, &length, sizeof(length));
    put_bytes(s, data, n);
}

static void begin_message(struct str *s, enum message kind)
{
    char byte = (char)kind;
    put_bytes(s, &byte, 1);
}

/* What is left of a message. */
struct reader {
    const char *at;
    size_t n;
};

/* Messages come from our own program, so a short one is a bug. */
static void get_bytes(struct reader *r, void *out, size_t n)
{
    assert(n <= r->n);
    memcpy(out, r->at, n);
    r->at += n;
    r->n -= n;
}

/* A copy with a zero behind it, for the caller to free. */
static char *get_block(struct reader *r, size_t *n)
{
    uint32_t length;
    get_bytes(r, &length, sizeof(length));
    char *data = xmalloc((size_t)length + 1);
    get_bytes(r, data, length);
    data[length] = '\0';
    *n = length;
    return data;
}

/* ---- a worker's side ---- */

static void post(struct link *link, struct str *message)
{
    cluster_post(link->cluster, 0, message->data, message->len);
    str_free(message);
}

static void post_struct(struct link *link, enum message kind, const void *data, size_t n)
{
    struct str message = {0};
    begin_message(&message, kind);
    put_bytes(&message, data, n);
    post(link, &message);
}

static void on_message(void *user, int from, const char *data, size_t n)
{
    struct link *link = user;
    struct reader r = {data + 1, n - 1};
    assert(from == 0 && (data[0] == MESSAGE_ORDER || data[0] == MESSAGE_DISMISSAL));
    pthread_mutex_lock(&link->mutex);
    if (data[0] == MESSAGE_ORDER && link->n_stale > 0) {
        link->n_stale--;
    } else if (data[0] == MESSAGE_ORDER) {
        get_bytes(&r, &link->order, sizeof(link->order));
        link->answered = true;
    } else {
        get_bytes(&r, &link->exit_code, sizeof(link->exit_code));
        link->dismissed = true;
    }
    pthread_cond_signal(&link->changed);
    pthread_mutex_unlock(&link->mutex);
}

struct link *link_open(struct cluster *cluster, struct desk *desk)
{
    struct link *link = xcalloc(1, sizeof(*link));
    link->cluster = cluster;
    link->desk = desk;
    pthread_mutex_init(&link->mutex, NULL);
    pthread_cond_init(&link->changed, NULL);
    if (!desk)
        cluster_listen(cluster, &(struct cluster_events){.user = link, .on_message = on_message});
    return link;
}

void link_close(struct link *link)
{
    if (!link)
        return;
    pthread_mutex_destroy(&link->mutex);
    pthread_cond_destroy(&link->changed);
    str_free(&link->outcomes);
    free(link);
}

void link_greet(struct link *link, const struct greeting *greeting)
{
    if (link->desk)
        desk_greet(link->desk, 0, greeting);
    else
        post_struct(link, MESSAGE_GREETING, greeting, sizeof(*greeting));
}

bool link_take(struct link *link, int group, int room, struct order *out)
{
    if (link->desk) {
        desk_take(link->desk, 0, group, room, out);
        return true;
    }
    if (!link->asked) {
        link->asked = true;
        post_struct(link, MESSAGE_QUESTION, &(struct question){group, room},
                    sizeof(struct question));
    }
    pthread_mutex_lock(&link->mutex);
    bool answered = link->answered || link->dismissed;
    *out = link->dismissed ? (struct order){.kind = ORDER_END} : link->order;
    link->answered = false;
    pthread_mutex_unlock(&link->mutex);
    link->asked = !answered;
    return answered;
}

/* What the desk gives for a question before a refusal goes back to it with the refusal. */
static void withdraw_question(struct link *link)
{
    pthread_mutex_lock(&link->mutex);
    link->n_stale += link->asked && !link->answered;
    link->answered = false;
    pthread_mutex_unlock(&link->mutex);
    link->asked = false;
}

void link_begin(struct link *link, const struct opening *opening)
{
    if (link->desk)
        desk_begin(link->desk, 0, opening);
    else
        post_struct(link, MESSAGE_OPENING, opening, sizeof(*opening));
}

void link_refuse(struct link *link, const struct opening *opening)
{
    int kind = (int)err_get_kind();
    char *reason = xstrdup(err_get());
    if (link->desk) {
        desk_refuse(link->desk, 0, opening, (enum err_kind)kind, reason);
    } else {
        struct str message = {0};
        begin_message(&message, MESSAGE_REFUSAL);
        put_bytes(&message, opening, sizeof(*opening));
        put_bytes(&message, &kind, sizeof(kind));
        put_block(&message, reason, strlen(reason));
        post(link, &message);
        withdraw_question(link);
    }
    free(reason);
    err_clear();
}

static void put_optional(struct str *s, const char *text)
{
    char there = text != NULL;
    put_bytes(s, &there, 1);
    if (text)
        put_block(s, text, strlen(text));
}

void link_put(struct link *link, const struct outcome *outcome)
{
    struct str *s = &link->outcomes;
    put_bytes(s, outcome, sizeof(*outcome));
    put_block(s, outcome->completion.ids,
              (size_t)outcome->completion.n_ids * sizeof(*outcome->completion.ids));
    put_optional(s, outcome->text);
    put_optional(s, outcome->error);
    link->n_outcomes++;
}

static char *get_optional(struct reader *r)
{
    char there;
    size_t n;
    get_bytes(r, &there, 1);
    return there ? get_block(r, &n) : NULL;
}

static void serve_outcome(struct desk *desk, int rank, struct reader *r)
{
    struct outcome outcome;
    size_t n;
    get_bytes(r, &outcome, sizeof(outcome));
    void *ids = get_block(r, &n);
    char *text = get_optional(r), *error = get_optional(r);
    outcome.completion.ids = ids;
    outcome.text = text;
    outcome.error = error;
    desk_put(desk, rank, &outcome);
    free(ids);
    free(text);
    free(error);
}

static void serve_step(struct desk *desk, int rank, struct reader *r)
{
    struct pulse pulse;
    get_bytes(r, &pulse, sizeof(pulse));
    desk_pulse(desk, rank, &pulse);
    while (r->n > 0)
        serve_outcome(desk, rank, r);
}

void link_pulse(struct link *link, const struct pulse *pulse)
{
    struct str message = {0};
    if (!link->desk)
        begin_message(&message, MESSAGE_STEP);
    put_bytes(&message, pulse, sizeof(*pulse));
    if (link->n_outcomes)
        put_bytes(&message, link->outcomes.data, link->outcomes.len);
    str_clear(&link->outcomes);
    link->n_outcomes = 0;
    if (!link->desk) {
        post(link, &message);
        return;
    }
    serve_step(link->desk, 0, &(struct reader){message.data, message.len});
    str_free(&message);
}

bool link_has_outcomes(const struct link *link)
{
    return link->n_outcomes > 0;
}

int link_leave(struct link *link)
{
    if (link->desk) {
        desk_leave(link->desk, 0);
        return 0;
    }
    post_struct(link, MESSAGE_LEAVE, "", 0);
    pthread_mutex_lock(&link->mutex);
    while (!link->dismissed)
        pthread_cond_wait(&link->changed, &link->mutex);
    int exit_code = link->exit_code;
    pthread_mutex_unlock(&link->mutex);
    return exit_code;
}

/* ---- rank 0's side ---- */

static void answer(struct link_server *server, int rank, struct reader *r)
{
    struct question question;
    struct order order;
    struct str message = {0};
    get_bytes(r, &question, sizeof(question));
    desk_take(server->desk, rank, question.group, question.room, &order);
    begin_message(&message, MESSAGE_ORDER);
    put_bytes(&message, &order, sizeof(order));
    cluster_post(server->cluster, rank, message.data, message.len);
    str_free(&message);
}

static void serve_refusal(struct desk *desk, int rank, struct reader *r)
{
    struct opening opening;
    int kind;
    size_t n;
    get_bytes(r, &opening, sizeof(opening));
    get_bytes(r, &kind, sizeof(kind));
    char *reason = get_block(r, &n);
    desk_refuse(desk, rank, &opening, (enum err_kind)kind, reason);
    free(reason);
}

void link_serve(void *user, int from, const char *data, size_t n)
{
    struct link_server *server = user;
    struct reader r = {data + 1, n - 1};
    struct greeting greeting;
    struct opening opening;
    switch ((enum message)data[0]) {
    case MESSAGE_GREETING:
        get_bytes(&r, &greeting, sizeof(greeting));
        desk_greet(server->desk, from, &greeting);
        return;
    case MESSAGE_QUESTION: answer(server, from, &r); return;
    case MESSAGE_OPENING:
        get_bytes(&r, &opening, sizeof(opening));
        desk_begin(server->desk, from, &opening);
        return;
    case MESSAGE_REFUSAL: serve_refusal(server->desk, from, &r); return;
    case MESSAGE_STEP: serve_step(server->desk, from, &r); return;
    case MESSAGE_LEAVE: desk_leave(server->desk, from); return;
    case MESSAGE_ORDER:
    case MESSAGE_DISMISSAL: break;
    }
    assert(!"a message that rank 0 never gets");
}

void link_dismiss(struct cluster *cluster, int exit_code)
{
    struct str message = {0};
    begin_message(&message, MESSAGE_DISMISSAL);
    put_bytes(&message, &exit_code, sizeof(exit_code));
    for (int r = 1; r < cluster_get_place(cluster).size; r++)
        cluster_post(cluster, r, message.data, message.len);
    str_free(&message);
}
