#!/usr/bin/env bash
# The tokens of a sample depend on its prompt, sampling settings and seed alone: not on the batch,
# the chunks, preemption, the prefix cache, the engine or the threads.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

cat >"$work/base.yaml" <<TEXT
experiment: same-tokens
model: {path: $PWD/tests/golden/llama3}
engine:
  {block_size: 16, max_model_len: 192, max_num_seqs: 8, max_num_batched_tokens: 256, num_threads: 1}
sampling: {max_tokens: 40, seed: 11, top_p: 0.95, ignore_eos: true}
grid:
  sampling.temperature: [0.0, 0.9]
prompts:
  list:
$(id_lists 24 112 48 150)
TEXT
n_samples=48

# variant NAME WORDS...: runs the base with these arguments (words with = in capitals go to the
# environment) and compares every hash with the first run's.
expected=""
variant()
{
    local name=$1 db=$work/${1// /-}.db variables=() arguments=() word
    shift
    for word in "$@"; do
        case $word in
        [A-Z]*=*) variables+=("$word") ;;
        *) arguments+=(--set "$word") ;;
        esac
    done
    exits "$name: runs" 0 env ${variables[@]+"${variables[@]}"} "$quire" run "$work/base.yaml" \
        --results "$db" ${arguments[@]+"${arguments[@]}"}
    sql_equal "$name: every sample once" "$db" \
        "select count(*), count(distinct output_sha256 || key), sum(length(output_sha256) = 64)
         from samples" "$n_samples|$n_samples|$n_samples"
    if [ -z "$expected" ]; then
        expected=$(hashes "$db")
    else
        equal "$name: same tokens" "$(hashes "$db")" "$expected"
    fi
    latest=$db
}

# attempts_show NAME CONDITION: a column of the attempts has what the variant is there to cause.
attempts_show()
{
    sql_equal "$1" "$latest" "select min($2) from attempts" 1
}

variant "one thread, 8 sequences at a time"
sql_equal "one thread: the texts are not all alike" "$latest" \
    "select count(distinct output_sha256) > 40 from samples" 1
attempts_show "one thread: the fast engine ran" "engine_used = 'fast'"
variant "one sequence at a time" engine.max_num_seqs=1
variant "32 sequences at a time" engine.max_num_seqs=32
variant "chunks of 64 tokens" engine.max_num_batched_tokens=64
variant "chunks of 8192 tokens" engine.max_num_batched_tokens=8192
variant "blocks of 64 tokens" engine.block_size=64
variant "a pool that is too small" engine.num_kv_blocks=13 engine.enable_prefix_caching=false
sql_equal "a pool that is too small: preemptions happened" "$latest" \
    "select sum(preemptions) > 0 from attempts" 1
echo "preemptions: $(sql "$latest" 'select sum(preemptions) from attempts')"
variant "a pool that is too small for the prefix cache" engine.num_kv_blocks=13
variant "a pool that is too small, swapping" engine.num_kv_blocks=13 \
    engine.enable_prefix_caching=false engine.preemption_mode=swap engine.swap_space=0.01
prints "a pool that is too small, swapping: sequences were swapped" \
    "[1-9][0-9]* sequences were swapped"
variant "swapping with the prefix cache" engine.num_kv_blocks=13 engine.preemption_mode=swap \
    engine.swap_space=0.01
prints "swapping with the prefix cache: sequences were swapped" \
    "[1-9][0-9]* sequences were swapped"
variant "prefix cache on" engine.enable_prefix_caching=true
sql_equal "prefix cache on: prefixes were found" "$latest" \
    "select sum(cached_tokens) > 0 from attempts" 1
variant "prefix cache off" engine.enable_prefix_caching=false
sql_equal "prefix cache off: nothing was found" "$latest" \
    "select sum(cached_tokens) from attempts" 0
variant "standard engine" USE_FAST_ENGINE=0
prints "standard engine: the log names it" \
    '^\[\*\] Loading model .* with the standard engine \(static batches\)$'
attempts_show "standard engine: it ran" "engine_used = 'standard'"
variant "two threads" engine.num_threads=2
variant "one task at a time" schedule=exclusive
variant "memory-aware scheduling" engine.scheduling_policy=memory_aware

# Weights in int8 have tokens of their own, of which the same holds.
of_bfloat16=$expected
expected=""
variant "int8: 8 sequences at a time" model.quantization=int8
attempts_show "int8: the row says so" "dtype_used = 'int8'"
check "int8: other tokens" [ "$expected" != "$of_bfloat16" ]
variant "int8: one sequence at a time" model.quantization=int8 engine.max_num_seqs=1
variant "int8: 32 sequences at a time" model.quantization=int8 engine.max_num_seqs=32
variant "int8: chunks of 64 tokens" model.quantization=int8 engine.max_num_batched_tokens=64
variant "int8: standard engine" model.quantization=int8 USE_FAST_ENGINE=0
variant "int8: two threads" model.quantization=int8 engine.num_threads=2

# Every instruction set of this processor has tokens of its own, of which the same holds.
isas=$(QUIRE_CPU_ISA=none "$quire" doctor 2>&1 | sed -n 's/.*valid on this machine: //p' | tr -d ',')
equal "the instruction sets are listed" "${isas%% *}" plain
for isa in $isas; do
    for quantization in none int8; do
        name="$isa, $quantization"
        set -- "QUIRE_CPU_ISA=$isa" "model.quantization=$quantization"
        expected=""
        variant "$name: 8 sequences at a time" "$@"
        variant "$name: one sequence at a time" "$@" engine.max_num_seqs=1
        variant "$name: 32 sequences, chunks of 64 tokens, two threads" "$@" \
            engine.max_num_seqs=32 engine.max_num_batched_tokens=64 engine.num_threads=2
    done
done
