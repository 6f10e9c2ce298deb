"""numllm.agreement: near 0 for exact merges, the truncation's size for svd, and PEFT's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from models import save, transformers_model

from numllm.adapter import write_adapter
from numllm.agreement import agreement
from numllm.cli import cli
from numllm.merge import merge

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    save(transformers_model("qwen2"), tmp_path / "base")
    torch.manual_seed(2)
    for name in ("a", "b"):
        factors = {f"model.layers.{i}.self_attn.q_proj": (torch.randn(4, 64) * 0.2, torch.randn(64, 4) * 0.2)
                   for i in range(2)}
        write_adapter(tmp_path / name, factors, rank=4, alpha=8, targets=["q_proj"])
    return tmp_path


def test_exact_merges_agree_and_truncated_ones_less(inputs: Path) -> None:
    adapters = [(inputs / "a", 1.0), (inputs / "b", -0.5)]
    found = {}
    for name, options in {
        "exact": {"method": "exact"}, "adapter": {"method": "exact", "as_": "adapter"}, "svd": {"rank": 2},
    }.items():
        merge(inputs / "base", adapters, inputs / name, **options)
        found[name] = agreement(inputs / "base", adapters, inputs / name)
    for name in ("exact", "adapter"):
        assert found[name]["kl"] < 1e-8 and found[name]["largest_difference"] < 1e-4
        assert found[name]["same_top"] == 1.0
    assert 1e-5 < found["svd"]["kl"] < found["svd"]["kl_of_adapters"]


def test_kl_of_adapters_is_pefts(inputs: Path) -> None:
    merge(inputs / "base", [(inputs / "a", 1.0)], inputs / "out", method="exact")
    found = agreement(inputs / "base", [(inputs / "a", 1.0)], inputs / "out", rows=2, length=9, seed=3)
    tokens = torch.randint(160, (2, 9), generator=torch.Generator().manual_seed(3))
    model = peft.PeftModel.from_pretrained(transformers_model("qwen2"), str(inputs / "a")).eval()
    with torch.no_grad():
        p = model(tokens).logits.double().log_softmax(-1)
        q = transformers_model("qwen2")(tokens).logits.double().log_softmax(-1)
    assert found["kl_of_adapters"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found["tokens"] == 18


def test_the_command_compares_logits(inputs: Path) -> None:
    run = CliRunner().invoke(cli, [
        "merge", "--base", str(inputs / "base"), "--adapter", str(inputs / "a"), "--out", str(inputs / "out"),
        "--compare-logits", "--json",
    ])
    assert run.exit_code == 0, run.output
    assert json.loads(run.output.splitlines()[-1])["logits"]["kl"] < 1e-8
    assert "same top" in run.output
