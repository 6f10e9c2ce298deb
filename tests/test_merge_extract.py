"""numllm.merge.extraction: the best approximation of each rank, and an adapter that PEFT loads."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from models import save, transformers_model
from safetensors.torch import load_file, save_file

from numllm.adapter import read_adapter
from numllm.errors import MergeError, NumLLMError
from numllm.merge import extract, merge
from numllm.merge.extraction import low_rank

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a checkpoint that differs from it in two linears, one of them by a matrix of rank 3, and a norm."""
    base = save(transformers_model("qwen2"), tmp_path / "base")
    model = transformers_model("qwen2")
    torch.manual_seed(1)
    with torch.no_grad():
        model.get_submodule(NAMES[0]).weight += torch.randn(64, 64) * 0.05
        model.get_submodule(NAMES[1]).weight += torch.randn(64, 3) @ torch.randn(3, 96) * 0.05
        model.model.norm.weight += 0.5
    return base, save(model, tmp_path / "tuned")


@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (30, 30), (1, 9)], ids=str)
@pytest.mark.parametrize("rank", [1, 7, 100])
def test_low_rank_is_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    torch.manual_seed(0)
    delta = torch.randn(*shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    b, a, singular = low_rank(delta, rank)
    torch.testing.assert_close(b @ a, (u[:, :rank] * s[:rank]) @ v[:rank], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(singular[: len(s)], s, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1))
    assert len(a) == min(rank, *shape)


def test_rank_of_the_difference_is_found(two: tuple[Path, Path], tmp_path: Path) -> None:
    report = extract(*two, tmp_path / "out", rank=8)
    rows = report["tensors"]
    assert set(rows) == {f"{name}.weight" for name in NAMES}
    assert rows[f"{NAMES[0]}.weight"]["rank_kept"] == 8 and rows[f"{NAMES[0]}.weight"]["energy_kept"] < 0.9
    assert rows[f"{NAMES[1]}.weight"]["energy_kept"] == pytest.approx(1, abs=1e-9)
    assert list(report["left_out"]) == ["model.norm.weight"]
    assert report["left_out"]["model.norm.weight"] == pytest.approx(0.5 * 8)
    half = extract(*two, tmp_path / "half", rank=64, energy=0.5)["tensors"][f"{NAMES[0]}.weight"]
    squares = torch.tensor(half["singular_values"], dtype=torch.float64).square()
    kept = half["rank_kept"]
    assert half["energy_kept"] >= 0.5 > float(squares[: kept - 1].sum() / squares.sum())


def test_the_adapter_leads_back(two: tuple[Path, Path], tmp_path: Path) -> None:
    """At full rank, through our merge and through PEFT, the tuned linears come back."""
    base, tuned = two
    extract(base, tuned, tmp_path / "out", rank=64)
    merge(base, [(tmp_path / "out", 1.0)], tmp_path / "merged", method="exact", verify=True)
    model = peft.PeftModel.from_pretrained(transformers_model("qwen2"), str(tmp_path / "out")).merge_and_unload()
    wanted, found = (load_file(folder / "model.safetensors") for folder in (tuned, tmp_path / "merged"))
    for name in NAMES:
        torch.testing.assert_close(found[f"{name}.weight"], wanted[f"{name}.weight"], rtol=0, atol=1e-6)
        torch.testing.assert_close(model.get_submodule(name).weight, wanted[f"{name}.weight"], rtol=0, atol=1e-6)
    assert {info.scale for info in read_adapter(tmp_path / "out").modules.values()} == {1.0}


def test_refusals(two: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = two
    with pytest.raises(MergeError, match="nothing to extract"):
        extract(base, base, tmp_path / "out")
    with pytest.raises(MergeError, match="rank must be"):
        extract(base, tuned, tmp_path / "out", rank=0)
    with pytest.raises(MergeError, match="overlap"):
        extract(base, tuned, tuned / "x")
    other = save(transformers_model("qwen3"), tmp_path / "other")
    with pytest.raises(MergeError, match="is not tuned from"):
        extract(base, other, tmp_path / "out")
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tuned / "model.safetensors")
    with pytest.raises(MergeError, match="model.norm.weight holds NaN"):
        extract(base, tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    with pytest.raises(NumLLMError, match=r"NaN|not empty"):
        extract(base, tuned, tmp_path / "out")
