/* results.h - the `results` command: rows of a results database for a person or for a program. */
#ifndef QUIRE_RESULTS_H
#define QUIRE_RESULTS_H

#include "engine/util.h"

#include <stdio.h>

#define RESULTS_MAX_KEYS 16 /* of --by */

/* What to print: at most one of view, by, sql and samples; `failed` alone or with samples. Nothing:
 * the view `throughput`, of which the format "table" has what fits a terminal. */
struct results_options {
    const char *db;
    const char *view;   /* a view or table of the database, or NULL                         */
    const char *by;     /* "engine.attention,sampling_temperature", or NULL: output_tps of the
                           tasks with equal values, mean and standard deviation               */
    const char *sql;    /* one statement that only reads, or NULL                           */
    const char *format; /* of table.h; NULL: "table"                                        */
    bool samples;       /* prompts and texts; with `failed` only the samples that failed    */
    bool failed;        /* why tasks and samples failed                                     */
    int64_t limit;      /* the first rows only; 0: all                                      */
};

/* ERR_CONFIG: options that do not go together, an unknown name (with the nearest valid one), wrong
 * SQL; ERR_DATA: not a results database; ERR_RESOURCE: `out` cannot be written. */
int results_print(FILE *out, const struct results_options *o);

#endif
