#!/usr/bin/env bash
# A node is cut off the network and stands still. Its job starts again elsewhere; then the old attempt
# wakes, computes on and reaches the file system: it must not write any more.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

# One sequence at a time: slow enough for the two to meet, as the old attempt stands still for the
# seconds that Slurm takes. n1 has rank 0 for itself.
settings=(--set slurm.nodes=1 --set engine.max_num_seqs=1)
submit split_brain -w n1
mid_run 32
exits "n1's cable is pulled" 0 "$node" cut 1
scontrol update NodeName=n1 State=DOWN Reason=cable
is_queued_again
exits "for another node" 0 scontrol update JobId="$job" ReqNodeList=n2
check "the new attempt starts" wait_for 60 is_in_state "$job" RUNNING
exits "n1 wakes" 0 "$node" run 1 pkill -CONT -x quire
check "the old attempt ends with the code for more to do" wait_for 60 \
    grep -q "n1: task 0: Exited with exit code 75" "$work/split_brain.out"
check "while the new one runs" is_in_state "$job" RUNNING
check "it says who writes now" \
    grep -qE "was requeued: attempt 1 .*attempt 0, stops" "$work/split_brain.out"
job_ends "the new attempt completes" COMPLETED

# The old attempt's script comes to its end when Slurm answers again; a requeue would start all anew.
nothing_is_left_on_n1()
{
    ! "$node" run 1 pgrep -f '^slurmstepd'
}
exits "n1's cable is plugged in again" 0 "$node" join 1
check "the old attempt's script ends" wait_for 60 nothing_is_left_on_n1
equal "and has not brought the job back" \
    "$(scontrol show job -o "$job" | grep -oE '(JobState|Restarts)=[^ ]*' | paste -sd ' ')" \
    "JobState=COMPLETED Restarts=1"
sql_equal "the database is sound" "$db" "pragma integrity_check" ok
as_undisturbed "network cut: two attempts at once"
