#!/usr/bin/env bash
# Wrong input gets one clear message and its own exit code; a broken task is a failed row, and the
# tasks beside it go on.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

golden=$PWD/tests/golden/qwen3
good_prompts="{list: [[1, 2, 3], [4, 5, 6, 7]]}"

# ---- configuration ----

cat >"$work/typo.yaml" <<TEXT
experiment: typo
model: {path: $golden}
engine:
  max_num_seq: 4
prompts: $good_prompts
TEXT
exits "a misspelt key" 2 "$quire" run "$work/typo.yaml" --results "$work/typo.db"
prints "a misspelt key: place, key and the nearest name" \
    "typo\.yaml:4:3: .*max_num_seq.*max_num_seqs"
equal "a misspelt key: nothing is written" "$(ls "$work"/typo.db* 2>/dev/null)" ""

sed 's/max_num_seq: 4/max_num_seqs: many/' "$work/typo.yaml" >"$work/type.yaml"
exits "a word where a number belongs" 2 "$quire" run "$work/type.yaml" --results "$work/typo.db"
prints "a word where a number belongs: place" "type\.yaml:4:17: "

sed 's/max_num_seq: 4/max_num_seqs: [4/' "$work/typo.yaml" >"$work/syntax.yaml"
exits "broken YAML" 2 "$quire" run "$work/syntax.yaml" --results "$work/typo.db"
prints "broken YAML: place" "syntax\.yaml:[0-9]+:[0-9]+: "

sed 's/max_num_seq: 4/max_num_seqs: 4/' "$work/typo.yaml" >"$work/fine.yaml"
exits "a misspelt key in --set" 2 "$quire" run "$work/fine.yaml" --set sampling.temprature=1 \
    --results "$work/typo.db"
prints "a misspelt key in --set: the nearest name" "sampling\.temperature"
exits "a misspelt choice in the environment" 2 env QUIRE_ATTENTION=flush "$quire" run \
    "$work/fine.yaml" --results "$work/typo.db"
prints "a misspelt choice in the environment: the valid ones" "QUIRE_ATTENTION.*flash.*eager"
exits "a file that is not there" 2 "$quire" run "$work/none.yaml" --results "$work/typo.db"
prints "a file that is not there: its name" "none\.yaml"
exits "a misspelt command" 2 "$quire" rum "$work/fine.yaml"
prints "a misspelt command: the nearest name" "quire run"
exits "a misspelt option" 2 "$quire" run "$work/fine.yaml" --reslts "$work/typo.db"
prints "a misspelt option: the nearest name" "--results"

# ---- models: each broken one beside a good one ----

copy_model()
{
    mkdir -p "$work/$1"
    cp "${2:-$golden}"/*.json "${2:-$golden}"/*.safetensors "$work/$1/"
    rm -f "$work/$1/logits.json"
}

# write_safetensors FILE JSON: the header with its length in front, and 64 KiB of data.
write_safetensors()
{
    local n=${#2}
    {
        printf '%b' "\\x$(printf %02x $((n & 255)))\\x$(printf %02x $((n >> 8 & 255)))"
        printf '\0\0\0\0\0\0%s' "$2"
        head -c 65536 /dev/zero
    } >"$1"
}

# broken_model NAME FOLDER REGEX: the run fails that model's task only, and says why in its row.
broken_model()
{
    local db=$work/$2.db
    cat >"$work/$2.yaml" <<TEXT
experiment: broken
grid:
  model.path: [$work/$2, $golden]
sampling: {max_tokens: 4}
prompts: $good_prompts
TEXT
    exits "$1" 1 "$quire" run "$work/$2.yaml" --results "$db"
    prints "$1: the message" "$3"
    sql_equal "$1: the failure is a row, the other task is done" "$db" \
        "select group_concat(state, ' ') from (select state from attempts order by state)" \
        "done failed"
    check "$1: the row has the message" sh -c \
        "sqlite3 '$db' \"select error from attempts where state = 'failed'\" | grep -qE -e '$3'"
    sql_equal "$1: the good model's samples are there" "$db" \
        "select count(*) from samples where finish_reason <> 'error'" 2
}

copy_model truncated
file=$work/truncated/model.safetensors
truncate -s $(($(stat -c %s "$file") / 2)) "$file"
broken_model "a truncated safetensors" truncated "model\.safetensors"

copy_model overlapping
write_safetensors "$work/overlapping/model.safetensors" \
    '{"model.norm.weight":{"dtype":"F32","shape":[32],"data_offsets":[0,128]},"model.embed_tokens.weight":{"dtype":"F32","shape":[96,32],"data_offsets":[64,12352]}}'
broken_model "overlapping offsets" overlapping "model\.safetensors.*overlap"

copy_model outside
write_safetensors "$work/outside/model.safetensors" \
    '{"model.embed_tokens.weight":{"dtype":"F32","shape":[1048576,32],"data_offsets":[0,134217728]}}'
broken_model "offsets outside the file" outside "model\.safetensors.*not within"

copy_model huge_header
printf '\377\377\377\377\377\377\377\177{}' >"$work/huge_header/model.safetensors"
broken_model "a header longer than the file" huge_header "model\.safetensors"

copy_model wrong_shape
sed -i 's/"intermediate_size": *56/"intermediate_size": 60/' "$work/wrong_shape/config.json"
broken_model "a tensor of another shape than config.json says" wrong_shape \
    "(gate|up|down)_proj.*(56|60)"

copy_model unknown
sed -i 's/Qwen3ForCausalLM/GraniteForCausalLM/; s/"qwen3"/"granite"/' "$work/unknown/config.json"
broken_model "an unknown architecture" unknown "GraniteForCausalLM"

copy_model no_weights
rm "$work/no_weights/model.safetensors"
broken_model "a folder without weights" no_weights "safetensors"

copy_model half_tokenizer "$PWD/configs/models/demo"
file=$work/half_tokenizer/tokenizer.json
truncate -s $(($(stat -c %s "$file") / 2)) "$file"
broken_model "a tokenizer.json cut in half" half_tokenizer "tokenizer\.json:.*(line )?908"

# ---- prompts ----

cat >"$work/long.yaml" <<TEXT
experiment: long-prompt
model: {path: $golden}
engine: {max_model_len: 32}
sampling: {max_tokens: 4}
prompts:
  list:
    - [1, 2, 3]
    - [$(seq -s ', ' 1 40)]
    - [7, 8, 9]
TEXT
exits "a prompt longer than max_model_len" 1 "$quire" run "$work/long.yaml" --results "$work/long.db"
sql_equal "a prompt longer than max_model_len: the others are done" "$work/long.db" \
    "select prompt_index, finish_reason from samples order by 1" \
    $'0|length\n1|error\n2|length'
check "a prompt longer than max_model_len: the row says both lengths" sh -c \
    "sqlite3 '$work/long.db' 'select error from samples where prompt_index = 1' |
     grep -E '40' | grep -E '32|31'"

printf '{"q": "one"}\n{"q": \n' >"$work/cut.jsonl"
cat >"$work/cut.yaml" <<TEXT
experiment: cut-prompts
model: {path: $PWD/configs/models/demo}
sampling: {max_tokens: 4}
prompts: {file: cut.jsonl, field: q}
TEXT
exits "a JSONL file with a broken line" 1 "$quire" run "$work/cut.yaml" --results "$work/cut.db"
sql_equal "a JSONL file with a broken line: the row has its place, the good line is done" \
    "$work/cut.db" "select sum(error like '%cut.jsonl:2%'), sum(error is null) from samples" "1|1"

exits "failed samples are tried again" 1 "$quire" run "$work/long.yaml" --results "$work/long.db"
sql_equal "failed samples are tried again: each sample is still one row" "$work/long.db" \
    "select count(*), sum(error is not null), (select count(*) from attempts) from samples" "3|1|2"

# Token 192 of this model is the byte 0, at which a text would end.
cat >"$work/any.yaml" <<TEXT
experiment: any-bytes
model: {path: $PWD/configs/models/demo}
sampling: {temperature: 50, n: 32, max_tokens: 300, ignore_eos: true}
prompts: {list: [one]}
TEXT
exits "answers of any bytes" 0 "$quire" run "$work/any.yaml" --results "$work/any.db"
sql_equal "answers of any bytes: no text is cut" "$work/any.db" \
    "select sum(nuls) > 0, sum(length(text) - length(replace(text, char(65533), '')) < nuls)
     from (select text, (select count(*) from json_each(ids) where value = 192) as nuls
           from samples)" "1|0"

# ---- databases ----

echo "not a database, but long enough to look like one" >"$work/text.db"
exits "a results file that is no database" 65 "$quire" run "$work/fine.yaml" \
    --results "$work/text.db"
prints "a results file that is no database: its name" "text\.db"
exits "results of a file that is not there" 65 "$quire" results "$work/none.db"
