/* main.c - finds the command, runs it, prints its error once. */
#include "engine/util.h"
#include "runner/commands.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *doc;
};

static const struct command commands[] = {
    {"run", command_run, "run an experiment; run it again to do what is missing"},
    {"plan", command_plan, "show tasks, memory and choices without running anything"},
    {"status", command_status, "show how far a run is, who is running where, what is missing"},
    {"results", command_results, "print results from a database"},
    {"merge", command_merge, "put the results of several files into one"},
    {"slurm", command_slurm, "print or submit the sbatch script of an experiment"},
    {"generate", command_generate, "answer one prompt and stream the text"},
    {"bench", command_bench, "measure attention kernels and whole models on this machine"},
    {"doctor", command_doctor, "show devices, libraries and environment variables"},
};

/* OpenMP threads that wait for each other spin for milliseconds by default. Where another program
 * wants the processors too, that makes small steps fifty times slower (the demo: 10 s instead of
 * 0.2 s); after a thousand turns they sleep instead. libgomp reads this before main() runs, so
 * main() starts anew. */
static void limit_spinning(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT"))
        return;
    if (setenv("GOMP_SPINCOUNT", "1000", 1) == 0)
        execv("/proc/self/exe", argv); /* returns only when it failed: then all is as before */
}

static void print_usage(FILE *out)
{
    fprintf(out,
            "quire %s - offline LLM experiments: YAML in, SQLite out\n\n"
            "usage: quire COMMAND [arguments]\n\n",
            QUIRE_VERSION);
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].doc);
    fprintf(out, "\n`quire COMMAND --help` explains one command; README.md has the manual.\n");
}

static int unknown_command(const char *word)
{
    const char *names[ARRAY_LEN(commands)];
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        names[i] = commands[i].name;
    const char *near = nearest_name(word, names, ARRAY_LEN(names));
    fprintf(stderr, "quire: there is no command '%s'", word);
    if (near)
        fprintf(stderr, "; did you mean 'quire %s'?", near);
    fprintf(stderr, "\n");
    if (!near)
        print_usage(stderr);
    return ERR_CONFIG;
}

static int finish(int code)
{
    if (err_get()[0] && code != 0)
        fprintf(stderr, "quire: %s\n", err_get());
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0) {
        fprintf(stderr, "quire: the output could not be written\n");
        return ERR_RESOURCE;
    }
    return code;
}

int main(int argc, char **argv)
{
    limit_spinning(argv);
    prctl(PR_SET_NAME, "quire"); /* ps and pkill would know it as "exe" */
    setlocale(LC_CTYPE, "");
    const char *level = getenv("QUIRE_LOG");
    if (level && log_set_level(level) != 0) {
        err_prefix("environment variable QUIRE_LOG");
        return finish(ERR_CONFIG);
    }
    if (argc < 2) {
        print_usage(stderr);
        return ERR_CONFIG;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return finish(0);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("quire %s\n", QUIRE_VERSION);
        return finish(0);
    }
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return finish(commands[i].run(argc - 1, argv + 1));
    return unknown_command(argv[1]);
}
