"""Greedy decoding beside transformers' generate, on the CPU or a GPU.

    python -m benchmarks.bench_generate --device cpu --stories tinystories-656k/ --out rows.jsonl

Each case is one model, the same weights in one dtype for both; both continue the same prompts by the same number of
tokens (no end token), taking turns. "ratio" and "cpu_ratio" are the median of a time over transformers' of the same
round, by the clock and by the process's own time, which says more on a machine that others use; "same" whether every
token agrees. All three are null where transformers is not installed. "0.5B" is a random Qwen2 of Qwen2.5-0.5B's shape.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.bench_eval import timed
from numllm.generate import generate_ids
from numllm.model import Transformer, load_model

CASES = {"one prompt": (16,), "four prompts": (16, 3, 24, 9)}
"""Name → tokens of each prompt."""



def pair(name: str, stories: Path | None, device: torch.device, dtype: torch.dtype) -> tuple[Transformer, Any]:
    """(numllm's model, transformers' or None) of a checkpoint or over the same random weights."""
    peer = importlib.util.find_spec("transformers") is not None
    if name == "0.5B":
        config = models.config_of(models.QWEN_HALF)
        held = models.weights(config, dtype, device)
        theirs = models.theirs(models.QWEN_HALF, held).eval() if peer else None
        return models.ours(config, held), theirs
    theirs = None
    if peer:
        import transformers

        theirs = transformers.AutoModelForCausalLM.from_pretrained(stories, dtype=dtype).eval().to(device)
    return load_model(stories, dtype=dtype, device=device), theirs


def rows(name: str, ours: Transformer, theirs: Any, new: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of one model: a row a case and candidate."""
    device = ours.device
    if theirs is not None:
        theirs.generation_config.eos_token_id = None
    for case, lengths in CASES.items():
        generator = torch.Generator().manual_seed(1)
        prompts = [torch.randint(3, ours.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
        width = max(lengths)
        tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)

        def by_transformers(tokens: torch.Tensor = tokens, mask: torch.Tensor = mask) -> list[list[int]]:
            found = theirs.generate(
                tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
            )
            return found[:, tokens.shape[1] :].tolist()

        def by_numllm(prompts: Sequence[Sequence[int]] = prompts) -> list[list[int]]:
            return generate_ids(ours, prompts, max_new_tokens=new)

        candidates: dict[str, Callable[[], Any]] = {"numllm": by_numllm}
        first, same = by_numllm(), None
        if theirs is not None:
            try:
                same = first == by_transformers()
            except Exception as error:
                yield {"case": case, "model": name, "candidate": "transformers", "skipped": measure.reason(error)}
            else:
                candidates["transformers"] = by_transformers
        times: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in candidates}
        for turn in range(rounds):
            for candidate in list(candidates)[:: 1 if turn % 2 else -1]:
                times[candidate].append(timed(candidates[candidate])[1])
        for candidate, taken in times.items():
            middle = {key: statistics.median(one[key] for one in taken) for key in ("seconds", "cpu_seconds")}
            ratios = dict.fromkeys(middle) if "transformers" not in candidates else {
                key: round(statistics.median(
                    mine[key] / its[key] for mine, its in zip(taken, times["transformers"], strict=True)
                ), 3) for key in middle
            }
            yield {
                "case": case, "model": name, "dtype": str(ours.dtype).removeprefix("torch."), "candidate": candidate,
                "new_tokens": new * len(prompts), "rounds": rounds,
                **{key: round(value, 3) for key, value in middle.items()},
                "ratio": ratios["seconds"], "cpu_ratio": ratios["cpu_seconds"], "same": same,
            }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, help="the tinystories checkpoint; without it that case is left out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--model", action="append", choices=["tinystories", "0.5B"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    device = measure.device_of(given.device)
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    rounds = given.rounds or (2 if given.quick else 5)
    origin = measure.provenance(device)
    if importlib.util.find_spec("transformers") is None:
        print("bench_generate: transformers is not installed, its rows are left out", file=sys.stderr)
    for name, new in (("tinystories", 128), ("0.5B", 128 if device.type == "cuda" else 24)):
        if name not in (given.model or (name,)) or (name == "tinystories" and given.stories is None):
            continue
        for row in rows(name, *pair(name, given.stories, device, dtype), new, rounds):
            measure.write_rows(given.out, [{"bench": "generate", **row, **origin}])
            shown = ("model", "case", "candidate", "skipped", "seconds", "cpu_seconds", "ratio", "cpu_ratio", "same")
            print({key: row[key] for key in shown if key in row}, flush=True)


if __name__ == "__main__":
    main()
