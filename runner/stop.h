/* stop.h - when this process has to end early: signals, the job's end, another rank.
 *
 * There are two levels. STOP_DRAIN: begin nothing new, finish what fits until stop_deadline_s(),
 * commit, exit with ERR_STOPPED. STOP_NOW: the same without finishing anything. The level only
 * rises. Signal handlers set flags and do nothing else.
 *
 *   SIGUSR1, SIGUSR2   drain until shortly before the job's end, when that is known
 *   SIGTERM            drain for STOP_TERM_SECONDS, on whichever rank it came: Slurm kills what is
 *                      left after its KillWait (30 s by default); a second one stops now
 *   SIGINT             stop now; a second one ends the process
 *   SIGPIPE            is ignored: the run outlives the reader of its log, as in `quire run | tee`,
 *                      which a Ctrl-C ends first
 */
#ifndef QUIRE_STOP_H
#define QUIRE_STOP_H

#include "engine/util.h"

#define STOP_TERM_SECONDS 20.0
/* Between the end of the last sequence and the end of the job: commit, MPI, Slurm's own steps. */
#define STOP_END_SECONDS 10.0

enum stop_level { STOP_NONE, STOP_DRAIN, STOP_NOW };

void stop_catch_signals(void);

/* Raises the level; any thread. `why` must be a string literal, or live as long as the process. The
 * first reason stays. */
void stop_raise(enum stop_level level, const char *why);
enum stop_level stop_get(void);
/* The reason of this name as another process gave it, to be raised here. */
const char *stop_find_reason(const char *name);
/* "SIGTERM", "the job's time limit", "another rank"; "" when nothing has asked to stop. */
const char *stop_reason(void);

/* The unix time at which the job is ended from outside; 0: not known. */
void stop_set_job_end(int64_t unix_s);
/* Seconds until then; infinite when it is not known. */
double stop_job_left_s(void);
/* Raises STOP_DRAIN when no more than margin_s is left until the job's end. */
void stop_check_job_end(double margin_s);

/* In STOP_DRAIN: the time_monotonic_s() until which sequences may go on; infinite when nothing
 * bounds it. */
double stop_deadline_s(void);

#endif
