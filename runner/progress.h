/* progress.h - what a long run shows: a live bar on a terminal, else a line every few seconds. */
#ifndef QUIRE_PROGRESS_H
#define QUIRE_PROGRESS_H

#include "engine/engine.h"

#define PROGRESS_BAR_SECONDS  0.2
#define PROGRESS_LINE_SECONDS 5.0

/* One per run; stderr is shared with the log. */
struct progress {
    bool live;           /* stderr is a terminal            */
    int64_t done, total; /* samples of the whole run     */
    double started_s, shown_s;
    int64_t first_done;            /* done when the run began: not counted in the rate */
    double rate_since_s;           /* window of the token rates                        */
    long rate_prompt, rate_output; /* counters at the window's start                   */
    double prompt_tps, output_tps; /* over the last window                             */
};

void progress_open(struct progress *p, int64_t done, int64_t total);
/* A new engine begins: its counters start at zero. */
void progress_restart_rates(struct progress *p);
/* Shows the state when it is time. True when it was shown. */
bool progress_update(struct progress *p, int64_t done, const struct engine_stats *stats);
void progress_close(struct progress *p);

#endif
