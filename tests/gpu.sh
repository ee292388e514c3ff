#!/usr/bin/env bash
# gpu.sh - tests and measurements on a machine with an NVIDIA GPU that need not be able to build.
#
#   tests/gpu.sh prepare       here: fills build/gpu with programs, libraries, models and this script
#   build/gpu/gpu.sh [PART...] there: runs the parts (all of them when none is named)
#
# Parts: tests (models and engines on the GPU against Transformers' results), hashes (equal tokens
# under many settings), fallback (no GPU visible), sanitize (compute-sanitizer on our kernels),
# workloads (M and N end to end), ranks (two GPUs), benches (operations, attention, quire bench).
# The last line is "N passed, N failed, N skipped".
# Environment of prepare: CUDA_ARCHS (90a). Of the run: OUT, a folder for logs and databases.
set -u
cd "$(dirname "$0")" || exit 2

# The kernels of the backend as they begin in mangled names, one a line: "12eager_kernel".
own_kernels()
{
    grep -ohE '\<[a-z0-9_]+_kernel\(' kernels/cuda/*.cu kernels/cuda/*.cuh | tr -d '(' | sort -u |
        awk '{ print length($0) $0 }'
}

prepare()
{
    cd .. || exit 2
    local data=${QUIRE_TEST_DATA:-../shared/data} to=build/gpu program library
    make CUDA_ARCHS="${CUDA_ARCHS:-90a}" all test-binaries gpu-tests || exit 1
    rm -rf $to
    mkdir -p $to/lib $to/tests $to/data/models $to/tests/golden
    cp build/quire build/quire_cuda.so $to/
    [ -f build/quire_mpi.so ] && cp build/quire_mpi.so $to/
    for program in test_engine test_swap test_forward; do
        cp build/tests/$program $to/
    done
    for program in build/gpu-tests/*; do
        [ -x "$program" ] && cp "$program" $to/
    done
    strip $to/quire $to/test_* 2>/dev/null
    for library in libcmocka libyaml libjansson libutf8proc libpcre2-8; do
        ldd $to/test_engine $to/quire | awk -v name=$library 'index($1, name) { print $3; exit }' |
            xargs -r -I{} cp -L {} $to/lib/
    done
    own_kernels >$to/kernels.txt
    cp -r configs tests/golden $to/ && mv $to/golden $to/tests/
    cp tests/gpu/*.yaml $to/
    sed -i 's,\.\./\.\./configs,configs,' $to/*.yaml
    if [ -d "$data/models" ]; then
        cp -r "$data/models" "$data/reference" "$data/texts" $to/data/
        chmod -R u+w $to/data
    fi
    cp tests/gpu.sh tests/peers/torch_attention.py $to/
    du -sh $to
}

passed=0 failed=0 skipped=0

# check NAME STATUS
check()
{
    if [ "$2" -eq 0 ]; then
        echo "ok $1"
        passed=$((passed + 1))
    else
        echo "FAILED $1"
        failed=$((failed + 1))
    fi
}

part_tests()
{
    local program
    export QUIRE_TEST_DEVICE=cuda QUIRE_TEST_DATA=$PWD/data
    for program in test_forward test_engine test_swap; do
        ./$program >"$OUT/$program.log" 2>&1
        check $program $?
        grep -E '^\[  FAILED|ERROR|SKIPPED' "$OUT/$program.log" | head -n 8
    done
    unset QUIRE_TEST_DEVICE
    for program in device_test ops_test linear_test attention_test linear_decode_test linear_prefill_test; do
        ./$program >"$OUT/$program.log" 2>&1
        check $program $?
    done
}

# hash_run NAME ARGS...: runs the matrix's config into its own database and prints its hashes' hash.
hash_run()
{
    local name=$1
    shift
    ./quire run hash_matrix.yaml --results "$OUT/hash-$name.db" "$@" >"$OUT/hash-$name.log" 2>&1 ||
        { tail -n 3 "$OUT/hash-$name.log"; return 1; }
    hash_of "$OUT/hash-$name.db"
}

hash_of()
{
    ./quire results "$1" --format csv --sql "select sampling_temperature,
        prompt_index, output_sha256 from samples join tasks using (task_id) order by 1, 2" |
        sha256sum | cut -c1-16
}

part_hashes()
{
    local expected hash name
    expected=$(hash_run base) || { check "hashes base" 1; return; }
    echo "base $expected"
    while read -r name args; do
        # shellcheck disable=SC2086 # words of args are arguments
        hash=$(hash_run "$name" $args)
        [ "$hash" = "$expected" ]
        check "hashes $name ($hash)" $?
        grep -oE 'ran out .* recomputed' "$OUT/hash-$name.log"
    done <<'CASES'
again --set engine.block_size=64
batch-1 --set engine.max_num_seqs=1
batch-256 --set engine.max_num_seqs=256
chunk-64 --set engine.max_num_batched_tokens=64
chunk-2048 --set engine.max_num_batched_tokens=2048
chunk-8192 --set engine.max_num_batched_tokens=8192
small-pool --set engine.num_kv_blocks=10
swap --set engine.num_kv_blocks=10 --set engine.preemption_mode=swap --set engine.swap_space=1
swap-without-prefix-cache --set engine.num_kv_blocks=10 --set engine.preemption_mode=swap --set engine.enable_prefix_caching=false
no-prefix-cache --set engine.enable_prefix_caching=false
blocks-of-16 --set engine.block_size=16
not-recorded --set engine.enforce_eager=true
synchronous --set engine.async_scheduling=false
standard --set engine.fast=false
CASES
}

part_fallback()
{
    local log=$OUT/fallback.log
    CUDA_VISIBLE_DEVICES='' ./quire run configs/demo.yaml --results "$OUT/fallback.db" >"$log" 2>&1
    check "a run without a GPU ends well" $?
    grep -q 'using the CPU' "$log"
    check "it says why it uses the CPU" $?
    [ "$(./quire results "$OUT/fallback.db" --format csv --sql 'select distinct degraded from attempts' |
        tail -n 1)" = 1 ]
    check "its rows are degraded" $?
    QUIRE_TEST_COMPUTE_CAPABILITY=7.5 ./quire run configs/demo.yaml --set grid.engine.attention='[auto]' \
        --results "$OUT/turing.db" >"$log" 2>&1
    check "a pretended compute capability of 7.5 runs" $?
    grep -q '(7, 5) is below (8, 0): using memory_efficient attention' "$log"
    check "it chooses memory_efficient attention" $?
}

# Kernels, as in kernels.txt, whose warps hand data to each other by barriers in shared memory
# (mbarrier) or by arrivals at named ones. racecheck does not follow these, and reports hazards.
unfollowed='13hopper_kernel|17box_decode_kernel|13decode_kernel'

# The kernels that a tool looks at.
checked_kernels()
{
    if [ "$1" = racecheck ]; then
        grep -vxE "$unfollowed" kernels.txt
    else
        cat kernels.txt
    fi
}

# sanitize TOOL PROGRAM ARGS...: what the tool finds in the kernels of kernels.txt while the program
# runs. cuBLASLt's kernels are left out: racecheck reports hazards inside them. So are calls that
# fail, which the backend checks itself and device_test provokes.
sanitize()
{
    local tool=$1 program=$2 name=$1-$2 began=$SECONDS log kernel rc errors hazards
    local -a options=(--tool "$1" --error-exitcode 9)
    shift 2
    log=$OUT/sanitize-$name.log
    [ "$tool" = memcheck ] && options+=(--report-api-errors no)
    while read -r kernel; do
        options+=(--kernel-name "kns=$kernel")
    done < <(checked_kernels "$tool")
    timeout 300 compute-sanitizer "${options[@]}" "./$program" "$@" >"$log" 2>&1
    rc=$?
    errors=$(sed -nE 's/.*(ERROR SUMMARY: |displayed \()([0-9]+) error.*/\2/p' "$log" | tail -n 1)
    hazards=$(sed -nE 's/.*RACECHECK SUMMARY: ([0-9]+) hazard.*/\1/p' "$log" | tail -n 1)
    echo "$tool $program ${1-}: $(grep -cE '^(ok|FAIL|\[ +OK) ' "$log") cases," \
        "${errors:-no summary of} errors, ${hazards:-0} hazards, $((SECONDS - began)) s"
    [ $rc -eq 0 ] && [ "${errors:-1}" -eq 0 ] && [ "${hazards:-0}" -eq 0 ]
    check "compute-sanitizer $name" $?
}

part_sanitize()
{
    local tool
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped sanitize: no compute-sanitizer"
        skipped=$((skipped + 1))
        return
    fi
    for tool in memcheck racecheck; do
        sanitize $tool attention_test --small
        sanitize $tool linear_decode_test --small
        [ $tool = memcheck ] && sanitize $tool linear_prefill_test --small
        sanitize $tool ops_test --small
        [ $tool = memcheck ] && sanitize $tool linear_test --small
        sanitize $tool device_test
    done
    sanitize memcheck quire generate --model configs/models/demo --prompt "47 plus 36 is" \
        --max-tokens 8 --device cuda
}

part_workloads()
{
    local name rc watcher
    for name in m n; do
        while :; do
            nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits
            sleep 0.1
        done >"$OUT/memory_$name.log" 2>/dev/null &
        watcher=$!
        ./quire run configs/workload_$name.yaml --results "$OUT/workload_$name.db" \
            >"$OUT/workload_$name.log" 2>&1
        rc=$?
        kill $watcher
        check "workload $name" $rc
        echo "GPU memory peak $(sort -n "$OUT/memory_$name.log" | tail -n 1) MiB"
        grep -E 'first token|WARNING|quire:' "$OUT/workload_$name.log"
        ./quire results "$OUT/workload_$name.db" --format md --sql "select experiments.name,
            attention_used, attempts.n_samples, output_tokens, round(run_s, 3) as run_s,
            round(output_tps) as output_tps, round(total_tps) as total_tps, steps,
            round(batch_seqs_mean, 1) as mean_batch, round(load_s, 2) as load_s,
            round(init_s, 2) as init_s, preemptions, kv_blocks_peak, kv_blocks
            from attempts join tasks using (task_id) join experiments using (experiment_id)"
    done
}

# Two ranks on two GPUs: the tokens of one, and how much faster.
part_ranks()
{
    local expected hash n
    if [ "$(nvidia-smi -L | wc -l)" -lt 2 ] || ! command -v mpirun >/dev/null; then
        echo "skipped ranks: two GPUs and mpirun are needed"
        skipped=$((skipped + 1))
        return
    fi
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    expected=$(hash_run one-rank)
    mpirun -np 2 --bind-to none ./quire run hash_matrix.yaml --results "$OUT/ranks.db" \
        >"$OUT/ranks.log" 2>&1
    check "two ranks" $?
    hash=$(hash_of "$OUT/ranks.db")
    [ "$hash" = "$expected" ]
    check "two ranks have the tokens of one ($hash, $expected)" $?
    for n in 1 2 1 2; do
        rm -f "$OUT/ranks_n.db"
        mpirun -np $n --bind-to none ./quire run configs/workload_n.yaml --results "$OUT/ranks_n.db" \
            >"$OUT/ranks_n.log" 2>&1
        check "workload n, $n ranks" $?
        ./quire results "$OUT/ranks_n.db" --format md --sql "select rank, host, device, n_done,
            round(busy_s, 2) as busy_s, round(wall_s, 2) as wall_s, round(busy_s / wall_s, 3) as busy,
            sent_bytes, received_bytes, (select round(output_tps) from throughput) as output_tps
            from workers order by rank"
    done
}

part_benches()
{
    local program name args peer=./torch_attention.py
    for program in ops_bench attention_bench; do
        ./$program >"$OUT/$program.txt" 2>&1
        check $program $?
    done
    while read -r name args; do
        # shellcheck disable=SC2086 # words of args are arguments
        ./quire bench $args --format md --db "$OUT/bench.db" >"$OUT/bench-$name.md" 2>"$OUT/bench-$name.log"
        check "quire bench $args" $?
    done <<CASES
attention attention --peer $peer
prefill prefill --peer $peer
prefill-model prefill --list model --kernels flash --peer $peer
decode decode --peer $peer
decode-model decode --list model --kernels flash --peer $peer
engine engine --dtype bfloat16
CASES
}

main()
{
    OUT=${OUT:-$PWD/out}
    mkdir -p "$OUT"
    export LD_LIBRARY_PATH=$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export OUT
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    local part
    [ $# -gt 0 ] || set -- tests hashes fallback sanitize workloads ranks benches
    for part in "$@"; do
        local began=$SECONDS
        "part_$part"
        echo "== $part: $((SECONDS - began)) s"
    done
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
}

if [ "${1:-}" = prepare ]; then
    prepare
else
    main "$@"
fi
