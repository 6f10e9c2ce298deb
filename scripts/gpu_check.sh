#!/bin/sh
# Runs the tests that need a GPU, and each family of benchmarks after the tests of what it times, straight from the source
# tree, in less than nine minutes: no installation, no network. Rows go to ${OUT:-benchmarks/results}.
#
#     scripts/gpu_check.sh            PYTHON=python3.12 OUT=rows scripts/gpu_check.sh
#     scripts/gpu_check.sh --dry lora rates       the benchmarks' part alone, of these families, quickly on the CPU
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1  # what is stopped at its limit has told how far it came
export HF_HUB_OFFLINE=1  # where there is no network, what asks a hub fails at once
unset TRITON_INTERPRET || true
limit=520

fail() {
    echo "gpu_check: $1" >&2
    exit 1
}

"$python" -c 'import torch' 2>/dev/null || fail "$python has no torch; set PYTHON to one that has"
"$python" -c 'import pytest' 2>/dev/null || fail "$python has no pytest; install it, or use another PYTHON"
if [ "${1:-}" = --dry ]; then
    shift
    out=${OUT:-$(mktemp -d)}
    "$python" -m benchmarks "$@" --device cpu --quick --seconds "$limit" --out "$out" || fail "the benchmarks failed"
    echo "gpu_check: rows in $out"
    exit
fi
[ $# -eq 0 ] || fail "got $1; the only argument is --dry"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    fail "there is no CUDA device; --dry runs the benchmarks' part on the CPU"
"$python" -c 'import triton' 2>/dev/null || fail "$python has no triton; install it, or use another PYTHON"
out=${OUT:-benchmarks/results}
"$python" -c '
import torch, triton
major, minor = torch.cuda.get_device_capability()
print(f"{torch.cuda.get_device_name()}, capability {major}.{minor}, torch {torch.__version__}, triton {triton.__version__}")
'
"$python" -m benchmarks --device cuda --seconds "$limit" --out "$out" ||
    fail "a test or a benchmark failed; the rows in $out are of those that did not"
echo "gpu_check: tests passed; rows in $out; python scripts/benchmark_tables.py puts them in the README"
