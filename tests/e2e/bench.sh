#!/usr/bin/env bash
# quire bench: every noun on tiny shapes, every format, peers that are right, wrong and missing, rows in
# the database. No speed is asserted.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

quick=(--device cpu --seconds 0.005)
tiny=(--batch 2 --heads 4 --kv-heads 2 --head-dim 16 --dtype "float32")
db=$work/bench.db

# value COLUMN KERNEL: that column of the kernel's row in the CSV of the last `exits`.
value()
{
    awk -F, -v column="$1" -v kernel="$2" '
        /^shape,/ { for (i = 1; i <= NF; i++) at[$i] = i }
        at["kernel"] && $at["kernel"] == kernel { print $at[column]; exit }' "$out"
}

# ---- nouns and formats ----

exits "attention as a table" 0 "$quire" bench attention "${quick[@]}" "${tiny[@]}" --seq 17
prints "a table has its columns" '^shape +kernel +dtype +cache +state +us +us_p10'
prints "flash is right" 'B2 H4/2 S17 D16 +flash +float32 +warm +ok'
prints "memory_efficient says why it is not there" 'memory_efficient .*not available.*for GPUs'
prints "the ceilings are rows" '^multiply +ceiling +float32'
exits "prefill as csv" 0 "$quire" bench prefill "${quick[@]}" "${tiny[@]}" --seq 1,33 --format csv
equal "every size has a row of each kernel" "$(grep -c '^B2 H4/2 S' "$out")" 6
check "the fastest has ratio 1" grep -qE ',1,$' "$out"
exits "decode as json" 0 "$quire" bench decode "${quick[@]}" "${tiny[@]}" --seq 65 --cache warm,cold \
    --block-size 16,64 --format json
prints "decode rows name context and page" '"shape": "B2 H4/2 ctx65 D16 page16".*"cache": "cold"'
exits "attention after a context, as md" 0 "$quire" bench attention "${quick[@]}" "${tiny[@]}" \
    --decode 17 --format md --kernels flash
prints "a Markdown row" '^\| B2 H4/2 ctx17 D16 page64 \| flash \| float32 \| warm \| ok \|'
exits "bf16 and f16" 0 "$quire" bench attention "${quick[@]}" --batch 1 --heads 2 --seq 40 \
    --head-dim 24 --dtype bfloat16,float16 --format jsonl
equal "each type has its rows" "$(grep -cE '"dtype": "(bfloat16|float16)".*"state": "ok".*"error"' "$out")" 6

# ---- engine ----

model=(--device cpu --model configs/models/minimal.json --repeats 1)
exits "engine with random weights" 0 "$quire" bench engine "${model[@]}" --batch 1,3 --prefill 20 \
    --prompt 7 --output 5 --dtype float32 --format csv
prints "engine: prefill" '^prefill 20,flash,float32,,ok,[0-9]'
prints "engine: decode" '^decode B3 7\+5,flash,float32,,ok,[0-9]'
check "engine: a share of the roofline" test -n "$(value of_roofline flash)"
exits "engine with trained weights" 0 "$quire" bench engine --device cpu --repeats 1 \
    --model configs/models/demo --batch 2 --prefill 5 --prompt 3 --output 2
exits "engine with int8 weights" 0 "$quire" bench engine "${model[@]}" --batch 2 --prefill 9 --prompt 4 \
    --output 3 --quantization none,int8 --format csv
prints "engine: int8 rows" '^decode B2 4\+3,flash,int8,,ok,[0-9]'
prints "engine: the rate of int8 products" '^multiply,ceiling,int8,'
cat >"$work/workload.yaml" <<'YAML'
experiment: tiny_workload
model: {path: unused}
sampling: {temperature: 0.6, max_tokens: 4, ignore_eos: true}
prompts:
  synthetic: {lengths: fixed, num_prompts: 3, input_len: [5, 9], output_len: 4, seed: 0}
YAML
exits "engine with a workload" 0 "$quire" bench engine "${model[@]}" --workload "$work/workload.yaml" \
    --format csv
prints "engine: the workload's row" '^tiny_workload,flash,bfloat16,,ok,[0-9]'

# ---- peers ----

# One key: attention gives back its value, which is the first head_dim numbers of stream 3.
one=(--batch 1 --heads 1 --seq 1 --head-dim 8 --dtype float32 --format csv)
v="1.53125, -1.0625, 1.84375, 1.84375, -1.21875, -0.9375, 0.21875, 0.84375"
cat >"$work/peer.sh" <<'SH'
cat >"$1.requests"
printf '{"id": 0, "kernel": "%s", "latency_s": 1e-12, "p10_s": 1e-12, "p90_s": 2e-12, "output": [[%s]]}\n' "$2" "$3"
SH
exits "a peer that is right" 0 "$quire" bench attention "${quick[@]}" "${one[@]}" \
    --peer "sh $work/peer.sh $work/right right '$v'"
equal "it is ranked" "$(value state right) $(value ratio right)" "ok 1"
check "and we are measured against it" awk -v r="$(value ratio flash)" 'BEGIN { exit !(r > 1) }'
check "it was told the shape" grep -q '"batch":1,"heads":1,"kv_heads":1,"q_len":1,"kv_len":1,"head_dim":8,"dtype":"float32","causal":true' "$work/right.requests"
exits "a peer that is wrong" 1 "$quire" bench attention "${quick[@]}" "${one[@]}" \
    --peer "sh $work/peer.sh $work/wrong wrong '1, 1, 1, 1, 1, 1, 1, 1'" --db "$db"
equal "it has no time" "$(value state wrong):$(value us wrong)" "wrong:"
check "and one of ours is the fastest" test 1 = "$(value ratio flash)" -o 1 = "$(value ratio eager)"
exits "a peer of too few numbers is wrong" 1 "$quire" bench attention "${quick[@]}" "${one[@]}" \
    --peer "sh $work/peer.sh $work/few few 1.53125"
exits "a peer that is missing" 0 "$quire" bench attention "${quick[@]}" "${one[@]}" \
    --peer no-such-program-anywhere
equal "it is not available" "$(value state no-such-program-anywhere)" "not available"
exits "a peer that says it cannot" 0 "$quire" bench attention "${quick[@]}" "${one[@]}" \
    --peer "echo '{\"kernel\": \"none\", \"available\": false, \"reason\": \"no licence\"}'"
prints "its reason is in the row" '^B1 H1 S1 D8,none,.*not available,.*no licence'
exits "a peer that dies" 1 "$quire" bench attention "${quick[@]}" "${one[@]}" --peer "kill -9 \$\$"
prints "its end is in the row" 'failed,.*it ended with status 137'
exits "a peer that prints no JSON" 1 "$quire" bench attention "${quick[@]}" "${one[@]}" \
    --peer "echo hello"
prints "its line is refused" 'failed,.*bad line'

if command -v python3 >/dev/null; then
    # The inputs as runner/bench.h describes them, and attention over them, without our code.
    cat >"$work/peer.py" <<'PY'
import json, math, sys

BITS = (1 << 64) - 1

def value(stream, i):
    x = ((stream << 40) + i + 0x9E3779B97F4A7C15) & BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return ((x ^ (x >> 31)) >> 57) / 32 - 2

def row(s, token, head):
    d, seq, group = s["head_dim"], token // s["q_len"], s["heads"] // s["kv_heads"]
    keys = s["kv_len"] - s["q_len"] + token % s["q_len"] + 1
    q = [value(1, (token * s["heads"] + head) * d + j) for j in range(d)]
    at = lambda key, j: ((seq * s["kv_len"] + key) * s["kv_heads"] + head // group) * d + j
    score = [s["scale"] * sum(q[j] * value(2, at(k, j)) for j in range(d)) for k in range(keys)]
    weight = [math.exp(x - max(score)) for x in score]
    return [sum(w * value(3, at(k, j)) for k, w in enumerate(weight)) / sum(weight) for j in range(d)]

for line in sys.stdin:
    s = json.loads(line)
    output = [row(s, token, head) for token, head in s["rows"]]
    print(json.dumps({"id": s["id"], "kernel": "python", "latency_s": 1.0, "output": output}))
PY
    exits "a peer that computes attention itself" 0 "$quire" bench attention "${quick[@]}" \
        "${tiny[@]}" --seq 5,33 --peer "python3 $work/peer.py" --format csv
    equal "it agrees to double precision" "$(value error python | sed -E 's/.*e-1[3-9]$|^0$/none/')" none
    exits "the PyTorch peer runs, or says why it does not" 0 "$quire" bench attention "${quick[@]}" \
        "${tiny[@]}" --seq 17 --peer "python3 tests/peers/torch_attention.py" --format csv
    prints "it has a row" '^B2 H4/2 S17 D16,torch'
else
    skip "peers in Python" "there is no python3"
fi

# ---- the database ----

sql_equal "the database has the rows of the table" "$db" \
    "select bench, shape, kernel, dtype, state, latency_s is null, ratio is null
     from benchmarks where kernel in ('wrong', 'flash', 'memory_efficient') order by kernel" \
    "attention|B1 H1 S1 D8|flash|float32|ok|0|0
attention|B1 H1 S1 D8|memory_efficient|float32|not available|1|1
attention|B1 H1 S1 D8|wrong|float32|wrong|1|1"
sql_equal "with command, machine, date and commit" "$db" \
    "select count(*) > 4, sum(command like 'quire bench attention --device cpu%') = count(*),
     min(length(git_commit)) > 6, min(measured_at) > '2026', min(length(cpu)) > 0
     from benchmarks join environments using (environment_id)" "1|1|1|1|1"
# What a file of the version before looks like: the table is not there.
sqlite3 "$db" 'drop table benchmarks; pragma user_version = 2'
exits "an older database is brought up to date" 0 "$quire" bench attention "${quick[@]}" "${one[@]}" \
    --db "$db"
exits "results reads the table" 0 "$quire" results "$db" --view benchmarks --format csv
prints "its rows" 'attention,B1 H1 S1 D8,flash'

# ---- mistakes ----

exits "no noun" 2 "$quire" bench
exits "a misspelt noun" 2 "$quire" bench atention
prints "the nearest one is named" 'did you mean attention'
exits "a size that is no number" 2 "$quire" bench attention --seq 1k
prints "the option is named" "--seq has '1k'"
exits "an option of another noun" 2 "$quire" bench engine --seq 5
prints "it says so" '--seq does not belong to .quire bench engine'
exits "an engine's option at kernels" 2 "$quire" bench decode --model x
exits "no time at all" 2 "$quire" bench attention --seconds 0
exits "an unknown format" 2 "$quire" bench attention --format html
exits "an unknown kernel" 2 "$quire" bench attention --kernels flash,fast
exits "a model that is not there" 65 "$quire" bench engine --device cpu --model "$work/none"
exits "bench --help" 0 "$quire" bench --help
prints "--help explains the columns" 'of_roofline'
