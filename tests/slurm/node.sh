#!/usr/bin/env bash
# node.sh ACTION I [COMMAND...] - what happens to node nI of the lab (lab.sh), inside which it runs.
#
#   boot     starts the node and its slurmd
#   crash    a power failure: everything on it is gone at once
#   cut      pulls its network cable       join   plugs it in again
#   run      runs COMMAND on it
#
# A node is a set of namespaces: the kernel ends what is in them when their first process is killed,
# and its veth pair goes with its network. /dev/shm is its own, or MPI would take two nodes for one.
# As an agent of mpirun (--mca plm_rsh_agent node.sh) it is called as ssh would be: node.sh nI COMMAND...
set -eu
: "${SLURM_LAB:?runs inside the lab: tests/slurm/lab.sh}"
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

first_process()
{
    cat "$SLURM_LAB/$1.pid"
}

boot()
{
    local name=$1 i=${1#n} unshare_pid pid="" tries
    setsid unshare --mount --uts --ipc --net --pid --fork --kill-child=KILL --mount-proc \
        "$here/node_init.sh" "$name" </dev/null >>"$SLURM_LAB/log/$name.out" 2>&1 &
    unshare_pid=$!
    for ((tries = 0; tries < 500; tries++)); do
        pid=$(cat "/proc/$unshare_pid/task/$unshare_pid/children")
        pid=${pid%% *}
        [ -z "$pid" ] || break
        sleep 0.01
    done
    echo "$pid" >"$SLURM_LAB/$name.pid"
    ip link add "cable$i" type veth peer name eth0 netns "$pid"
    ip link set "cable$i" master switch up
}

run()
{
    local pid
    pid=$(first_process "$1")
    shift
    exec nsenter --target "$pid" --mount --uts --ipc --net --pid "$@"
}

action=$1
case $action in
n[0-9]*)
    shift
    run "$action" sh -c "$*"
    ;;
boot) boot "n$2" ;;
crash) kill -KILL "$(first_process "n$2")" ;;
cut) ip link set "cable$2" down ;;
join) ip link set "cable$2" up ;;
run)
    name=n$2
    shift 2
    run "$name" "$@"
    ;;
*)
    sed -n '2,7s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
