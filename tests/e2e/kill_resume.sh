#!/usr/bin/env bash
# kill -9 at random times, twenty times over; then the same command ends with every sample exactly
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

finished()
{
    [ -f "$cut" ] || return 0
    sql "$cut" "select key, attempt_id, output_sha256 from samples order by key" 2>/dev/null
}

kills=0 kept=true
: >"$work/before"
for ((i = 0; i < n_kills; i++)); do
    # Some die before their first commit, some after several.
    "$quire" run "$work/kill.yaml" --results "$cut" >"$work/log" 2>&1 &
    pid=$!
    sleep "$(awk -v s=$RANDOM -v ms="$whole_ms" 'BEGIN { printf "%.3f", s / 32768 * ms / 4000 }')"
    kill -9 $pid 2>/dev/null && kills=$((kills + 1))
    wait $pid 2>/dev/null
    finished >"$work/after"
    # A committed sample stays as it is, under the attempt that made it.
    if [ -n "$(comm -23 "$work/before" "$work/after")" ]; then
        kept=false
    fi
    mv "$work/after" "$work/before"
done
echo "killed $kills of $n_kills runs; $(wc -l <"$work/before") of $n_samples samples were committed"
equal "some runs were killed" "$((kills > 0))" 1
equal "committed samples stay and are not generated again" $kept true

exits "the last run" 0 "$quire" run "$work/kill.yaml" --results "$cut"
finished >"$work/after"
equal "it keeps what was committed" "$(comm -23 "$work/before" "$work/after")" ""
sql_equal "every sample exactly once" "$cut" "select count(*), count(distinct key) from samples" \
    "$n_samples|$n_samples"
equal "hashes of the uninterrupted run" "$(hashes "$cut")" "$(hashes "$whole")"
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
sleep "$(awk -v ms="$whole_ms" 'BEGIN { printf "%.3f", ms / 2500 }')"
kill -TERM $pid
status=0
wait $pid || status=$?
equal "SIGTERM ends with exit 75" $status 75
exits "after SIGTERM the same command goes on" 0 "$quire" run "$work/kill.yaml" --results "$stopped"
equal "after SIGTERM: the same hashes" "$(hashes "$stopped")" "$(hashes "$whole")"
