#!/usr/bin/env bash
# mpirun on one machine: the number of ranks changes no token, a rank that is killed ends the job
# within seconds, without a loss, and a job that is suspended goes on.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

if ! command -v mpirun >/dev/null || [ ! -f "${BUILD:-build}/quire_mpi.so" ]; then
    skip mpi_ranks "no mpirun (openmpi-bin), or a build without MPI (libopenmpi-dev)"
    exit
fi
# Ranks share the processors of a small machine; as root, mpirun wants to be told twice.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
mpi=(mpirun --oversubscribe --bind-to none)

cat >"$work/ranks.yaml" <<TEXT
experiment: mpi-ranks
model: {path: $PWD/configs/models/demo}
engine: {max_num_seqs: 4, num_threads: 1, max_model_len: 512}
sampling: {max_tokens: 100, n: 2, seed: 3, ignore_eos: true}
grid:
  engine.attention: [flash, eager]
  sampling.temperature: [0.0, 0.8]
replications: 8
prompts:
  list: ["Question: What is 47 plus 36?\nAnswer:", "Question: Add 62 and 47.\nAnswer:", "17"]
TEXT
n_samples=192

exits "one process" 0 "$quire" run "$work/ranks.yaml" --results "$work/whole.db"
expected=$(hashes "$work/whole.db")

# mpirun starts the ranks of its own machine itself, so they are its children.
rank_pid()
{
    local pid
    for pid in $(pgrep -P "$1"); do
        if tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$2"; then
            echo "$pid"
        fi
    done
}

# run_to_middle N DATABASE: starts N ranks, whose mpirun is $pid, and when some samples are safe lets
# the ranks, whose processes are $ranks, stand still: no machine is so fast that they end before.
run_to_middle()
{
    local r
    "${mpi[@]}" -np "$1" "$quire" run "$work/ranks.yaml" --results "$2" >"$2.log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null &&
        ! sql "$2" "select count(*) > 0 from samples" 2>&1 | grep -qx 1; do
        sleep 0.02
    done
    ranks=()
    for ((r = 0; r < $1; r++)); do
        ranks+=("$(rank_pid "$pid" $r)")
    done
    kill -STOP "${ranks[@]}"
}

# What Slurm's suspend does, for longer than a rank may be silent; the rest goes on meanwhile.
run_to_middle 2 "$work/suspended.db"
suspended=$pid suspended_ranks=("${ranks[@]}")
suspended_s=$SECONDS

for n in 1 2 4; do
    db=$work/$n.db
    exits "mpirun -np $n" 0 "${mpi[@]}" -np $n "$quire" run "$work/ranks.yaml" --results "$db"
    equal "$n ranks: the hashes of one process" "$(hashes "$db")" "$expected"
    sql_equal "$n ranks: one run of $n ranks, all of which did some of the samples" "$db" \
        "select mpi_size, (select count(*) from workers where n_done > 0),
                (select sum(n_done) from workers) from runs" "$n|$n|$n_samples"
done

committed()
{
    sql "$1" "select key, attempt_id, output_sha256 from samples order by key"
}

# lose_rank RANK: kills it in the middle of a run of three.
lose_rank()
{
    local name="rank $1 killed" db=$work/lost$1.db pid ranks status=0 before began
    run_to_middle 3 "$db"
    before=$(committed "$db")
    began=$SECONDS
    kill -KILL "${ranks[$1]}"
    kill -CONT "${ranks[@]}"
    wait "$pid" || status=$?
    equal "$name: mpirun ends with the code of the signal" $status 137
    check "$name: within ten seconds" test $((SECONDS - began)) -le 10
    cp "$db.log" "$out"
    prints "$name: mpirun says which one" "process rank $1 .*exited on signal 9"
    exits "$name: two ranks do the rest" 0 "${mpi[@]}" -np 2 "$quire" run "$work/ranks.yaml" \
        --results "$db"
    equal "$name: the hashes of one process" "$(hashes "$db")" "$expected"
    equal "$name: what was committed is there, under the attempt that made it" \
        "$(comm -23 <(echo "$before") <(committed "$db"))" ""
}
lose_rank 2
lose_rank 0

# A KV cache of more than any machine has: memory is promised at the start, and taken when it is used.

cat >"$work/wide.json" <<TEXT
{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
 "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8,
 "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 96, "max_position_embeddings": 32768,
 "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": true}
TEXT
cat >"$work/wide.yaml" <<TEXT
experiment: wide
model: {architecture: wide.json, init: random, dtype: float32}
engine: {device: cpu, max_num_seqs: 4000, max_model_len: 32768, block_size: 16, num_threads: 1}
sampling: {max_tokens: 1, n: 4000}
prompts: {list: [[1]]}
TEXT
for n in 1 4; do
    exits "$n ranks with a KV cache of all the memory" 0 "${mpi[@]}" -np $n "$quire" run \
        "$work/wide.yaml" --results "$work/wide$n.db"
    blocks[n]=$(sed -n 's/.*Fast engine initialised: \([0-9]*\) KV blocks.*/\1/p' "$out")
done
# Other programs of the machine come and go: a third instead of a quarter.
check "a rank of 4 takes its part of the memory" test $((blocks[4] * 3)) -le "${blocks[1]}"

while [ $((SECONDS - suspended_s)) -lt 17 ]; do
    sleep 0.2
done
kill -CONT "${suspended_ranks[@]}"
status=0
wait "$suspended" || status=$?
equal "suspended for 17 s: the run goes on to its end" $status 0
equal "suspended for 17 s: the hashes of one process" "$(hashes "$work/suspended.db")" "$expected"
