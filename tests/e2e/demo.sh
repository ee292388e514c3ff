#!/usr/bin/env bash
# The demo that `make run` shows a newcomer: eight tasks, right sums at temperature 0, one row per
# task in the throughput view, and nothing to do the second time.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

db=$work/demo.db
exits "the demo runs" 0 "$quire" run configs/demo.yaml --results "$db"
prints "it names the engine that the model is loaded for" \
    '^\[\*\] Loading model .*/demo with the fast engine \(paged attention, continuous batching\)$'
prints "it names the attention kernel" '^\[\*\] Using (flash|eager) attention'
prints "it names the engine and its memory" '^\[\*\] Fast engine initialised: [0-9]+ KV blocks of 64 tokens'
sql_equal "eight tasks, all done" "$db" "select count(*), sum(state = 'done') from attempts" "8|8"
sql_equal "sixteen samples each" "$db" \
    "select min(n), max(n) from (select count(*) n from samples group by task_id)" "16|16"
sql_equal "the throughput view has a row per task with what was used and why" "$db" \
    "select count(*), sum(engine_used = 'fast'), count(distinct attention_used),
            sum(length(decision_reason) > 0), sum(output_tps > 0) from throughput" "8|8|2|8|8"
sql_equal "both attention kernels give the same greedy texts" "$db" \
    "select count(distinct output_sha256) from
     (select prompt_index, count(distinct output_sha256) as output_sha256 from samples s
      join tasks t using (task_id) where t.sampling_temperature = 0 group by prompt_index)" 1

# A prompt has two numbers. A word problem does not say which operation it means, so that either
# result is right there.
wrong_answers()
{
    sql "$db" "select distinct replace(s.prompt, char(10), ' ') || '|' ||
                      replace(s.text, char(10), ' ')
               from samples s join tasks t using (task_id)
               where t.sampling_temperature = 0" | awk -F'|' '
        {
            n = split($1, number, /[^0-9]+/)
            a = number[1] == "" ? number[2] : number[1]
            b = number[n] == "" ? number[n - 1] : number[n]
            sum = a + b
            difference = a > b ? a - b : b - a
            if ($1 ~ / plus | \+ |Add |sum of/) difference = sum
            if ($1 ~ / minus | - |Subtract |difference between/) sum = difference
            m = split($2, number, /[^0-9]+/)
            answer = number[m] == "" ? number[m - 1] : number[m]
            checked++
            if (answer != sum && answer != difference) print $1 $2
        }
        END { if (checked != 16) print checked " different prompts, expected 16" }'
}
equal "the sums are right at temperature 0" "$(wrong_answers)" ""

exits "the second run" 0 "$quire" run configs/demo.yaml --results "$db"
prints "the second run has nothing to do" "8 tasks already done"
sql_equal "the second run makes no attempt" "$db" \
    "select count(*), (select count(*) from samples), (select count(*) from runs) from attempts" \
    "8|128|2"

exits "results" 0 "$quire" results "$db"
prints "results names the kernels" "flash"
exits "results --samples" 0 "$quire" results "$db" --samples --limit 4
