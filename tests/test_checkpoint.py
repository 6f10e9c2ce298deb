"""Checkpoint folders: what is read, and what is refused before a byte of data is used."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from models import save, transformers_model
from safetensors.torch import load_file

from numllm.checkpoint import (
    INDEX,
    Checkpoint,
    read_header,
    read_rows,
    read_tensor,
    resolve,
    write_safetensors,
)
from numllm.errors import CheckpointError


def raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_tensors_read_as_the_library_reads_them(dtype, tmp_path):
    torch.manual_seed(0)
    tensors = {"a": (torch.randn(5, 3) * 4).to(dtype), "b": torch.zeros(0, 2).to(dtype), "c": torch.ones(()).to(dtype)}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    header, metadata = read_header(tmp_path / "x.safetensors")
    expected = load_file(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"} and set(header) == set(expected)
    assert all(torch.equal(read_tensor(header[name]), value) for name, value in expected.items())
    assert torch.equal(read_rows(header["a"], 1, 4), expected["a"][1:4])


@pytest.mark.parametrize("header, data, message", [
    (b"{", b"", "not valid JSON"),
    (b'{"a": {}, "a": {}}', b"", "stands twice"),
    (b"[]", b"", "JSON object"),
    (b"\xff\xfe", b"", "UTF-8"),
    ({"a": entry()}, b"", "truncated or has a tail"),
    ({"a": entry()}, b"12345", "truncated or has a tail"),
    ({"a": entry(dtype="F12")}, b"1234", "unknown dtype"),
    ({"a": entry(shape=(2,))}, b"1234", "needs 8 bytes"),
    ({"a": entry(shape=(-1,))}, b"1234", "shape"),
    ({"a": entry(offsets=(0, True))}, b"1234", "offsets"),
    ({"a": entry(), "b": entry()}, b"1234", "overlaps"),
    ({"a": entry(offsets=(4, 8))}, b"12345678", "hole"),
    ({"../a": entry()}, b"1234", "unsafe tensor name"),
    ({"a\0b": entry()}, b"1234", "unsafe tensor name"),
    ({"a": {"dtype": "F32"}}, b"", "must have dtype"),
    ({"a": entry(), "__metadata__": {"x": 1}}, b"1234", "__metadata__"),
])
def test_damaged_headers_are_refused(header, data, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(raw(tmp_path / "x.safetensors", header, data))
    assert "\n" not in str(error.value)


def test_header_length_is_checked_before_it_is_read(tmp_path):
    for length in (2**63, 10**9, 17):
        with pytest.raises(CheckpointError, match="claims"):
            read_header(raw(tmp_path / "x.safetensors", b"{}", length=length))
    (tmp_path / "x.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="only 4 bytes"):
        read_header(tmp_path / "x.safetensors")


@pytest.fixture()
def sharded(tmp_path):
    return save(transformers_model("qwen2"), tmp_path / "m", max_shard_size="60KB")


def rewrite_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "C:x.safetensors"]
)
def test_index_cannot_lead_out_of_the_folder(sharded, name):
    rewrite_index(sharded, lambda names: names.update({"model.norm.weight": name}))
    with pytest.raises(CheckpointError, match="unsafe file name"):
        Checkpoint.open(sharded)


def test_links_out_of_the_folder_are_refused(sharded, tmp_path):
    target = next(sharded.glob("*.safetensors"))
    outside = tmp_path / target.name
    os.replace(target, outside)
    target.symlink_to(outside)
    with pytest.raises(CheckpointError, match="link to outside"):
        Checkpoint.open(sharded)


def test_links_inside_a_hub_cache_are_followed(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    save(transformers_model("llama2"), snapshot)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    os.replace(snapshot / "model.safetensors", blobs / "0123")
    (snapshot / "model.safetensors").symlink_to(blobs / "0123")
    assert len(Checkpoint.open(snapshot).tensors) > 10


def test_index_and_headers_must_agree(sharded):
    rewrite_index(sharded, lambda names: names.update({"extra": next(iter(names.values()))}))
    with pytest.raises(CheckpointError, match="'extra' is named by the index but in no file"):
        Checkpoint.open(sharded)
    rewrite_index(sharded, lambda names: (names.pop("extra"), names.pop("model.norm.weight")))
    with pytest.raises(CheckpointError, match="in a file but not in the index"):
        Checkpoint.open(sharded)


def test_missing_and_truncated_shards(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint.open(sharded)
    shard.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        Checkpoint.open(sharded)


def test_pickles_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no config.json; give the folder of a checkpoint"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has neither"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickle"):
        Checkpoint.open(tmp_path)


def test_names_that_are_nothing(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="got a file"):
        resolve(tmp_path / "file")


def test_the_hub_is_asked_once_for_a_checkpoint(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert resolve("who/once") == resolve("who/once") == tmp_path
    assert asked == ["who/once"] * 2  # configuration, then weights
    resolve("who/once@v2")
    assert len(asked) == 4


def test_hub_failure_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*_, **__):
        raise LocalEntryNotFoundError("not in the cache\nand offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="not to be had from the Hub") as error:
        resolve("Qwen/Qwen2.5-7B")
    assert "\n" not in str(error.value)
