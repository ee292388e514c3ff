#!/usr/bin/env bash
# A node is cut off the network. Its job starts again elsewhere, while the old attempt still
# computes and reaches the file system: it must not write any more.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

# One sequence at a time: slow enough for the two to meet. n1 has rank 0 for itself.
submit split_brain -N1 -w n1 < <(job_script --set engine.max_num_seqs=1)
mid_run 32
exits "n1's cable is pulled" 0 "$node" cut 1
scontrol update NodeName=n1 State=DOWN Reason=cable
is_queued_again
exits "for another node" 0 scontrol update JobId="$job" ReqNodeList=n2
old_attempt_ended()
{
    grep -q "^n1 attempt 0" "$work/exits"
}
check "the old attempt ends" wait_for 60 old_attempt_ended
check "while the new one runs" is_in_state "$job" RUNNING
equal "its exit code says that there is more to do" "$(head -n 1 "$work/exits")" \
    "n1 attempt 0: exit 75"
check "it says who writes now" grep -qE "was requeued: attempt 1 .*attempt 0, stops" "$work/split_brain.out"
"$node" join 1
job_ends "the new attempt completes" COMPLETED
sql_equal "the database is sound" "$db" "pragma integrity_check" ok
as_undisturbed "network cut: two attempts at once"
