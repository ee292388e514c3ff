#!/usr/bin/env bash
# lab.sh [COMMAND...] - a Slurm cluster on this machine, for as long as COMMAND (a shell) runs.
#
# Four nodes n1..n4 with an Ethernet between them and the login node, where COMMAND runs; node.sh
# crashes, boots and unplugs them. Jobs of the partition `urgent` push out those of `preemptible`,
# which is the default.
#
# The lab is one set of namespaces with a first process of its own. When that process ends, however it
# does, the kernel ends everything inside and takes the network and the mounts away; it is killed when
# the process that called lab.sh dies. So nothing is searched for by name, nothing can be left over,
# and labs side by side do not see each other. $SLURM_LAB, a memory file system that only the lab
# sees, holds configuration, keys, logs and what COMMAND puts below $TMPDIR; nothing outlives the lab.
#
#   login 10.77.0.254  munged, slurmctld, COMMAND     bridge `switch`
#   nI    10.77.0.I    slurmd and the jobs' steps     eth0 - cable `cableI` at the switch
#
# Prints why and exits with 2 where a lab cannot be: lab.sh --check asks only that.
set -eu
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

export SLURM_LAB=/run/lab
export SLURM_CONF=$SLURM_LAB/slurm.conf
readonly N_NODES=4
# Large enough for the scripts in slurm/; what the machine really has does not matter.
readonly NODE_CPUS=32
readonly NODE_GPUS=4
readonly NODE_MIB=262144
readonly NET=10.77.0
# munge makes its address out of its folder's; some sockets end with 107 characters.
readonly MUNGE_SOCKET=$SLURM_LAB/munge.sock

stop()
{
    echo "lab.sh: $1" >&2
    exit "${2:-1}"
}

# Prints why there can be no lab here; fails when there can be one.
why_not()
{
    local command
    for command in slurmctld slurmd sbatch srun munged ip unshare nsenter setpriv; do
        if ! command -v $command >/dev/null; then
            echo "$command is not installed"
            return
        fi
    done
    if [ "$(id -u)" != 0 ]; then
        echo "namespaces and devices need root"
        return
    fi
    if ! in_namespaces sh -c "ip link add switch type bridge && ip link add cable type veth &&
            mount -t tmpfs tmpfs /run && mknod /run/gpu c 1 3" >/dev/null 2>&1; then
        echo "this machine refuses namespaces, network devices or mounts"
        return
    fi
    return 1
}

# --pdeathsig reaches unshare when our caller dies, --kill-child reaches the lab when unshare does.
in_namespaces()
{
    setpriv --pdeathsig KILL unshare --mount --uts --ipc --net --pid --fork --kill-child=KILL \
        --mount-proc "$@"
}

# until_true COMMAND...: waits for at most ten seconds.
until_true()
{
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        if "$@" >/dev/null 2>&1; then
            return
        fi
        sleep 0.05
    done
    tail -n 12 $SLURM_LAB/log/* >&2
    stop "waited too long for: $*"
}

make_network()
{
    ip link set lo up
    ip link add switch type bridge
    ip addr add $NET.254/24 dev switch
    ip link set switch up
}

# The file system below: a character device that is null stands for a GPU.
make_files()
{
    local i
    mount -t tmpfs tmpfs /run
    mkdir -p $SLURM_LAB/{log,state,spool,dev,tmp,work}
    for ((i = 0; i < NODE_GPUS; i++)); do
        mknod -m 666 $SLURM_LAB/dev/gpu$i c 1 3
    done
    printf '127.0.0.1 localhost\n%s.254 login\n' $NET >$SLURM_LAB/hosts
    for ((i = 1; i <= N_NODES; i++)); do
        mkdir $SLURM_LAB/spool/n$i
        mkdir -m 1777 $SLURM_LAB/tmp/n$i
        echo "$NET.$i n$i" >>$SLURM_LAB/hosts
    done
    mount --bind $SLURM_LAB/hosts /etc/hosts
}

# With most of Slurm's ways to synchronise nodes some launches end in a crash in MPI_Init: a message
# arrives before Open MPI listens for it. Of launches of 16 ranks on two processors, `tree` lost 12 of
# 50, `ring` none of 175.
make_configuration()
{
    sed -e "s|@LAB@|$SLURM_LAB|g; s|@NET@|$NET|g; s|@N@|$N_NODES|g; s|@CPUS@|$NODE_CPUS|g" \
        -e "s|@GPUS@|$NODE_GPUS|g; s|@MIB@|$NODE_MIB|g; s|@MUNGE@|$MUNGE_SOCKET|g" \
        "$here/slurm.conf.in" >$SLURM_CONF
    for ((i = 1; i <= N_NODES; i++)); do
        echo "NodeName=n$i NodeAddr=$NET.$i" >>$SLURM_CONF
    done
    echo "PMIxCollFence=ring" >$SLURM_LAB/mpi.conf
    printf '%s\n' "AutoDetect=off" \
        "NodeName=n[1-$N_NODES] Name=gpu Type=fake File=$SLURM_LAB/dev/gpu[0-$((NODE_GPUS - 1))]" \
        >$SLURM_LAB/gres.conf
    # shellcheck disable=SC2016 # the node's name is known when a task starts
    printf '#!/bin/sh\necho "export TMPDIR=%s/tmp/$SLURMD_NODENAME"\n' $SLURM_LAB \
        >$SLURM_LAB/taskprolog
    chmod 755 $SLURM_LAB/taskprolog
}

munge_works()
{
    munge --socket=$MUNGE_SOCKET --no-input | unmunge --socket=$MUNGE_SOCKET
}

all_nodes_are_idle()
{
    [ "$(timeout 2 sinfo -h -N -p preemptible -t idle -o %N | wc -l)" = $N_NODES ]
}

# daemon NAME COMMAND...: in a session of its own, out of reach of the terminal's Ctrl-C.
daemon()
{
    local name=$1
    shift
    setsid "$@" </dev/null >"$SLURM_LAB/log/$name.out" 2>&1 &
}

start_cluster()
{
    local i
    (umask 077 && head -c 1024 /dev/urandom >$SLURM_LAB/munge.key)
    daemon munged munged --foreground --socket=$MUNGE_SOCKET --key-file=$SLURM_LAB/munge.key \
        --pid-file=$SLURM_LAB/munged.pid --seed-file=$SLURM_LAB/munge.seed \
        --log-file=$SLURM_LAB/log/munged.log
    until_true munge_works
    daemon slurmctld slurmctld -D -c
    until_true timeout 2 scontrol ping
    for ((i = 1; i <= N_NODES; i++)); do
        "$here/node.sh" boot $i
    done
    until_true all_nodes_are_idle
}

inside()
{
    # The first process of a PID namespace ignores the signals for which it has no handler.
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    hostname login
    umask 022
    make_files
    make_network
    make_configuration
    start_cluster
    export TMPDIR=$SLURM_LAB/work
    # In the background, because bash acts on a signal only when no command is in its foreground; such
    # a command would ignore Ctrl-C.
    env --default-signal=INT "$@" <&0 &
    wait $!
}

case ${1:-} in
--check)
    if why=$(why_not); then
        stop "$why" 2
    fi
    ;;
--inside)
    shift
    inside "$@"
    ;;
*)
    if why=$(why_not); then
        stop "$why" 2
    fi
    if [ $# = 0 ]; then
        set -- bash
    fi
    in_namespaces "$here/lab.sh" --inside "$@"
    ;;
esac
