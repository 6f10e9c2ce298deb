#!/usr/bin/env python3
"""What each way to train the numeric adapter gives: the demo's questions, its held-out ones, against the base.

    python scripts/numeric_losses.py --out benchmarks/results/numeric_losses.jsonl --seeds 0 1

One row a way: accuracy on the held-out numeric questions by likelihood and by letter, mean and spread over the seeds,
the gain on the base in points with its 95 % interval, paired; and each seed's perplexity on the held-out text.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import measure  # noqa: E402
from numllm import demo  # noqa: E402
from numllm.corpus import build_corpus, read_corpus  # noqa: E402
from numllm.evaluate import across_seeds, evaluate, perplexity  # noqa: E402
from numllm.files import write_jsonl  # noqa: E402
from numllm.lora import load_adapters  # noqa: E402
from numllm.model import Transformer, load_model  # noqa: E402
from numllm.numct import build  # noqa: E402
from numllm.questions import read_questions  # noqa: E402
from numllm.tokenizer import Tokenizer  # noqa: E402
from numllm.train import train  # noqa: E402

PROTOCOLS = ("likelihood", "letters")

WAYS: dict[str, dict[str, Any]] = {
    "letter": {"loss": "letter", "text_weight": 0.0},
    "likelihood": {"text_weight": 0.0},
    "likelihood + text": {},
    "both": {"loss": "both"},
    "letter, varied": {"loss": "letter", "text_weight": 0.0, "varied": True},
    "both, varied": {"loss": "both", "varied": True},
    "both, letter 0.3": {"loss": "both", "letter_weight": 0.3},
    "likelihood + text + digits 0.1": {"digit_weight": 0.1},
    "likelihood + text + digits 0.3": {"digit_weight": 0.3},
    "likelihood + text, rates twice": {"kind_weights": {"rate": 2, "amount": 1}},
}
"""Name → what differs from the demo's settings."""


def questions(folder: Path, kind_weights: dict[str, float] | None) -> list[dict[str, Any]]:
    """The demo's training questions, or those of the same documents with weights by kind."""
    documents = list(read_corpus(folder))
    if kind_weights is None:
        return demo.training_questions(documents)
    reviews = {row["id"] for row in documents if row["title"].endswith(demo.REVIEW)}
    rows = build(documents, context=0, kind_weights=kind_weights)
    return [row for row in rows if row["source_id"] in reviews or row["tag"] == "recall"]


class Judge:
    """Scores models on the held-out questions and text."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.questions, self.tokenizer = texts, read_questions([demo.NUMERIC]), Tokenizer.open("demo")

    def __call__(self, model: Transformer) -> dict[str, dict[str, Any]]:
        """{"likelihood": evaluation result, "letters": evaluation result, "text": perplexity}."""
        return {
            protocol: evaluate(model, self.tokenizer, self.questions, protocol=protocol) for protocol in PROTOCOLS
        } | {"text": perplexity(model, self.tokenizer, self.texts, length=256, stride=224)}


def trained(out: Path, steps: int, seed: int, changes: dict[str, Any]) -> Path:
    """The numeric adapter trained with the demo's settings but for `changes`, in a folder with its data."""
    shutil.rmtree(out / "run", ignore_errors=True)
    for _ in train(dataclasses.replace(
        demo.training(out, steps, seed), adapters=("numeric",), corpus=None, **changes
    )):
        pass
    return out / "run" / "adapters" / "numeric"


def main(arguments: list[str] | None = None) -> None:
    """Trains and scores each way with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=demo.STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        build_corpus([demo.TEXTBOOK], out / "corpus", holdout=0.0)
        build_corpus(sorted(demo.WORKBOOK.glob("cases-*.md")), out / "heldout", holdout=0.0)
        judge = Judge([row["text"] for row in read_corpus(out / "heldout")])
        base = judge(load_model("demo", dtype=torch.float32))
        for way in options.ways:
            changes = dict(WAYS[way])
            asked = questions(out / "corpus", changes.pop("kind_weights", None))
            write_jsonl(out / "numct.jsonl", asked)
            found = []
            for seed in options.seeds:
                model = load_model("demo", dtype=torch.float32)
                with load_adapters(model, {"numeric": (trained(out, options.steps, seed, changes), 1.0)}).use("all"):
                    found.append(judge(model))
            row: dict[str, Any] = {
                "bench": "numeric_losses", "way": way, "seeds": options.seeds, "steps": options.steps,
                "training_questions": len(asked), "questions": len(judge.questions),
                "perplexity": [one["text"]["perplexity"] for one in found],
                "base_perplexity": base["text"]["perplexity"],
            }
            for protocol in PROTOCOLS:
                gain = across_seeds(base[protocol], [one[protocol] for one in found])
                row[protocol] = {key: gain[key] for key in ("accuracy", "spread", "difference_points", "ci95_points")}
            rows.append(row | measure.provenance(torch.device("cpu")))
            print(rows[-1], flush=True)
            measure.write_rows(options.out, rows, anew=True)


if __name__ == "__main__":
    main()
