#!/usr/bin/env bash
# demo.sh - what `make run` shows: the demo experiment, then its rows in the database.
# Environment: BUILD.
set -eu
cd "$(dirname "$0")/.."

quire=${BUILD:-build}/quire
database=results/demo.db

"$quire" run configs/demo.yaml
echo
"$quire" results "$database"
echo
"$quire" results "$database" --samples --limit 8
cat <<TEXT

Every sample is a row of $database: sqlite3 $database 'select * from throughput'
The same command again does only what is missing. Next: ./quire plan configs/demo.yaml, then copy
that file, put in your own model and prompts, and ./quire run it. README.md has the rest.
TEXT
