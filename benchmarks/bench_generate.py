"""Greedy decoding beside transformers' generate, on the CPU or a GPU.

    python -m benchmarks.bench_generate --stories tinystories-656k/ \
        --out benchmarks/results/generate-cpu.jsonl

Each case is one checkpoint, loaded by both in one dtype; both continue the same prompts by the same number of tokens
(no end token), taking turns. "ratio" and "cpu_ratio" are the median of a time over transformers' of the same round, by
the clock and by the process's own time, which says more on a machine that others use; "same" whether every token
agrees. "0.5B" is a random Qwen2 of Qwen2.5-0.5B's shape.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.bench_eval import SHAPE, timed
from numllm.generate import generate_ids
from numllm.model import load_model

CASES = {"one prompt": (16,), "four prompts": (16, 3, 24, 9)}
"""Name → tokens of each prompt."""




def half_billion(folder: Path) -> Path:
    """A random Qwen2 of 0.5B's shape, saved."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(**SHAPE, num_hidden_layers=24)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def rows(name: str, folder: Path, new: int, rounds: int, device: torch.device, dtype: str) -> Iterator[dict[str, Any]]:
    """Rows of one checkpoint: a row a case and candidate."""
    import transformers

    wanted = getattr(torch, dtype)
    ours = load_model(folder, dtype=wanted, device=device)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=wanted).eval().to(device)
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

        candidates = {"numllm": by_numllm, "transformers": by_transformers}
        same = by_numllm() == by_transformers()
        times: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in candidates}
        for turn in range(rounds):
            for candidate in list(candidates)[:: 1 if turn % 2 else -1]:
                times[candidate].append(timed(candidates[candidate])[1])
        for candidate, taken in times.items():
            ratios = {
                key: statistics.median(
                    mine[key] / its[key] for mine, its in zip(taken, times["transformers"], strict=True)
                ) for key in ("seconds", "cpu_seconds")
            }
            middle = {key: statistics.median(one[key] for one in taken) for key in ratios}
            yield {
                "case": case, "model": name, "dtype": dtype, "candidate": candidate, "new_tokens": new * len(prompts),
                "rounds": rounds, **{key: round(value, 3) for key, value in middle.items()},
                "ratio": round(ratios["seconds"], 3), "cpu_ratio": round(ratios["cpu_seconds"], 3), "same": same,
            }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, required=True, help="the tinystories checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", action="append", choices=["tinystories", "0.5B"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    origin = measure.provenance(device)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, new in (("tinystories", 128), ("0.5B", 24)):
            if name not in (given.model or (name,)):
                continue
            folder = given.stories if name == "tinystories" else half_billion(Path(scratch))
            for row in rows(name, folder, new, given.rounds, device, given.dtype):
                found.append({"bench": "generate", **row, **origin})
                shown = ("model", "case", "candidate", "cpu_seconds", "ratio", "cpu_ratio", "same")
                print({key: row[key] for key in shown}, flush=True)
    measure.write_rows(given.out, found)


if __name__ == "__main__":
    main()
