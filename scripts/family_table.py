"""Every family of models, small and random, against its original: the rows of the table in numllm/README.md.

    python -m scripts.family_table --data DATA --out benchmarks/results/families.jsonl
    python scripts/benchmark_tables.py

The original is transformers where it has the family, else the family's definition written out in tests/definitions.py;
adapters are PEFT's, over the checkpoint's own names. Differences are the largest of logits, as a share of the largest
logit. Exit code 1 when one is above 1e-5, a greedy token differs, or a tokenizer's ids do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import definitions  # noqa: E402
import models  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from benchmarks import measure  # noqa: E402
from numllm.checkpoint import write_safetensors  # noqa: E402
from numllm.config import LoRAConfig  # noqa: E402
from numllm.generate import generate_ids  # noqa: E402
from numllm.lora import attach, load_adapters  # noqa: E402
from numllm.merge import merge  # noqa: E402
from numllm.model import Transformer, load_model  # noqa: E402
from numllm.positions import left_padded  # noqa: E402
from scripts.check_tokenizers import books, odd, peers  # noqa: E402

TOLERANCE = 1e-5
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row; models by their names in tests/models.py or tests/definitions.py."""

    family: str
    base: str
    scaling: str | None = None
    """How texts longer than the original context, or the window, are read."""
    long: tuple[str, ...] = ()
    """The models that show it; none: the base does."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the configuration of those models."""
    tokenizer: str | None = None
    """Its tokenizer's name in `check_tokenizers.peers`."""


CASES = (
    Case(family="Llama 1, Llama 2, Yi", base="llama2", long=("llama-linear", "llama-dynamic"),
         scaling="linear, dynamic", tokenizer="Llama 2 (tokenizer.model): sentencepiece"),
    Case(family="Llama 3 to 3.3", base="llama3.1", scaling="llama3"),
    Case(family="Mistral", base="mistral", scaling="window", tokenizer="Mistral (tokenizer.model): sentencepiece"),
    Case(family="Qwen-1.8B to -72B", base="qwen1", scaling="NTK, log n", tokenizer="Qwen (qwen.tiktoken): tiktoken"),
    Case(family="Qwen1.5, Qwen2, Qwen2.5", base="qwen2", long=("qwen2-yarn", "qwen2-window"), scaling="YaRN, window",
         tokenizer="Qwen2 (vocab.json + merges.txt): transformers"),
    Case(family="Qwen3 (dense)", base="qwen3", long=("qwen3",), scaling="YaRN",
         tokenizer="Qwen2 (vocab.json + merges.txt): transformers",
         changes={"rope_parameters": {"rope_theta": 1e6, **YARN}, "max_position_embeddings": 128}),
    Case(family="InternLM2, InternLM2.5", base="internlm2", scaling="dynamic"),
    Case(family="Baichuan-7B", base="baichuan"),
    Case(family="Baichuan2-7B", base="baichuan2"),
    Case(family="MiniCPM-1B, -2B", base="minicpm", long=("minicpm-dynamic",), scaling="dynamic"),
    Case(family="GLM-4-0414 (dense)", base="glm4", long=("glm4-yarn",), scaling="YaRN"),
)


class Transformers:
    """A random model of transformers."""

    def __init__(self, name: str, changes: Mapping[str, Any], folder: Path) -> None:
        self.model = models.transformers_model(name, **changes)
        models.save(self.model, folder)

    def logits(self, ids: Tensor) -> Tensor:
        """(T, V) of ids (T,)."""
        return self.model(ids[None]).logits[0]

    def greedy(self, ids: Tensor, count: int) -> list[int]:
        """`count` new tokens."""
        mask = torch.ones_like(ids[None])
        out = self.model.generate(ids[None], attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
        return out[0, len(ids) :].tolist()

    def adapted(self, adapter: Path, ids: Tensor) -> Tensor:
        """Logits with an adapter put on by PEFT."""
        from peft import PeftModel

        model = PeftModel.from_pretrained(self.model, str(adapter)).eval()
        found = model(ids[None]).logits[0]
        model.unload()
        return found

    def merged(self, folder: Path, ids: Tensor) -> Tensor:
        """Logits of the checkpoint in a folder."""
        return type(self.model).from_pretrained(folder).eval()(ids[None]).logits[0]

    def new_adapter(self, adapter: Path, targets: list[str]) -> None:
        """Saves an adapter made by PEFT, of visible size."""
        _new_adapter(self.model, adapter, targets).unload()


class Defined:
    """Random weights and the family's definition."""

    def __init__(self, name: str, changes: Mapping[str, Any], folder: Path) -> None:
        self.definition, config = definitions.FAMILIES[name]
        self.config = {**config, **changes}
        self.weights = definitions.random_weights(self.config)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        write_safetensors(folder / "model.safetensors", self.weights)

    def _logits(self, weights: Mapping[str, Tensor], ids: Tensor, prompt: int) -> Tensor:
        return self.definition(self.config, {name: weight.double() for name, weight in weights.items()}, ids, prompt)

    def logits(self, ids: Tensor) -> Tensor:
        """(T, V) of ids (T,)."""
        return self._logits(self.weights, ids, len(ids))

    def greedy(self, ids: Tensor, count: int) -> list[int]:
        """`count` new tokens."""
        prompt = len(ids)
        for _ in range(count):
            ids = torch.cat((ids, self._logits(self.weights, ids, prompt)[-1:].argmax(-1)))
        return ids[prompt:].tolist()

    def adapted(self, adapter: Path, ids: Tensor) -> Tensor:
        """Logits with an adapter merged by PEFT."""
        return self._logits(definitions.with_peft(adapter, self.weights), ids, len(ids))

    def merged(self, folder: Path, ids: Tensor) -> Tensor:
        """Logits of the checkpoint in a folder."""
        return self._logits(load_file(folder / "model.safetensors"), ids, len(ids))

    def new_adapter(self, adapter: Path, targets: list[str]) -> None:
        """Saves an adapter made by PEFT, of visible size."""
        _new_adapter(definitions.Layout(self.weights), adapter, targets)


def _new_adapter(model: torch.nn.Module, folder: Path, targets: list[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=3, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(str(folder))
    return model


def original(name: str, changes: Mapping[str, Any], folder: Path) -> Transformers | Defined:
    """The original of a case, its checkpoint saved in the folder."""
    return (Defined if name in definitions.FAMILIES else Transformers)(name, changes, folder)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max |ours − theirs| / max |theirs|."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def draw(count: int) -> Tensor:
    """Random ids."""
    return torch.randint(0, 160, (count,), generator=torch.Generator().manual_seed(count))


def plain(model: Transformer, theirs: Transformers | Defined) -> float:
    """The largest difference of a text alone and of texts padded to one length."""
    rows = [draw(count) for count in (15, 6, 11)]
    tokens, documents, _ = left_padded([row.tolist() for row in rows], torch.device("cpu"))
    padded = model(tokens, documents=documents)
    pairs = [(out[-len(row) :], row) for out, row in zip(padded, rows, strict=True)]
    pairs.append((model(rows[0][None])[0], rows[0]))
    return max(difference(found, theirs.logits(row)) for found, row in pairs)


def adapters(model: Transformer, theirs: Transformers | Defined, folder: Path) -> tuple[float, float]:
    """(difference of an adapter of ours in PEFT and of PEFT's here, difference of the merged checkpoint)."""
    ids = draw(15)
    theirs.new_adapter(folder / "peft", sorted(set(model.linear_names.values())))
    adapted = load_model(folder / "base")
    with load_adapters(adapted, {"a": (folder / "peft", 1.0)}).use("all"):
        unmerged = adapted(ids[None])[0]
    read = difference(unmerged, theirs.adapted(folder / "peft", ids))
    own = attach(model, {"a": LoRAConfig(rank=4, alpha=8.0)})
    for b in own.parameters("a")[1::2]:
        b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(7)) * 0.1)
    own.save("a", folder / "ours")
    with own.use("a"):
        written = difference(model(ids[None])[0], theirs.adapted(folder / "ours", ids))
    merge(folder / "base", [(folder / "peft", 1.0)], folder / "merged", method="exact")
    return max(read, written), difference(theirs.merged(folder / "merged", ids), unmerged)


def tokenizers(data: Path, names: set[str], scratch: Path) -> dict[str, dict[str, Any]]:
    """Name → texts compared (every tenth textbook file, and odd ones) and how many have other ids."""
    found = {}
    for name, (ours, encode, _) in peers(data, scratch).items():
        if name in names:
            texts = list(chain(islice(books(data), 0, None, 10), odd(2000)))
            different = sum(ours.encode(text) != encode(text) for text in texts)
            found[name] = {"original": name.rpartition(": ")[2], "texts": len(texts), "different": different}
    return found


@torch.no_grad()
def measured(case: Case, folder: Path) -> dict[str, Any]:
    """The row of a case, its tokenizer left out."""
    theirs = original(case.base, {}, folder / "base")
    model = load_model(folder / "base")
    prompt = draw(9)
    greedy = theirs.greedy(prompt, 32)
    ours = generate_ids(model, [prompt.tolist()], max_new_tokens=32)[0]
    row: dict[str, Any] = {
        "architecture": model.config.architecture, "original": "definition" if isinstance(theirs, Defined) else
        "transformers", "logits": plain(model, theirs),
        "greedy": sum(one == other for one, other in zip(ours, greedy, strict=True)),
    }
    found = []
    for name in case.long or (case.base,) * bool(case.scaling):
        stretched = original(name, case.changes, folder / name)
        found.append(difference(load_model(folder / name)(draw(60)[None])[0], stretched.logits(draw(60))))
    row["long"] = max(found, default=None)
    row["adapter"], row["merge"] = adapters(model, theirs, folder)
    return row


def fails(row: Mapping[str, Any]) -> bool:
    """Whether a row shows a difference."""
    values = [row[key] for key in ("logits", "long", "adapter", "merge") if row[key] is not None]
    wrong_ids = row["tokenizer"] and row["tokenizer"]["different"]
    return not all(value <= TOLERANCE for value in values) or row["greedy"] != 32 or bool(wrong_ids)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with tokenizers/ and textbooks/; default: no tokenizers")
    parser.add_argument("--only", help="families whose name holds this")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    cases = [case for case in CASES if (given.only or "") in case.family]
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT reads it
    with tempfile.TemporaryDirectory() as scratch:
        known = tokenizers(given.data, {case.tokenizer for case in cases} - {None}, Path(scratch)) if given.data else {}
        rows = []
        for number, case in enumerate(cases):
            row = {"bench": "families", "family": case.family, "scaling": case.scaling,
                   **measured(case, Path(scratch) / str(number)), "tokenizer": known.get(case.tokenizer or "")}
            print(f"{'different' if fails(row) else 'equal'}: {case.family}", file=sys.stderr)
            rows.append({**row, **measure.provenance(torch.device("cpu"))})
    measure.write_rows(given.out, rows, anew=True)
    sys.exit(any(map(fails, rows)))


if __name__ == "__main__":
    main()
