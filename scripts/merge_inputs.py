"""A small checkpoint in two shards and two adapters, for the campaigns against the merge."""

from __future__ import annotations

from pathlib import Path

import torch

from numllm.adapter import write_adapter
from numllm.checkpoint import INDEX, write_safetensors
from numllm.files import write_json


def write_inputs(folder: Path, *, width: int = 32, layers: int = 4, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes base/, domain/ and numeric/ into `folder`; the base has two linears and a norm in each layer."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for layer in range(layers):
        shard = shards[layer % 2]
        for name in ("q_proj", "v_proj"):
            shard[f"model.layers.{layer}.{name}.weight"] = draw(width, width).to(dtype)
        shard[f"model.layers.{layer}.norm.weight"] = draw(width).to(dtype)
    files = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for name, shard in zip(files, shards, strict=True):
        write_safetensors(folder / "base" / name, shard)
    write_json(folder / "base" / INDEX, {
        "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard.values())},
        "weight_map": {key: name for name, shard in zip(files, shards, strict=True) for key in shard},
    })
    write_json(folder / "base" / "config.json", {"model_type": "llama", "tie_word_embeddings": False})
    for name, rank in (("domain", 4), ("numeric", 3)):
        factors = {f"model.layers.{layer}.{target}": (draw(rank, width), draw(width, rank))
                   for layer in range(layers) for target in ("q_proj", "v_proj")}
        write_adapter(folder / name, factors, rank=rank, alpha=2 * rank, targets=["q_proj", "v_proj"])
