#!/usr/bin/env bash
# Which GPU a process opens, and what becomes of its tasks when that does not do: with a backend of GPUs
# that compute on the processor (fake_gpu.c).
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

# quire looks for the driver, and beside itself for the backend.
mkdir "$work/lib"
cp "$quire" "$work/quire"
[ ! -f "${quire%/*}/quire_mpi.so" ] || cp "${quire%/*}/quire_mpi.so" "$work"
if ! ${CC:-cc} -shared -fPIC -o "$work/lib/libcuda.so.1" -xc /dev/null ||
    ! ${CC:-cc} -std=c17 -D_GNU_SOURCE -I. -shared -fPIC -o "$work/quire_cuda.so" tests/e2e/fake_gpu.c
then
    fail "the backend of fake_gpu.c is built"
    exit
fi
quire=$work/quire
export LD_LIBRARY_PATH=$work/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
unset CUDA_VISIBLE_DEVICES

cat >"$work/gpus.yaml" <<TEXT
experiment: gpus
model: {path: $PWD/configs/models/demo}
engine: {max_num_seqs: 4, max_model_len: 512}
sampling: {max_tokens: 16, n: 8, ignore_eos: true}
prompts: {list: ["Question: What is 47 plus 36?\nAnswer:", "17"]}
TEXT

# ---- a model of a type that the GPU lacks ----

export FAKE_GPU_BFLOAT16=no
db=$work/lacks.db
exits "a bfloat16 model and a GPU without bfloat16" 0 "$quire" run "$work/gpus.yaml" --results "$db"
sql_equal "its tasks run on the CPU, and the row says why" "$db" \
    "select device_used, degraded, degraded_reason like '%no bfloat16%using the CPU' from attempts" "cpu|1|1"
exits "--strict refuses" 69 "$quire" run "$work/gpus.yaml" --strict --results "$work/strict.db"
prints "and says why" 'no bfloat16 arithmetic'
exits "plan knows it" 0 "$quire" plan "$work/gpus.yaml"
exits "generate takes the CPU as well" 0 "$quire" generate --model configs/models/demo --prompt 17 \
    --max-tokens 4
db=$work/has.db
exits "the same model as float16" 0 "$quire" run "$work/gpus.yaml" --set model.dtype=float16 \
    --results "$db"
sql_equal "it runs on the GPU" "$db" "select device_used, degraded from attempts" "cuda|0"
unset FAKE_GPU_BFLOAT16

# ---- several GPUs ----

FAKE_GPUS=3 FAKE_GPU_BUSY=1 exits "doctor, when another process has the second of three GPUs" 0 \
    "$quire" doctor
prints "it says so" 'cuda 1 +GPU 1: busy'
prints "and shows the third" 'cuda 2 +Fake 2'

if ! command -v mpirun >/dev/null || [ ! -f "$work/quire_mpi.so" ]; then
    skip "ranks with a GPU each" "no mpirun (openmpi-bin), or a build without MPI (libopenmpi-dev)"
    exit
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
db=$work/ranks.db
FAKE_GPUS=2 CUDA_VISIBLE_DEVICES=0,1 FAKE_GPU_LOG=$work/opened exits "two ranks" 0 \
    mpirun --oversubscribe --bind-to none -np 2 "$quire" run "$work/gpus.yaml" --results "$db"
equal "each opens its own GPU and no other" "$(sort -u "$work/opened")" "$(printf '0 0\n1 1')"
sql_equal "no task runs on the CPU" "$db" "select distinct device_used from attempts" cuda

# Of several parts of a GPU that are named, CUDA shows the first alone.
db=$work/left.db
FAKE_GPUS=1 CUDA_VISIBLE_DEVICES=MIG-a,MIG-b exits "two ranks, and one GPU in place of two" 0 \
    mpirun --oversubscribe --bind-to none -np 2 "$quire" run "$work/gpus.yaml" --results "$db"
sql_equal "the second does not take the CPU, which gives other tokens" "$db" \
    "select distinct rank, device_used from attempts" "0|cuda"
