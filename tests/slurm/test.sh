#!/usr/bin/env bash
# test.sh [STORY...] - tests/slurm/stories/*.sh against a real Slurm, each in a cluster of its own.
#
# Where there can be no such cluster, one line says why, and the stories are skipped. The last line is
# the sum, as of tests/run.sh. Environment: BUILD, LAB_RECORD (a file for the rows of record.sh).
set -u
cd "$(dirname "$0")/../.." || exit 2

if [ $# = 0 ]; then
    set -- tests/slurm/stories/*.sh
fi
if ! why=$(tests/slurm/lab.sh --check 2>&1); then
    echo "skipped tests/slurm: $why"
    echo "0 passed, 0 failed, $# skipped"
    exit
fi
# The runs that nothing disturbs, which stories are compared with, are done once.
LAB_REFERENCE=$(mktemp -d) || exit 2
trap 'rm -rf "$LAB_REFERENCE"' EXIT
export LAB_REFERENCE
tests/run.sh "$@"
