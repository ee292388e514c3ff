/* progress.c - see progress.h. */
#include "runner/progress.h"
#include "runner/stop.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BAR_WIDTH 24

/* The log steps around the live bar; only one bar is open at a time. */
static void clear_bar(bool before)
{
    if (before)
        fputs("\r\033[K", stderr);
}

void progress_open(struct progress *p, int64_t done, int64_t total)
{
    *p = (struct progress){
        .live = isatty(STDERR_FILENO) && log_get_level() >= LOG_INFO,
        .done = done,
        .total = total,
        .first_done = done,
        .started_s = time_monotonic_s(),
    };
    progress_restart_rates(p);
    if (p->live)
        log_set_hook(clear_bar);
}

void progress_restart_rates(struct progress *p)
{
    p->rate_since_s = p->shown_s = time_monotonic_s();
    p->rate_prompt = p->rate_output = 0;
}

static void update_rates(struct progress *p, double now, const struct engine_stats *stats)
{
    double window = now - p->rate_since_s;
    if (window < 0.5)
        return;
    p->prompt_tps = (double)(stats->prompt_tokens - p->rate_prompt) / window;
    p->output_tps = (double)(stats->output_tokens - p->rate_output) / window;
    p->rate_prompt = stats->prompt_tokens;
    p->rate_output = stats->output_tokens;
    p->rate_since_s = now;
}

/* What matters most comes first: a narrow terminal shows the beginning. */
static void describe(const struct progress *p, const struct engine_stats *stats, double now,
                     struct str *out)
{
    char eta[32] = "-";
    int64_t fresh = p->done - p->first_done;
    if (fresh > 0)
        format_seconds(eta, (now - p->started_s) * (double)(p->total - p->done) / (double)fresh);
    str_appendf(out,
                "%lld/%lld samples | ETA %s | prefill %.0f decode %.0f tok/s | "
                "running %d waiting %d | KV %.0f%%",
                (long long)p->done, (long long)p->total, eta, p->prompt_tps, p->output_tps,
                stats->n_running, stats->n_waiting,
                stats->kv_blocks ? 100.0 * stats->kv_used / stats->kv_blocks : 0.0);
    if (isfinite(stop_job_left_s()))
        str_appendf(out, " | job ends in %s", format_seconds(eta, fmax(stop_job_left_s(), 0)));
}

/* Columns that a line may have; a longer one would wrap, and then no \r takes it away. */
static size_t find_width(void)
{
    struct winsize size;
    bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    return known ? size.ws_col - 1u : SIZE_MAX;
}

static void show_bar(const struct progress *p, const char *text)
{
    char bar[BAR_WIDTH + 1];
    size_t width = find_width(), len = strlen(text);
    int filled = p->total ? (int)(BAR_WIDTH * p->done / p->total) : BAR_WIDTH;
    for (int i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR_WIDTH] = '\0';
    if (len + strlen("[] ") + BAR_WIDTH <= width)
        fprintf(stderr, "\r\033[K[%s] %s", bar, text);
    else
        fprintf(stderr, "\r\033[K%.*s", (int)MIN(len, width), text);
    fflush(stderr);
}

bool progress_update(struct progress *p, int64_t done, const struct engine_stats *stats)
{
    double now = time_monotonic_s();
    p->done = done;
    if (now - p->shown_s < (p->live ? PROGRESS_BAR_SECONDS : PROGRESS_LINE_SECONDS))
        return false;
    p->shown_s = now;
    update_rates(p, now, stats);
    struct str text = {0};
    describe(p, stats, now, &text);
    if (p->live)
        show_bar(p, text.data);
    else
        log_info("%s", text.data);
    str_free(&text);
    return true;
}

void progress_close(struct progress *p)
{
    if (p->live)
        clear_bar(true);
    log_set_hook(NULL);
}
