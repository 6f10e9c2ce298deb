"""A whole training step of one adapter on a random Qwen2, against transformers with PEFT: time and peak memory.

    python -m benchmarks.bench_step --device cpu --out rows.jsonl
    python -m benchmarks.bench_step --device cuda --layers 28 --out rows.jsonl

Rank 16 on all seven linears; forward, loss, backward, clipping, AdamW. On a CPU a model of 4 layers, 512 wide, fp32:
"text" are full rows of one document, every next token scored, "choice" questions of one scored token each, the
answer's letter. On a GPU Qwen2.5-7B's shape in bf16, as many of its layers as the memory has room for: "packed" are
rows of 4096 tokens in documents of 200 to 1200. All sides see the same weights, tokens and labels, and their losses
must agree before anything is timed. The peer runs as its own trainers do: the model's labels argument, whose head
covers every position, and positions that begin anew with each packed document. Peak memory is the process's, on a GPU
the tensors', less what it was when model and batch were ready.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import measure, models
from numllm.config import LoRAConfig
from numllm.data import Batch
from numllm.lora import attach
from numllm.memory import estimate
from numllm.train import forward_losses
from numllm.train.meter import Meter

RANK, ALPHA, RATE, CLIP = 16, 32.0, 1e-4, 1.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 32768, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": models.QWEN_7B,
}
CASES = {"small": {"text": (4, 512), "choice": (16, 128)}, "qwen2.5-7b": {"packed": (2, 4096)}}
"""Rows and tokens a row of a step."""
SHORTEST, LONGEST = 200, 1200
"""Tokens of a packed document."""
PEER = "transformers + PEFT"
AGREE = {torch.float32: 1e-4, torch.bfloat16: 5e-3}
"""How far apart the losses may be, of the loss."""


class Data(NamedTuple):
    """The same step for both sides: a batch; the peer's labels (B, T), and its positions where rows are packed."""

    batch: Batch
    labels: Tensor
    positions: Tensor | None


Step = Callable[[Data], float]
Measured = tuple[str, measure.Timing | str, int]
"""A candidate, its times or why there are none, its peak in bytes."""


def data(case: str, rows: int, width: int, vocabulary: int, seed: int, device: torch.device) -> Data:
    """A step's rows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (rows, width), generator=generator)
    documents = torch.zeros(rows, width, dtype=torch.int32)
    index = torch.arange(width).expand(rows, width)
    positions = None
    if case == "packed":
        sizes = torch.randint(SHORTEST, LONGEST + 1, (rows, -(-width // SHORTEST)), generator=generator)
        ends = sizes.cumsum(1)
        documents = torch.searchsorted(ends, index.contiguous(), right=True).to(torch.int32)
        first = torch.cat((torch.zeros(rows, 1, dtype=ends.dtype), ends), dim=1)
        positions = (index - first.gather(1, documents.long())).to(device)
    scored = torch.zeros(rows, width, dtype=torch.bool)
    if case == "choice":
        scored[:, -2] = True
    else:
        scored[:, :-1] = documents[:, 1:] == documents[:, :-1]
    places = scored.flatten().nonzero()[:, 0]
    labels = torch.full((rows * width,), -100)
    labels[places + 1] = tokens.flatten()[places + 1]
    batch = Batch(tokens, documents, places, tokens.flatten()[places + 1], count=len(places))
    return Data(batch.to(device), labels.view(rows, width).to(device), positions)


def learn(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Backward, clipping and the optimizer's step; the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def numllm(shape: dict[str, Any], held: dict[str, Tensor]) -> Step:
    """A step with the hand-written model and LoRA layer."""
    model = models.ours(models.config_of(shape), held)
    adapters = attach(model, {"numeric": LoRAConfig(rank=RANK, alpha=ALPHA, targets=TARGETS)})
    optimizer = torch.optim.AdamW(adapters.parameters("numeric"), lr=RATE, weight_decay=0.0, fused=True)
    return lambda given: learn(forward_losses(model, adapters, {"numeric": given.batch})["numeric"], optimizer)


def peer(shape: dict[str, Any], held: dict[str, Tensor], *, fp32_factors: bool = True) -> Step:
    """The same step by transformers and PEFT."""
    import peft

    model = models.theirs(shape, held)
    model.config.use_cache = False
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=fp32_factors).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)

    def step(given: Data) -> float:
        loss = model(input_ids=given.batch.tokens, labels=given.labels, position_ids=given.positions).loss
        return learn(loss, optimizer)

    return step


def candidates(dtype: torch.dtype) -> dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Step]]:
    """Name → maker of its step, of what is installed; first that whose speed is the measure."""
    found: dict[str, Callable[..., Step]] = {}
    if all(map(importlib.util.find_spec, ("transformers", "peft"))):
        found[PEER] = peer
    found["numllm"] = numllm
    if PEER in found and dtype != torch.float32:
        found[f"{PEER}, 16-bit factors"] = lambda shape, held: peer(shape, held, fp32_factors=False)
    return found


class Bench:
    """What is measured: a shape with its number of layers and its cases, in a dtype on a device."""

    def __init__(self, name: str, layers: int | None, dtype: torch.dtype, device: torch.device) -> None:
        self.name, self.dtype, self.device = name, dtype, device
        self.shape = SHAPES[name] | {"num_hidden_layers": layers or self.fitting()}
        self.config = models.config_of(self.shape)
        self.makers = candidates(dtype)

    def fitting(self) -> int:
        """As many layers as a step takes at most 85 % of a GPU's memory with, by the estimate; all of them on a CPU."""
        most = SHAPES[self.name]["num_hidden_layers"]
        if self.device.type != "cuda":
            return most
        room = 0.85 * torch.cuda.get_device_properties(self.device).total_memory
        one, two = self.need(1), self.need(2)
        return min(most, max(1, 1 + int((room - one) // (two - one))))

    def need(self, layers: int) -> int:
        """Estimated bytes of the largest case's step."""
        rows, width = max(CASES[self.name].values(), key=lambda size: size[0] * size[1])
        return estimate(
            models.config_of(SHAPES[self.name] | {"num_hidden_layers": layers}),
            LoRAConfig(rank=RANK, targets=TARGETS), rows=rows, length=width,
            dtype=str(self.dtype).removeprefix("torch."), cuda=True,
        ).total

    def data(self, case: str, seed: int) -> Data:
        """Rows of a case."""
        return data(case, *CASES[self.name][case], self.shape["vocab_size"], seed, self.device)

    def step(self, name: str) -> Step:
        """A candidate's step on weights of its own."""
        return self.makers[name](self.shape, models.weights(self.config, self.dtype, self.device))

    def rows(self, case: str, rounds: int) -> Iterator[dict[str, Any]]:
        """A row for each candidate."""
        held = models.weights(self.config, self.dtype, self.device)
        meter = Meter(models.ours(self.config, held))
        inputs = [self.data(case, seed) for seed in range(4)]
        tokens, labels = inputs[0].batch.tokens.numel(), len(inputs[0].batch.labels)
        base: measure.Timing | None = None
        for name, timing, peak_bytes in (self._turns if self.device.type == "cpu" else self._one_by_one)(
            case, held, inputs, rounds
        ):
            if isinstance(timing, str):
                yield {"case": case, "candidate": name, "skipped": timing}
                continue
            base = timing if name == PEER else base
            seconds = timing.quantiles()["p50"] / 1000
            flops = meter.flops(tokens, labels)
            yield {
                "case": case, "candidate": name, "rows": len(inputs[0].batch.tokens), "tokens": tokens,
                "labels": labels, "shape": self.name, "vocabulary": self.shape["vocab_size"],
                "layers": self.shape["num_hidden_layers"], "width": self.shape["hidden_size"],
                "dtype": str(self.dtype).removeprefix("torch."), "ms": timing.quantiles(),
                "speed": base.ratio(timing) if base else None, "peak_bytes": peak_bytes,
                "weight_bytes": sum(weight.nbytes for weight in held.values()),
                "tokens_per_second": round(tokens / seconds, 1), "flops": flops,
                "mfu": round(flops / seconds / (meter.peak * 1e12), 4) if meter.peak else None,
            }

    def _agree(self, case: str, losses: dict[str, float]) -> None:
        """RuntimeError unless the last loss is the first one's."""
        (first, wanted), (name, loss) = next(iter(losses.items())), list(losses.items())[-1]
        if not abs(wanted - loss) <= AGREE[self.dtype] * abs(wanted):
            raise RuntimeError(f"{case}: the losses differ before any training: {first} {wanted}, {name} {loss}")

    def _turns(self, case: str, held: dict[str, Tensor], inputs: Sequence[Data], rounds: int) -> Iterator[Measured]:
        """Of candidates that take turns."""
        steps = {name: make(self.shape, held) for name, make in self.makers.items()}
        losses: dict[str, float] = {}
        for name, step in steps.items():
            losses[name] = step(inputs[0])
            self._agree(case, losses)
        times = measure.compare(steps, inputs, self.device, rounds=rounds)
        for name in steps:
            yield name, times[name], peak(self.name, self.shape["num_hidden_layers"], case, name)

    def _one_by_one(
        self, case: str, held: dict[str, Tensor], inputs: Sequence[Data], rounds: int
    ) -> Iterator[Measured]:
        """Of one candidate after the other: together they would take the memory from each other."""
        losses: dict[str, float] = {}
        for name, make in self.makers.items():
            step = None
            gc.collect()
            torch.cuda.empty_cache()
            try:
                step = make(self.shape, held)
                losses[name] = step(inputs[0])
                self._agree(case, losses)
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                step(inputs[1])
                most = torch.cuda.max_memory_allocated(self.device) - before
                timing = measure.compare({name: step}, inputs, self.device, rounds=rounds, warmup=2)[name]
            except torch.OutOfMemoryError:
                losses.pop(name, None)
                yield name, "out of memory", 0
            except Exception as error:
                if name == "numllm":
                    raise
                losses.pop(name, None)
                yield name, measure.reason(error), 0
            else:
                yield name, timing, most


def peak(shape: str, layers: int, case: str, name: str) -> int:
    """Peak bytes of two steps of a candidate on the CPU above its resident model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_step", "--device", "cpu", "--shape", shape, "--layers",
               str(layers), "--peak", case, name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def _own_peak(bench: Bench, case: str, name: str) -> int:
    step, given = bench.step(name), bench.data(case, 0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    step(given)
    step(given)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="small on a CPU, qwen2.5-7b on a GPU")
    parser.add_argument("--layers", type=int, help="all, or as many as the GPU has room for")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CANDIDATE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    device = measure.device_of(given.device)
    cuda = device.type == "cuda"
    bench = Bench(
        given.shape or ("qwen2.5-7b" if cuda else "small"), given.layers, torch.bfloat16 if cuda else torch.float32,
        device,
    )
    if given.peak:
        print(json.dumps(_own_peak(bench, *given.peak)))
        return
    if given.out is None:
        parser.error("--out is needed")
    where = measure.provenance(device)
    if PEER in bench.makers:
        where["transformers"] = importlib.metadata.version("transformers")
    else:
        print("bench_step: transformers or peft is not installed, the peer's rows are left out", file=sys.stderr)
    for case in CASES[bench.name]:
        for row in bench.rows(case, given.rounds or (3 if given.quick else 9)):
            measure.write_rows(given.out, [{"bench": "train_step", **row, **where}])
            if "skipped" in row:
                print(f"{case}, {row['candidate']}: {row['skipped']}", flush=True)
                continue
            against = f", {row['speed']['p50']:.2f} × the peer's speed" if row["speed"] else ""
            print(
                f"{case}, {row['candidate']}: {row['ms']['p50']:.0f} ms, {row['tokens_per_second']:,.0f} tokens/s, "
                f"peak {row['peak_bytes'] / 2**20:.0f} MiB{against}", flush=True,
            )


if __name__ == "__main__":
    main()
