#!/usr/bin/env bash
# lint.sh - the rules of the code that a script can check, over the files that git tracks.
#
# Each rule prints "ok NAME" or its offending lines as file:line: text, then "FAILED NAME"; a rule
# whose tool is missing prints "skipped NAME: why". The last line is the sum.
# Environment: BUILD, MAKE.
set -u
cd "$(dirname "$0")/.." || exit 2

BUILD=${BUILD:-build}
MAKE=${MAKE:-make}
readonly CLANG_FORMAT_MAJOR=14 # other versions break lines in other places
readonly C_FILES=('*.c' '*.h' '*.cu' '*.cuh')
readonly MAX_FILE_LINES=800
readonly MAX_FUNCTION_LINES=70

passed=0 failed=0 skipped=0

tracked()
{
    git ls-files -- "$@" | while IFS= read -r file; do
        [ -f "$file" ] && printf '%s\n' "$file"
    done
}

# check NAME COMMAND...: the command prints what is wrong, and nothing when all is well.
check()
{
    local name=$1 found
    shift
    found=$("$@" 2>&1)
    if [ -z "$found" ]; then
        echo "ok $name"
        passed=$((passed + 1))
    else
        printf '%s\n' "$found"
        echo "FAILED $name"
        failed=$((failed + 1))
    fi
}

skip()
{
    echo "skipped $1: $2"
    skipped=$((skipped + 1))
}

format_differs()
{
    tracked "${C_FILES[@]}" | xargs -P "$(nproc)" -n 8 clang-format --dry-run -Werror 2>&1 |
        grep 'error:'
}

# Lines of C without comments and the contents of strings, as file:line:text.
code_lines()
{
    local file
    for file in "$@"; do
        awk -v file="$file" '
            {
                line = $0
                gsub(/"([^"\\]|\\.)*"/, "\"\"", line)
                out = ""
                while (line != "") {
                    if (comment) {
                        end = index(line, "*/")
                        if (!end) break
                        line = substr(line, end + 2)
                        comment = 0
                    } else {
                        start = index(line, "/*")
                        slashes = index(line, "//")
                        if (slashes && (!start || slashes < start)) {
                            out = out substr(line, 1, slashes - 1)
                            break
                        }
                        if (!start) { out = out line; break }
                        out = out substr(line, 1, start - 1)
                        line = substr(line, start + 2)
                        comment = 1
                    }
                }
                if (out !~ /^[ ]*$/) print file ":" FNR ":" out
            }' "$file"
    done
}

banned_calls()
{
    local names='strcpy|strcat|sprintf|vsprintf|gets|strtok|atoi|atol|atoll|atof|system|rand|srand'
    mapfile -t files < <(tracked "${C_FILES[@]}")
    code_lines "${files[@]}" | grep -E "(^|[^A-Za-z0-9_>.])($names)\("
}

# includes FOLDER ALLOWED: quoted includes of a folder's files that do not match the regex.
includes()
{
    tracked "${C_FILES[@]/#/$1/}" | xargs -r grep -nE '^#include "' /dev/null |
        grep -vE "\"($2)\""
}

include_directions()
{
    includes kernels 'kernels/[a-z0-9_/]+\.(h|cuh)|engine/util\.h'
    includes engine 'engine/[a-z0-9_]+\.h|kernels/backend\.h'
    includes runner 'runner/[a-z0-9_]+\.h|engine/(engine|util|chat|tokenizer)\.h|kernels/backend\.h'
    includes examples 'engine/engine\.h'
}

# only_in HEADER REGEX: files outside tests that include a library's header and may not.
only_in()
{
    tracked 'engine/*.[ch]' 'kernels/*.[ch]' 'runner/*.[ch]' 'examples/*.[ch]' |
        grep -vE "^($2)$" | xargs -r grep -nE "^#include [<\"]($1)[>\"]" /dev/null
}

library_headers()
{
    only_in 'mpi\.h' 'runner/cluster_mpi\.c'
    only_in 'sqlite3\.h' 'runner/store[a-z_]*\.c'
    only_in 'yaml\.h' 'runner/yaml\.c'
    only_in '(cuda|cublas|nccl)[A-Za-z_]*\.h' 'kernels/cuda/.*'
}

long_files()
{
    tracked "${C_FILES[@]}" '*.sh' | xargs wc -l |
        awk -v max=$MAX_FILE_LINES '$2 != "total" && $1 > max {
            print $2 ":1: " $1 " lines, at most " max }'
}

# clang-format puts a function's braces alone in the first column; nothing else looks like that.
# A longer function is fine when the comment right above it says why it is long ("long" in it).
long_functions()
{
    # shellcheck disable=SC2016 # $0 is awk's
    tracked "${C_FILES[@]}" | xargs awk -v max=$MAX_FUNCTION_LINES '
        FNR == 1 { comment = ""; in_comment = 0; body = 0 }
        body {
            if ($0 ~ /^}/) {
                if (FNR - body + 1 > max && tolower(comment) !~ /long/)
                    print FILENAME ":" body ": function of " FNR - body + 1 " lines, at most " \
                          max " unless the comment above it says why it is long"
                body = 0
                comment = ""
            }
            next
        }
        /^\/\*/ { comment = ""; in_comment = 1 }
        in_comment { comment = comment " " $0; if ($0 ~ /\*\//) in_comment = 0; next }
        /^$/ { comment = ""; next }
        /^{$/ { body = FNR }'
}

tabs_and_trailing_blanks()
{
    tracked "${C_FILES[@]}" '*.sh' '*.sbatch' '*.md' '*.yaml' '*.py' .ci/run |
        xargs grep -nE "$(printf '\t')| +\$" /dev/null | cut -c 1-120
    tracked Makefile | xargs -r grep -nE '[[:blank:]]+$' /dev/null
}

unfinished_words()
{
    # The brackets keep this line from finding itself.
    tracked "${C_FILES[@]}" '*.sh' '*.sbatch' '*.md' '*.yaml' Makefile |
        xargs grep -nE '(^|[^A-Za-z])(TOD[O]|FIXM[E]|XX[X])([^A-Za-z]|$)' /dev/null
}

clang_build()
{
    "$MAKE" --no-print-directory -j"$(nproc)" CC=clang OPT=-O0 BUILD="$BUILD/clang" objects 2>&1 |
        grep -vE '^  compile|^make|^quire:'
}

clang_has_openmp()
{
    echo '#include <omp.h>' | clang -fopenmp -fsyntax-only -xc - 2>/dev/null
}

check "no banned calls" banned_calls
check "includes go runner -> engine -> kernels" include_directions
check "library headers stay where they belong" library_headers
check "files of at most $MAX_FILE_LINES lines" long_files
check "functions of at most $MAX_FUNCTION_LINES lines" long_functions
check "no tabs, no trailing blanks" tabs_and_trailing_blanks
check "no unfinished marks" unfinished_words

major=$(clang-format --version 2>/dev/null | sed -E 's/.*version ([0-9]+).*/\1/')
if [ "$major" = $CLANG_FORMAT_MAJOR ]; then
    check "clang-format" format_differs
else
    skip "clang-format" "version $CLANG_FORMAT_MAJOR is needed, found ${major:-none}"
fi
if clang_has_openmp; then
    check "clang compiles everything" clang_build
else
    skip "clang compiles everything" "no clang with OpenMP headers (libomp-dev)"
fi
# -x follows lib.sh into the tests that source it.
check "shellcheck" sh -c 'git ls-files "*.sh" "*.sbatch" .ci/run | xargs -r shellcheck -x -f gcc'

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
