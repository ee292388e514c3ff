#!/usr/bin/env bash
# setup.sh [--check] build|test|lint|slurm - are the compiler, headers and tools there? If not, install them.
#
# Installs with apt-get as root or through sudo that asks for no password; anywhere else (and with
# --check) prints the package lines and exits with 2. Nothing is installed when nothing is missing:
# one compilation of all the headers together answers that in a tenth of a second.
set -u
cd "$(dirname "$0")/.." || exit 2

CC=${CC:-gcc}
command -v "$CC" >/dev/null || CC=cc

# need | header or command | link flag | Debian, Ubuntu package | Fedora, RHEL package
readonly TABLE='
build header yaml.h        -lyaml     libyaml-dev     libyaml-devel
build header sqlite3.h     -lsqlite3  libsqlite3-dev  sqlite-devel
build header jansson.h     -ljansson  libjansson-dev  jansson-devel
build header pcre2.h       -lpcre2-8  libpcre2-dev    pcre2-devel
build header utf8proc.h    -lutf8proc libutf8proc-dev utf8proc-devel
build header openssl/evp.h -lcrypto   libssl-dev      openssl-devel
test  header cmocka.h      -lcmocka   libcmocka-dev   libcmocka-devel
test  command sqlite3      -          sqlite3         sqlite
test  command mpicc        -          libopenmpi-dev  openmpi-devel
test  command mpirun       -          openmpi-bin     openmpi
lint  command clang        -          clang           clang
lint  command clang-format -          clang-format    clang-tools-extra
lint  command git          -          git             git
lint  command shellcheck   -          shellcheck      ShellCheck
slurm command slurmctld    -          slurmctld       slurm-slurmctld
slurm command slurmd       -          slurmd          slurm-slurmd
slurm command sbatch       -          slurm-client    slurm
slurm command munged       -          munge           munge
slurm command mpirun       -          openmpi-bin     openmpi
slurm command mpicc        -          libopenmpi-dev  openmpi-devel
slurm command ip           -          iproute2        iproute
slurm command nsenter      -          util-linux      util-linux
'

# Do these headers compile, and these libraries link? compiles "flags" HEADER...
compiles()
{
    local flags=$1 dir status
    shift
    dir=$(mktemp -d) || exit 2
    {
        # cmocka.h needs the first three before it.
        printf '#include <%s>\n' stdarg.h stddef.h setjmp.h stdint.h omp.h "$@"
        printf 'int main(void) { return omp_get_max_threads() < 1; }\n'
    } >"$dir/probe.c"
    # $flags is a list of words on purpose.
    # shellcheck disable=SC2086
    "$CC" -std=c17 -fopenmp -DPCRE2_CODE_UNIT_WIDTH=8 -o "$dir/probe" "$dir/probe.c" $flags \
        >"$dir/log" 2>&1
    status=$?
    rm -rf "$dir"
    return $status
}

# The rows of TABLE for this need; a test needs what a build needs.
rows()
{
    awk -v need="$1" 'NF == 6 && ($1 == need || (need == "test" && $1 == "build"))' <<<"$TABLE"
}

all_there()
{
    local flags="" kind name flag headers=()
    while read -r _ kind name flag _; do
        if [ "$kind" = command ]; then
            command -v "$name" >/dev/null || return 1
        else
            headers+=("$name")
            flags+=" $flag"
        fi
    done < <(rows "$1")
    if [ "$1" = lint ]; then
        clang_has_openmp
    else
        compiles "$flags" "${headers[@]}"
    fi
}

clang_has_openmp()
{
    CC=clang compiles ""
}

# Prints "APT DNF" for each thing that is missing.
find_missing()
{
    local kind name flag apt dnf
    if ! command -v "$CC" >/dev/null || ! compiles ""; then
        case $CC in
        *clang*) echo "clang clang libomp-dev libomp-devel libc6-dev glibc-devel" ;;
        *) echo "gcc gcc libc6-dev glibc-devel" ;;
        esac | xargs -n 2
        # Without a compiler every header looks missing; that is what apt-get will sort out.
    fi
    while read -r _ kind name flag apt dnf; do
        case $kind in
        command) command -v "$name" >/dev/null || echo "$apt $dnf" ;;
        header) compiles "$flag" "$name" || echo "$apt $dnf" ;;
        esac
    done < <(rows "$1")
    if [ "$1" = lint ] && ! clang_has_openmp; then
        echo "libomp-dev libomp-devel"
    fi
}

# Prints the words to put before apt-get; fails when we may not install.
installer()
{
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then
        echo env
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        echo sudo env
    else
        return 1
    fi
}

explain_and_stop()
{
    local apt dnf
    apt=$(awk '{printf " %s", $1}' <<<"$1")
    dnf=$(awk '{printf " %s", $2}' <<<"$1")
    {
        echo "quire needs packages that are not installed here. Install them and run make again:"
        echo "  Debian, Ubuntu:  sudo apt-get install --no-install-recommends$apt"
        echo "  Fedora, RHEL:    sudo dnf install$dnf"
    } >&2
    exit 2
}

install_packages()
{
    local prefix packages log
    read -ra prefix <<<"$1"
    shift
    packages=("$@")
    mkdir -p build
    log=build/setup.log
    echo "[*] Installing ${packages[*]} (log: $log)"
    # Stale package lists may still name packages that exist, so a failed update is not the end.
    "${prefix[@]}" DEBIAN_FRONTEND=noninteractive apt-get update >"$log" 2>&1 ||
        echo "[WARNING] apt-get update failed; trying with the package lists that are there"
    "${prefix[@]}" DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        "${packages[@]}" >>"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        return 1
    }
}

check_only=false
if [ "${1:-}" = --check ]; then
    check_only=true
    shift
fi
need=${1:-}
case $need in
build | test | lint | slurm) ;;
*)
    echo "usage: tests/setup.sh [--check] build|test|lint|slurm" >&2
    exit 2
    ;;
esac

all_there "$need" && exit 0
missing=$(find_missing "$need" | sort -u)
if $check_only || ! prefix_words=$(installer); then
    explain_and_stop "$missing"
fi
# The package column is a list of words on purpose.
# shellcheck disable=SC2046
install_packages "$prefix_words" $(awk '{print $1}' <<<"$missing") || explain_and_stop "$missing"
all_there "$need" || explain_and_stop "$(find_missing "$need" | sort -u)"
