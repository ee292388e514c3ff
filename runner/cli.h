/* cli.h - command lines: one table of options per command drives parsing and --help. */
#ifndef QUIRE_CLI_H
#define QUIRE_CLI_H

#include "engine/util.h"

#define CLI_MAX_OPTIONS 32
#define CLI_MAX_LIST    64 /* values of one repeatable option */

enum cli_type {
    CLI_FLAG,   /* bool *                             */
    CLI_TEXT,   /* const char **, borrowed from argv  */
    CLI_INT,    /* int64_t *                          */
    CLI_NUMBER, /* double *                           */
    CLI_LIST,   /* struct cli_list *, may be repeated */
};

struct cli_list {
    const char *text[CLI_MAX_LIST + 1]; /* room for one that a command adds */
    size_t n;
};

struct cli_option {
    const char *name;       /* "max-tokens", without the dashes */
    const char *value_name; /* "N"; NULL for a flag             */
    const char *doc;
    enum cli_type type;
    void *out; /* holds the default before parsing */
};

struct cli_command {
    const char *name;
    const char *arguments; /* "CONFIG", or "" */
    int n_arguments;       /* all required    */
    bool any_more;         /* further ones may follow */
    const char *doc;       /* what the command does, wrapped by hand */
    const struct cli_option *option;
    size_t n_options;
};

enum cli_result { CLI_OK, CLI_HELP, CLI_ERROR };

/* Parses argv (argv[0] is the command's name). argument[n_arguments] receives the positional ones;
 * with any_more it has room for argc of them, and NULL follows the last.
 * CLI_HELP: --help was asked for and printed. CLI_ERROR: ERR_CONFIG with the nearest valid name. */
enum cli_result cli_parse(const struct cli_command *command, int argc, char **argv,
                          const char **argument);

/* "quire bench decode --batch 8": the command line for a record, before getopt reorders argv. The
 * caller frees. */
char *cli_join(int argc, char **argv);

#endif
