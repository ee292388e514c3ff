/* slurm.h - the sbatch script of an experiment.
 *
 * The script works in the folder where `quire slurm` was called, so that every relative path means
 * what it means to `quire run` there. Who is told that the end is near: Slurm sends USR1 to the
 * ranks themselves (--signal without B:), which finish what fits, commit and exit with 75; then the
 * script requeues its job. It does not when Slurm itself ends the job: a requeue after scancel
 * would bring a cancelled job back.
 */
#ifndef QUIRE_SLURM_H
#define QUIRE_SLURM_H

#include "runner/config.h"

#define SLURM_LOG_DIR "logs"

struct slurm_job {
    const struct config *config;
    const char *program;     /* absolute path of quire                        */
    const char *directory;   /* absolute path of the folder to work in        */
    const char *const *sets; /* [n_sets] KEY=VALUE of --set, for `quire run` */
    size_t n_sets;
};

/* ERR_CONFIG for a path that no line of a script can hold. */
int slurm_check(const struct slurm_job *job);

/* Appends the script. */
void slurm_write_script(struct str *out, const struct slurm_job *job);

/* The arguments of the sbatch that puts the shards of an array together, without the dependency:
 * NULL-terminated, for slurm_free_arguments. */
char **slurm_merge_arguments(const struct slurm_job *job);
void slurm_free_arguments(char **arguments);

/* Appends a word as a shell reads it back: bare when it is harmless, else in single quotes. */
void slurm_quote(struct str *out, const char *word);

#endif
