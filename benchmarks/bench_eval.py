"""Evaluation: FinEval on the demo's base, the shared beginnings against none, and a plain transformers loop.

    python -m benchmarks.bench_eval --questions fineval/ --out rows.jsonl

Rows of "fineval": the whole val split, zero- and five-shot, model and questions loaded. "prefix": five-shot
prompts of up to 4,096 tokens, with and without shared beginnings; difference is the largest of any letter's
log-probability. "transformers": the same prompts, one after the other through transformers, as most evaluators do;
a random Qwen2 of 0.5B's shape (--layers makes it smaller), zero- and five-shot (--shots: one of them). cpu_seconds is
the process's own time: on a machine that others use it says more than seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from numllm.evaluate import evaluate, scoring
from numllm.model import Transformer, load_model
from numllm.questions import HEADER, Question, letter_ids, letter_prompt, read_questions
from numllm.tokenizer import Tokenizer

LONG = 4096
SHAPE = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2, "max_position_embeddings": LONG, "rope_theta": 1e6, "tie_word_embeddings": True,
}
"""Qwen2.5-0.5B's, whose layers are 24."""


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """(result, {"seconds", "cpu_seconds"}) of one call."""
    wall, own = time.perf_counter(), time.process_time()
    result = call()
    return result, {
        "seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(time.process_time() - own, 3),
    }


@contextlib.contextmanager
def unshared() -> Iterator[None]:
    """Every prompt is computed whole."""
    before, scoring.SHARED_AT_LEAST = scoring.SHARED_AT_LEAST, 10**9
    try:
        yield
    finally:
        scoring.SHARED_AT_LEAST = before


def letters(result: dict[str, Any]) -> torch.Tensor:
    """(questions, 4) log-probabilities of a result."""
    return torch.tensor([list(row["logprobs"].values()) for row in result["questions"]])


def fineval(model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], dev: Sequence[Question]) -> Any:
    """Rows of the whole split."""
    for shots in (0, 5):
        result, times = timed(lambda shots=shots: evaluate(
            model, tokenizer, questions, protocol="letters", shots=shots, dev=dev
        ))
        yield {"case": "fineval", "shots": shots, "questions": len(questions), **times,
               "dropped_shots": result["dropped_shots"]}


def prefix(model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], dev: Sequence[Question]) -> Any:
    """Rows with and without shared beginnings."""

    def run() -> Any:
        return evaluate(model, tokenizer, questions, protocol="letters", shots=5, dev=dev, max_length=LONG)

    shared, fast = timed(run)
    with unshared():
        whole, slow = timed(run)
    difference = (letters(shared) - letters(whole)).abs().max().item()
    for name, times in (("shared", fast), ("whole", slow)):
        yield {"case": "prefix", "candidate": name, "questions": len(questions), **times, "difference": difference}


def against_transformers(
    tokenizer: Tokenizer, questions: Sequence[Question], dev: Sequence[Question], layers: int, device: torch.device,
    every: Sequence[int],
) -> Any:
    """Rows of numllm and of a plain transformers loop, for each number of shots."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(**SHAPE, num_hidden_layers=layers, attn_implementation="sdpa")
    theirs = transformers.Qwen2ForCausalLM(config).eval().to(device)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_model(folder, device=device)
    ids = letter_ids(tokenizer)[:4]

    def loop(shots: int) -> torch.Tensor:
        found = []
        for question in questions:
            examples = [example for example in dev if example.subject == question.subject][:shots]
            prompt = letter_prompt(question, examples, HEADER.format(subject=question.subject) if shots else None)
            tokens = torch.tensor([tokenizer.encode(prompt)], device=device)
            with torch.no_grad():
                found.append(theirs(tokens).logits[0, -1].log_softmax(-1)[ids].cpu())
        return torch.stack(found)

    for shots in every:
        expected, slow = timed(lambda shots=shots: loop(shots))
        result, fast = timed(lambda shots=shots: evaluate(
            ours, tokenizer, questions, protocol="letters", shots=shots, dev=dev
        ))
        difference = (letters(result) - expected).abs().max().item()
        for name, times in (("numllm", fast), ("transformers loop", slow)):
            yield {"case": "transformers", "candidate": name, "shots": shots, "layers": layers,
                   "questions": len(questions), **times, "difference": difference}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", required=True, help="FinEval's folder")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=24, help="of the random model")
    parser.add_argument("--limit", type=int, default=100, help="questions of prefix and transformers")
    parser.add_argument("--shots", type=int, action="append", choices=[0, 5], help="of transformers; default: both")
    parser.add_argument("--case", action="append", choices=["fineval", "prefix", "transformers"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    questions, dev = read_questions(given.questions), read_questions(given.questions, split="dev")
    tokenizer = Tokenizer.open(given.model)
    model = load_model(given.model, dtype=torch.float32, device=device)
    few = questions[: given.limit]
    cases = {
        "fineval": lambda: fineval(model, tokenizer, questions, dev),
        "prefix": lambda: prefix(model, tokenizer, few, dev),
        "transformers": lambda: against_transformers(tokenizer, few, dev, given.layers, device, given.shots or (0, 5)),
    }
    origin = measure.provenance(device)
    rows = []
    for name in given.case or cases:
        for row in cases[name]():
            rows.append({"bench": "evaluate", **row, **origin})
            print({key: value for key, value in row.items() if key != "bench"}, flush=True)
    measure.write_rows(given.out, rows)


if __name__ == "__main__":
    main()
