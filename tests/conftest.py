"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """A byte-level tokenizer of the tests' own."""
    from test_questions import byte_tokenizer

    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pair(tokenizer, tmp_path_factory: pytest.TempPathFactory):
    """(theirs, ours): one random Qwen2 in transformers and in numllm."""
    from models import save, transformers_model

    from numllm.model import load_model

    theirs = transformers_model("qwen2", vocab_size=tokenizer.vocab_size)
    return theirs, load_model(save(theirs, tmp_path_factory.mktemp("qwen2")))


@pytest.fixture()
def world(tmp_path: Path) -> Path:
    """A folder with what a tiny training run needs: base, corpus, numct.jsonl."""
    import tiny

    tiny.base(tmp_path / "base")
    tiny.corpus(tmp_path / "corpus")
    tiny.numct(tmp_path / "numct.jsonl")
    return tmp_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where no CUDA device is present."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
