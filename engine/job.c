/* job.c - see job.h. */
#include "engine/job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN_BUCKETS ((size_t)64)

static bool contains(const int *ids, int n, int id)
{
    for (int i = 0; i < n; i++) {
        if (ids[i] == id)
            return true;
    }
    return false;
}

static int check_sampling(const struct sampling_params *p, int vocab)
{
    if (!isfinite(p->temperature) || p->temperature < 0)
        return err_set(ERR_DATA, "temperature is %g; expected 0 or more", (double)p->temperature);
    if (!(p->top_p >= 0 && p->top_p <= 1))
        return err_set(ERR_DATA, "top_p is %g; expected 0 to 1", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return err_set(ERR_DATA, "min_p is %g; expected 0 to 1", (double)p->min_p);
    if (p->top_k < 0)
        return err_set(ERR_DATA, "top_k is %d; expected 0 or more", p->top_k);
    if (p->max_tokens < 1)
        return err_set(ERR_DATA, "max_tokens is %d; expected at least 1", p->max_tokens);
    if (p->n_stop_ids < 0 || p->n_stop_ids > ENGINE_MAX_STOP_IDS)
        return err_set(ERR_DATA, "%d stop ids; expected at most %d", p->n_stop_ids,
                       ENGINE_MAX_STOP_IDS);
    for (int i = 0; i < p->n_stop_ids; i++) {
        if (p->stop_ids[i] < 0 || p->stop_ids[i] >= vocab)
            return err_set(ERR_DATA, "stop id %d is outside the vocabulary; expected 0 to %d",
                           p->stop_ids[i], vocab - 1);
    }
    return 0;
}

static int check_request(const struct request *r, int max_model_len, int vocab)
{
    if (r->n_prompt < 1)
        return err_set(ERR_DATA, "the prompt is empty; expected at least one token");
    if (r->n_prompt > max_model_len - 1)
        return err_set(ERR_DATA,
                       "the prompt has %d tokens; expected at most %d (max_model_len %d, of which "
                       "one is for the answer)",
                       r->n_prompt, max_model_len - 1, max_model_len);
    for (int i = 0; i < r->n_prompt; i++) {
        if (r->prompt[i] < 0 || r->prompt[i] >= vocab)
            return err_set(ERR_DATA,
                           "token %d of the prompt is %d, outside the vocabulary; expected 0 to %d",
                           i, r->prompt[i], vocab - 1);
    }
    return check_sampling(&r->sampling, vocab);
}

int job_open(struct job **out, const struct request *request, const struct model_info *model,
             const struct engine_options *options)
{
    int max_model_len = options->max_model_len, n_prompt = request->n_prompt;
    if (check_request(request, max_model_len, model->vocab) < 0)
        return -1;
    struct job *job = xcalloc(1, sizeof(*job));
    struct seq *seq = &job->seq;
    seq->request = *request;
    seq->request.prompt = NULL;
    seq->n_prompt = seq->n_tokens = n_prompt;
    seq->max_tokens = n_prompt + MIN(request->sampling.max_tokens, max_model_len - n_prompt);
    seq->token = xrealloc_array(NULL, (size_t)seq->max_tokens, sizeof(int));
    memcpy(seq->token, request->prompt, (size_t)n_prompt * sizeof(int));
    kv_seq_init(&seq->kv, CEIL_DIV(seq->max_tokens, options->block_size));
    *out = job;
    return 0;
}

void job_close(struct job *job)
{
    kv_seq_free(&job->seq.kv);
    free(job->seq.token);
    free(job);
}

/* ---- the list ---- */

static struct job **bucket_of(const struct job_list *list, uint64_t id)
{
    return &list->bucket[id & (list->n_buckets - 1)];
}

static void enter(struct job_list *list, struct job *job)
{
    struct job **bucket = bucket_of(list, job->seq.id);
    job->bucket_next = *bucket;
    *bucket = job;
}

static void grow(struct job_list *list)
{
    list->n_buckets = MAX(2 * list->n_buckets, MIN_BUCKETS);
    free(list->bucket);
    list->bucket = xcalloc(list->n_buckets, sizeof(struct job *));
    for (struct job *job = list->first; job; job = job->next)
        enter(list, job);
}

void job_list_push(struct job_list *list, struct job *job)
{
    if (list->n == list->n_buckets)
        grow(list);
    enter(list, job);
    job->next = NULL;
    job->prev = list->last;
    if (list->last)
        list->last->next = job;
    else
        list->first = job;
    list->last = job;
    list->n++;
}

void job_list_remove(struct job_list *list, struct job *job)
{
    struct job **link = bucket_of(list, job->seq.id);
    while (*link != job)
        link = &(*link)->bucket_next;
    *link = job->bucket_next;
    if (job->prev)
        job->prev->next = job->next;
    else
        list->first = job->next;
    if (job->next)
        job->next->prev = job->prev;
    else
        list->last = job->prev;
    job->next = job->prev = job->bucket_next = NULL;
    list->n--;
}

struct job *job_list_find(const struct job_list *list, uint64_t id)
{
    struct job *job = list->n > 0 ? *bucket_of(list, id) : NULL;
    while (job && job->seq.id != id)
        job = job->bucket_next;
    return job;
}

void job_list_free(struct job_list *list)
{
    for (struct job *job = list->first, *next; job; job = next) {
        next = job->next;
        job_close(job);
    }
    free(list->bucket);
    *list = (struct job_list){0};
}

/* ---- the end ---- */

bool job_is_finished(const struct job *job, const struct model_info *model,
                     enum finish_reason *reason)
{
    const struct seq *seq = &job->seq;
    const struct sampling_params *p = &seq->request.sampling;
    int id = seq->token[seq_n_known(seq) - 1];
    bool stop = contains(p->stop_ids, p->n_stop_ids, id) ||
                (!p->ignore_eos && contains(model->eos, model->n_eos, id));
    *reason = stop ? FINISH_STOP : FINISH_LENGTH;
    return stop || seq_n_known(seq) == seq->max_tokens;
}

void job_report(const struct job *job)
{
    const struct seq *seq = &job->seq;
    const struct completion completion = {.id = seq->id,
                                          .ids = seq->token + seq->n_prompt,
                                          .n_ids = seq->n_tokens - seq->n_prompt,
                                          .reason = seq->reason,
                                          .n_prompt = seq->n_prompt,
                                          .n_cached = seq->n_cached,
                                          .n_preemptions = seq->n_preemptions,
                                          .submitted_s = seq->submitted_s,
                                          .scheduled_s = seq->scheduled_s,
                                          .first_token_s = seq->first_token_s,
                                          .finished_s = time_monotonic_s()};
    if (seq->request.on_finish)
        seq->request.on_finish(seq->request.user, &completion);
}
