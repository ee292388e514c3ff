#!/usr/bin/env bash
# run.sh PROGRAM... - run test programs (cmocka binaries, tests/e2e/*.sh) one after the other.
#
# One line per program, the lines around each failure, and what was skipped with the reason.
# The last line is the sum, "N passed, N failed, N skipped". Exits with 1 when anything failed.
# Environment: BUILD (logs go to $BUILD/log), TEST_TIMEOUT_S (per program), TEST_WRAPPER (a command
# before each program).
set -u
cd "$(dirname "$0")/.." || exit 2

BUILD=${BUILD:-build}
TEST_TIMEOUT_S=${TEST_TIMEOUT_S:-600}
# Threads that wait for each other sleep: spinning makes tests fifty times slower where other programs
# want the processors too.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export QUIRE_LOG=${QUIRE_LOG:-warning}
export BUILD
log_dir=$BUILD/log
mkdir -p "$log_dir"
read -ra wrapper <<<"${TEST_WRAPPER:-}"

passed=0 failed=0 skipped=0

# Prints "PASSED FAILED SKIPPED" of a program's log and exit status. cmocka closes each test with
# "[       OK ] name", "[  FAILED  ] name" or "[  SKIPPED ] name" and repeats the last two in its
# summary after "[==========] N test(s) run."; e2e scripts print "ok ...", "FAILED ...", "skipped ...".
count()
{
    awk -v status="$2" '
        /^\[==========\] Running/ { cmocka = 1 }
        /^\[==========\].* run\./ { summary = 1 }
        summary { next }
        /^\[       OK \]/ || /^ok / { ok++ }
        /^\[  FAILED  \]/ || /^FAILED / { bad++ }
        /^\[  SKIPPED \]/ || /^skipped / { skip++ }
        END {
            # A program that died could not report the test it was in.
            if (status >= 124 || (cmocka && !summary)) bad++
            if (status != 0 && !bad) bad = 1
            print ok + 0, bad + 0, skip + 0
        }' "$1"
}

why_it_stopped()
{
    case $1 in
    124) echo "stopped after $TEST_TIMEOUT_S s" ;;
    12[89] | 1[3-9]?) echo "killed by signal $(($1 - 128))" ;;
    *) echo "exit status $1" ;;
    esac
}

# The lines that lead to each failure: those after the check before it, and what a program that died
# wrote last.
excerpt()
{
    awk '
        /^\[==========\].* run\./ { summary = 1 }
        summary { next }
        /^\[ RUN / { n = 0 }
        /^\[       OK \]/ || /^ok / || /^skipped / { n = 0; next }
        { line[n++] = $0 }
        /^\[  FAILED  \]/ || /^FAILED / { print_lines(); n = 0 }
        END { if (!summary) print_lines() }
        function print_lines(i)
        {
            for (i = (n > 20 ? n - 20 : 0); i < n; i++) print "  | " line[i]
        }' "$1" | head -n 100
}

show_skipped()
{
    local reasons='^(\[ MISSING  \]|skipped )'
    # A test that gives no reason is named.
    grep -qaE "$reasons" "$1" || reasons='^\[  SKIPPED \] [a-z_]+$'
    # The summary of cmocka repeats the names.
    sed '/^\[==========\].* run\./q' "$1" | grep -aE "$reasons" | sort | uniq -c |
        sed -E 's/^ *1 /  /; s/^ *([0-9]+) /  \1 x /' |
        awk -v log_file="$1" 'NR <= 3 { print } END { if (NR > 3) print "  and " NR - 3 " more, see " log_file }'
}

run_one()
{
    local program=$1 name log start status ok bad skip mark
    name=$(basename "$program")
    log=$log_dir/$name.log
    start=$SECONDS
    # The braces keep bash's own word about a killed program off the screen.
    { timeout -k 10 "$TEST_TIMEOUT_S" ${wrapper[@]+"${wrapper[@]}"} "$program" >"$log" 2>&1 \
        </dev/null; } 2>/dev/null
    status=$?
    read -r ok bad skip < <(count "$log" $status)
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    mark=ok
    if [ "$bad" -gt 0 ]; then
        mark=FAILED
    fi
    printf '%-7s%-28s %4d passed %3d failed %3d skipped %4d s\n' \
        $mark "$name" "$ok" "$bad" "$skip" $((SECONDS - start))
    if [ "$bad" -gt 0 ]; then
        echo "  $(why_it_stopped $status); see $log"
        excerpt "$log"
    fi
    show_skipped "$log"
}

for program in "$@"; do
    run_one "$program"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
