"""Loading a bf16 checkpoint into a model on the CPU, against `safetensors.torch.load_file` of the same files.

    python -m benchmarks.bench_load --work /a/disk --out rows.jsonl

load_file maps the files into memory: it returns before anything of the weights is read, and they stay the files' own
pages. So it is also timed with a first look at every byte, and with a copy into memory of the process's own, which is
what load_model gives, after checking every number. The files are in the page cache. Candidates take turns, and each
loads once in a process of its own, as a command does: later loads of one process would find memory from before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import measure
from numllm.checkpoint import Checkpoint, expected_shapes, write_safetensors
from numllm.config import ModelConfig
from numllm.model import load_model
from numllm_kernels import processor

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 512},
    "qwen2.5-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                     "num_key_value_heads": 2, "vocab_size": 151_936},
}


def write_checkpoint(folder: Path, shape: dict[str, Any]) -> int:
    """A bf16 checkpoint of Qwen2's architecture with a tied head; its weights' bytes."""
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "max_position_embeddings": 4096,
        "tie_word_embeddings": True, **shape,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    write_safetensors(folder / "model.safetensors", {
        name: torch.randn(size, generator=generator, dtype=torch.bfloat16)
        for name, size in expected_shapes(ModelConfig.from_hf(config))
    })
    return sum(info.nbytes for info in Checkpoint.open(folder).tensors.values())


CANDIDATES: dict[str, Callable[[Path], Any]] = {
    "load_file": lambda folder: load_file(folder / "model.safetensors"),
    "load_file, every byte looked at": lambda folder: {
        name: weight.view(torch.int16).max() for name, weight in load_file(folder / "model.safetensors").items()
    },
    "load_file, into own memory": lambda folder: {
        name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()
    },
    "numllm load_model": load_model,
}
OWN = "load_file, into own memory"


def loaded_once(name: str, folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of a candidate in a process of its own, its imports left out."""
    command = [sys.executable, "-m", "benchmarks.bench_load", "--once", name, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{name}: {run.stderr}")
    took, used = json.loads(run.stdout)
    return took, used


def _load(name: str, folder: Path) -> None:
    began, used = time.perf_counter(), time.process_time()
    held = CANDIDATES[name](folder)
    print(json.dumps([time.perf_counter() - began, time.process_time() - used]))
    del held


def bench(shape: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each candidate: wall time and its ratio to OWN's, and CPU time (user and system)."""
    size = write_checkpoint(folder, SHAPES[shape])
    processor.library()  # once on a machine, and not timed
    wall: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    cpu: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    names = list(CANDIDATES)
    for turn in range(rounds + 1):
        for step in range(len(names)):
            name = names[(turn + step) % len(names)]
            took, used = loaded_once(name, folder)
            if turn:  # the first round warms up
                wall[name].append(took)
                cpu[name].append(used)
                print(f"round {turn}: {name}: {took:.3f} s, {used:.3f} s of CPU", file=sys.stderr)
    times = {name: measure.Timing(seconds=tuple(values)) for name, values in wall.items()}
    return [
        {
            "bench": "load", "candidate": name, "shape": shape, "bytes": size, "rounds": rounds,
            "ms": times[name].quantiles(), "cpu_ms": measure.Timing(seconds=tuple(cpu[name])).quantiles(),
            "ratio_to_own": times[name].ratio(times[OWN]), **measure.provenance(torch.device("cpu")),
        }
        for name in names
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint; default: a temporary one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", nargs=2, metavar=("CANDIDATE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.once:
        return _load(given.once[0], Path(given.once[1]))
    if given.out is None:
        parser.error("--out is required")
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        rows = bench(given.shape, Path(folder), given.rounds)
    measure.write_rows(given.out, rows)


if __name__ == "__main__":
    main()
