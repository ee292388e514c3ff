#!/bin/bash
# Phase 1 with the fast engine, here or as a job (a second start does only what is missing):
#     slurm/run_phase1.sh
#     sbatch --time=01:00:00 --signal=B:USR1@120 --cpus-per-task=4 slurm/run_phase1.sh
# Further words go to quire: slurm/run_phase1.sh --set model.path=/data/models/Qwen3-0.6B
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

export USE_FAST_ENGINE=1         # 0: the standard engine, for comparison
# export QUIRE_ATTENTION=eager   # instead of both kernels of the grid
# export QUIRE_MODELS=/data/models

exec ./quire run configs/phases/phase1.yaml "$@" # exec: the signals of a job reach quire
