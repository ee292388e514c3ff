#!/usr/bin/env bash
# What a newcomer does with the 660 tasks of phase 1: submits them as they are (an array of eight
# workers, four at a time, and a job that merges their shards), sees that one worker never came to
# its end, and submits again what is missing, to another number of workers.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

config=$PWD/configs/phases/phase1.yaml
db=$work/results/phase1.db
shards=$work/results/phase1.d
cd "$work" || exit

all_jobs_ended()
{
    [ -z "$(squeue -h)" ]
}

exits "quire slurm --submit" 0 "$quire" slurm "$config" --submit
job=$(sed -n 's,^job \([0-9]*\): phase1.*,\1,p' "$out")
check "the jobs end" wait_for 120 all_jobs_ended
check "all workers well" is_in_state "$job" COMPLETED
equal "a shard for each worker" "$(find "$shards" -name '*-of-0008.db' | wc -l)" 8
as_undisturbed "660 tasks by an array of 8 workers, merged" "$db" "$config"
exits "merging again" 0 "$quire" merge "$db"
equal "changes nothing" "$(hashes "$db")" "$(expected_hashes "$config")"

rm "$db" "$shards/0005-of-0008.db"
exits "quire status without the shard of worker 5" 0 "$quire" status "$config"
prints "knows what is left" "2,310 of 2,640 done, 330 pending"
prints "and which worker's share that is" "--array=5 --export=ALL,QUIRE_ARRAY_COUNT=8"
exits "three workers do the rest" 0 "$quire" slurm "$config" --submit --set slurm.array=3
check "the jobs end" wait_for 120 all_jobs_ended
sql_equal "they did only what was missing" "$db" \
    "select sum(n_samples) from attempts join runs using (run_id)
     where slurm_array_job_id != '$job'" 330
as_undisturbed "a shard lost; an array of 3 workers does the rest" "$db" "$config"
