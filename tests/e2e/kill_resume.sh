#!/usr/bin/env bash
# kill -9 at random times, twenty times over; the same command always ends with every sample exactly
# once, with the hashes of an uninterrupted run, and without generating a finished sample again.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

n_kills=20
cat >"$work/kill.yaml" <<TEXT
experiment: kill-resume
model: {architecture: $PWD/configs/models/minimal.json, init: random, seed: 3}
engine: {max_model_len: 512, max_num_seqs: 8, num_threads: 1}
sampling: {max_tokens: 120, seed: 5, n: 2, ignore_eos: true}
grid:
  engine.attention: [flash, eager]
  sampling.temperature: [0.0, 1.0]
prompts:
  list:
$(id_lists 40 200 20 100)
TEXT
n_samples=320
whole=$work/whole.db
cut=$work/cut.db

start=$(date +%s%N)
exits "an uninterrupted run" 0 "$quire" run "$work/kill.yaml" --results "$whole"
whole_ms=$((($(date +%s%N) - start) / 1000000))
expected=$(hashes "$whole")
sql_equal "it has every sample" "$whole" "select count(*), count(distinct key) from samples" \
    "$n_samples|$n_samples"

finished()
{
    [ -f "$cut" ] || return 0
    sql "$cut" "select key, attempt_id, output_sha256 from samples order by key" 2>/dev/null
}

# A run that finished before its kill has done everything: its database is compared, and the next
# one begins anew.
kills=0 tries=0 finishes=0 kept=true finished_well=true most=0
: >"$work/before"
while [ $kills -lt $n_kills ] && [ $tries -lt $((10 * n_kills)) ]; do
    tries=$((tries + 1))
    "$quire" run "$work/kill.yaml" --results "$cut" >"$work/log" 2>&1 &
    pid=$!
    # Some die before their first commit, some after several.
    sleep "$(awk -v s=$RANDOM -v ms="$whole_ms" 'BEGIN { printf "%.3f", s / 32768 * ms / 1500 }')"
    kill -9 $pid 2>/dev/null
    status=0
    wait $pid 2>/dev/null || status=$?
    # A committed sample stays as it is, under the attempt that made it.
    finished >"$work/after"
    if [ -n "$(comm -23 "$work/before" "$work/after")" ]; then
        kept=false
    fi
    mv "$work/after" "$work/before"
    if [ $status -eq 137 ]; then
        kills=$((kills + 1))
        n=$(wc -l <"$work/before")
        if [ "$n" -lt $n_samples ] && [ "$n" -gt "$most" ]; then
            most=$n
        fi
    else
        finishes=$((finishes + 1))
        [ "$(hashes "$cut")" = "$expected" ] || finished_well=false
        rm -f "$cut"*
        : >"$work/before"
    fi
done
echo "$kills kills in $tries runs, $finishes of them finished; a kill left at most $most samples"
equal "runs were killed" $kills $n_kills
equal "some were killed between two commits" "$((most > 0))" 1
equal "committed samples stay and are not generated again" $kept true
equal "those that finished had every sample once, with the right hash" $finished_well true

exits "the last run" 0 "$quire" run "$work/kill.yaml" --results "$cut"
finished >"$work/after"
equal "it keeps what was committed" "$(comm -23 "$work/before" "$work/after")" ""
sql_equal "every sample exactly once" "$cut" "select count(*), count(distinct key) from samples" \
    "$n_samples|$n_samples"
equal "hashes of the uninterrupted run" "$(hashes "$cut")" "$expected"
sql_equal "the database is sound" "$cut" "pragma integrity_check" ok
sql_equal "nothing was nondeterministic" "$cut" \
    "select count(*) from events where kind = 'nondeterministic'" 0

attempts=$(sql "$cut" "select count(*) from attempts")
exits "once more" 0 "$quire" run "$work/kill.yaml" --results "$cut"
prints "once more: all tasks are done already" "4 tasks already done"
sql_equal "once more: no attempt was made" "$cut" "select count(*) from attempts" "$attempts"

# A polite stop: the signal's run says that running again resumes.
stopped=$work/stopped.db
"$quire" run "$work/kill.yaml" --results "$stopped" >"$out" 2>&1 &
pid=$!
# After the first commit there is a long way to go.
while kill -0 $pid 2>/dev/null && ! sql "$stopped" "select 1 from samples limit 1" 2>&1 | grep -q '^1'; do
    sleep 0.01
done
kill -TERM $pid
status=0
wait $pid || status=$?
equal "SIGTERM ends with exit 75" $status 75
exits "after SIGTERM the same command goes on" 0 "$quire" run "$work/kill.yaml" --results "$stopped"
equal "after SIGTERM: the same hashes" "$(hashes "$stopped")" "$expected"
