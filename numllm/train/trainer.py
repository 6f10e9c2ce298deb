"""One step of training: both adapters' losses from one pass, an optimizer for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import read_header, read_tensor, write_safetensors
from ..data import Batch
from ..errors import TrainError
from ..files import new_folder, read_json, write_json
from ..lora import attach
from ..model import Transformer
from ..train_config import TrainConfig
from .losses import forward_losses

Event = dict[str, Any]
Source = Callable[[int], Batch]


def _width(batches: Mapping[str, Batch]) -> dict[str, Batch]:
    """The batches with their rows padded to one width, so that they can go side by side."""
    width = max(batch.tokens.shape[1] for batch in batches.values())
    return {name: batch.widened(width) for name, batch in batches.items()}


class Trainer:
    """The state of one run: model, adapters, one optimizer an adapter, and the step it has reached."""

    def __init__(
        self, config: TrainConfig, model: Transformer, sources: Mapping[str, Source]
    ) -> None:
        self.config, self.model, self.sources = config, model, sources
        self.adapters = attach(
            model, {name: config.lora(name) for name in config.adapters}, seed=config.seed, impl=config.impl
        )
        self.optimizers = {
            name: torch.optim.AdamW(
                self.adapters.parameters(name), lr=0.0, weight_decay=config.weight_decay, fused=True
            )
            for name in config.adapters
        }
        self.step = 0

    def advance(self) -> list[Event]:
        """One step of every adapter; a metrics row for each. TrainError when an adapter cannot learn."""
        config, began = self.config, time.perf_counter()
        batches = _width({name: self.sources[name](self.step) for name in config.adapters})
        batches = {name: batch.to(self.model.device) for name, batch in batches.items()}
        losses = forward_losses(self.model, self.adapters, batches, config.text_weight)
        torch.stack(list(losses.values())).sum().backward()
        rows = []
        for name, loss in losses.items():
            parameters = self.adapters.parameters(name)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            if not torch.isfinite(norm) or not torch.isfinite(loss):
                raise TrainError(
                    f"step {self.step + 1}: the {name} adapter's loss is {loss.item()} and its gradient "
                    f"{norm.item()}; lower its rate, or train in another --dtype"
                )
            if self.step == 0 and norm == 0:
                raise TrainError(f"the {name} adapter received no gradient in the first step")
            rate = config.rate(name, self.step)
            self.optimizers[name].param_groups[0]["lr"] = rate
            self.optimizers[name].step()
            self.optimizers[name].zero_grad()
            if self.step == 0 and not any(b.any() for b in parameters[1::2]):
                raise TrainError(f"the {name} adapter did not move in the first step")
            rows.append({
                "step": self.step + 1, "adapter": name, "loss": loss.item(), "lr": rate,
                "grad_norm": norm.item(), "tokens": int((batches[name].documents >= 0).sum()),
            })
        seconds = time.perf_counter() - began
        total = sum(row["tokens"] for row in rows)
        for row in rows:
            row |= {"tokens_per_second": round(total / seconds, 1), "seconds": round(seconds, 4)}
        self.step += 1
        return rows

    def save(self, folder: Path) -> None:
        """Writes adapters and optimizer state; whole or not at all."""
        with new_folder(folder, overwrite=True) as aside:
            tensors = {}
            for name in self.config.adapters:
                self.adapters.save(name, aside / name, base_model=self.config.model)
                for index, state in self.optimizers[name].state_dict()["state"].items():
                    tensors |= {f"{name}.{index}.{key}": value for key, value in state.items()}
            write_safetensors(aside / "optimizer.safetensors", tensors)
            write_json(aside / "state.json", {"step": self.step})

    def load(self, folder: Path) -> None:
        """Takes up the state that `save` wrote."""
        header, _ = read_header(folder / "optimizer.safetensors")
        with torch.no_grad():
            for name in self.config.adapters:
                weights, _ = read_header(folder / name / "adapter_model.safetensors")
                for path, module in self.adapters.modules.items():
                    for part, factors in (("A", module.a), ("B", module.b)):
                        if name in factors:
                            info = weights[f"base_model.model.{path}.lora_{part}.weight"]
                            factors[name].copy_(read_tensor(info))
                state: dict[int, dict[str, Tensor]] = {}
                for key, info in header.items():
                    owner, index, leaf = key.split(".")
                    if owner == name:
                        state.setdefault(int(index), {})[leaf] = read_tensor(info)
                optimizer = self.optimizers[name]
                optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step = read_json(folder / "state.json")["step"]
