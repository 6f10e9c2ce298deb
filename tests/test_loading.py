"""Weights into their place: memory, dtypes, single files, and what is told before a byte of data is read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import save, transformers_model
from safetensors.torch import load_file

from numllm import checkpoint as checkpoints
from numllm.adapter import write_adapter
from numllm.checkpoint import Checkpoint, expected_shapes, read_header, write_safetensors
from numllm.config import ModelConfig
from numllm.errors import CheckpointError
from numllm.finite import all_finite, not_finite
from numllm.merge import merge
from numllm.model import load_model

ROOT = Path(__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40000, "hidden_size": 512,
    "intermediate_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 8, "tie_word_embeddings": False,
}


PEAKS = """
import ctypes, gc, re, sys, torch
from numllm.model import load_model

def status(field):
    return int(re.search(rf"{field}:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) << 10

load_model("demo", dtype=torch.bfloat16)
for folder, dtype in (pair.split("=") for pair in sys.argv[1:]):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the last model left free
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmRSS")
    model = load_model(folder, dtype=getattr(torch, dtype))
    print(status("VmHWM") - before, sum(w.numel() * w.element_size() for w in model.parameters()))
    del model
assert "torch._dynamo" not in sys.modules, "loading imports the compiler, which takes seconds"
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_loading_takes_the_weights_and_some_megabytes(tmp_path):
    shapes = dict(expected_shapes(ModelConfig.from_hf(LARGE)))
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        (tmp_path / dtype / "config.json").write_text(json.dumps(LARGE))
        write_safetensors(tmp_path / dtype / "model.safetensors", {
            name: torch.full(shape, 0.5, dtype=getattr(torch, dtype)) for name, shape in shapes.items()
        })
    wanted = (("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32"))
    cases = [f"{tmp_path / stored}={dtype}" for stored, dtype in wanted]
    run = subprocess.run([sys.executable, "-c", PEAKS, *cases], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    for (peak, size), more in zip(found, (16e6, 80e6, 80e6), strict=True):
        assert size > 80e6 and size * 0.9 < peak < size + more, found


@pytest.mark.parametrize("wanted", [*DTYPES, torch.float64, None], ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_every_dtype_on_disk_becomes_every_dtype_wanted(stored, wanted, tmp_path):
    folder = save(transformers_model("qwen3", dtype=stored), tmp_path / "m")
    model = load_model(folder, dtype=wanted)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.get_parameter(name), weight.to(wanted or stored)), name
    assert model.dtype == (wanted or stored)


def test_weights_of_many_blocks_read_by_several_threads(tmp_path, monkeypatch):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    monkeypatch.setattr("numllm.weights.PIECE", 70)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        model = load_model(folder)
        assert all(torch.equal(model.get_parameter(name), weight) for name, weight in weights.items())
    weights["model.layers.1.mlp.up_proj.weight"][90, 5] = torch.nan
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(CheckpointError, match="up_proj.weight holds NaN or infinity as torch.float32"):
        load_model(folder)


@pytest.mark.parametrize("madvise", [None, lambda *_: -1], ids=["no such call", "an older kernel"])
def test_weights_are_read_where_the_system_cannot_prepare_their_memory(madvise, tmp_path, monkeypatch):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    monkeypatch.setattr("numllm.weights._madvise", lambda: madvise)
    model = load_model(folder)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.get_parameter(name), weight), name


def test_what_overflows_in_the_wanted_dtype_is_refused(tmp_path):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    write_safetensors(folder / "model.safetensors", weights)
    load_model(folder, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="up_proj.weight holds NaN or infinity as torch.float16"):
        load_model(folder, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_finite_by_the_bits_is_finite(dtype):
    info = torch.finfo(dtype)
    good = torch.tensor([0.0, -0.0, info.max, info.min, info.tiny, -info.tiny, info.smallest_normal / 4], dtype=dtype)
    assert all_finite(good) and all_finite(good[:0])
    for value in (torch.inf, -torch.inf, torch.nan, -torch.nan):
        for place in range(len(good)):
            bad = good.clone()
            bad[place] = value
            assert not all_finite(bad) and not torch.isfinite(bad).all()


@pytest.mark.parametrize("compiled", ["1", "0"])
def test_the_tensor_on_disk_that_is_not_finite_is_named(tmp_path, compiled, monkeypatch):
    if compiled == "0":
        monkeypatch.setattr("numllm_kernels.processor.library", lambda build=True: None)
    good = {
        "a": torch.ones(700, 500), "b": torch.ones(3), "c": torch.ones(()), "d": torch.ones(0, 4),
        "e": torch.ones(2, 3).bfloat16(), "f": torch.ones(5).half(), "g": torch.ones(7).half(),
        "h": torch.ones(()).double(),
    }

    def found(tensors):
        write_safetensors(tmp_path / "x.safetensors", tensors)
        wrong = not_finite(read_header(tmp_path / "x.safetensors")[0].values())
        return wrong and wrong.name

    assert found(good) is None
    for name, tensor in good.items():
        for place in {0, tensor.numel() - 1} if tensor.numel() else ():
            bad = tensor.clone()
            bad.view(-1)[place] = math.inf
            assert found(good | {name: bad}) == name


def test_a_single_file_is_a_checkpoint(tmp_path):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(CheckpointError, match="has neither"):
        Checkpoint.open(folder)
    model = load_model(folder / "consolidated.safetensors")
    stored = load_file(folder / "consolidated.safetensors")
    assert torch.equal(model.model.norm.weight, stored["model.norm.weight"])
    write_adapter(
        tmp_path / "a", {"model.layers.0.mlp.up_proj": (torch.ones(1, 64), torch.ones(96, 1))}, rank=1, alpha=1.0,
        targets=["layers.0.mlp.up_proj"],
    )
    merge(folder / "consolidated.safetensors", [(tmp_path / "a", 1.0)], tmp_path / "out", verify=True)
    merged = load_model(tmp_path / "out").get_parameter("model.layers.0.mlp.up_proj.weight")
    assert torch.allclose(merged, stored["model.layers.0.mlp.up_proj.weight"] + 1)
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="with config.json beside it"):
        Checkpoint.open(folder / "consolidated.safetensors")


def test_one_shard_of_several_and_pickles_are_refused(tmp_path):
    folder = save(transformers_model("llama2"), tmp_path / "m", max_shard_size="60KB")
    shard = sorted(folder.glob("*.safetensors"))[0]
    with pytest.raises(CheckpointError, match="give the folder"):
        Checkpoint.open(shard)
    for name in ("pytorch_model.bin", "consolidated.00.pth", "model.pt"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        with pytest.raises(CheckpointError, match="is a pickle, which can run code when read; take"):
            Checkpoint.open(folder / name)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no safetensors; consolidated.00.pth is a pickle"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("change, message", [
    (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"has the shape \[3\], config.json wants \[64\]"),
    (lambda t: t.pop("model.norm.weight"), "lacks the tensor 'model.norm.weight'"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.float8_e4m3fn)}), "is F8_E4M3; convert"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.float64)}), "is F64; convert"),
    (lambda t: t.update({"model.norm.scales": torch.zeros(64)}), "has no tensor 'model.norm.scales'"),
])
def test_what_headers_tell_is_told_before_a_byte_is_read(change, message, tmp_path, monkeypatch):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    write_safetensors(folder / "model.safetensors", weights)
    monkeypatch.setattr(checkpoints, "_read", lambda *_: pytest.fail("data was read"))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_shard_that_shrinks_while_it_is_read_is_told(tmp_path):
    folder = save(transformers_model("llama2"), tmp_path / "m")
    opened = Checkpoint.open(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(file.seek(0, 2) - 5000)
    with pytest.raises(CheckpointError, match="ended inside tensor"):
        load_model(opened)


def test_a_tied_head_that_is_stored_is_compared_in_blocks(tmp_path):
    folder = save(transformers_model("qwen2-tied"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    write_safetensors(folder / "model.safetensors", weights)
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    weights["lm_head.weight"][-1, -1] += 1
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(CheckpointError, match="ties the head"):
        load_model(folder)
