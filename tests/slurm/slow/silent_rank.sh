#!/usr/bin/env bash
# A rank that neither works nor ends, and a node behind a broken cable: Slurm sees nothing wrong for
# a while, but the other ranks stop by themselves, say why, and the job can be started again.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

# fall_silent NAME N_SAMPLES COMMAND...: the command silences n3, in the middle of a run.
fall_silent()
{
    local name=$1 n=$2 pid status=0 began
    shift 2
    srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config" >"$out" 2>&1 &
    pid=$!
    mid_run "$n"
    committed >"$work/before"
    began=$SECONDS
    check "$name" "$@"
    wait $pid || status=$?
    echo "$name: exit $status after $((SECONDS - began)) s"
    check "$name: the job ends within a minute" test $((SECONDS - began)) -le 60
    prints "$name: and says which rank it misses" "rank 2 has not been heard of"
    equal "$name: what was committed is there" "$(committed | comm -23 "$work/before" -)" ""
}

fall_silent "n3's rank is stopped" 64 "$node" run 3 pkill -STOP -f "^$quire run"
fall_silent "n3's cable is pulled" 128 "$node" cut 3
check "cable back" "$node" join 3
exits "the same command does the rest" 0 \
    srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config"
as_undisturbed "a rank stopped (SIGSTOP), then a node cut off"
