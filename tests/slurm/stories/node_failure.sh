#!/usr/bin/env bash
# A node loses its power in the middle of the work, first one that only works, then the one with
# rank 0 and the batch script. What is left to do is done on the nodes that remain.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

# Slurm would notice by itself after SlurmdTimeout.
crash()
{
    "$node" crash "$1"
    scontrol update NodeName="n$1" State=DOWN Reason=crash
}

settings=(--set slurm.nodes=2)
submit node_failure -w n1,n2
mid_run 64
before=$(committed)
exits "n2 crashes" 0 crash 2
is_queued_again
exits "n2 is replaced by n3 in the job" 0 scontrol update JobId="$job" ReqNodeList=n1,n3
mid_run $(($(count_samples "$db") + 16))
equal "what was committed is there" \
    "$(comm -23 <(echo "$before") <(committed))" ""
exits "n1 crashes, with rank 0" 0 crash 1
is_queued_again
exits "the job takes the nodes that are left" 0 scontrol update JobId="$job" ReqNodeList=n3,n4
job_ends "the job completes" COMPLETED
sql_equal "it took three runs" "$db" "select count(*) from runs" 3
sql_equal "the database is sound" "$db" "pragma integrity_check" ok
as_undisturbed "power failure of a worker node, then of rank 0's node"
