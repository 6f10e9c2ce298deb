"""Training both adapters in one pass against one after the other, and against transformers with PEFT.

    python -m benchmarks.bench_train --out rows.jsonl

Case joint: the time of a joint step over that of a domain step and a numeric step, which take turns on the same
batches. Case peft: the same model, data, adapters' start, rates and steps through transformers and PEFT, an adapter
at a time; the losses of the last steps side by side. The data are the demo's textbook and its choice questions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from numllm.checkpoint import resolve
from numllm.config import LoRAConfig
from numllm.corpus import build_corpus, read_corpus
from numllm.data import Batch, ChoiceBatches, TextBatches
from numllm.demo import TEXTBOOK, training_questions
from numllm.files import write_jsonl
from numllm.lora import AdapterSet
from numllm.model import load_model
from numllm.questions import read_questions
from numllm.tokenizer import Tokenizer
from numllm.train import Source, Trainer
from numllm.train_config import TrainConfig

LAST = 10
"""Steps at the end over which a loss is averaged."""


def demo_data(folder: Path) -> dict[str, str]:
    """Settings naming the demo's corpus and questions, made in `folder`."""
    build_corpus([TEXTBOOK], folder / "corpus", holdout=0.0)
    write_jsonl(folder / "numct.jsonl", training_questions(list(read_corpus(folder / "corpus"))))
    return {"corpus": str(folder / "corpus"), "numct": str(folder / "numct.jsonl")}


def sources(config: TrainConfig) -> dict[str, Source]:
    """The batches of a run."""
    tokenizer = Tokenizer.open(config.model)
    texts = [row["text"] for row in read_corpus(config.corpus) if row["split"] == "train"]
    return {
        "domain": TextBatches(texts, tokenizer, rows=config.rows, length=config.length, seed=config.seed),
        "numeric": ChoiceBatches(
            read_questions([config.numct], split="train"), tokenizer, size=config.questions, length=config.length,
            loss=config.loss, seed=config.seed,
        ),
    }


def trainer(config: TrainConfig, *names: str) -> Trainer:
    """A trainer of the adapters named, at its start."""
    batches = sources(config)
    own = TrainConfig(**{**vars(config), "adapters": names})
    dtype = getattr(torch, config.dtype)
    return Trainer(own, load_model(config.model, dtype=dtype, device=config.device), {n: batches[n] for n in names})


def joint(config: TrainConfig, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for the joint step, its time over that of the two steps apart."""
    both, *single = trainer(config, "domain", "numeric"), trainer(config, "domain"), trainer(config, "numeric")
    candidates = {
        "joint": lambda _: both.advance(),
        "one after the other": lambda _: [each.advance() for each in single],
    }
    times = measure.compare(candidates, [None], torch.device(config.device), rounds=rounds, warmup=1)
    tokens = {name: int((batch.documents >= 0).sum()) for name, batch in both.batches.items()}
    for name, timing in times.items():
        yield {
            "case": "joint", "candidate": name, "ms": timing.quantiles(), "tokens": tokens,
            "ratio_to_apart": timing.ratio(times["one after the other"]),
        }


def _seen(documents: Tensor) -> tuple[Tensor, Tensor]:
    """(additive mask (B, 1, T, T), positions (B, T)) that keep the documents of packed rows apart."""
    count = documents.shape[1]
    same = (documents[:, :, None] == documents[:, None]) & torch.ones(count, count, dtype=torch.bool).tril()
    mask = torch.zeros(same.shape).masked_fill(~same, torch.finfo(torch.float32).min)
    return mask[:, None], same.sum(-1) - 1


class Peft:
    """One adapter trained by transformers and PEFT as numllm trains it: AdamW, clipping, the rates of `config`."""

    def __init__(self, config: TrainConfig, name: str, start: AdapterSet) -> None:
        import peft
        import transformers

        lora = config.lora(name)
        base = transformers.AutoModelForCausalLM.from_pretrained(
            resolve(config.model), dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
        )
        self.model = peft.get_peft_model(base, peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, bias="none",
        ))
        for path, module in self.model.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                own = start.modules[path.removeprefix("base_model.model.")]
                module.lora_A["default"].weight.data.copy_(own.a[name].detach())
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=config.weight_decay)
        self.config, self.name, self.step = config, name, 0

    def advance(self, batch: Batch) -> float:
        """One step; its loss."""
        mask, positions = _seen(batch.documents)
        logits = self.model(input_ids=batch.tokens, attention_mask=mask, position_ids=positions).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1)[batch.positions], batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.param_groups[0]["lr"] = self.config.rate(self.name, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()


def against_peft(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """A row an adapter: the loss of each step, numllm's from a joint run, PEFT's from a run of its own."""
    ours = trainer(config, *config.adapters)
    theirs = {name: Peft(config, name, ours.adapters) for name in config.adapters}
    losses: dict[str, dict[str, list[float]]] = {name: {"numllm": [], "peft": []} for name in theirs}
    seconds = dict.fromkeys(("numllm", "peft"), 0.0)
    for step in range(config.steps):
        began = time.process_time()
        rows = ours.advance()
        seconds["numllm"] += time.process_time() - began
        for row in rows:
            losses[row["adapter"]]["numllm"].append(row["loss"])
        began = time.process_time()
        for name, other in theirs.items():
            losses[name]["peft"].append(other.advance(ours.sources[name](step)))
        seconds["peft"] += time.process_time() - began
    for name, found in losses.items():
        last = {which: sum(values[-LAST:]) / len(values[-LAST:]) for which, values in found.items()}
        yield {
            "case": "peft", "adapter": name, "steps": config.steps, "first": {k: v[0] for k, v in found.items()},
            "last": last, "difference_percent": 100 * (last["numllm"] / last["peft"] - 1),
            "cpu_seconds_of_both_adapters": {k: round(v, 1) for k, v in seconds.items()},
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a third of the rounds and steps")
    parser.add_argument("--rounds", type=int, default=10, help="joint steps timed")
    parser.add_argument("--steps", type=int, default=60, help="of case peft")
    parser.add_argument(
        "--case", action="append", choices=["joint", "peft"], help="both on a CPU, joint alone on a GPU"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    device = measure.device_of(given.device)
    given.dtype = given.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    if given.quick:
        given.rounds, given.steps = -(-given.rounds // 3), -(-given.steps // 3)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            model=given.model, out=scratch, length=given.length, rows=given.rows, questions=given.questions,
            steps=given.steps, device=given.device, dtype=given.dtype, domain=LoRAConfig(), numeric=LoRAConfig(),
            domain_rate=1e-3, numeric_rate=1e-3, **demo_data(Path(scratch)),
        )
        cases = {"joint": lambda: joint(config, given.rounds), "peft": lambda: against_peft(config)}
        origin = measure.provenance(device)
        for name in given.case or (cases if device.type == "cpu" else ["joint"]):
            for row in cases[name]():
                rows.append({
                    "bench": "train", **row, "model": given.model, "dtype": given.dtype, "length": given.length,
                    "rows": given.rows, "questions": given.questions, **origin,
                })
                print({key: value for key, value in row.items() if key != "bench"}, flush=True)
    measure.write_rows(given.out, rows)


if __name__ == "__main__":
    main()
