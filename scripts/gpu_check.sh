#!/bin/sh
# Runs the tests that need a GPU, and then the benchmarks, straight from the source tree: no installation, no
# network. Rows go to ${OUT:-benchmarks/results}; no speed is measured when a test fails.
#
#     scripts/gpu_check.sh            PYTHON=python3.12 OUT=rows scripts/gpu_check.sh
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export PYTHONPATH=.:kernels:tests
unset TRITON_INTERPRET || true

fail() {
    echo "gpu_check: $1" >&2
    exit 1
}

"$python" -c 'import torch' 2>/dev/null || fail "$python has no torch; set PYTHON to one that has"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || fail "there is no CUDA device"
"$python" -c 'import triton' 2>/dev/null || fail "$python has no triton; install it, or use another PYTHON"
"$python" -c 'import pytest' 2>/dev/null || fail "$python has no pytest; install it, or use another PYTHON"

mkdir -p "$out"
"$python" -c '
import torch, triton
major, minor = torch.cuda.get_device_capability()
print(f"{torch.cuda.get_device_name()}, capability {major}.{minor}, torch {torch.__version__}, triton {triton.__version__}")
'
# The files with tests marked `gpu`, and the kernel tests that go to the interpreter elsewhere. Warnings are of an
# environment we do not choose here, and do not fail the check.
marked=$(grep -rl --include='test_*.py' 'mark\.gpu' tests)
timeout 150 "$python" -m pytest tests/kernels/test_lora_kernels.py -q -x -o filterwarnings=default ||
    fail "the kernel tests failed, or took longer than 150 s; nothing was measured"
timeout 210 "$python" -m pytest $marked -m gpu -q -o filterwarnings=default ||
    fail "the GPU tests failed, or took longer than 210 s; nothing was measured"

name=$("$python" -c 'import re, torch; print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))')
timeout 170 "$python" -m benchmarks.bench_lora --device cuda --out "$out/lora-$name.jsonl" ||
    fail "the benchmark failed, or took longer than 170 s"
echo "gpu_check: tests passed; rows in $out/lora-$name.jsonl; python scripts/benchmark_tables.py puts them in the README"
