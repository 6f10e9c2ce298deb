#!/usr/bin/env python3
"""What the penalty on the adapters' overlap gives on the demo: both trained with each weight of it, and merged.

    python scripts/orthogonality.py --out benchmarks/results/orthogonality.jsonl

The settings are the demo's: questions, steps, weights of the merge. One row a weight of the penalty: the merged model's
numeric accuracy by likelihood, mean and spread over the seeds, and what it gains on weight 0 with the same seed, in
points with the 95 % interval, paired; each seed's perplexity on the held-out text; how far the adapters' spaces share.
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
from numllm.merge import merge  # noqa: E402
from numllm.merge.summary import by_kind  # noqa: E402
from numllm.model import load_model  # noqa: E402
from numllm.questions import Question, read_questions  # noqa: E402
from numllm.tokenizer import Tokenizer  # noqa: E402
from numllm.train import train  # noqa: E402


def trained(out: Path, steps: int, seed: int, weight: float) -> dict[str, Any]:
    """Trains and merges the demo's adapters in a folder with its data; the merge's report."""
    for folder in ("run", "merged"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for _ in train(dataclasses.replace(demo.training(out, steps, seed), orthogonality=weight)):
        pass
    adapters = [(out / "run" / "adapters" / name, share) for name, share in demo.WEIGHTS.items()]
    return merge("demo", adapters, out / "merged", method="exact")


def shared(report: dict[str, Any]) -> dict[str, float]:
    """Share of one adapter's space that lies in the other's, and cosine of their changes: means over the weights."""
    kinds = by_kind(report)
    return {
        key: sum(kind[key] * kind["weights"] for kind in kinds) / sum(kind["weights"] for kind in kinds)
        for key in ("shared_input", "shared_output", "cosine")
    }


def judged(model: Path, texts: list[str], held: list[Question]) -> tuple[float, dict[str, Any]]:
    """(perplexity of the texts, result of the questions) of a model."""
    loaded, tokenizer = load_model(model, dtype=torch.float32), Tokenizer.open("demo")
    text = perplexity(loaded, tokenizer, texts, length=256, stride=224)
    return text["perplexity"], evaluate(loaded, tokenizer, held, protocol="likelihood")


def main(arguments: list[str] | None = None) -> None:
    """Trains, merges and scores with each weight and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=demo.STEPS)
    parser.add_argument("--weights", type=float, nargs="+", default=[10.0, 100.0], help="beside 0, which is always run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    held, rows = read_questions([demo.NUMERIC]), []
    plain: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        build_corpus([demo.TEXTBOOK], out / "corpus", holdout=0.0)
        build_corpus(sorted(demo.WORKBOOK.glob("cases-*.md")), out / "heldout", holdout=0.0)
        write_jsonl(out / "numct.jsonl", demo.training_questions(list(read_corpus(out / "corpus"))))
        texts = [row["text"] for row in read_corpus(out / "heldout")]
        for weight in dict.fromkeys([0.0, *options.weights]):
            spaces, perplexities, found = [], [], []
            for seed in options.seeds:
                spaces.append(shared(trained(out, options.steps, seed, weight)))
                text, result = judged(out / "merged", texts, held)
                perplexities.append(text)
                found.append(result)
            plain = plain or found
            gain = across_seeds(plain, found)["numeric"]
            rows.append({
                "bench": "orthogonality", "weight": weight, "seeds": options.seeds, "steps": options.steps,
                "questions": gain["n"], "merge": demo.WEIGHTS,
                **{key: gain[key] for key in ("accuracy", "spread", "difference_points", "ci95_points")},
                "perplexity": perplexities, **{key: [space[key] for space in spaces] for key in spaces[0]},
                **measure.provenance(torch.device("cpu")),
            })
            print(rows[-1], flush=True)
            measure.write_rows(options.out, rows, anew=True)


if __name__ == "__main__":
    main()
