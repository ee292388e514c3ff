#!/usr/bin/env bash
# The commands beside run and results: plan, status, generate, doctor, help; and the example program.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

# ---- plan ----

exits "plan of the published workload" 0 "$quire" plan configs/workload_n.yaml
prints "plan: samples" 'samples +256$'
prints "plan: prompt tokens" '142,827 prompt tokens'
prints "plan: output tokens" '133,966 output tokens'
prints "plan: the KV need" 'KV need +112\.0 KiB per token'
prints "plan: the device" 'device +cpu: '
prints "plan: the kernel and why" 'attention +flash: .+'
exits "plan --resolved" 0 "$quire" plan configs/demo.yaml --resolved --set engine.max_num_seqs=7
prints "plan --resolved: a value and where it comes from" 'engine\.max_num_seqs.*7.*--set'
prints "plan --resolved: a default" 'default'
for config in configs/*.yaml configs/phases/phase*.yaml; do
    exits "plan $config" 0 "$quire" plan "$config"
done

cat >"$work/plan.yaml" <<TEXT
model: {path: $PWD/configs/models/demo}
grid: {prompts.file: [good.txt, none.txt]}
sampling: {max_tokens: 4}
TEXT
printf '12 plus 34 is\n47 plus\n\377\n' >"$work/good.txt"
exits "plan of a task that cannot run beside one that can" 1 "$quire" plan "$work/plan.yaml"
prints "plan: why it cannot" 'error +task 1 \(prompts.file=none.txt\): .*none.txt: cannot open'
prints "plan: the engine of the other" '^1 task, one engine, from task 0 \(prompts.file=good.txt\):$'
prints "plan: a prompt that cannot be used" 'unusable +1 sample will fail: .*good.txt:3: not valid UTF-8$'
exits "plan of outputs that are cut" 1 "$quire" plan "$work/plan.yaml" --set engine.max_model_len=9
prints "plan: where they are cut" 'warning +an output ends where its sequence has 9 tokens'
exits "plan of a KV cache that does not fit" 0 "$quire" plan "$work/plan.yaml" \
    --set prompts.file="$work/good.txt" --set engine.num_kv_blocks=10000000
prints "plan of a KV cache that does not fit: the standard engine" 'engine +standard: static batches'
exits "plan of an engine that does not fit" 1 "$quire" plan "$work/plan.yaml" \
    --set prompts.file="$work/good.txt" --set engine.gpu_memory_utilization=0.00001
prints "plan of an engine that does not fit: why" 'engine +does not fit: one sequence of '
prints "plan of an engine that does not fit: how many tasks" '^quire: 1 task cannot run here'
exits "plan --resolved of an axis" 0 "$quire" plan "$work/plan.yaml" --resolved \
    --set 'grid.sampling.seed=[1, 2]'
prints "plan --resolved of an axis: where it comes from" 'sampling\.seed +1 \| 2 +grid, --set$'

# ---- status ----

status_config=(configs/demo.yaml --set "results=$work/status.db")
exits "status before the first run" 0 "$quire" status "${status_config[@]}"
prints "status before the first run: all is pending" 'tasks +0 of 8 done, 8 pending'
prints "status before the first run: what to do" 'quire run configs/demo\.yaml'
exits "status of a database that is not there" 65 "$quire" status "$work/status.db"
exits "a run to ask about" 0 "$quire" run "${status_config[@]}"
exits "status of a finished experiment, watched" 0 "$quire" status "${status_config[@]}" --watch 60
prints "status of a finished experiment: tasks" 'tasks +8 of 8 done$'
exits "status of a database" 0 "$quire" status "$work/status.db" --format json
prints "status of a database: samples" '"samples":\{"total":128,"done":128,'
exits "status as CSV" 2 "$quire" status "$work/status.db" --format csv
exits "status of a database with --set" 2 "$quire" status "$work/status.db" --set sampling.n=2
exits "status --watch of a negative time" 2 "$quire" status "$work/status.db" --watch -1

# Three of four workers of an array, as Slurm would start them.
for worker in 0 1 3; do
    exits "worker $worker of an array" 0 env SLURM_JOB_ID=7$worker SLURM_ARRAY_JOB_ID=70 \
        SLURM_ARRAY_TASK_ID=$worker QUIRE_ARRAY_COUNT=4 \
        "$quire" run configs/demo.yaml --results "$work/array.db"
done
exits "status of an array" 0 "$quire" status configs/demo.yaml --set "results=$work/array.db"
prints "status of an array: samples" 'samples +96 of 128 done, 32 pending$'
prints "status of an array: what to submit" 'sbatch --array=2 --export=ALL,QUIRE_ARRAY_COUNT=4 '

# ---- the live line of a run ----

if command -v script >/dev/null; then
    exits "a run on a terminal of 80 columns" 0 script -qec "stty cols 80 && '$quire' run configs/demo.yaml \
        --set replications=60 --results '$work/terminal.db'" "$work/terminal.log"
    tr '\r' '\n' <"$work/terminal.log" | sed 's/\x1b\[K//g' | grep -a '/3840 samples' >"$work/lines"
    check "it shows how far it is" test -s "$work/lines"
    check "no line is too long to be written over" sh -c "! grep -aE '.{80}' '$work/lines'"
else
    skip "a run on a terminal of 80 columns" "no script (bsdutils)"
fi

# ---- generate ----

exits "generate answers a prompt" 0 "$quire" generate --model configs/models/demo \
    --prompt "12 plus 34 is" --max-tokens 32 --temperature 0
prints "generate: the sum is right" '46'
prints "generate names the engine that the model is loaded for" \
    '^\[\*\] Loading model configs/models/demo with the fast engine \(paged attention, continuous batching\)$'
exits "generate finds a model by its name" 0 env QUIRE_MODELS="$PWD/configs/models" sh -c \
    "cd '$work' && '$quire' generate --model demo --prompt '12 plus 34 is' --max-tokens 8"
prints "generate finds a model by its name: the sum is right" '46'
exits "generate without a model" 2 "$quire" generate --prompt "12 plus 34 is"
exits "generate with a model that is not there" 65 "$quire" generate --model "$work/none" \
    --prompt x --max-tokens 4

cp -r configs/models/demo "$work/base"
grep -v '"chat_template"' configs/models/demo/tokenizer_config.json >"$work/base/tokenizer_config.json"
base=(--model "$work/base" --prompt "12 plus 34 is" --max-tokens 1)
exits "generate from a model without a chat template" 0 "$quire" generate "${base[@]}"
prompt_tokens=$(grep -o '[0-9]* prompt tokens' "$out")
exits "generate --chat from a model without a chat template" 0 "$quire" generate "${base[@]}" --chat
prints "generate --chat without a template: a warning" '^\[WARNING\] .*/base has no chat template: '
prints "generate --chat without a template: the plain prompt" "\\] $prompt_tokens; "
exits "a plan of chats without a chat template" 0 "$quire" plan configs/demo.yaml \
    --set "model.path=$work/base" --set prompts.chat=true
prints "a plan of chats without a chat template: a warning" '^\[WARNING\] .*/base has no chat template: '

for wrong in --threads=-1 --top-k=4294967297 --top-p=0 --temperature=nan --min-p=2 --system=x; do
    exits "generate with $wrong" 2 "$quire" generate --model configs/models/demo --prompt x "$wrong"
    prints "generate with $wrong: it is named" "^quire: ${wrong%%=*} "
done
# shellcheck disable=SC2016 # of the inner shell
exits "generate with nowhere to write" 69 bash -c '"$0" generate --model configs/models/demo >/dev/full' \
    "$quire"

for dtype in bfloat16 float32; do
    exits "generate with a cache of weights in $dtype" 0 env QUIRE_WEIGHT_CACHE="$work/cache" \
        "$quire" generate --model configs/models/demo --prompt 12 --max-tokens 1 --device cpu --dtype $dtype
    prints "it says where the weights are" 'The packed weights are in .*/cache/[0-9a-f]+\.weights \('
done
prints "it says how many files there are by now" '^\[\*\] Its folder has 2 such files \([0-9.]+ MiB\)'

model=$data/models/tinystories-656k-bf16
reference=$data/reference/tinystories-656k-bf16.json
if [ -d "$model" ] && [ -f "$reference" ]; then
    exits "generate tells the reference's story" 0 "$quire" generate --model "$model" --prompt "" \
        --max-tokens 96 --temperature 0
    prints "the story is English" 'Once upon a time|[Tt]here was|little'
else
    skip "generate tells the reference's story" "test data $model is not there (QUIRE_TEST_DATA)"
fi

# ---- help and doctor ----

exits "doctor" 0 "$quire" doctor
for variable in USE_FAST_ENGINE QUIRE_ATTENTION QUIRE_DEVICE QUIRE_RESULTS QUIRE_MODELS QUIRE_LOG; do
    prints "doctor lists $variable" "$variable"
done
exits "--version" 0 "$quire" --version
prints "--version: a number" '^quire [0-9]+\.[0-9]+\.[0-9]+'
exits "--help" 0 "$quire" --help
commands="run plan status results merge slurm generate bench doctor"
for command in $commands; do
    prints "--help lists $command" "^ +$command "
done
for command in $commands; do
    exits "$command --help" 0 "$quire" "$command" --help
    prints "$command --help: usage" "usage: quire $command"
done
exits "no command" 2 "$quire"

# ---- the embeddable engine ----

exits "the example program" 0 "${BUILD:-build}/examples/generate" configs/models/demo \
    "12 plus 34 is"
prints "the example program: the sum is right" '46'
