#!/usr/bin/env bash
# Installs the test extra into .venv, runs ruff and pytest. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -q "$@"
