/* attempt.c - see attempt.h. */
#include "runner/attempt.h"

#include <math.h>
#include <stdlib.h>

static void series_push(struct series *s, double value)
{
    if (isnan(value))
        return;
    array_reserve(&s->value, &s->capacity, s->n + 1, sizeof(*s->value));
    s->value[s->n++] = value;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Linear interpolation between the two nearest ranks of sorted values. */
static double quantile(const struct series *s, double q)
{
    if (s->n == 0)
        return NAN;
    double rank = q * (double)(s->n - 1);
    size_t low = (size_t)rank, high = MIN(low + 1, s->n - 1);
    return s->value[low] + (rank - (double)low) * (s->value[high] - s->value[low]);
}

static struct store_percentiles percentiles(struct series *s)
{
    if (s->n)
        qsort(s->value, s->n, sizeof(*s->value), compare_doubles);
    return (struct store_percentiles){quantile(s, 0.5), quantile(s, 0.9), quantile(s, 0.99)};
}

void attempt_sample_times(struct store_sample *out, const struct completion *c)
{
    out->queued_s = c->scheduled_s - c->submitted_s;
    out->ttft_s = c->first_token_s - c->scheduled_s;
    out->e2e_s = c->finished_s - c->scheduled_s;
    out->tpot_s = c->n_ids > 1 ? (c->finished_s - c->first_token_s) / (c->n_ids - 1) : NAN;
}

void attempt_add(struct attempt *a, const struct completion *c)
{
    struct store_sample times = {0};
    attempt_sample_times(&times, c);
    series_push(&a->ttft_s, times.ttft_s);
    series_push(&a->tpot_s, times.tpot_s);
    series_push(&a->e2e_s, times.e2e_s);
    if (a->first_s == 0 || c->scheduled_s < a->first_s)
        a->first_s = c->scheduled_s;
    a->last_s = MAX(a->last_s, c->finished_s);
    a->n_samples++;
    a->prompt_tokens += c->n_prompt;
    a->cached_tokens += c->n_cached;
    a->output_tokens += c->n_ids;
    a->preemptions += c->n_preemptions;
}

void attempt_summarise(struct attempt *a, struct store_attempt_end *end)
{
    end->run_s = a->last_s - a->first_s;
    end->n_samples = a->n_samples;
    end->n_failed = a->n_failed;
    end->prompt_tokens = a->prompt_tokens;
    end->cached_tokens = a->cached_tokens;
    end->output_tokens = a->output_tokens;
    end->preemptions = a->preemptions;
    end->output_tps = end->run_s > 0 ? (double)a->output_tokens / end->run_s : 0;
    end->total_tps =
        end->run_s > 0 ? (double)(a->output_tokens + a->prompt_tokens) / end->run_s : 0;
    end->ttft_s = percentiles(&a->ttft_s);
    end->tpot_s = percentiles(&a->tpot_s);
    end->e2e_s = percentiles(&a->e2e_s);
}

void attempt_free(struct attempt *a)
{
    free(a->ttft_s.value);
    free(a->tpot_s.value);
    free(a->e2e_s.value);
    *a = (struct attempt){0};
}
