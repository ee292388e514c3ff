#!/usr/bin/env bash
# test.sh [STORY...] - stories (tests/slurm/stories/*.sh) on a real Slurm, each in a cluster of its own.
#
# Where there can be no such cluster, one line says why, and the stories are skipped. The last line is
# the sum, as that of tests/run.sh. Environment: BUILD; LAB_JOBS, how many stories are told at a time
# (they mostly wait for Slurm); LAB_RECORD, a file for the rows of record.sh.
set -u
cd "$(dirname "$0")/../.." || exit 2

LAB_JOBS=${LAB_JOBS:-3}
if [ $# = 0 ]; then
    set -- tests/slurm/stories/*.sh
fi
if ! why=$(tests/slurm/lab.sh --check 2>&1); then
    echo "skipped tests/slurm: ${why#lab.sh: }"
    echo "0 passed, 0 failed, $# skipped"
    exit
fi
# The runs that nothing disturbs, which stories are compared with, are done once.
LAB_REFERENCE=$(mktemp -d) || exit 2
export LAB_REFERENCE
trap 'rm -rf "$LAB_REFERENCE"' EXIT

# Prints its lines when it has ended, but for the sum.
tell()
{
    local log
    log=$LAB_REFERENCE/$(basename "$1").log
    tests/run.sh "$1" >"$log" 2>&1
    sed '$d' "$log"
}

for story in "$@"; do
    while [ "$(jobs -pr | wc -l)" -ge "$LAB_JOBS" ]; do
        wait -n
    done
    tell "$story" &
done
wait
tail -qn 1 "$LAB_REFERENCE"/*.log |
    awk '{ ok += $1; bad += $3; skip += $5 }
         END { print ok + 0 " passed, " bad + 0 " failed, " skip + 0 " skipped"; exit bad > 0 }'
