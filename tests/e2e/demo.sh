#!/usr/bin/env bash
# The demo that `make run` shows a newcomer: eight tasks, right sums at temperature 0, one row per
# task in the throughput view, and nothing to do the second time.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

db=$work/demo.db
exits "the demo runs" 0 "$quire" run configs/demo.yaml --results "$db"
prints "it names the attention kernel" '^\[\*\] Using (flash|eager) attention'
prints "it names the engine" '^\[\*\] Loading model .* with the fast engine'
sql_equal "eight tasks, all done" "$db" "select count(*), sum(state = 'done') from attempts" "8|8"
sql_equal "sixteen samples each" "$db" \
    "select min(n), max(n) from (select count(*) n from samples group by task_id)" "16|16"
sql_equal "the throughput view has a row per task with what was used and why" "$db" \
    "select count(*), sum(engine_used = 'fast'), count(distinct attention_used),
            sum(length(decision_reason) > 0), sum(output_tps > 0) from throughput" "8|8|2|8|8"
sql_equal "both attention kernels give the same greedy texts" "$db" \
    "select count(distinct output_sha256) from
     (select prompt_index, count(distinct output_sha256) as output_sha256 from samples s
      join tasks t on t.id = s.task_id where t.sampling_temperature = 0 group by prompt_index)" 1

# "What is 12 + 34?" and the like: the numbers and the sign of the prompt give the answer, which
# must be a number of the text.
wrong_answers()
{
    sql "$db" "select distinct replace(s.prompt, char(10), ' ') || '|' ||
                      replace(s.text, char(10), ' ')
               from samples s join tasks t on t.id = s.task_id
               where t.sampling_temperature = 0" | awk -F'|' '
        match($1, /[0-9]+ *[-+] *[0-9]+/) {
            expression = substr($1, RSTART, RLENGTH)
            split(expression, number, /[^0-9]+/)
            answer = expression ~ /-/ ? number[1] - number[2] : number[1] + number[2]
            checked++
            if ((" " $2 " ") !~ ("[^0-9]" answer "[^0-9]")) print expression " is " answer ": " $2
        }
        END { if (!checked) print "no prompt has a sum in it" }'
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
