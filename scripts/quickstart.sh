#!/usr/bin/env bash
# Makes .venv, installs numllm and walks the whole way on the embedded default: textbook, corpus, choice
# questions, two adapters, SVD merge, evaluation, a sentence. Results go to demo-run/. Arguments go to
# `numllm demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  { echo "Error: numllm needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[plots]"
exec .venv/bin/numllm demo --out demo-run --overwrite "$@"
