"""Imports point one way, and importing numllm costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "triton", "click", "transformers", "peft", "safetensors", "tokenizers", "numpy", "matplotlib"}

# For each module of numllm, the modules of numllm it may import: those before it on the way data flows.
CORE = {"errors", "files", "collector"}
CONFIG = {"errors", "fields", "families", "model_config", "config"}
CHECKPOINT = CORE | CONFIG | {"hub", "checkpoint", "finite"}
TEXT = CORE | {"overlap", "numbers", "corpus", "questions"}
OPERATIONS = {"reference", "products", "ops"}
MODEL = CHECKPOINT | OPERATIONS | {"tokenizer", "attention", "rope", "weights", "positions", "layers", "model"}
ALLOWED = {
    "__init__": {"lazy"},
    "lazy": set(),
    "errors": set(),
    "collector": set(),
    "files": {"errors"},
    "hashes": {"errors", "files"},
    "fields": {"errors"},
    "families": {"errors"},
    "model_config": {"errors", "families"},
    "config": {"errors", "fields", "families", "model_config"},
    "hub": CORE,
    "checkpoint": CORE | CONFIG | {"hub"},
    "finite": {"checkpoint"},
    "rope": {"model_config"},
    "weights": CHECKPOINT,
    "tokenizer": CHECKPOINT,
    "numbers": CORE,
    "overlap": set(),
    "workers": {"collector", "errors"},
    "determinism": set(),
    "corpus": CORE | {"numbers", "overlap", "workers", "checkpoint", "tokenizer"},
    "questions": CORE | {"numbers", "tokenizer", "chat"},
    "numct": CORE | {"lazy", "numbers", "workers"},
    "reference": set(),
    "products": set(),
    "ops": {"errors", "reference", "products", "rope"},
    "attention": set(),
    "positions": {"attention", "config", "errors", "rope"},
    "layers": OPERATIONS | {"attention", "config", "positions"},
    "model": MODEL - {"model"},
    "adapter_config": CORE,
    "adapter": CHECKPOINT | {"adapter_config"},
    "lora": MODEL | {"adapter"},
    "merge": CHECKPOINT | {"adapter_config", "adapter", "hashes", "__init__"},
    "data": MODEL | TEXT | {"chat"},
    "train_config": {"errors", "fields", "config"},
    "settings": CORE | {"config", "fields", "train_config", "__init__"},
    "recipes": CORE | {"settings"},
    "train": MODEL | TEXT | {
        "chat", "data", "lora", "adapter", "train_config", "settings", "memory", "evaluate", "determinism",
    },
    "chat": CHECKPOINT | {"tokenizer"},
    "evaluate": MODEL | TEXT | {"chat", "generate", "hashes", "__init__"},
    "agreement": MODEL | {"adapter_config", "lora"},
    "calibrate": MODEL | TEXT | {"adapter", "data", "lora", "train", "determinism"},
    "decode": {"model", "positions"},
    "generate": MODEL | {"decode"},
    "memory": MODEL | {"lora"},
    "inspection": MODEL | {"memory", "report"},
    "report": CORE | {"evaluate", "__init__"},
    "probes": {"numbers"},
    "demo": None,
    "cli": None,
    "__main__": None,
}


def imported(path: Path) -> set[str]:
    """Modules of numllm that a file imports, at any level; with `import x` names of other packages prefixed by !."""
    found = set()
    package = path.relative_to(ROOT / "numllm").parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {"!" + alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add("!" + node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            up = len(package) - (node.level - 1)
            base = (*package[:up], *(node.module or "").split(".")) if node.module else package[:up]
            if base:
                found.add(base[0])
            else:  # from . import name
                names = {alias.name for alias in node.names}
                parts = ROOT / "numllm"
                found |= {
                    name if (parts / f"{name}.py").exists() or (parts / name).is_dir() else "__init__" for name in names
                }
    return found


def sources() -> list[Path]:
    return sorted((ROOT / "numllm").rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT / "numllm")))
def test_imports_point_one_way(path):
    parts = path.relative_to(ROOT / "numllm").with_suffix("").parts
    allowed = ALLOWED[parts[0]]
    if allowed is not None:
        inside = {name for name in imported(path) if not name.startswith("!")}
        assert inside <= allowed | {parts[0]}, f"{path.name} imports {sorted(inside - allowed)}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT / "numllm")))
def test_nothing_imports_the_command_line_tests_or_peers(path):
    found = imported(path)
    assert not found & {"!transformers", "!peft", "!accelerate", "!tests", "!benchmarks", "!scripts"}
    if path.relative_to(ROOT / "numllm").parts[0] not in ("cli", "__main__.py"):
        assert "cli" not in found and "!click" not in found


def test_kernels_know_torch_and_triton_only():
    for path in sorted((ROOT / "kernels" / "numllm_kernels").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in {"torch", "triton", "__future__", *sys.stdlib_module_names}, path
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_import_is_light():
    code = (
        "import sys, time; began = time.perf_counter(); import numllm; took = time.perf_counter() - began;"
        f"print(took, sorted({HEAVY!r} & set(sys.modules)))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    times = [float(run.split(" ", 1)[0]) for run in runs]
    assert all(run.split(" ", 1)[1].strip() == "[]" for run in runs)
    assert min(times) < 0.05, f"import numllm took {min(times):.3f} s"


def test_a_process_that_reads_documents_for_questions_loads_nothing_heavy():
    code = f"import sys, numllm.workers, numllm.numct.candidates; print(sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_resolve():
    import numllm
    from numllm import numct

    assert all(getattr(numct, name) is not None for name in numct.__all__)
    with pytest.raises(AttributeError, match="nothing_such"):
        numct.nothing_such  # noqa: B018

    assert all(getattr(numllm, name) is not None for name in numllm.__all__)
    assert set(numllm.__all__) <= set(dir(numllm))
    with pytest.raises(AttributeError, match="nothing_such"):
        numllm.nothing_such  # noqa: B018
