#!/usr/bin/env python3
"""Trains the demo base: a tiny Qwen2-architecture model with its own byte-level BPE tokenizer.

    python scripts/pretrain_demo_base.py [--textbooks DIR] [--out numllm/demo/base] [--minutes 45]

Text: the training chapters of the embedded mini textbook and, where --textbooks is given, folders of real
textbooks under it whose licences allow weights under Apache-2.0 (SOURCES below). Beside real textbooks the
mini textbook is read in the first pass only: a base that knows it by heart would leave the demo's adapters
nothing to learn. The chapters' review sections, held-out documents and the workbook that the demo's questions
come from are never read. Hidden matrices are optimised by Muon, the rest by AdamW; the schedule is cosine over
the wall time allowed, so the card records the tokens really seen.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers, trainers
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from numllm.checkpoint import Checkpoint, expected_shapes, write_safetensors  # noqa: E402
from numllm.config import ModelConfig  # noqa: E402
from numllm.corpus import build_corpus, read_corpus  # noqa: E402
from numllm.demo import REVIEW, TEXTBOOK  # noqa: E402
from numllm.evaluate import perplexity  # noqa: E402
from numllm.files import new_folder, sha256, write_json  # noqa: E402
from numllm.model import Transformer, load_model  # noqa: E402
from numllm.tokenizer import Tokenizer, byte_level_bpe  # noqa: E402

SOURCES = {
    "cas-standards": "official documents",
    "d365-finance-zh": "CC BY 4.0",
    "laws-just-laws": "MIT",
    "laws-regulations": "official documents",
    "moe-site-courses": "MIT",
    "mgmt-science-economics": "Apache-2.0",
}
"""Folders of real textbooks that are used, and their licences."""

END = "<|endoftext|>"
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 256,
    "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "rope_scaling": None, "tie_word_embeddings": True, "attention_dropout": 0.0, "use_cache": True,
    "use_sliding_window": False, "sliding_window": None, "max_window_layers": 4, "initializer_range": 0.02,
}


class TrainedHead(torch.autograd.Function):
    """Mean cross-entropy of x wᵀ in chunks of rows, with both gradients: the head is trained here."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, labels: Tensor, rows: int = 512) -> Tensor:
        dx, dw, total = torch.empty_like(x), torch.zeros_like(w), x.new_zeros(())
        for first in range(0, len(x), rows):
            part, label = x[first : first + rows], labels[first : first + rows, None]
            logits = part @ w.T
            top, picked = logits.amax(-1, keepdim=True), logits.gather(1, label)
            share = logits.sub_(top).exp_()
            norm = share.sum(-1, keepdim=True)
            total += (norm.log() + top - picked).sum()
            share.div_(norm).scatter_add_(1, label, torch.full_like(picked, -1.0))
            torch.mm(share, w, out=dx[first : first + rows])
            dw.addmm_(share.T, part)
        ctx.save_for_backward(dx, dw)
        ctx.count = len(x)
        return total / len(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, dw = ctx.saved_tensors
        return dx.mul_(grad / ctx.count), dw.mul_(grad / ctx.count), None


def train_tokenizer(texts: list[str], folder: Path, size: int) -> None:
    """A byte-level BPE of `size` pieces with Qwen2's pre-tokenisation; digits stay single."""
    backend = byte_level_bpe()
    backend.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], show_progress=False, max_token_length=24,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": END, "pad_token": END,
        "model_max_length": SHAPE["max_position_embeddings"], "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {"0": {
            "content": END, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
            "special": True,
        }},
    })


def batches(
    documents: list[list[int]], once: list[list[int]], rows: int, length: int, seed: int
) -> Iterator[Tensor]:
    """Endless (rows, length + 1) batches of whole epochs, documents shuffled and joined by the end token.

    once: documents of the first epoch only.
    """
    epoch, documents = 0, documents + once
    while True:
        if epoch == 1:
            documents = documents[: len(documents) - len(once)] or documents
        order = list(range(len(documents)))
        random.Random(seed * 1000 + epoch).shuffle(order)
        stream = torch.tensor([token for index in order for token in documents[index]])
        # A fresh offset each epoch, so that rows begin elsewhere.
        stream = stream[random.Random(seed * 1000 + epoch).randrange(length):]
        usable = (len(stream) - 1) // length
        index = torch.randperm(usable, generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        for first in range(0, usable - rows + 1, rows):
            starts = index[first : first + rows] * length
            yield torch.stack([stream[s : s + length + 1] for s in starts.tolist()])
        epoch += 1


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: W ← (1 − rate · decay) W − rate · 0.2 √max(N, K) · orth(g + μ · momentum).

    orth is five Newton–Schulz steps (the quintic of K. Jordan's Muon); the factor matches AdamW's step size
    (arXiv 2502.16982). In fp32: torch.optim.Muon works in bfloat16, tens of times slower on most CPUs.
    """

    def __init__(self, parameters: list[Tensor], rate: float, momentum: float = 0.95, decay: float = 0.1):
        super().__init__(parameters, {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix."""
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                x = weight.grad.lerp(momentum, group["momentum"])
                tall = x.shape[0] > x.shape[1]
                x = (x.T if tall else x) / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                weight.mul_(1 - group["lr"] * group["decay"])
                size = 0.2 * math.sqrt(max(weight.shape))
                weight.sub_(x.T if tall else x, alpha=group["lr"] * size)


def optimisers(model: Transformer, rate: float) -> list[torch.optim.Optimizer]:
    """Muon on the hidden matrices, AdamW on embedding, norms and biases."""
    hidden = [w for n, w in model.named_parameters() if w.dim() == 2 and "embed_tokens" not in n]
    rest = [w for n, w in model.named_parameters() if w.dim() != 2 or "embed_tokens" in n]
    return [
        Muon(hidden, rate),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]


def initialise(model: Transformer, seed: int) -> None:
    """Normal 0.02, output projections scaled by depth, norms 1, biases 0."""
    torch.manual_seed(seed)
    depth = 1 / math.sqrt(2 * model.config.layers)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.02 * (depth if "o_proj" in name or "down" in name else 1))
        else:
            torch.nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)


def unigram_perplexity(train: list[list[int]], heldout: list[list[int]], size: int) -> float:
    """Held-out perplexity of token frequencies with add-one smoothing."""
    counts = torch.bincount(torch.tensor([t for d in train for t in d]), minlength=size).double() + 1
    logs = (counts / counts.sum()).log()
    return math.exp(-logs[torch.tensor([t for d in heldout for t in d])].mean().item())


def save(model: Transformer, folder: Path, shape: dict[str, Any]) -> None:
    """Weights in bfloat16 and the configuration."""
    weights = {name: model.get_parameter(name).bfloat16() for name, _ in expected_shapes(model.config)}
    write_safetensors(folder / "model.safetensors", weights)
    write_json(folder / "config.json", shape)
    write_json(folder / "generation_config.json",
               {name: shape["eos_token_id"] for name in ("eos_token_id", "pad_token_id")})


def main() -> None:
    """Trains and writes the base, prints a line every 20 steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--textbooks", type=Path, help="folder with the folders of SOURCES")
    parser.add_argument("--out", type=Path, default=ROOT / "numllm" / "demo" / "base")
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--vocabulary", type=int, default=6144)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snapshots", type=Path, help="folder for the weights as they are every ten minutes")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        train, once, heldout, used = [], [], [], {}
        folders = [TEXTBOOK]
        folders += [args.textbooks / name for name in SOURCES] if args.textbooks else []
        for folder in folders:
            build_corpus([folder], Path(scratch) / folder.name, holdout=0.0 if folder == TEXTBOOK else 0.02)
            rows = [row for row in read_corpus(Path(scratch) / folder.name) if not row["title"].endswith(REVIEW)]
            part = once if args.textbooks and folder == TEXTBOOK else train
            part += [row["text"] for row in rows if row["split"] == "train"]
            heldout += [row["text"] for row in rows if row["split"] == "heldout"]
            used[folder.name] = sum(len(row["text"]) for row in rows if row["split"] == "train")
    print(f"characters for training: {used}", flush=True)

    with new_folder(args.out, overwrite=True) as out:
        train_tokenizer(train + once, out, args.vocabulary)
        tokenizer = Tokenizer(out)
        end = tokenizer.token_id(END)
        encoded, first, unseen = (
            [ids + [end] for ids in tokenizer.encode_batch(texts)] for texts in (train, once, heldout)
        )
        tokens = sum(map(len, encoded))
        shape = SHAPE | {"vocab_size": tokenizer.vocab_size, "eos_token_id": end, "torch_dtype": "bfloat16"}
        model = Transformer(ModelConfig.from_hf(shape))
        initialise(model, args.seed)
        model.requires_grad_(True)
        parameters = sum(weight.numel() for weight in model.parameters())
        print(f"{tokens:,} tokens a pass, {parameters:,} parameters", flush=True)

        steps = optimisers(model, args.rate)
        started, step, seen, smooth, saved = time.monotonic(), 0, 0, None, 0
        for batch in batches(encoded, first, args.rows, args.length, args.seed):
            share = (time.monotonic() - started) / (args.minutes * 60)
            if share >= 1:
                break
            rate = args.rate * min(1.0, (step + 1) / 50) * max(0.02, 0.5 * (1 + math.cos(math.pi * share)))
            for optimiser in steps:
                for group in optimiser.param_groups:
                    group["lr"] = rate
            x = model.hidden(batch[:, :-1]).flatten(0, 1)
            loss = TrainedHead.apply(x, model.lm_head.weight, batch[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in steps:
                optimiser.step()
                optimiser.zero_grad()
            step, seen = step + 1, seen + batch[:, 1:].numel()
            smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
            if step % 20 == 0:
                speed = seen / (time.monotonic() - started)
                print(f"step {step} loss {smooth:.3f} passes {seen / tokens:.2f} {speed:.0f} tok/s", flush=True)
            minutes = (time.monotonic() - started) / 60
            if args.snapshots and minutes >= 10 * (saved + 1):
                saved += 1
                with new_folder(args.snapshots / f"{10 * saved}-minutes") as snapshot:
                    for name in ("tokenizer.json", "tokenizer_config.json"):
                        shutil.copy(out / name, snapshot / name)
                    save(model, snapshot, shape)

        save(model, out, shape)
        figures = {
            "parameters": parameters, "vocabulary": tokenizer.vocab_size, "steps": step, "tokens_seen": seen,
            "tokens_a_pass": tokens, "tokens_read_once": sum(map(len, first)),
            "passes": round(max(0, seen - sum(map(len, first))) / tokens, 2), "minutes": args.minutes,
            "rows": args.rows, "length": args.length, "rate": args.rate, "seed": args.seed,
            "threads": torch.get_num_threads(), "characters": used, "last_training_loss": round(smooth, 3),
        }
        if heldout:
            base = load_model(Checkpoint.open(out), dtype=torch.float32)
            figures["heldout_perplexity"] = round(
                perplexity(base, tokenizer, heldout, length=args.length)["perplexity"], 2)
            figures["heldout_perplexity_unigram"] = round(
                unigram_perplexity(encoded, unseen, tokenizer.vocab_size), 2)
        figures["sha256"] = sha256(out / "model.safetensors")
        write_json(out / "training.json", figures)
        (out / "README.md").write_text(card(figures), encoding="utf-8")
    print(json.dumps(figures, ensure_ascii=False))


def card(figures: dict) -> str:
    """The model card, from what was measured."""
    sources = "\n".join(
        f"| {name} | {count:,} | {SOURCES.get(name, 'Apache-2.0, written for this project')} |"
        for name, count in figures["characters"].items()
    )
    heldout = (
        f"Held-out perplexity per token (2 % of the documents, never trained on): "
        f"{figures['heldout_perplexity']}; a unigram model of the same tokens: "
        f"{figures['heldout_perplexity_unigram']}.\n"
        if "heldout_perplexity" in figures else ""
    )
    return f"""---
license: apache-2.0
language: zh
---
# The demo base of numllm

A Qwen2-architecture model of {figures['parameters']:,} parameters (bfloat16) with a byte-level BPE tokenizer of
{figures['vocabulary']:,} pieces that splits numbers into single digits. It exists so that the whole way from
textbook to merged model can be walked in minutes without a GPU. It is not fit for any other use.

Made by `scripts/pretrain_demo_base.py` from random weights (seed {figures['seed']}): {figures['steps']:,} steps of
{figures['rows']} × {figures['length']} tokens, {figures['tokens_seen']:,} tokens seen: {figures['passes']} passes over
{figures['tokens_a_pass']:,}, and {figures['tokens_read_once']:,} (the demo's own textbook without its review sections)
in the first pass only.
Muon for the hidden matrices and AdamW for the rest, peak learning rate {figures['rate']}, cosine decay,
{figures['minutes']:g} minutes on {figures['threads']} CPU core(s).
Training stops by wall time, so a second run on another machine gives other weights.
Last training loss {figures['last_training_loss']}.
{heldout}
| text | characters | licence |
|---|---|---|
{sources}

The demo's workbook, from which its held-out questions are made, was not read. `training.json` holds the
figures.
"""


if __name__ == "__main__":
    main()
