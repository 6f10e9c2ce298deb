#!/usr/bin/env python3
"""What each way to train the numeric adapter gives: the demo's questions, its held-out ones, against the base.

    python scripts/numeric_losses.py --out losses.jsonl --steps 120 --seeds 0 1

One row a way and seed: accuracy on the held-out numeric questions by likelihood and by letter, and the difference
from the base in points with its 95 % interval, paired.
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

from numllm import demo  # noqa: E402
from numllm.corpus import build_corpus, read_corpus  # noqa: E402
from numllm.evaluate import compare, evaluate  # noqa: E402
from numllm.files import write_jsonl  # noqa: E402
from numllm.lora import load_adapters  # noqa: E402
from numllm.model import load_model  # noqa: E402
from numllm.numct import build  # noqa: E402
from numllm.questions import read_questions  # noqa: E402
from numllm.tokenizer import Tokenizer  # noqa: E402
from numllm.train import train  # noqa: E402

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


def score(model: Any, tokenizer: Tokenizer, held: list[Any]) -> dict[str, Any]:
    """Results by likelihood and by letter."""
    return {protocol: evaluate(model, tokenizer, held, protocol=protocol) for protocol in ("likelihood", "letters")}


def main() -> None:
    """Trains and scores each way with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    held, tokenizer = read_questions([demo.NUMERIC]), Tokenizer.open("demo")
    base = score(load_model("demo", dtype=torch.float32), tokenizer, held)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        build_corpus([demo.TEXTBOOK], out / "corpus", holdout=0.0)
        for way in options.ways:
            changes = dict(WAYS[way])
            write_jsonl(out / "numct.jsonl", questions(out / "corpus", changes.pop("kind_weights", None)))
            for seed in options.seeds:
                shutil.rmtree(out / "run", ignore_errors=True)
                settings = dataclasses.replace(
                    demo.training(out, options.steps, seed), adapters=("numeric",), corpus=None, **changes
                )
                for _ in train(settings):
                    pass
                model = load_model("demo", dtype=torch.float32)
                with load_adapters(model, {"numeric": (out / "run" / "adapters" / "numeric", 1.0)}).use("all"):
                    found = score(model, tokenizer, held)
                row: dict[str, Any] = {"way": way, "seed": seed, "steps": options.steps, "questions": len(held)}
                for protocol, result in found.items():
                    pair = compare(base[protocol], result)["numeric"]
                    row |= {
                        f"{protocol} accuracy": result["overall"]["accuracy"],
                        f"{protocol} points": pair["difference_points"], f"{protocol} ci95": pair["ci95_points"],
                    }
                rows.append(row)
                print(row, flush=True)
    write_jsonl(options.out, rows)


if __name__ == "__main__":
    main()
