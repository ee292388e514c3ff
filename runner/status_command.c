/* status_command.c - the `status` command's arguments, its plan, and watching. */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CLEAR_SCREEN "\033[H\033[2J\033[3J"

struct command_options {
    const char *path, *format_name; /* of the database or the configuration */
    enum table_format format;
    double watch_s; /* 0: once */
    struct cli_list sets;
};

static bool has_ending(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending);
    return n >= m && strcmp(path + n - m, ending) == 0;
}

static bool is_config(const char *path)
{
    return has_ending(path, ".yaml") || has_ending(path, ".yml");
}

static int check_options(struct command_options *o)
{
    if (o->format_name && table_format_find(&o->format, o->format_name) != 0)
        return -1;
    if (o->format != TABLE_TEXT && o->format != TABLE_JSON)
        return err_set(ERR_CONFIG, "--format is %s; a status is printed as table or json",
                       o->format_name);
    if (!(o->watch_s >= 0 && o->watch_s <= 86400))
        return err_set(ERR_CONFIG, "--watch is %g; expected seconds, at most a day", o->watch_s);
    if (o->sets.n && !is_config(o->path))
        return err_set(ERR_CONFIG, "--set is for a CONFIG; %s is taken for a database", o->path);
    return 0;
}

static void pause_for(double seconds)
{
    struct timespec left = {.tv_sec = (time_t)seconds,
                            .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
    while (nanosleep(&left, &left) != 0) {
    }
}

/* Prints the status, with --watch again and again until nothing is left to do. */
static int watch(const struct command_options *o, const char *db, const struct config *config,
                 struct work_list *plan)
{
    bool screen = o->watch_s > 0 && o->format == TABLE_TEXT && isatty(STDOUT_FILENO);
    for (;;) {
        struct status status;
        int rc = status_read(&status, db, config, plan);
        bool is_last = o->watch_s == 0 || status.tasks.running + status.tasks.pending == 0;
        if (rc == 0 && screen)
            fputs(CLEAR_SCREEN, stdout);
        if (rc == 0)
            status_print(stdout, &status, o->format);
        status_free(&status);
        if (rc != 0)
            return -1;
        if (fflush(stdout) != 0)
            return err_set(ERR_RESOURCE, "the output could not be written");
        if (is_last)
            return 0;
        pause_for(o->watch_s);
    }
}

static int watch_config(struct command_options *o)
{
    struct config *config;
    struct work_list plan;
    if (config_load(&config, o->path, o->sets.text, o->sets.n) != 0)
        return -1;
    struct decision_policy policy = {.allow_cpu = true, .allow_standard_engine = true};
    int rc = work_list_make(&plan, config, &policy);
    if (rc == 0)
        rc = watch(o, config->results, config, &plan);
    work_list_free(&plan);
    config_close(config);
    return rc;
}

int command_status(int argc, char **argv)
{
    struct command_options o = {.format = TABLE_TEXT};
    const struct cli_option options[] = {
        {"watch", "SECONDS", "print it again and again until nothing is left to do", CLI_NUMBER,
         &o.watch_s},
        {"set", "KEY=VALUE", "override a key of the config; may be repeated", CLI_LIST, &o.sets},
        {"format", "NAME", "table (default) or json: one object a line", CLI_TEXT, &o.format_name},
    };
    const struct cli_command command = {
        .name = "status",
        .arguments = "DB|CONFIG",
        .n_arguments = 1,
        .doc =
            "Shows how far an experiment is: tasks and samples, rate and ETA, who is running\n"
            "where, the last events, and how to do what is missing. It only reads, loads no\n"
            "model and needs no GPU. CONFIG (a name that ends in .yaml or .yml) also counts the\n"
            "tasks that no run has begun, and finds the workers of a job array whose share is\n"
            "not finished; DB counts what is in the database and its shards.",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    enum cli_result parsed = cli_parse(&command, argc, argv, &o.path);
    if (parsed != CLI_OK)
        return parsed == CLI_HELP ? 0 : ERR_CONFIG;
    int rc = check_options(&o);
    if (rc == 0)
        rc = is_config(o.path) ? watch_config(&o) : watch(&o, o.path, NULL, NULL);
    return rc == 0 ? 0 : (int)err_get_kind();
}
