# shellcheck shell=bash
# lib.sh - what the end-to-end tests share; sourced by each of them.
#
# A test runs in the project's root, works in $work (removed at the end) and prints one line per
# check: "ok NAME", "FAILED NAME" or "skipped NAME: why". It exits with 1 when a check failed.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

# shellcheck disable=SC2034 # used by those that source this file
quire=$(realpath "${BUILD:-build}")/quire
# shellcheck disable=SC2034
data=${QUIRE_TEST_DATA:-../shared/data}
work=$(mktemp -d)
failures=0

# What the caller's shell sets must not change a test.
unset USE_FAST_ENGINE QUIRE_ATTENTION QUIRE_DEVICE QUIRE_RESULTS QUIRE_MODELS QUIRE_CPU_ISA
export QUIRE_LOG=info

finish()
{
    local status=$?
    rm -rf "$work"
    if [ "$failures" -gt 0 ] || [ "$status" -ne 0 ]; then
        exit 1
    fi
}
trap finish EXIT

ok()
{
    echo "ok $1"
}

# fail NAME [FILE]: with the end of the output that shows it.
fail()
{
    [ -z "${2:-}" ] || tail -n 20 "$2" | sed 's/^/  | /'
    echo "FAILED $1"
    failures=$((failures + 1))
}

skip()
{
    echo "skipped $1: $2"
}

# check NAME COMMAND...: ok when the command succeeds.
check()
{
    local name=$1
    shift
    if "$@" >"$work/check.log" 2>&1; then
        ok "$name"
    else
        fail "$name" "$work/check.log"
    fi
}

# equal NAME ACTUAL EXPECTED: a difference shows expected lines as "<", actual ones as ">".
equal()
{
    if [ "$2" = "$3" ]; then
        ok "$1"
    else
        diff <(printf '%s\n' "$3") <(printf '%s\n' "$2") >"$work/equal.log"
        fail "$1" "$work/equal.log"
    fi
}

# exits NAME STATUS COMMAND...: ok when the command ends with that status. Its output is in $out.
out=$work/out
exits()
{
    local name=$1 expected=$2 status=0
    shift 2
    "$@" >"$out" 2>&1 || status=$?
    if [ "$status" -eq "$expected" ]; then
        ok "$name"
    else
        echo "exit status $status, expected $expected" >>"$out"
        fail "$name" "$out"
    fi
}

# prints NAME REGEX: ok when the output of the last `exits` has such a line.
prints()
{
    if grep -qE -e "$2" "$out"; then
        ok "$1"
    else
        echo "no line matches: $2" >>"$out"
        fail "$1" "$out"
    fi
}

# sql DATABASE QUERY: columns separated by |.
sql()
{
    sqlite3 -readonly "$1" "$2"
}

# sql_equal NAME DATABASE QUERY EXPECTED
sql_equal()
{
    local actual
    actual=$(sql "$2" "$3" 2>&1)
    equal "$1" "$actual" "$4"
}

# Prints every sample's place in the experiment and its tokens' hash. Settings that must not change
# tokens are not printed, so two configurations of one experiment print the same.
hashes()
{
    sql "$1" "select t.sampling_temperature, t.replication, s.prompt_index, s.sample_index,
                     s.output_sha256
              from samples s join tasks t using (task_id)
              order by 1, 2, 3, 4, 5"
}

# id_lists N_PROMPTS VOCAB SHARED MAX_LEN: YAML items of token ids. Lengths go from 1 to MAX_LEN;
# every second prompt begins with the same SHARED ids, for the prefix cache to find.
id_lists()
{
    awk -v n="$1" -v vocab="$2" -v shared="$3" -v max_len="$4" 'BEGIN {
        for (p = 0; p < n; p++) {
            len = 1 + (p * 37 + 11) % max_len
            if (p % 2) len = shared + 1 + len % (max_len - shared)
            line = ""
            for (i = 0; i < len; i++) {
                # A Lehmer generator whose products stay below 2^53.
                x = (((p % 2 && i < shared) ? 1 : p + 2) * 7919 + i * 104729) * 48271 % 2147483647
                line = line (i ? ", " : "") x % vocab
            }
            print "    - [" line "]"
        }
    }'
}
