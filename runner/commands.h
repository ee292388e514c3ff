/* commands.h - the commands of the quire program. Each parses its own arguments (argv[0] is the
 * command's name) and returns an exit code; main() prints the error when err_get() has one. */
#ifndef QUIRE_COMMANDS_H
#define QUIRE_COMMANDS_H

int command_run(int argc, char **argv);
int command_plan(int argc, char **argv);
int command_status(int argc, char **argv);
int command_results(int argc, char **argv);
int command_merge(int argc, char **argv);
int command_slurm(int argc, char **argv);
int command_generate(int argc, char **argv);
int command_bench(int argc, char **argv);
int command_doctor(int argc, char **argv);

#endif
