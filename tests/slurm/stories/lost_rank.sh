#!/usr/bin/env bash
# One rank of four is killed, as the kernel does when memory runs out: a worker, then rank 0. The job
# ends within seconds, says so, and loses nothing that was committed.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

# kill_rank ON_NODE: starts the run on four nodes and kills the rank there.
kill_rank()
{
    local pid status=0 began
    srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config" >"$out" 2>&1 &
    pid=$!
    mid_run $(($(count_samples "$db") + 16))
    committed >"$work/before"
    began=$SECONDS
    # On a node only its own processes are to be seen.
    "$node" run "$1" pkill -KILL -f "^$quire run"
    go_on
    wait $pid || status=$?
    equal "the job ends with the code of the signal" $status 137
    check "within ten seconds" test $((SECONDS - began)) -le 10
    prints "and says which rank it was" "task $(($1 - 1)): Killed"
    equal "what was committed is there" \
        "$(committed | comm -23 "$work/before" -)" ""
}

kill_rank 3
kill_rank 1
exits "the same command does the rest" 0 \
    srun --mpi=pmix --kill-on-bad-exit=1 -N4 "$quire" run "$config"
as_undisturbed "SIGKILL of a worker's rank, then of rank 0"
