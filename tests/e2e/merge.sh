#!/usr/bin/env bash
# Shards: merged into one file they are what one run would have written, once, however often; and every
# reader takes them for that file before.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

db=$work/x.db
shards=$work/x.d
one=$shards/0000-of-0002.db
two=$shards/0001-of-0002.db

# The second shard has all tasks, the first one half of them, too.
whole=$work/whole.db
exits "one run" 0 "$quire" run configs/demo.yaml --results "$whole" --set replications=2
expected=$(hashes "$whole")
exits "the first shard" 0 "$quire" run configs/demo.yaml --results "$one" --set replications=1
exits "the second shard" 0 "$quire" run configs/demo.yaml --results "$two" --set replications=2

# ---- shards are read ----

for path in "$db" "$shards"; do
    exits "results of $(basename "$path")" 0 "$quire" results "$path" --view progress --format csv
    prints "results of $(basename "$path"): every task once" '^1,demo,8,8,0,0,128,128,0,0$'
done
exits "plan counts what the shards have" 0 "$quire" plan configs/demo.yaml \
    --set replications=2 --set results="$db"
prints "plan: all is done" 'samples +128 \(128 done already\)'
equal "reading makes no file" "$(find "$work" -maxdepth 1 -name 'x.db*')" ""

# ---- and merged ----

exits "merge without files to merge takes the shards" 0 "$quire" merge "$db"
prints "merge: what each had" '0000-of-0002.db: 4 tasks, 4 attempts, 64 samples new$'
prints "merge: only what is new" '0001-of-0002.db: 4 tasks, 8 attempts, 64 samples new$'
prints "merge: the sum" '^total: 8 tasks, 12 attempts, 128 samples new$'
prints "merge: what next" "8 of 8 tasks are done"
equal "merged shards have the hashes of one run" "$(hashes "$db")" "$expected"
cp "$db" "$work/once.db"
exits "merge again" 0 "$quire" merge "$db" "$two" "$one" "$shards"
prints "merge again: nothing" '^total: nothing new$'
for table in tasks runs attempts samples events timeseries; do
    sql_equal "merge again: $table as before" "$db" "select count(*) from $table" \
        "$(sql "$work/once.db" "select count(*) from $table")"
done
exits "a run goes on from the merged file" 0 "$quire" run configs/demo.yaml --results "$db" \
    --set replications=2
prints "and has nothing to do" '8 tasks already done'
exits "whole results can be merged, too" 0 "$quire" merge "$db" "$whole"
prints "they have no new sample" ' 0 samples new'
sql_equal "nothing came out another way" "$db" \
    "select count(*) from events where kind = 'nondeterministic'" 0

# ---- what differs ----

sqlite3 "$one" "update samples set output_sha256 = 'other' where sample_id = 1;
    update samples set error = 'no memory', output_sha256 = null where sample_id = 2"
rm -f "$db"
exits "merge shards that differ" 0 "$quire" merge "$db"
prints "a sample with another hash is counted" '1 samples with another output'
prints "and where to look" 'view events'
sql_equal "it is an event" "$db" "select count(*) from events where kind = 'nondeterministic'" 1
sql_equal "the first one is kept" "$db" "select count(*) from samples where output_sha256 = 'other'" 1
sql_equal "a finished sample replaced the failed one" "$db" \
    "select count(*) from samples where error is not null" 0

# ---- what is wrong ----

echo "This is no database." >"$shards/notes.db"
rm -f "$db"
exits "a file that is no database" 65 "$quire" merge "$db"
prints "it is named" 'notes.db: .*not a database'
equal "the others are merged" "$(sql "$db" "select count(*) from samples")" 128
exits "results name it, too" 65 "$quire" results "$shards"
prints "results: its name" 'notes.db'
exits "no shards" 65 "$quire" merge "$work/none.db"
prints "no shards: where they are looked for" "there is no database in $work/none.d"
exits "a file that is not there" 65 "$quire" merge "$work/none.db" "$work/nowhere.db"
equal "no file is made for nothing" "$(find "$work" -maxdepth 1 -name 'none*')" ""
exits "into a folder" 2 "$quire" merge "$shards" "$whole"
exits "into nothing" 2 "$quire" merge
