#!/bin/sh
# Runs the tests that need a GPU, and then the benchmarks, straight from the source tree, in less than nine minutes: no
# installation, no network. Rows go to ${OUT:-benchmarks/results}; nothing is measured when a test fails.
#
#     scripts/gpu_check.sh            PYTHON=python3.12 OUT=rows scripts/gpu_check.sh
#     scripts/gpu_check.sh --dry lora rates       the benchmarks' part alone, of these families, quickly on the CPU
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH=.:kernels:tests
unset TRITON_INTERPRET || true
began=$(date +%s)
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
# The files with tests marked `gpu`; those of the kernels are run by the benchmarks. Warnings are of an environment we
# do not choose here, and do not fail the check.
marked=$(grep -rl --include='test_*.py' 'mark\.gpu' tests | grep -v '^tests/kernels/')
timeout 150 "$python" -m pytest $marked -m gpu -q -o filterwarnings=default ||
    fail "the GPU tests failed, or took longer than 150 s; nothing was measured"

left=$((limit - $(date +%s) + began))
"$python" -m benchmarks --device cuda --seconds "$left" --out "$out" ||
    fail "the kernels' tests or a benchmark failed"
echo "gpu_check: tests passed; rows in $out; python scripts/benchmark_tables.py puts them in the README"
