#!/usr/bin/env bash
# A job of a higher partition takes the nodes in the middle of the work.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

submit preempted --exclusive
mid_run 64
preempted=$job
job=$(sbatch --parsable -p urgent -N4 --exclusive --output="$work/urgent.out" --wrap "sleep 1")
job_ends "the urgent job runs at once" COMPLETED
job=$preempted
is_queued_again
job_ends "and completes" COMPLETED
check "Slurm had preempted it" grep -q "DUE TO PREEMPTION" "$work/preempted.out"
sql_equal "it took two runs" "$db" "select count(*) from runs" 2
as_undisturbed "preempted by a job of a higher partition"
