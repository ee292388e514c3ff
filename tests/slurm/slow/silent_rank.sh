#!/usr/bin/env bash
# A rank that neither works nor ends, and a node behind a broken cable: Slurm sees nothing wrong for
# minutes, but the other ranks stop by themselves, say why, and the job can be started again.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

run=(srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config" --results)

# fall_silent NAME COMMAND...: the command silences n3, in the middle of a run.
fall_silent()
{
    local name=$1 pid status=0 began
    shift
    "${run[@]}" "$db" >"$out" 2>&1 &
    pid=$!
    mid_run 64
    committed >"$work/before"
    go_on
    began=$SECONDS
    check "$name" "$@"
    wait $pid || status=$?
    echo "$name: exit $status after $((SECONDS - began)) s"
    check "$name: the job ends within a minute" test $((SECONDS - began)) -le 60
    prints "$name: and says which rank it misses" "rank 2 has not been heard of"
    equal "$name: what was committed is there" "$(committed | comm -23 "$work/before" -)" ""
}

# Slurm's own preset for giving up a node.
sed -i 's/^SlurmdTimeout=.*/SlurmdTimeout=300/' "$SLURM_CONF"
check "Slurm is patient" scontrol reconfigure

fall_silent "n3's rank is stopped" "$node" run 3 pkill -STOP -f "^$quire run"
exits "the same command does the rest" 0 "${run[@]}" "$db"
as_undisturbed "a rank stopped (SIGSTOP)"

db=$work/cut.db
fall_silent "n3's cable is pulled" "$node" cut 3
exits "the cable is plugged in again" 0 "$node" join 3
exits "the same command does the rest" 0 "${run[@]}" "$db"
as_undisturbed "the cable of a worker's node pulled"
