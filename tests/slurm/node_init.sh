#!/usr/bin/env bash
# node_init.sh NAME - the first process of a node (node.sh boot NAME): sets it up and is its init.
set -eu
name=$1

until ip link show eth0 >/dev/null 2>&1; do
    sleep 0.01
done
ip link set lo up
ip addr add "$(awk -v name="$name" '$2 == name { print $1 }' /etc/hosts)/24" dev eth0
ip link set eth0 up
hostname "$name"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
export TMPDIR=$SLURM_LAB/tmp/$name
slurmd -D -N "$name" &
# bash collects the orphans that slurmd leaves to us.
while :; do
    sleep 1000 &
    wait $! || true
done
