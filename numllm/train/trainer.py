"""One step of training: both adapters' losses from one pass, an optimizer and a guard for each."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import read_header, read_tensor, write_safetensors
from ..data import Batch
from ..determinism import deterministic
from ..errors import TrainError
from ..lora import attach
from ..memory import Memory
from ..model import Transformer
from ..ops.implementations import LORA_IMPLEMENTATIONS, by_kernels
from ..train_config import TrainConfig
from .activations import keep_less
from .fit import choose, need, out_of_memory, ran_out
from .guard import Guard
from .losses import forward_losses
from .penalty import add_penalty
from .validation import Best
from .world import World

Event = dict[str, Any]
Source = Callable[[int], Batch]


def micro_batches(batches: Mapping[str, Batch], limit: int | None, world: World) -> list[dict[str, Batch]]:
    """This process's parts of the batches, rows padded to one width; what goes through the model at once.

    A part has at most `limit` positions, or one row, and rows of every adapter where they fit; the losses of all
    processes' parts sum to the whole's. Every process has as many parts, some without labels where the rows run out.
    """
    width = max(batch.tokens.shape[1] for batch in batches.values())
    wide = {name: batch.widened(width) for name, batch in batches.items()}
    rows = {name: len(batch.tokens) for name, batch in wide.items()}
    for own in itertools.count(1):
        most = [math.ceil(number / (own * world.size)) for number in rows.values()]
        if limit is None or sum(most) * width <= limit or max(most) == 1:
            break
    count = own * world.size
    parts = [wide] if count == 1 else [
        {
            name: batch.part(first, last) for name, batch in wide.items()
            if (first := rows[name] * index // count) < (last := rows[name] * (index + 1) // count)
        }
        for index in range(world.rank * own, (world.rank + 1) * own)
    ]
    if limit is not None and len(rows) * width > limit:  # not even one row of each fits
        parts = [{name: part[name]} if name in part else {} for part in parts for name in rows]
    if world.size == 1:
        return [part for part in parts if part]
    name, batch = next(iter(wide.items()))
    return [part or {name: batch.part(0, 1).idle()} for part in parts]


class Trainer:
    """The state of one run: model, adapters, an optimizer and a guard an adapter, and the step it has reached.

    Attributes: ended (adapter → the step at which it ended before its time); validated (the last step that was
    validated); best (adapter → `Best`); batches (adapter → the batch of the last step, on the CPU).
    """

    def __init__(
        self, config: TrainConfig, model: Transformer, sources: Mapping[str, Source], world: World | None = None
    ) -> None:
        self.config, self.model, self.sources = config, model, sources
        self.world = world or World(device=model.device)
        try:
            by_kernels(config.impl, torch.empty(0, dtype=model.dtype, device=model.device), LORA_IMPLEMENTATIONS)
        except (TypeError, ValueError) as error:
            raise TrainError(str(error)) from error
        self.adapters = attach(
            model, {name: config.lora(name) for name in config.adapters}, seed=config.seed, impl=config.impl
        )
        if config.orthogonality and not any(len(module.a) > 1 for module in self.adapters.modules.values()):
            raise TrainError("orthogonality is between adapters of one linear, and no linear has both; choose other "
                             "targets or leave it at 0")
        self.checkpointing = self._checkpointing()
        keep_less(model, self.adapters, checkpointing=self.checkpointing, offload=config.offload)
        self.optimizers = {name: self._optimizer(name) for name in config.adapters}
        self.guards = {name: Guard(config.spike, model.dtype == torch.float16) for name in config.adapters}
        self.best = {name: Best() for name in config.adapters}
        self.batches: dict[str, Batch] = {}
        self.ended: dict[str, int] = {}
        self.step = self.validated = 0

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        """AdamW; "ratio" of a group: its rate over the adapter's, larger for B with LoRA+ (arXiv 2402.12354)."""
        group = {"lr": 0.0, "weight_decay": self.config.weight_decay, "fused": True}
        if self.config.b_ratio == 1:
            return torch.optim.AdamW([{"params": self.adapters.parameters(name), "ratio": 1.0}], **group)
        fast = [b for _, b in self.adapters.factors(name)]
        slow = [part for part in self.adapters.parameters(name) if not any(part is b for b in fast)]
        return torch.optim.AdamW(
            [{"params": slow, "ratio": 1.0}, {"params": fast, "ratio": self.config.b_ratio}], **group
        )

    def _checkpointing(self) -> str:
        own = not isinstance(self.model, Transformer)
        if own and (self.config.checkpointing in ("selective", "full") or self.config.offload):
            raise TrainError("what a model of one's own keeps for backward is its own affair; leave checkpointing and "
                             "offload off")
        if self.config.checkpointing != "auto":
            return self.config.checkpointing
        if own or self.model.device.type != "cuda":
            return "none"
        free, _ = torch.cuda.mem_get_info(self.model.device)
        return choose({kind: self.need(kind) for kind in ("none", "selective", "full")}, free)

    def need(self, checkpointing: str) -> Memory | None:
        """The estimated memory of the first step; None for a model that is not a `Transformer`."""
        if not isinstance(self.model, Transformer):
            return None
        batches = {name: source(0) for name, source in self.sources.items()}
        return need(
            self.config, self.model.config, micro_batches(batches, self.config.micro_tokens, self.world),
            dtype=self.model.dtype, checkpointing=checkpointing, cuda=self.model.device.type == "cuda",
            processes=self.world.size,
        )

    @property
    def active(self) -> list[str]:
        """The adapters that still learn."""
        return [
            name for name in self.config.adapters if self.step < self.config.end(name) and name not in self.ended
        ]

    def stuck(self) -> str | None:
        """An adapter that has skipped as many steps in a row as it may, or None."""
        return next((name for name in self.active if self.guards[name].skipped >= self.config.max_skips), None)

    def advance(self) -> list[Event]:
        """One step of every adapter; a metrics row for each. TrainError when an adapter cannot learn.

        A row's "skipped" tells why the adapter's step was not taken, or is None. A step that finds no memory is a
        TrainError that says what takes most.
        """
        try:
            return self._advance()
        except RuntimeError as error:
            if not ran_out(error):
                raise
            needed = self.need(self.checkpointing)
            if needed is None:
                raise TrainError(f"step {self.step + 1}: out of memory; lower micro_tokens") from error
            told = out_of_memory(needed, self.config, self.checkpointing)
            raise TrainError(f"step {self.step + 1}: {told}") from error

    def _advance(self) -> list[Event]:
        began = time.perf_counter()
        self.batches = {name: self.sources[name](self.step) for name in self.active}
        found = self._gradients(self.batches)
        if len(found) > 1 and not all(map(math.isfinite, (value for pair in found.values() for value in pair))):
            # 0 · NaN is NaN: an adapter's zeroed columns do not shield it from what the other's rows gave.
            self._forget()
            found = {name: self._gradients({name: batch})[name] for name, batch in self.batches.items()}
        rows = [self._update(name, *pair) for name, pair in found.items()]
        seconds = time.perf_counter() - began
        total = sum(row["tokens"] for row in rows)
        for row in rows:
            row |= {"tokens_per_second": round(total / seconds, 1), "seconds": round(seconds, 4)}
        self.step += 1
        return rows

    def unvalidated(self) -> list[str]:
        """The adapters that are to be validated before the next step: those that the last one moved, when due."""
        config, step = self.config, self.step
        if not config.validate_every or not self.validated < step:
            return []
        moved = [name for name in config.adapters if step <= config.end(name) and name not in self.ended]
        due = step % config.validate_every == 0
        return [name for name in moved if due or step == config.end(name)]

    def judge(self, found: Mapping[str, tuple[dict[str, Any], list[float]]]) -> list[Event]:
        """Takes note of validations, adapter → (figures, score), larger scores being better; a metrics row for each.

        A row's "best" tells whether it is the adapter's best so far. An adapter whose patience is out ends.
        """
        self.validated = self.step
        rows = []
        for name, (figures, value) in found.items():
            best = self.best[name].see(value, self.step)
            rows.append({"step": self.step, "kind": "validation", "adapter": name, **figures, "best": best})
            if self.config.patience and self.best[name].since >= self.config.patience and name in self.active:
                self.ended[name] = self.step
        return rows

    def _gradients(self, batches: Mapping[str, Batch]) -> dict[str, tuple[float, float]]:
        """Adapter → (loss, norm of its gradient before clipping); the clipped gradients are on the parameters."""
        scales = {name: self.guards[name].scale for name in batches}
        sums: dict[str, Tensor] = {}
        dropping = any(self.config.lora(name).dropout for name in batches)
        for index, part in enumerate(micro_batches(batches, self.config.micro_tokens, self.world)):
            moved = {name: batch.to(self.model.device) for name, batch in part.items()}
            self.model.train(dropping)
            with deterministic(self.config.deterministic):
                losses = forward_losses(
                    self.model, self.adapters, moved, self.config.text_weight, self.config.digit_weight,
                    self._seed(index) if dropping else None,
                )
                scaled = [loss if scales[name] is None else loss * scales[name] for name, loss in losses.items()]
                torch.stack(scaled).sum().backward()
            self.model.eval()
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        found = {}
        for name in batches:
            parameters = self.adapters.parameters(name)
            loss = self.world.add_up(parameters, sums.get(name))
            if scales[name] is not None:
                for parameter in parameters:
                    parameter.grad.div_(scales[name])
            if self.config.orthogonality:
                add_penalty(self.adapters, name, self.config.orthogonality)
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
            found[name] = (loss.item(), norm.item())
        return found

    def _seed(self, part: int) -> int:
        """Of the dropout in a part of this step."""
        key = hashlib.sha256(f"{self.config.seed} dropout {self.step} {part} {self.world.rank}".encode()).digest()
        return int.from_bytes(key[:7], "big")

    def _forget(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def _update(self, name: str, loss: float, norm: float) -> Event:
        """Takes an adapter's step, or skips it; its metrics row."""
        guard, optimizer, rate = self.guards[name], self.optimizers[name], self.config.rate(name, self.step)
        first = guard.taken == 0
        reason = guard.judge(loss, norm)
        if reason is None:
            if first and norm == 0:
                raise TrainError(
                    f"the {name} adapter received no gradient in the first step: its loss, {loss:g}, does not depend "
                    "on it; look at its data"
                )
            for group in optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            before = [b.detach().clone() for _, b in self.adapters.factors(name)] if first else []
            optimizer.step()
            if first and all(map(torch.equal, before, (b for _, b in self.adapters.factors(name)))):
                raise TrainError(f"the {name} adapter did not move in the first step; its rate is {rate:g}, raise it")
        optimizer.zero_grad()
        return {
            "step": self.step + 1, "kind": "train", "adapter": name, "loss": _number(loss), "lr": rate,
            "grad_norm": _number(norm), "tokens": int((self.batches[name].documents >= 0).sum()),
            "labels": len(self.batches[name].labels), "skipped": reason,
        }

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes adapters and optimizer state into a folder; what else `load` needs, as JSON."""
        tensors = {}
        for name in self.config.adapters:
            self.adapters.save(name, folder / name, base_model=self.config.model)
            for index, state in self.optimizers[name].state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": value for key, value in state.items()}
        write_safetensors(folder / "optimizer.safetensors", tensors)
        return self.state()

    def state(self) -> dict[str, Any]:
        """Where it stands, beside the adapters and their optimizers, as JSON."""
        return {
            "step": self.step, "validated": self.validated, "ended": self.ended,
            "guards": {name: guard.state() for name, guard in self.guards.items()},
            "best": {name: best.state() for name, best in self.best.items()},
        }

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Takes up what `save` wrote and returned."""
        header, _ = read_header(folder / "optimizer.safetensors")
        for name in self.config.adapters:
            self.load_adapter(name, folder)
            found: dict[int, dict[str, Tensor]] = {}
            for key, info in header.items():
                owner, index, leaf = key.split(".")
                if owner == name:
                    found.setdefault(int(index), {})[leaf] = read_tensor(info)
            optimizer = self.optimizers[name]
            optimizer.load_state_dict(optimizer.state_dict() | {"state": found})
        self.stand(state)

    def stand(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        for name in self.config.adapters:
            self.guards[name].load(state["guards"][name])
            self.best[name] = Best(**state["best"][name])
        self.step, self.validated, self.ended = state["step"], state["validated"], dict(state["ended"])

    def load_adapter(self, name: str, folder: Path) -> None:
        """Takes one adapter's values from a checkpoint."""
        self.adapters.load(name, folder / name)


def _number(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
