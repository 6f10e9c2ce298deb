"""The packages that can be compiled pass their tests compiled: mypyc's Python is not quite Python.

It runs generator expressions at once, checks types as it goes, and calls what it has compiled without looking names up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = sorted(str(path) for name in ("numbers", "numct") for path in (ROOT / "tests").glob(f"test_{name}*.py"))
LEFT_OUT = (
    "tests/test_numbers_annotated.py::test_rows_of_the_benchmark",  # of the benchmark's code
    "tests/test_numct_tags.py::test_chance_makes_few_relations",  # puts a spy in the place of a function
)
COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with numllm as it is installed compiled, without the source of what is."""
    pytest.importorskip("mypyc", reason="the test extra brings mypy")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"there is no C compiler {COMPILER}")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("numllm", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    build = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(built)], cwd=source,
        env={**os.environ, "NUMLLM_COMPILE": "1"}, capture_output=True, text=True,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    modules = [path for name in ("numbers", "numct") for path in (built / "numllm" / name).glob("[!_]*.py")]
    assert len(modules) > 30
    for path in modules:
        assert list(path.parent.glob(f"{path.stem}.*.so")), f"{path.name} was not compiled"
        path.unlink()  # so that nothing but the compiled module can be imported
    return built


def test_compiled_modules_pass_the_tests_of_their_source(library: Path) -> None:
    run = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
            "-o", f"pythonpath={library} {ROOT / 'kernels'} {ROOT / 'tests'}", "-p", "no:cacheprovider",
            *(f"--deselect={test}" for test in LEFT_OUT), *TESTS,
        ],
        cwd=library, capture_output=True, text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_another_value_than_0_or_1_is_told() -> None:
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env={**os.environ, "NUMLLM_COMPILE": "yes"},
        capture_output=True, text=True,
    )
    assert run.returncode == 1 and run.stderr == "Error: NUMLLM_COMPILE must be 0 or 1, got 'yes'\n"


def test_an_editable_installation_is_not_compiled() -> None:
    run = subprocess.run(
        [sys.executable, "setup.py", "editable_wheel"], cwd=ROOT, env={**os.environ, "NUMLLM_COMPILE": "1"},
        capture_output=True, text=True,
    )
    assert run.returncode == 1 and run.stderr.startswith("Error: ") and run.stderr.endswith("leave out -e\n")
