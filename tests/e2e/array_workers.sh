#!/usr/bin/env bash
# Sixty-four workers of a job array start in the same second: each writes a shard of its own, none
# disturbs another, and together they did what one process does.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

n_workers=64
config=configs/demo.yaml
db=$work/array.db

exits "one process does all" 0 "$quire" run $config --results "$work/whole.db" \
    --set engine.num_threads=1
expected=$(sql "$work/whole.db" "select key, output_sha256 from samples order by key")

# worker I: task I of the array, with what Slurm sets in it.
worker()
{
    local i=$1
    SLURM_ARRAY_JOB_ID=9 SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_MIN=0 \
        SLURM_ARRAY_TASK_MAX=$((n_workers - 1)) SLURM_ARRAY_TASK_STEP=1 \
        SLURM_ARRAY_TASK_COUNT=$n_workers SLURM_JOB_ID=$((100 + i)) \
        "$quire" run $config --results "$db" --set engine.num_threads=1
}

pids=()
for ((i = 0; i < n_workers; i++)); do
    worker $i >"$work/$i.log" 2>&1 &
    pids+=($!)
done
n_failed=0
for ((i = 0; i < n_workers; i++)); do
    wait "${pids[i]}" || { n_failed=$((n_failed + 1)) && tail -n 3 "$work/$i.log"; }
done
equal "all workers end well" $n_failed 0
shards=("$work"/array.d/*.db)
equal "there are 64 shards" "${#shards[@]}" $n_workers
for shard in "${shards[@]}"; do
    sql "$shard" "select key, output_sha256 from samples"
done | sort >"$work/union"
equal "every sample is in one of them, with the hash of the one process" "$(cat "$work/union")" "$expected"
