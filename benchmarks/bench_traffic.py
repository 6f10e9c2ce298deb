"""What travels between the processes of a training step: counted from the adapters, and seen by the network card.

    python -m benchmarks.bench_traffic --processes 2 4 --out rows.jsonl

The processes (gloo, CPU) have a network namespace of their own (util-linux's unshare, iproute2's ip), so that nothing
else is on its loopback card, whose counters are read before and after the steps. A row a number of processes: bytes
that each gives to the all-reduces of a step, bytes that each sends, and what a ring all-reduce sends, 2 (N − 1) / N of
the first.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from numllm.data import Batch
from numllm.model import load_model
from numllm.train import Meeting, Trainer, joined
from numllm.train_config import TrainConfig

LENGTH = 16


def batch(rows: int, seed: int, vocabulary: int) -> Batch:
    """Rows of random tokens, each one document, every token but the first a label."""
    tokens = torch.randint(vocabulary, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(rows * LENGTH).view(rows, LENGTH)[:, :-1].flatten()
    documents = torch.zeros(rows, LENGTH, dtype=torch.int32)
    return Batch(tokens, documents, positions, tokens.flatten()[positions + 1], count=len(positions))


def sent_by_loopback() -> int:
    """Bytes that the namespace's loopback card has sent."""
    (line,) = (line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def process(model: str, steps: int) -> None:
    """One of the processes; the first prints what was counted and what was seen."""
    with joined("cpu", Meeting.from_environment()) as world:
        frozen = load_model(model, dtype=torch.float32)
        config = TrainConfig(model=model, out="none", length=LENGTH)
        sources = {
            name: lambda step, seed=seed: batch(world.size, 2 * step + seed, frozen.config.vocab_size)
            for seed, name in enumerate(config.adapters)
        }
        trainer = Trainer(config, frozen, sources, world)
        trainer.advance()
        world.wait()
        counted, seen = world.sent, sent_by_loopback()
        world.wait()
        for _ in range(steps):
            trainer.advance()
        world.wait()
        seen = sent_by_loopback() - seen
        world.wait()
        if world.first:
            print(json.dumps({"given": (world.sent - counted) / steps, "sent": seen / steps / world.size}))


def together(model: str, count: int, steps: int) -> dict[str, Any]:
    """Starts the processes, in the namespace this one is in; what the first says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bench_traffic", "--model", model, "--steps", str(steps)],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]
    said = [one.communicate()[0] for one in running]
    if any(one.returncode for one in running):
        sys.exit("a process failed")
    return json.loads(said[0])


def rows(model: str, counts: Sequence[int], steps: int) -> Iterator[dict[str, Any]]:
    """A row a number of processes."""
    where = measure.provenance(torch.device("cpu"))
    for count in counts:
        inside = (
            "import sys; from benchmarks.bench_traffic import together; import json; "
            f"print(json.dumps(together({model!r}, {count}, {steps})))"
        )
        done = subprocess.run(
            ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-c", inside],
            stdout=subprocess.PIPE, text=True, check=True,
        )
        found = json.loads(done.stdout)
        yield {
            "bench": "traffic", "model": model, "processes": count, "steps": steps,
            **{key: round(value) for key, value in found.items()},
            "ring": round(2 * (count - 1) / count * found["given"]), **where,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if "RANK" in os.environ:
        process(args.model, args.steps)
        return
    found = []
    for row in rows(args.model, args.processes, args.steps):
        print(json.dumps(row), flush=True)
        found.append(row)
    if args.out:
        measure.write_rows(args.out, found)


if __name__ == "__main__":
    main()
