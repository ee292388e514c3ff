#!/usr/bin/env bash
# The commands that do not run an experiment: plan, generate, doctor, help; and the example program.
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

# ---- generate ----

exits "generate answers a prompt" 0 "$quire" generate --model configs/models/demo \
    --prompt "12 plus 34 is" --max-tokens 32 --temperature 0
prints "generate: the sum is right" '46'
exits "generate without a model" 2 "$quire" generate --prompt "12 plus 34 is"
exits "generate with a model that is not there" 65 "$quire" generate --model "$work/none" \
    --prompt x --max-tokens 4

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
for command in run plan results slurm generate doctor; do
    prints "--help lists $command" "^ +$command "
done
for command in run plan results slurm generate doctor; do
    exits "$command --help" 0 "$quire" "$command" --help
    prints "$command --help: usage" "usage: quire $command"
done
exits "no command" 2 "$quire"

# ---- the embeddable engine ----

exits "the example program" 0 "${BUILD:-build}/examples/generate" configs/models/demo \
    "12 plus 34 is"
prints "the example program: the sum is right" '46'
