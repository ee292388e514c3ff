#!/usr/bin/env bash
# record.sh - tells all stories, the slow ones too, and prints what came of them in Markdown, for
# results/bench/slurm-*.md. What the tests said goes to standard error. Environment: BUILD.
set -u
cd "$(dirname "$0")/../.." || exit 2

quire=$(realpath "${BUILD:-build}")/quire
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
export LAB_RECORD=$work/rows LAB_JOBS=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1

# Ranks of one thread each on this machine. "Busy": each rank's share of the time that it generated.
ranks()
{
    local n db
    for n in 1 2 4; do
        db=$work/ranks$n.db
        mpirun --oversubscribe --bind-to none -np "$n" "$quire" run configs/phases/phase1.yaml \
            --results "$db" --set engine.num_threads=1 >&2
        sqlite3 -separator ' | ' "$db" "
            select '| ' || $n, round(n / s, 1), round(tokens / s), busy, bytes || ' |'
            from (select sum(n_done) as n, max(wall_s) as s,
                         group_concat(round(100 * busy_s / wall_s) || ' %', ', ') as busy,
                         (sum(sent_bytes) + sum(received_bytes)) / 2 / sum(n_done) as bytes
                  from workers),
                 (select sum(n_output_tokens) as tokens from samples)"
    done
}

tests/slurm/test.sh tests/slurm/stories/*.sh tests/slurm/slow/*.sh >&2
cat <<TEXT
Four nodes in namespaces of one machine ($(nproc) processors, $(slurmctld -V),
$(mpirun --version | head -n 1)), the demo model on CPU; quire $(git rev-parse --short HEAD).
"Codes": what each run of the experiment ended with, in order. "Twice": finished samples that were
generated again. "Equal": every sample has the hash of one undisturbed process.

| story | what was done | codes | samples | twice | equal | seconds |
|---|---|---|---:|---:|---|---:|
$(cat "$LAB_RECORD")

mpirun on the same machine, 2,640 samples of phase 1:

| ranks | samples/s | tokens/s | busy | bytes per sample |
|---:|---:|---:|---|---:|
$(ranks)
TEXT
