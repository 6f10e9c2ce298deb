"""The demo, whole, once a seed: what the adapters and the merge do to accuracy and perplexity, and how it spreads.

    python -m benchmarks.bench_demo --seeds 0 1 2 --out benchmarks/results/demo.jsonl

    python -m benchmarks.bench_demo --seeds 1 --adapters run/adapters --out row.jsonl

With --adapters nothing is trained: a seed's adapters from an earlier run are merged and evaluated anew.

A row a seed: the demo's own result (see `numllm.demo.run_demo`) and where it was measured.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import measure
from numllm.demo import run_demo
from numllm.train import train
from numllm.train_config import TrainConfig


def train_whole(config: TrainConfig) -> None:
    """Runs a training to its end."""
    for _ in train(config):
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="training steps; default: the demo's own")
    parser.add_argument("--adapters", type=Path, help="folder with domain and numeric, trained with the one seed given")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    if args.adapters and len(args.seeds) != 1:
        parser.error("--adapters goes with one seed")

    def take(config: TrainConfig) -> None:
        shutil.copytree(args.adapters, Path(config.out) / "adapters")

    where, rows = measure.provenance(torch.device("cpu")), []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            result = run_demo(
                Path(scratch) / "demo", train=take if args.adapters else train_whole, steps=args.steps, seed=seed,
                say=print,
            )
        print(result.pop("text"), flush=True)
        del result["folder"]
        rows.append({"bench": "demo", **result, **where})
        measure.write_rows(args.out, rows, anew=True)


if __name__ == "__main__":
    main()
