# shellcheck shell=bash source-path=SCRIPTDIR
# lib.sh - what the stories share; sourced by each of them. A story runs in a cluster of its own
# (lab.sh), in which $work is the shared file system, and prints checks as tests/e2e/lib.sh says.
#
# Every story runs the experiment of write_experiment, disturbs it, and ends with as_undisturbed.
if [ -z "${SLURM_LAB:-}" ]; then
    exec "$(dirname "${BASH_SOURCE[0]}")/lab.sh" "$0" "$@"
fi
. "$(dirname "${BASH_SOURCE[0]}")/../e2e/lib.sh"

# shellcheck disable=SC2034 # used by the stories
node=$PWD/tests/slurm/node.sh
config=$work/lab.yaml
db=$work/lab.db
# shellcheck disable=SC2034 # used by the stories
readonly N_SAMPLES=432 RANKS=4 MAX_SEQS=4

# The nodes share this machine's processors, where a rank that waits would only be in the way.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1

# What the cluster said is kept where a story fails.
kept=$(realpath "${BUILD:-build}")/log/$(basename "$0" .sh).lab
finish_story()
{
    local status=$?
    rm -rf "$kept"
    if [ "$failures" -gt 0 ] || [ "$status" -ne 0 ]; then
        mkdir -p "$kept"
        cp "$SLURM_LAB"/log/* "$kept"
        find "$work" -maxdepth 2 -type f -size -1024k -exec cp -t "$kept" {} +
        echo "the cluster's logs are in $kept"
    fi
    (exit $status)
    finish
}
trap finish_story EXIT

# 36 tasks of 12 samples: some eight seconds on one processor, or on the four nodes of two.
write_experiment()
{
    cat >"$config" <<TEXT
experiment: lab
model: {path: $PWD/configs/models/demo}
engine: {max_num_seqs: $MAX_SEQS, num_threads: 1, max_model_len: 512}
sampling: {max_tokens: 200, n: 2, seed: 11, ignore_eos: true}
grid:
  engine.attention: [flash, eager]
  sampling.temperature: [0.0, 0.8, 1.0]
replications: 6
results: $db
slurm: {nodes: $RANKS}
prompts:
  list:
    - "Question: What is 47 plus 36?\nAnswer:"
    - "Question: How much is 85 + 24?\nAnswer:"
    - "Question: What is 91 minus 37?\nAnswer:"
    - "Question: Add 62 and 47.\nAnswer:"
    - "Question: Subtract 34 from 73.\nAnswer:"
    - "Question: What is 80 - 39?\nAnswer:"
TEXT
}
write_experiment

# expected_hashes [CONFIG]: of the same experiment in one process that nothing disturbs. Stories of
# the same experiment share them through the folder $LAB_REFERENCE, when there is one.
expected_hashes()
{
    local from=${1:-$config} whole
    whole=${LAB_REFERENCE:-$work}/undisturbed-$(basename "$from" .yaml).db
    flock "$whole.turn" "$quire" run "$from" --results "$whole" >"$work/undisturbed.log" 2>&1 ||
        cat "$work/undisturbed.log"
    hashes "$whole"
}

# wait_for SECONDS COMMAND...: fails when the command has not succeeded by then.
wait_for()
{
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}

# submit NAME [SBATCH OPTION...]: the experiment, with the script that `quire slurm` writes for it and
# for the options in $settings. The job's id is in $job, what it printed in $work/NAME.out.
settings=()
submit()
{
    local name=$1
    shift
    (cd "$work" && "$quire" slurm "$config" --set results="$db" "${settings[@]}" \
        --output "$name.sbatch") || exit
    job=$(sbatch --parsable --job-name="$name" --open-mode=append --output="$work/$name.out" "$@" \
        "$work/$name.sbatch")
}

state()
{
    squeue -h -t all -j "$1" -o %T
}

is_in_state()
{
    [[ "$(state "$1" | sort -u)" =~ ^($2)$ ]]
}

# job_ends NAME STATE: of $job, whose output is shown when it is not so.
job_ends()
{
    wait_for 180 is_in_state "$job" "COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL"
    if is_in_state "$job" "$2"; then
        ok "$1"
    else
        cat "$(scontrol show job -o "$job" | sed -E 's/.* StdOut=([^ ]+).*/\1/')" >"$out"
        echo "job $job is $(state "$job"), expected $2" >>"$out"
        fail "$1" "$out"
    fi
}

# $job is queued again; Slurm lets some seconds pass before it starts.
is_queued_again()
{
    check "the job is queued again" wait_for 40 is_in_state "$job" PENDING
}

count_samples()
{
    sql "$1" "select count(*) from samples" 2>/dev/null || echo 0
}

has_samples()
{
    [ "$(count_samples "$1")" -ge "$2" ]
}

# The samples that are safe, each with the attempt that generated it.
committed()
{
    sql "$db" "select key, attempt_id, output_sha256 from samples order by key"
}

# mid_run N: waits until N samples are committed. Then all ranks stand still until go_on or Slurm's
# own SIGCONT, so that no machine is so fast that the run ends before it is disturbed.
mid_run()
{
    check "the run is in the middle of its work" wait_for 60 has_samples "$db" "$1"
    pkill -STOP -x quire
}

# From here the processes of all nodes are to be seen.
go_on()
{
    pkill -CONT -x quire
}

# What a sample is, but for settings that must not change its tokens, and the tokens' hash.
hashes()
{
    sql "$1" "select t.engine_attention, t.sampling_temperature, t.sampling_top_p, t.sampling_top_k,
                     t.replication, s.prompt_index, s.sample_index, s.output_sha256
              from samples s join tasks t using (task_id)
              order by 1, 2, 3, 4, 5, 6, 7, 8"
}

# How often a sample was generated although it had been finished: the samples that the attempts say
# they finished (a lost one: those it left in the file), less those that there are.
generated_again()
{
    sql "$1" "select sum(max(ifnull(n_samples, 0),
                             (select count(*) from samples s where s.attempt_id = a.attempt_id)))
                     - (select count(*) from samples) from attempts a"
}

told_s=0
# as_undisturbed WHAT_WAS_DONE [DATABASE [CONFIG]]: the end of a story. Every sample is there with
# the hash of the undisturbed run, and at most those in flight were generated twice. Prints a row of
# the record (record.sh).
as_undisturbed()
{
    local database=${2:-$db} expected actual again same=no codes
    expected=$(expected_hashes "${3:-$config}")
    actual=$(hashes "$database")
    equal "every sample has the hash of the undisturbed run" "$actual" "$expected"
    [ "$actual" != "$expected" ] || same=yes
    sql_equal "nothing was nondeterministic" "$database" \
        "select count(*) from events where kind = 'nondeterministic'" 0
    again=$(generated_again "$database")
    check "at most the samples in flight were generated twice: $again" \
        test "$again" -le $((RANKS * MAX_SEQS))
    codes=$(sql "$database" "select group_concat(ifnull(exit_code, 'cut off'), ', ')
                             from (select exit_code from runs order by run_id)")
    echo "| $(basename "$0" .sh | tr _ ' ') | $1 | $codes | $(count_samples "$database")" \
        "| $again | $same | $((SECONDS - told_s)) |" | tee -a "${LAB_RECORD:-/dev/null}"
    told_s=$SECONDS
}
