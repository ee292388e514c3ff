#!/usr/bin/env bash
# Somebody requeues the job in the middle of its work.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

submit requeue
mid_run 64
exits "scontrol requeue" 0 scontrol requeue "$job"
go_on
is_queued_again
job_ends "the job completes" COMPLETED
sql_equal "two runs, the second one knows that it is a restart" "$db" \
    "select group_concat(restart_count) from (select restart_count from runs order by run_id)" "0,1"
as_undisturbed "\`scontrol requeue\` mid-run"
