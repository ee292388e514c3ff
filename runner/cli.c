/* cli.c - see cli.h. Parsing is getopt_long's. */
#include "runner/cli.h"

#include <assert.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#define FIRST_LONG 256 /* getopt values of long options, clear of characters */

static void print_help(const struct cli_command *command)
{
    printf("usage: quire %s%s%s [options]\n\n%s\n\noptions:\n", command->name,
           command->arguments[0] ? " " : "", command->arguments, command->doc);
    for (size_t i = 0; i < command->n_options; i++) {
        const struct cli_option *o = &command->option[i];
        char left[64];
        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->value_name ? " " : "",
                 o->value_name ? o->value_name : "");
        printf("  %-26s %s\n", left, o->doc);
    }
    printf("  %-26s %s\n", "--help", "print this");
}

static int unknown_option(const struct cli_command *command, const char *word)
{
    const char *names[CLI_MAX_OPTIONS];
    for (size_t i = 0; i < command->n_options; i++)
        names[i] = command->option[i].name;
    while (*word == '-')
        word++;
    char name[64];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(word, "="), word);
    const char *near = nearest_name(name, names, command->n_options);
    if (near)
        return err_set(ERR_CONFIG, "quire %s has no option --%s; did you mean --%s?", command->name,
                       name, near);
    return err_set(ERR_CONFIG, "quire %s has no option --%s; `quire %s --help` lists them",
                   command->name, name, command->name);
}

static int store_value(const struct cli_option *o, const char *text)
{
    switch (o->type) {
    case CLI_FLAG: *(bool *)o->out = true; return 0;
    case CLI_TEXT: *(const char **)o->out = text; return 0;
    case CLI_INT:
        if (!parse_int64(o->out, text))
            return err_set(ERR_CONFIG, "--%s is '%s'; expected a whole number", o->name, text);
        return 0;
    case CLI_NUMBER:
        if (!parse_double(o->out, text))
            return err_set(ERR_CONFIG, "--%s is '%s'; expected a number", o->name, text);
        return 0;
    case CLI_LIST: {
        struct cli_list *list = o->out;
        if (list->n == CLI_MAX_LIST)
            return err_set(ERR_CONFIG, "--%s is given more than %d times", o->name, CLI_MAX_LIST);
        list->text[list->n++] = text;
        return 0;
    }
    }
    return 0;
}

static int take_arguments(const struct cli_command *command, int n, char **rest,
                          const char **argument)
{
    if (n < command->n_arguments || (n > command->n_arguments && !command->any_more))
        return err_set(ERR_CONFIG, "usage: quire %s%s%s [options]; %s (`quire %s --help`)",
                       command->name, command->arguments[0] ? " " : "", command->arguments,
                       n < command->n_arguments ? "an argument is missing"
                                                : "there are too many arguments",
                       command->name);
    for (int i = 0; i < n; i++)
        argument[i] = rest[i];
    if (command->any_more)
        argument[n] = NULL;
    return 0;
}

enum cli_result cli_parse(const struct cli_command *command, int argc, char **argv,
                          const char **argument)
{
    struct option longs[CLI_MAX_OPTIONS + 2];
    size_t n = command->n_options;
    assert(n <= CLI_MAX_OPTIONS);
    for (size_t i = 0; i < n; i++)
        longs[i] = (struct option){.name = command->option[i].name,
                                   .has_arg = command->option[i].type != CLI_FLAG,
                                   .val = FIRST_LONG + (int)i};
    longs[n] = (struct option){.name = "help", .val = 'h'};
    longs[n + 1] = (struct option){0};

    optind = 0; /* glibc: start anew, whatever was parsed before */
    opterr = 0;
    for (;;) {
        int c = getopt_long(argc, argv, ":h", longs, NULL);
        if (c == -1)
            break;
        if (c == 'h') {
            print_help(command);
            return CLI_HELP;
        }
        if (c == ':') {
            err_set(ERR_CONFIG, "%s needs a value (`quire %s --help`)", argv[optind - 1],
                    command->name);
            return CLI_ERROR;
        }
        if (c == '?') {
            unknown_option(command, argv[optind - 1]);
            return CLI_ERROR;
        }
        if (store_value(&command->option[c - FIRST_LONG], optarg) != 0)
            return CLI_ERROR;
    }
    return take_arguments(command, argc - optind, argv + optind, argument) == 0 ? CLI_OK
                                                                                : CLI_ERROR;
}

char *cli_join(int argc, char **argv)
{
    struct str line = {0};
    str_append_c(&line, "quire");
    for (int i = 0; i < argc; i++)
        str_appendf(&line, " %s", argv[i]);
    return line.data;
}
