#!/usr/bin/env bash
# The sbatch scripts, generated and ready-made, run by bash with a sbatch, srun and scontrol of our own on
# the PATH: what is requeued under which number, who hears which signal, what --submit submits.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

root=$PWD
bin=$work/bin
mkdir "$bin" "$work/a folder"
export FAKE=$work/fake

fake()
{
    cat >"$bin/$1"
    chmod +x "$bin/$1"
}

# Notes its arguments, one a line; then ends with $FAKE_EXIT, or waits for a USR1 or the file "go".
fake srun <<'TEXT'
#!/bin/bash
trap 'echo USR1 >>"$FAKE/heard"; exit 75' USR1
printf '%s\n' "$@" >"$FAKE/srun"
[ "$FAKE_EXIT" != wait ] || until [ -e "$FAKE/go" ]; do /bin/sleep 0.02; done
[ "$FAKE_EXIT" != wait ] || exit 75
exit "$FAKE_EXIT"
TEXT
# Slurm knows of the attempt that runs, unless $FAKE_RESTARTS tells of another.
fake scontrol <<'TEXT'
#!/bin/bash
if [ "$1" = show ]; then
    echo "JobId=41 Requeue=1 Restarts=${FAKE_RESTARTS:-${SLURM_RESTART_COUNT:-0}} BatchFlag=1"
    exit
fi
echo "$*" >>"$FAKE/scontrol"
TEXT
# The scripts' own pause is not waited for here.
fake sleep <<'TEXT'
#!/bin/bash
TEXT
fake module <<'TEXT'
#!/bin/bash
echo "$*" >>"$FAKE/module"
TEXT
# Keeps each call's arguments and script, and answers as sbatch --parsable does.
fake sbatch <<'TEXT'
#!/bin/bash
n=$(($(cat "$FAKE/n_jobs" 2>/dev/null || echo 0) + 1))
echo $n >"$FAKE/n_jobs"
printf '%s\n' "$@" >"$FAKE/job$n.arguments"
cat >"$FAKE/job$n.script"
[ $n != "${FAKE_REFUSE:-}" ] || { echo "sbatch: error: Invalid partition" >&2; exit 1; }
echo "a site's plugin says hello"
echo "$((1000 + n))${FAKE_CLUSTER:-}"
TEXT

# start SCRIPT WORDS...: as Slurm starts a job; VARIABLE=VALUE words are added to its environment.
start()
{
    local script=$1
    shift
    rm -rf "$FAKE"
    mkdir "$FAKE"
    env PATH="$bin:$PATH" SLURM_JOB_ID=41 SLURM_CPUS_PER_TASK=8 "$@" bash "$script"
}

asked()
{
    cat "$FAKE/$1" 2>/dev/null
}

# ---- generated scripts ----

config="$work/a folder/it's one.yaml"
cat >"$config" <<TEXT
experiment: it's one
inherit: $root/configs/demo.yaml
slurm:
  time: 60
  nodes: 2
  ntasks_per_node: 2
  gpus_per_task: 1
  cpus_per_task: 8
  modules: [cuda/12.4]
  environment_file: site env.sh
TEXT
# shellcheck disable=SC2016 # for the file
echo 'FROM_SITE=$THIS_IS_NOT_SET; export FROM_SITE' >"$work/a folder/site env.sh"

script=$work/one.sbatch
cd "$work/a folder" || exit 2
# shellcheck disable=SC2016 # it has to arrive as it is
exits "slurm writes a script" 0 "$quire" slurm "it's one.yaml" --output "$script" \
    --set 'prompts.list=["it'\''s $HOME \"quoted\""]' --set slurm.qos=long
cd "$root" || exit 2
check "bash can read it" bash -n "$script"
if command -v shellcheck >/dev/null; then
    # The environment file is somebody else's, and the $ in single quotes is meant.
    check "shellcheck has nothing to say" shellcheck -e SC1091,SC2016 "$script"
else
    skip "shellcheck has nothing to say" "shellcheck is not installed"
fi
check "it asks for the qos of --set" grep -qx '#SBATCH --qos=long' "$script"

exits "done: the script ends with 0" 0 start "$script" FAKE_EXIT=0
equal "done: nothing is requeued" "$(asked scontrol)" ""
equal "the step is what the config says" "$(asked srun)" "--kill-on-bad-exit=1
--mpi=pmix
--cpus-per-task=8
--gpus-per-task=1
$(realpath "$quire")
run
it's one.yaml
--set
prompts.list=[\"it's \$HOME \\\"quoted\\\"\"]"
equal "modules are loaded" "$(asked module)" "load cuda/12.4"
exits "some failed: the script ends with 1" 1 start "$script" FAKE_EXIT=1
equal "some failed: nothing is requeued" "$(asked scontrol)" ""
exits "a lost rank: the script ends with 137" 137 start "$script" FAKE_EXIT=137
equal "a lost rank: nothing is requeued" "$(asked scontrol)" ""
exits "stopped early: the script ends with 75" 75 start "$script" FAKE_EXIT=75
equal "stopped early: the job is requeued" "$(asked scontrol)" "requeue 41"
exits "the fiftieth restart" 75 start "$script" FAKE_EXIT=75 SLURM_RESTART_COUNT=50
equal "the fiftieth restart is the last" "$(asked scontrol)" ""

exits "stopped while a newer attempt runs" 75 start "$script" FAKE_EXIT=75 FAKE_RESTARTS=1
equal "stopped while a newer attempt runs: that one is left alone" "$(asked scontrol)" ""

# catches PID SIGNAL: whether the process has a handler for the signal.
catches()
{
    local mask
    mask=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status")
    [ $((0x${mask:-0} >> ($(kill -l "$2") - 1) & 1)) = 1 ]
}

# signalled NAME SIGNAL SCRIPT: runs the script, and signals its shell when the step is under way.
signalled()
{
    local job tries=0
    rm -rf "$FAKE"
    mkdir "$FAKE"
    PATH=$bin:$PATH SLURM_JOB_ID=41 SLURM_CPUS_PER_TASK=8 FAKE_EXIT=wait bash "$3" >"$out" 2>&1 &
    job=$!
    # The traps are set right behind the start of the step.
    until { [ -e "$FAKE/srun" ] && catches $job "$2"; } || [ $((tries += 1)) -gt 500 ]; do
        sleep 0.02
    done
    kill -"$2" $job
    if [ "$2" = USR1 ]; then # which the shell passes on
        until [ -e "$FAKE/heard" ] || [ $((tries += 1)) -gt 500 ]; do
            sleep 0.02
        done
    fi
    touch "$FAKE/go"
    status=0
    wait $job || status=$?
    equal "$1: the script ends with 75" $status 75
}

signalled "USR1 to the shell" USR1 "$script"
equal "USR1 to the shell: the step hears it once" "$(asked heard)" USR1
equal "USR1 to the shell: the job is requeued" "$(asked scontrol)" "requeue 41"
signalled "TERM to the shell" TERM "$script"
equal "TERM to the shell: the step got its own" "$(asked heard)" ""
equal "TERM to the shell: the job is not requeued" "$(asked scontrol)" ""

array=$work/array.sbatch
exits "slurm prints a script" 0 "$quire" slurm configs/phases/phase1.yaml
cp "$out" "$array"
check "of an array" grep -qx '#SBATCH --array=0-7%4' "$array"
exits "a worker stopped early" 75 start "$array" FAKE_EXIT=75 SLURM_ARRAY_JOB_ID=40 \
    SLURM_ARRAY_TASK_ID=3
equal "a worker stopped early: it alone is requeued" "$(asked scontrol)" "requeue 40_3"

for phase in configs/phases/phase?.yaml; do
    exits "a script for $phase" 0 "$quire" slurm "$phase"
    check "bash can read that for $phase" bash -n "$out"
done

# ---- --submit ----

# submit WORDS...: in a folder of its own, with the sbatch of ours, or what else $FAKE_PATH has.
submit()
{
    rm -rf "$FAKE" "$work/submitted"
    mkdir "$FAKE" "$work/submitted"
    (cd "$work/submitted" && PATH=${FAKE_PATH:-$bin:$PATH} "$quire" slurm "$@")
}

phase1=$root/configs/phases/phase1.yaml
exits "an array is submitted" 0 submit "$phase1" --submit
equal "an array: two jobs" "$(asked n_jobs)" 2
check "an array: the log folder is there" test -d "$work/submitted/logs"
check "an array: sbatch gets the script" grep -qx '#SBATCH --array=0-7%4' "$FAKE/job1.script"
check "an array: the script works where it was submitted" \
    grep -qxF "#SBATCH --chdir=$work/submitted" "$FAKE/job1.script"
check "an array: the merge job waits for it" \
    grep -qx -e '--dependency=afterany:1001' "$FAKE/job2.arguments"
check "an array: the merge job merges" \
    grep -qx -e "--wrap=.*/quire merge results/phase1.db results/phase1.d/\*.db" "$FAKE/job2.arguments"
prints "an array: its number" '^job 1001: phase1, 8 workers'
prints "an array: the merge job's number" '^job 1002: merges'
prints "an array: what comes next" 'quire status '
export FAKE_CLUSTER=";other"
exits "a cluster with a name" 0 submit "$phase1" --submit
check "a cluster with a name: only the number counts" \
    grep -qx -e '--dependency=afterany:1001' "$FAKE/job2.arguments"
unset FAKE_CLUSTER
exits "one job is submitted" 0 submit "$phase1" --submit --set slurm.array=0
equal "one job: one call" "$(asked n_jobs)" 1
FAKE_REFUSE=1 exits "sbatch refuses" 69 submit "$phase1" --submit
prints "sbatch refuses: its own words" 'Invalid partition'
prints "sbatch refuses: ours" 'sbatch did not take the job \(exit status 1\)'
FAKE_REFUSE=2 exits "sbatch refuses the merge job" 69 submit "$phase1" --submit
prints "sbatch refuses the merge job: the array is named" 'job 1001 is submitted, but not'
FAKE_PATH=$work/none exits "no sbatch on the PATH" 69 submit "$phase1" --submit
prints "no sbatch: what to do" 'no sbatch on the PATH.*--output FILE'
exits "more workers than samples: a warning" 0 submit "$phase1" --set slurm.array=999 \
    --set prompts.limit=1 --set replications=1
prints "more workers than samples: the numbers" 'slurm.array is 999, but there are only 132 samples'
exits "an unknown key" 2 submit "$phase1" --set slurm.partitoin=gpu
prints "an unknown key: the nearest one" "did you mean 'slurm.partition'"

# ---- the ready scripts ----

for script in slurm/*.sbatch; do
    id=41
    if grep -q '^#SBATCH --array' "$script"; then
        id=40_3
    fi
    exits "$script: done" 0 start "$script" FAKE_EXIT=0
    equal "$script: done, nothing is requeued" "$(asked scontrol)" ""
    exits "$script: stopped early" 75 start "$script" FAKE_EXIT=75 SLURM_ARRAY_JOB_ID=40 \
        SLURM_ARRAY_TASK_ID=3
    equal "$script: stopped early, it is requeued" "$(asked scontrol)" "requeue $id"
    exits "$script: a newer attempt runs" 75 start "$script" FAKE_EXIT=75 SLURM_ARRAY_JOB_ID=40 \
        SLURM_ARRAY_TASK_ID=3 FAKE_RESTARTS=1
    equal "$script: a newer attempt is left alone" "$(asked scontrol)" ""
    signalled "$script: cancelled" TERM "$script"
    equal "$script: cancelled, it stays so" "$(asked scontrol)" ""
done

exits "run_phase1.sh" 0 env QUIRE_RESULTS="$work/phase1.db" slurm/run_phase1.sh
sql_equal "run_phase1.sh: 660 tasks of the fast engine, 2,640 samples" "$work/phase1.db" \
    "select count(*), sum(engine_used = 'fast'), (select count(*) from samples) from attempts" \
    "660|660|2640"
exits "run_phase1.sh again" 0 env QUIRE_RESULTS="$work/phase1.db" slurm/run_phase1.sh
prints "run_phase1.sh again: nothing to do" '660 tasks already done'
