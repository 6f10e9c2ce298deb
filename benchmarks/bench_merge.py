"""Folding two rank-16 adapters into a checkpoint, against copying its files, PEFT, and a merge per tensor in memory.

    python -m benchmarks.bench_merge --shape qwen2.5-0.5b --rounds 5 --work /a/disk --out rows.jsonl

Every candidate runs in a process of its own, takes turns with the others in every round, starts with the inputs in
the page cache and nothing left to be written back, and is timed from after its imports until its output is on the disk
(fsync). Its processor time, user and system, is counted over the same time; its peak of resident memory is that of the
whole process. mergekit is a program of its own and so timed with its imports. numllm's merges find the inputs' hashes
remembered, but for those called first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from numllm import hashes
from numllm.adapter import write_adapter
from numllm.checkpoint import INDEX, Checkpoint, write_safetensors
from numllm.files import sha256, write_json
from numllm_kernels import processor

RANK = 16
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden": 256, "inner": 704, "layers": 4, "heads": 4, "groups": 2, "vocabulary": 4096, "shards": 1},
    "qwen2.5-0.5b": {"hidden": 896, "inner": 4864, "layers": 24, "heads": 14, "groups": 2, "vocabulary": 151_936,
                     "shards": 1},
    "3gb": {"hidden": 2048, "inner": 8192, "layers": 22, "heads": 32, "groups": 8, "vocabulary": 65_536, "shards": 3},
}


def write_inputs(folder: Path, shape: dict[str, int]) -> None:
    """A random bf16 checkpoint of Qwen2's architecture, written layer by layer, and adapters a, b (all linears) and
    qv (q_proj and v_proj only).
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * 0.02).bfloat16()

    d, inner, layers = shape["hidden"], shape["inner"], shape["layers"]
    kv = d // shape["heads"] * shape["groups"]
    sizes = dict(zip(LINEARS, ((d, d), (kv, d), (kv, d), (d, d), (inner, d), (inner, d), (d, inner)), strict=True))
    base, where = folder / "base", {}
    for shard in range(shape["shards"]):
        name = f"model-{shard + 1:05d}-of-{shape['shards']:05d}.safetensors"
        tensors = {}
        if shard == 0:
            tensors = {"model.embed_tokens.weight": draw(shape["vocabulary"], d), "model.norm.weight": draw(d) + 1}
        for layer in range(shard * layers // shape["shards"], (shard + 1) * layers // shape["shards"]):
            prefix = f"model.layers.{layer}."
            for linear, size in sizes.items():
                block = "self_attn" if linear[0] in "qkvo" else "mlp"
                tensors[f"{prefix}{block}.{linear}.weight"] = draw(*size)
                if linear[0] in "qkv":
                    tensors[f"{prefix}{block}.{linear}.bias"] = draw(size[0])
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = draw(d) + 1
        write_safetensors(base / name, tensors)
        where |= dict.fromkeys(tensors, name)
    write_json(base / INDEX, {"metadata": {}, "weight_map": where})
    write_json(base / "config.json", {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": d, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": shape["heads"], "num_key_value_heads": shape["groups"],
        "vocab_size": shape["vocabulary"], "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    })
    for name, targets in (("a", LINEARS), ("b", LINEARS), ("qv", ("q_proj", "v_proj"))):
        factors = {
            f"model.layers.{layer}.{'self_attn' if linear[0] in 'qkvo' else 'mlp'}.{linear}":
                (draw(RANK, sizes[linear][1]).float(), draw(sizes[linear][0], RANK).float())
            for layer in range(layers) for linear in targets
        }
        write_adapter(folder / name, factors, rank=RANK, alpha=2 * RANK, targets=targets)


def _numllm(folder: Path, out: Path, adapters: Sequence[str], **options: Any) -> None:
    from numllm.merge import merge

    merge(folder / "base", [(folder / name, 0.5) for name in adapters], out, **options)


def _without(variable: str, folder: Path, out: Path, adapters: Sequence[str] = ("a", "b"), **options: Any) -> None:
    """A merge with a variable of the environment at 0."""
    os.environ[variable] = "0"
    _numllm(folder, out, adapters, **options)


FIRST, COMPILE = "NUMLLM_REMEMBER", "NUMLLM_COMPILE"
"""What makes a merge one of inputs that were never hashed before; one where there is no C compiler."""


def _copy(folder: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", str(folder / "base"), str(out)], check=True)


def _peft(folder: Path, out: Path, kind: str) -> None:
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    model = peft.PeftModel.from_pretrained(base, str(folder / "a"), adapter_name="a")
    model.load_adapter(str(folder / "b"), "b")
    extra = {"svd_rank": RANK} if kind == "svd" else {}
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", combination_type=kind, **extra)
    model.set_adapter("both")
    model.merge_and_unload().save_pretrained(out)


def _hash(folder: Path, out: Path) -> None:
    """What the record of the inputs costs by itself: SHA-256 of the base's files."""
    out.mkdir()
    for path in sorted((folder / "base").iterdir()):
        sha256(path)


def _per_tensor(folder: Path, out: Path) -> None:
    """What mergekit and scripts do: all weights in a dictionary, one fp32 product and sum each, saved at the end."""
    from safetensors.torch import load_file, save_file

    loaded = [load_file(folder / name / "adapter_model.safetensors") for name in ("a", "b")]
    out.mkdir()
    for path in sorted((folder / "base").glob("*.safetensors")):
        tensors = load_file(path)
        for name, weight in tensors.items():
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            if f"{key}A.weight" in loaded[0]:
                total = weight.float()
                for factors in loaded:
                    total += 0.5 * 2 * (factors[f"{key}B.weight"] @ factors[f"{key}A.weight"])
                tensors[name] = total.to(weight.dtype)
        save_file(tensors, out / path.name, metadata={"format": "pt"})


def _mergekit(folder: Path, out: Path) -> None:
    """Task arithmetic with base+adapter as the models: each is made whole, written, and then merged."""
    settings = {
        "merge_method": "task_arithmetic", "base_model": str(folder / "base"), "dtype": "bfloat16",
        "models": [
            {"model": f"{folder / 'base'}+{folder / name}", "parameters": {"weight": 0.5}} for name in ("a", "b")
        ],
    }
    write_json(folder / "mergekit.yaml", settings)  # JSON is YAML
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        subprocess.run(
            ["mergekit-yaml", str(folder / "mergekit.yaml"), str(out), "--no-copy-tokenizer", "--lora-merge-cache",
             cache],
            check=True, capture_output=True,
        )


CANDIDATES: dict[str, Callable[[Path, Path], None]] = {
    "cp -r": _copy,
    "SHA-256 of the base alone": _hash,
    "numllm exact": lambda folder, out: _numllm(folder, out, ("a", "b"), method="exact"),
    "numllm exact, first": lambda folder, out: _without(FIRST, folder, out, method="exact"),
    "numllm exact, not compiled": lambda folder, out: _without(COMPILE, folder, out, method="exact"),
    "numllm svd": lambda folder, out: _numllm(folder, out, ("a", "b"), method="svd", rank=RANK),
    "numllm svd, first": lambda folder, out: _without(FIRST, folder, out, method="svd", rank=RANK),
    "numllm exact, q and v": lambda folder, out: _numllm(folder, out, ("qv",), method="exact"),
    "numllm exact, q and v, first": lambda folder, out: _without(FIRST, folder, out, ("qv",), method="exact"),
    "numllm ties": lambda folder, out: _numllm(folder, out, ("a", "b"), method="ties"),
    "per tensor in memory": _per_tensor,
    "PEFT cat": lambda folder, out: _peft(folder, out, "cat"),
    "PEFT svd": lambda folder, out: _peft(folder, out, "svd"),
    "mergekit, a program": _mergekit,
}


def work(name: str, folder: Path, out: Path) -> None:
    """One run of a candidate, in this process; prints its seconds and its peak of resident memory."""
    if name.startswith("PEFT"):
        import peft  # noqa: F401 - imports are not timed
        import transformers  # noqa: F401
    else:
        import safetensors.torch  # noqa: F401

        import numllm.merge  # noqa: F401
    os.sync()
    began, used = time.perf_counter(), _processor_seconds()
    CANDIDATES[name](folder, out)
    for path in out.rglob("*"):
        with contextlib.suppress(IsADirectoryError), open(path, "rb") as file:
            os.fsync(file.fileno())
    took = time.perf_counter() - began
    # Not one's own ru_maxrss, which also holds what the parent had in memory when it forked.
    own = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    peak = max(int(own[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) << 10
    print(json.dumps({"seconds": took, "cpu_seconds": _processor_seconds() - used, "peak_bytes": peak}))


def _processor_seconds() -> float:
    """Of this process and those it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _run(name: str, folder: Path) -> dict[str, Any]:
    """What `work` prints of a run in a new process."""
    out = folder / "out"
    for path in (folder / "base").iterdir():
        with open(path, "rb") as file:  # into the page cache, for everyone
            while file.read(1 << 24):
                pass
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_merge", "--worker", name, "--work", str(folder)],
        capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1], check=False,
    )
    if run.returncode:
        sys.exit(f"bench_merge: {name} ended with {run.returncode}: {run.stderr.strip()[-2000:]}")
    shutil.rmtree(out)
    return json.loads(run.stdout.splitlines()[-1])


def bench(shape: str, folder: Path, names: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each candidate; the first is what the others' ratios are to."""
    write_inputs(folder, SHAPES[shape])
    processor.library()  # once on a machine, and not timed
    time.sleep(hashes.SETTLED)
    for path in sorted(folder.rglob("*.safetensors")):  # the first merge of these inputs
        hashes.digest(path)
    size = sum(path.stat().st_size for path in Checkpoint.open(folder / "base").files)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(rounds):
        for step in range(len(names)):
            name = names[(turn + step) % len(names)]
            found = _run(name, folder)
            runs[name].append(found)
            print(
                f"round {turn + 1}: {name}: {found['seconds']:.2f} s, {found['cpu_seconds']:.2f} s of processor, "
                f"{found['peak_bytes'] >> 20} MiB", file=sys.stderr,
            )
    timings = {name: measure.Timing(seconds=tuple(run["seconds"] for run in found)) for name, found in runs.items()}
    return [
        {
            "bench": "merge", "candidate": name, "shape": shape, "bytes": size, "adapters": 2, "rank": RANK,
            "dtype": "bfloat16", "ms": timing.quantiles(), "ratio_to_copy": timing.ratio(timings[names[0]]),
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs[name]),
            "peak_bytes": max(run["peak_bytes"] for run in runs[name]), "rounds": rounds,
        }
        for name, timing in timings.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_merge", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=tuple(CANDIDATES), help="candidates beside cp -r")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure; a temporary one otherwise")
    parser.add_argument("--out", type=Path, help="file of JSON lines to write; stdout otherwise")
    parser.add_argument("--worker", choices=tuple(CANDIDATES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker, options.work, options.work / "out")
        return
    names = list(dict.fromkeys(["cp -r", *(options.only or CANDIDATES)]))
    where, rows = measure.provenance(torch.device("cpu")), []
    if not importlib.util.find_spec("peft"):
        names = [name for name in names if not name.startswith("PEFT")]
        print("bench_merge: peft is not installed, its rows are left out", file=sys.stderr)
    if not shutil.which("mergekit-yaml"):
        names = [name for name in names if not name.startswith("mergekit")]
        print("bench_merge: mergekit-yaml is not on the PATH, its row is left out", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        rows = [{**row, **where} for row in bench(options.shape, Path(folder), names, options.rounds)]
    if options.out:
        measure.write_rows(options.out, rows)
    else:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
