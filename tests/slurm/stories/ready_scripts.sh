#!/usr/bin/env bash
# The scripts of slurm/, as they are: Slurm takes each, and its job does the demo experiment.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

config=$PWD/configs/demo.yaml
scripts=$PWD/slurm
cd "$work" || exit
mkdir logs
ln -s "$quire" quire

for script in "$scripts"/*.sbatch; do
    name=$(basename "$script" .sbatch)
    db=$work/$name.db
    exits "$name is submitted" 0 env QUIRE_RESULTS="$db" sbatch --parsable "$script" "$config"
    job=$(cat "$out")
    job_ends "$name ends well" COMPLETED
    if [ ! -e "$db" ]; then
        exits "$name: its shards are merged" 0 "$quire" merge "$db"
    fi
    as_undisturbed "\`sbatch slurm/$name.sbatch\`" "$db" "$config"
done
