#!/usr/bin/env bash
# A full disk ends the run with exit 69 and a message that says what was saved; with room again the
# same command goes on from there.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

disk=$work/disk
mkdir "$disk"
if ! mount -t tmpfs -o size=512k quire-test "$disk" 2>/dev/null; then
    skip "a full disk" "mounting a small tmpfs needs root"
    exit 0
fi
trap 'umount "$disk"; finish' EXIT

cat >"$work/full.yaml" <<TEXT
experiment: full-disk
model: {path: $PWD/tests/golden/qwen3}
engine: {num_threads: 1}
sampling: {max_tokens: 100, seed: 1, n: 8, temperature: 1.0, ignore_eos: true}
prompts:
  list:
$(id_lists 64 96 8 40)
TEXT
n_samples=512

exits "a full disk" 69 "$quire" run "$work/full.yaml" --results "$disk/full.db"
prints "a full disk: the message names the file and the cause" "full\.db.*(full|space)"
saved=$(sql "$disk/full.db" "select count(*) from samples" 2>&1)
echo "$saved of $n_samples samples were saved"
check "a full disk: what was committed is readable" test "$saved" -ge 0

mount -o remount,size=32m "$disk"
exits "with room again the same command goes on" 0 "$quire" run "$work/full.yaml" \
    --results "$disk/full.db"
sql_equal "with room again: every sample exactly once" "$disk/full.db" \
    "select count(*), count(distinct key) from samples" "$n_samples|$n_samples"
sql_equal "with room again: the database is sound" "$disk/full.db" "pragma integrity_check" ok
