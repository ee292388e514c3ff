#!/usr/bin/env bash
# --trace: every step that the store counts is on the timeline, with its parts and without gaps; no hash
# changes; a killed run leaves a file that can be read; every rank has a file.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

# events FILE WHERE COLUMNS: of the events of a trace. An unfinished file gets its bracket first.
events()
{
    cp "$1" "$work/events.json"
    tail -n 1 "$1" | grep -qx ']' || echo ']' >>"$work/events.json"
    sqlite3 :memory: "select $3 from (
        select json_extract(value, '\$.ph') ph, json_extract(value, '\$.name') name,
               json_extract(value, '\$.tid') tid, json_extract(value, '\$.pid') pid,
               json_extract(value, '\$.ts') ts, json_extract(value, '\$.dur') dur,
               json_extract(value, '\$.args.step') step,
               json_extract(value, '\$.args.prefill_tokens') prefill,
               json_extract(value, '\$.args.n_tokens') n_tokens
        from json_each(readfile('$work/events.json'))) where $2"
}

if ! sqlite3 :memory: "select json_extract('[1]', '\$[0]')" >/dev/null 2>&1; then
    skip trace "sqlite3 without JSON"
    exit
fi

# ---- the demo: two engines, one after the other ----

trace=$work/demo.json
exits "the demo without a trace" 0 "$quire" run configs/demo.yaml --results "$work/plain.db"
check "it says nothing of traces" sh -c "! grep -i trace '$out'"
exits "the demo with a trace" 0 "$quire" run configs/demo.yaml --results "$work/demo.db" --trace "$trace"
prints "it says where the trace is and how idle the device was" \
    "^\[\*\] Trace of [0-9]+ steps: $trace \(open it with https://ui.perfetto.dev .*idle for [0-9.]+ % of the time$"
equal "the same hashes" "$(hashes "$work/demo.db")" "$(hashes "$work/plain.db")"

steps=$(sql "$work/demo.db" "select sum(steps) from
                             (select max(steps) steps from attempts group by attention_used)")
equal "the device has every step that the store counts" \
    "$(events "$trace" "ph = 'X' and tid = 2" "count(*), count(distinct step)")" \
    "$steps|$((steps / 2))"
equal "so has each part of a step on the host" \
    "$(events "$trace" "ph = 'X' and tid = 1 and step > 0 group by name order by name" "name, count(*)")" \
    "$(printf '%s\n' callbacks commit launch prepare schedule wait | sed "s/\$/|$steps/")"
equal "the parts cover the steps" \
    "$(events "$trace" "tid = 1 and ph = 'X'" \
        "abs(sum(dur * (step > 0)) - sum(dur * (name = 'engine_step'))) < 0.01 * $steps")" 1
prompt_tokens=$(sql "$work/demo.db" "select sum(n_prompt_tokens - n_cached_tokens) from samples")
equal "its prefills are the prompts" "$(events "$trace" "tid = 2 and ph = 'X'" "sum(prefill)")" \
    "$prompt_tokens"
equal "every sample is written to the store" \
    "$(events "$trace" "tid = 3 and name = 'sample'" "count(*)")" 128
equal "no time is negative" "$(events "$trace" "ts < 0 or dur < 0" "count(*)")" 0

# ---- other ends ----

exits "a path that cannot be written" 2 "$quire" run configs/demo.yaml --results "$work/none.db" \
    --trace "$work/no/folder/trace.json"
prints "its reason" "^quire: --trace: cannot write .*/no/folder/trace.json: No such file"
check "it ends the run before it begins" test ! -e "$work/none.db"

cat >"$work/long.yaml" <<TEXT
experiment: long
model: {path: $PWD/configs/models/demo}
engine: {max_num_seqs: 4, num_threads: 1, max_model_len: 512}
sampling: {max_tokens: 400, temperature: 0.8, ignore_eos: true}
replications: 400
prompts: {list: ["17", "Add 62 and 47."]}
TEXT
"$quire" run "$work/long.yaml" --results "$work/long.db" --trace "$work/killed.json" >"$out" 2>&1 &
pid=$!
for _ in $(seq 500); do
    [ "$(stat -c %s "$work/killed.json" 2>/dev/null || echo 0)" -lt 100000 ] || break
    sleep 0.02
done
kill -9 $pid
wait $pid 2>/dev/null
check "a killed run leaves no end" sh -c "! tail -n 1 '$work/killed.json' | grep -qx ']'"
check "but steps that can be read" test "$(events "$work/killed.json" "tid = 2 and ph = 'X'" "count(*)")" -gt 40

# ---- workers of an array, which are given one path ----

for worker in 0 1; do
    exits "worker $worker of an array" 0 env SLURM_JOB_ID=7$worker SLURM_ARRAY_JOB_ID=70 \
        SLURM_ARRAY_TASK_ID=$worker SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=1 \
        "$quire" run configs/demo.yaml --results "$work/array.db" --trace "$work/array.json"
    check "worker $worker: its steps are in its own file" \
        test "$(events "$work/array.worker-$worker.json" "tid = 2 and ph = 'X'" "count(*) > 0")" = 1
done

# ---- the bench ----

exits "bench engine" 0 "$quire" bench engine --device cpu --model configs/models/minimal.json --repeats 1 \
    --batch 2 --prefill 9 --prompt 4 --output 3 --trace "$work/bench.json"
prints "its last line is about the trace" '^\[\*\] Trace of [0-9]+ steps: .*/bench.json'
equal "cases are spans" \
    "$(events "$work/bench.json" "name like 'decode B%' or name like 'prefill _'" "group_concat(name, ', ')")" \
    "prefill 9, decode B2 4+3"
exits "bench decode has no steps" 2 "$quire" bench decode --trace "$work/none.json"
exits "a bench that cannot write it" 2 "$quire" bench engine --device cpu --trace "$work/no/folder.json"

# ---- ranks ----

if ! command -v mpirun >/dev/null || [ ! -f "${BUILD:-build}/quire_mpi.so" ]; then
    skip "a trace of each rank" "no mpirun (openmpi-bin), or a build without MPI (libopenmpi-dev)"
    exit
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
exits "two ranks" 0 mpirun --oversubscribe --bind-to none -np 2 "$quire" run "$work/long.yaml" \
    --set replications=20 --results "$work/ranks.db" --trace "$work/ranks.json"
for rank in 0 1; do
    file=$work/ranks$([ $rank = 0 ] || echo .rank-$rank).json
    steps=$(sql "$work/ranks.db" "select max(steps) from attempts where rank = $rank")
    check "rank $rank: its steps are in its own file" \
        test "$(events "$file" "tid = 2 and ph = 'X' and pid = $((rank + 1))" "count(*)")" -ge "$steps"
done
