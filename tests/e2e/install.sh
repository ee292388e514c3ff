#!/usr/bin/env bash
# make install: with what it puts below PREFIX, and nothing else of this folder, another program is built
# and quire runs.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

prefix=$work/prefix
cc=${CC:-cc}
if ! command -v make >/dev/null || ! command -v "$cc" >/dev/null; then
    skip install "no make or no $cc"
    exit
fi

# -o all: what is installed was built before.
exits "make install" 0 make -s -o all install BUILD="${BUILD:-build}" PREFIX="$prefix"

cp examples/generate.c "$work"
cd "$work" || exit 2
exits "the example is built outside of the project" 0 \
    "$cc" -I "$prefix/include/quire" generate.c "$prefix/lib/libquire.a" -o generate \
    -rdynamic -fopenmp -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm
exits "the example runs with the installed demo model" 0 \
    ./generate "$prefix/share/quire/configs/models/demo" "12 plus 34 is"
prints "the example's sum is right" '46'
exits "the installed quire runs" 0 "$prefix/bin/quire" run \
    "$prefix/share/quire/configs/demo.yaml" --results "$work/demo.db"
