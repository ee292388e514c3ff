#!/usr/bin/env bash
# An array of eight workers, four at a time, shares the 660 tasks of phase 1; their shards are merged.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../lib.sh"

config=$work/phase1.yaml
cp configs/phases/phase1.yaml "$config"
