/* results_command.c - the `results` command's arguments. */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/results.h"

int command_results(int argc, char **argv)
{
    struct results_options o = {0};
    const struct cli_option options[] = {
        {"view", "NAME", "a view or table: throughput, latency, progress, fallbacks, ...", CLI_TEXT,
         &o.view},
        {"by", "KEYS", "mean output tok/s over the tasks with equal KEYS (comma-separated)",
         CLI_TEXT, &o.by},
        {"sql", "STATEMENT", "one statement that only reads", CLI_TEXT, &o.sql},
        {"samples", NULL, "prompts and texts", CLI_FLAG, &o.samples},
        {"failed", NULL, "why tasks failed; with --samples, the samples that failed", CLI_FLAG,
         &o.failed},
        {"limit", "N", "the first N rows only", CLI_INT, &o.limit},
        {"format", "NAME", "table (default), csv, json, jsonl or md", CLI_TEXT, &o.format},
    };
    const struct cli_command command = {
        .name = "results",
        .arguments = "DB",
        .n_arguments = 1,
        .doc =
            "Prints rows of a results database: by default a summary of each task's throughput.\n\n"
            "    quire results results/demo.db --by engine.attention,sampling.temperature\n"
            "    quire results results/demo.db --samples --limit 8\n"
            "    quire results results/demo.db --sql 'select * from events' --format json",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    enum cli_result parsed = cli_parse(&command, argc, argv, &o.db);
    if (parsed != CLI_OK)
        return parsed == CLI_HELP ? 0 : ERR_CONFIG;
    return results_print(stdout, &o) == 0 ? 0 : (int)err_get_kind();
}
