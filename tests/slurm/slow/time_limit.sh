#!/usr/bin/env bash
# Slurm's own time limit, for work of more than that: a job that Slurm warns with a signal, and one
# that asks Slurm when it ends.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

# One sequence at a time on one node.
long=$work/long.yaml
sed "s/^replications: .*/replications: 72/; s,^results: .*,results: $work/long.db," "$config" >"$long"
config=$long

# run_out_of_time NAME MINUTES SECONDS: signalled so long before each end of the job's time, or up to
# a minute earlier, as Slurm does; 0: not at all.
run_out_of_time()
{
    local name=$1
    db=$work/$name.db
    settings=(--set slurm.nodes=1 --set engine.max_num_seqs=1 --set slurm.time="$2"
        --set slurm.signal_seconds="$3")
    submit "$name"
    check "$name: the job completes" wait_for 500 is_in_state "$job" COMPLETED
    sql_equal "$name: it took several runs, and all but the last ended with 75" "$db" \
        "select count(*) > 1, sum(exit_code = 75) = count(*) - 1 from runs" "1|1"
}

run_out_of_time warned 2 30
as_undisturbed "time limit of two minutes, \`--signal=USR1@30\`" "$db" "$config"
run_out_of_time asked 1 0
as_undisturbed "time limit of a minute, no signal: its end asked of Slurm" "$db" "$config"
