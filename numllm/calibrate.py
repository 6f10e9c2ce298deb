"""Weights for merging, learnt: one for every adapter and module, from a small set of choice questions.

With factors A, B and scale s frozen, the model goes through all adapters at once, unmerged:

    y = x Wᵀ + Σᵢ wᵢ sᵢ (x Aᵢᵀ) Bᵢᵀ

and the wᵢ of each module are moved by Adam down the questions' loss, from the weights given (as the learnt
coefficients of LoRA Soups, arXiv 2410.13025). No matrix gets a gradient of its own: with B′ = w B put in B's place,
∂L/∂w = ⟨∂L/∂B′, B⟩. Part of the questions is held back; the weights that serve those best are the result, which
are the ones given if none is better. `numllm merge --weights` takes the file.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter import adapter_names
from .data import ChoiceBatches
from .determinism import deterministic
from .errors import MergeError
from .files import Progress, no_progress, write_json
from .lora import AdapterSet, load_adapters
from .model import Transformer, load_model
from .questions import Question, read_questions
from .tokenizer import Tokenizer
from .train import batch_loss, head_losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """How the weights are learnt. MergeError when the settings cannot be."""

    steps: int = 60
    size: int = 8
    """Questions a step."""
    length: int = 512
    """Tokens a row."""
    rate: float = 0.05
    """Adam's, on weights of size about 1."""
    loss: str = "letter"
    """"letter" or "likelihood", as in training."""
    held: float = 0.3
    """Share of the questions held back."""
    every: int = 10
    """Steps between two looks at the held-back questions."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "size", "length", "every"):
            if getattr(self, name) < 1:
                raise MergeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.held < 1 or not 0 < self.rate < math.inf:
            raise MergeError(f"held must be in (0, 1) and rate above 0, got {self.held} and {self.rate}")


class _Weights:
    """The weights (adapters × modules) of adapters on a model, which sees them through B′ = w B."""

    def __init__(self, adapters: AdapterSet, start: Mapping[str, float]) -> None:
        self.places = [(name, path) for path, module in adapters.modules.items() for name in module.scale]
        self._b = [adapters.modules[path].b[name] for name, path in self.places]
        self._original = [b.detach().clone() for b in self._b]
        for b in self._b:
            b.requires_grad_(True)
        self.values = torch.tensor([start[name] for name, _ in self.places], requires_grad=True)

    def apply(self) -> None:
        """Puts w B in B's place."""
        with torch.no_grad():
            for b, original, weight in zip(self._b, self._original, self.values.tolist(), strict=True):
                torch.mul(original, weight, out=b.data)

    def collect(self) -> None:
        """∂L/∂w from the gradients of the B′, which are cleared."""
        self.values.grad = torch.stack([
            (b.grad * original).sum().cpu() for b, original in zip(self._b, self._original, strict=True)
        ])
        for b in self._b:
            b.grad = None

    def by_adapter(self, values: Tensor) -> dict[str, dict[str, float]]:
        """Adapter → module → weight."""
        found: dict[str, dict[str, float]] = {}
        for (name, path), weight in zip(self.places, values.tolist(), strict=True):
            found.setdefault(name, {})[path] = weight
        return found


def _loss(model: Transformer, adapters: AdapterSet, batches: ChoiceBatches, step: int) -> Tensor:
    batch = batches(step).to(model.device)
    with adapters.use("all"):
        x = model.hidden(
            batch.tokens, documents=batch.documents, branches=batch.branches, select=batch.positions
        )
    return batch_loss(head_losses(model.lm_head, x, batch.labels, lambda _: adapters.use("all")), batch)


def learn_weights(
    model: Transformer, tokenizer: Tokenizer, adapters: AdapterSet, questions: Sequence[Question],
    start: Mapping[str, float], config: CalibrateConfig, *, progress: Progress = no_progress,
) -> dict[str, Any]:
    """The weights of the adapters on `model` (put on with weight 1) that serve `questions` best.

    start: adapter → the weight its modules begin with. → {"weights": {adapter: {module: weight}}, "start",
    "loss": {"before", "after"} on the held-back questions, "best_step", "history": [{"step", "loss", "held"}]}.
    MergeError when there are too few questions or the loss is not finite.
    """
    if any(module.magnitude for module in adapters.modules.values()):
        raise MergeError("a DoRA adapter rescales the base's rows, so it has no weight to learn")
    order = [question for question in questions if question.answer is not None]
    random.Random(f"{config.seed} calibrate").shuffle(order)
    kept = round(len(order) * config.held)
    if kept < 1 or kept == len(order):
        raise MergeError(f"calibration needs questions to learn from and to hold back, got {len(order)}")
    settings = {"length": config.length, "loss": config.loss, "seed": config.seed}
    learn = ChoiceBatches(order[kept:], tokenizer, size=config.size, **settings)
    held = ChoiceBatches(order[:kept], tokenizer, size=min(config.size, kept), **settings)
    weights = _Weights(adapters, start)
    optimizer = torch.optim.Adam([weights.values], lr=config.rate)

    @torch.no_grad()
    def look() -> float:
        # As many steps as cover the held-back questions once, the same ones each time.
        steps = max(1, math.floor(held.epoch_steps))
        return math.fsum(float(_loss(model, adapters, held, step)) for step in range(steps)) / steps

    weights.apply()
    best = (look(), 0, weights.values.detach().clone())
    before, history = best[0], [{"step": 0, "loss": None, "held": best[0]}]
    for step in progress(iter(range(config.steps)), total=config.steps, description="calibrating", unit="step"):
        with deterministic():
            loss = _loss(model, adapters, learn, step)
            loss.backward()
        weights.collect()
        if not bool(torch.isfinite(weights.values.grad).all()):
            raise MergeError(f"step {step + 1}: the loss is {loss.item()} and its gradient not finite; lower the rate")
        optimizer.step()
        weights.apply()
        row: dict[str, Any] = {"step": step + 1, "loss": loss.item(), "held": None}
        if (step + 1) % config.every == 0 or step + 1 == config.steps:
            row["held"] = look()
            if row["held"] < best[0]:
                best = row["held"], step + 1, weights.values.detach().clone()
        history.append(row)
    with torch.no_grad():
        weights.values.copy_(best[2])
    weights.apply()
    return {
        "weights": weights.by_adapter(best[2]), "start": dict(start), "best_step": best[1],
        "questions": {"learnt_from": len(learn), "held_back": len(held)},
        "loss": {"before": before, "after": best[0]}, "history": history,
    }


def calibrate(
    base: str | Path, adapters: Sequence[tuple[str | Path, float]], questions: Sequence[str | Path], out: str | Path, *,
    config: CalibrateConfig | None = None, dtype: torch.dtype | None = None, device: str = "cpu",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Learns weights (`learn_weights`) for adapters (folder, weight to begin with) and writes them to the file `out`
    as `numllm merge --weights` reads them; the report. The adapters' names are those that the merge gives them.
    """
    names = adapter_names([folder for folder, _ in adapters])
    model = load_model(base, dtype=dtype, device=device, progress=progress)
    # Names may hold dots and slashes, which a module's parameter cannot: the model knows the adapters by number.
    keys = [f"adapter{index}" for index in range(len(names))]
    loaded = load_adapters(model, {
        key: (folder, 1.0) for key, (folder, _) in zip(keys, adapters, strict=True)
    })
    found = learn_weights(
        model, Tokenizer.open(base), loaded, read_questions([Path(path) for path in questions]),
        {key: weight for key, (_, weight) in zip(keys, adapters, strict=True)}, config or CalibrateConfig(),
        progress=progress,
    )
    for part in ("weights", "start"):
        found[part] = {name: found[part][key] for name, key in zip(names, keys, strict=True)}
    write_json(out, found["weights"])
    return found
