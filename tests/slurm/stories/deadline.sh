#!/usr/bin/env bash
# The end of the job's time comes near in the middle of its work, twice: once Slurm warns the ranks
# with a signal, once they know the time.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

submit deadline
mid_run 64
exits "the signal of --signal=USR1@N goes to the ranks" 0 scancel -s USR1 "$job"
is_queued_again
sql_equal "after exit code 75" "$db" "select exit_code from runs" 75
check "with samples still to do" test "$(count_samples "$db")" -lt $N_SAMPLES
job_ends "the job completes" COMPLETED
sql_equal "the drained run says why it stopped" "$db" \
    "select count(*) > 0 from events where kind = 'signal' and detail like '%USR1%'" 1
as_undisturbed "USR1 to all ranks mid-run: drain, exit, requeue"

# Slurm 22.05 does not set the variable; newer ones do. Of the 15 s, quire leaves ten to what comes
# after the last sample; in the rest it cannot do everything one sequence at a time.
db=$work/end_time.db
SLURM_JOB_END_TIME=$(($(date +%s) + 15)) exits "a run whose job ends in 15 s" 75 \
    srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config" --results "$db" \
    --set engine.max_num_seqs=1
prints "says that the time limit is near" "time limit"
check "it has samples" has_samples "$db" 1
exits "the rest in another job" 0 srun --mpi=pmix -N4 "$quire" run "$config" --results "$db" \
    --set engine.max_num_seqs=1
as_undisturbed "job's end known in advance: drain" "$db"
