#!/usr/bin/env bash
# The end of the job's time comes near in the middle of its work, twice: once Slurm warns the ranks
# with a signal, once they know the time.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

submit deadline
mid_run 64
exits "the signal of --signal=USR1@N goes to the ranks" 0 scancel -s USR1 "$job"
go_on
is_queued_again
sql_equal "after exit code 75" "$db" "select exit_code from runs" 75
check "with samples still to do" test "$(count_samples "$db")" -lt $N_SAMPLES
job_ends "the job completes" COMPLETED
sql_equal "the drained run says why it stopped" "$db" \
    "select count(*) > 0 from events where kind = 'signal' and detail like '%USR1%'" 1
as_undisturbed "USR1 to all ranks mid-run: drain, exit, requeue"

# Slurm 22.05 does not set the variable; newer ones do. quire leaves the last ten seconds to what
# comes after the last sample; until then the ranks stand still.
db=$work/end_time.db
end_s=$(($(date +%s) + 22))
SLURM_JOB_END_TIME=$end_s srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config" \
    --results "$db" --set engine.max_num_seqs=1 >"$out" 2>&1 &
pid=$!
mid_run 1
while [ "$(date +%s)" -lt $((end_s - 10)) ]; do
    sleep 0.1
done
go_on
status=0
wait $pid || status=$?
equal "a run whose job ends in ten seconds" $status 75
prints "says that the time limit is near" "time limit"
check "it has samples" has_samples "$db" 1
exits "the rest in another job" 0 srun --mpi=pmix -N4 "$quire" run "$config" --results "$db" \
    --set engine.max_num_seqs=1
as_undisturbed "job's end known in advance: drain" "$db"
