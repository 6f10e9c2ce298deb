"""A whole training step of one adapter on a small Qwen2, against transformers with PEFT: time and peak memory.

    python -m benchmarks.bench_step --out benchmarks/results/step-cpu.jsonl

A random Qwen2 of 4 layers, 512 wide, fp32; rank 16 on all seven linears; forward, loss, backward, clipping, AdamW.
"text": full rows of one document, every next token scored. "choice": questions of one scored token each, the answer's
letter. Both sides see the same tokens and labels, and their losses must agree before anything is timed. The peer runs
as its own trainers do: the model's labels argument, whose head covers every position. Peak memory is the process's,
less what it was when model and batch were ready.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure

SHAPE = {
    "vocab_size": 32768, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}
RANK, ALPHA, RATE, CLIP = 16, 32.0, 1e-4, 1.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES = {"text": (4, 512), "choice": (16, 128)}
"""Rows and tokens a step."""
CANDIDATES = ("numllm", "transformers + PEFT")

Step = Callable[[Tensor], float]


def rows(case: str, seed: int) -> Tensor:
    """(B, T) int64 tokens of a step."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHAPE["vocab_size"], CASES[case], generator=generator)


def learn(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Backward, clipping and the optimizer's step; the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def numllm(case: str, folder: str) -> Step:
    """A step with the hand-written model and LoRA layer; tokens → loss."""
    from numllm.config import LoRAConfig
    from numllm.data import Batch
    from numllm.lora import attach
    from numllm.model import load_model
    from numllm.train import forward_losses

    model = load_model(folder)
    adapters = attach(model, {"numeric": LoRAConfig(rank=RANK, alpha=ALPHA)})
    optimizer = torch.optim.AdamW(adapters.parameters("numeric"), lr=RATE, weight_decay=0.0, fused=True)
    count, width = CASES[case]
    places = torch.arange(count * width).view(count, width)
    places = places[:, :-1].flatten() if case == "text" else places[:, -2]

    def step(tokens: Tensor) -> float:
        batch = Batch(
            tokens=tokens, documents=torch.zeros(tokens.shape, dtype=torch.int32), positions=places,
            labels=tokens.flatten()[places + 1], count=len(places),
        )
        return learn(forward_losses(model, adapters, {"numeric": batch})["numeric"], optimizer)

    return step


def peer(case: str, folder: str) -> Step:
    """The same step by transformers and PEFT."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)

    def step(tokens: Tensor) -> float:
        labels = tokens.clone()
        if case == "choice":
            labels[:, :-1] = -100
        return learn(model(input_ids=tokens, labels=labels).loss, optimizer)

    return step


MAKE: dict[str, Callable[[str, str], Step]] = dict(zip(CANDIDATES, (numllm, peer), strict=True))


def peak(case: str, name: str, folder: str) -> int:
    """Peak bytes of two steps of a candidate above its resident model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_step", "--peak", case, name, folder]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def _own_peak(case: str, name: str, folder: str) -> int:
    step, tokens = MAKE[name](case, folder), rows(case, 0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    step(tokens)
    step(tokens)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def run(rounds: int) -> list[dict[str, Any]]:
    """A row for each case and candidate."""
    import transformers

    where = measure.provenance(torch.device("cpu")) | {"transformers": transformers.__version__}
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for case, (count, width) in CASES.items():
            steps = {name: make(case, folder) for name, make in MAKE.items()}
            mine, theirs = (step(rows(case, 0)) for step in steps.values())
            if abs(mine - theirs) > 1e-4 * abs(theirs):
                raise RuntimeError(f"{case}: the losses differ before any training: {mine} and {theirs}")
            times = measure.compare(steps, [rows(case, seed) for seed in range(4)], torch.device("cpu"), rounds=rounds)
            for name, timing in times.items():
                found.append({
                    "bench": "train_step", "case": case, "candidate": name, "rows": count, "tokens": count * width,
                    "vocabulary": SHAPE["vocab_size"], "layers": SHAPE["num_hidden_layers"],
                    "width": SHAPE["hidden_size"], "ms": timing.quantiles(),
                    "speed": times[CANDIDATES[1]].ratio(timing), "peak_bytes": peak(case, name, folder), **where,
                })
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=3, metavar=("CASE", "CANDIDATE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.peak:
        print(json.dumps(_own_peak(*given.peak)))
        return
    if given.out is None:
        parser.error("--out is needed")
    found = run(given.rounds)
    measure.write_rows(given.out, found)
    for row in found:
        print(row["case"], row["candidate"], row["ms"], row["speed"], f"{row['peak_bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
