"""A tiny tokenizer, texts, questions and a base checkpoint for tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models import save, transformers_model
from tokenizers import pre_tokenizers, trainers

from numllm.config import LoRAConfig
from numllm.files import write_json, write_jsonl
from numllm.questions import Question
from numllm.tokenizer import byte_level_bpe
from numllm.train_config import TrainConfig

TEXTS = [
    "债券面值为1,000元，票面利率5%，每年付息50元。", "存款年利率为2.5%，本金20万元，一年利息为5,000元。",
    "甲公司净利润300万元，提取10%的法定盈余公积30万元。", "股票价格为12.5元/股，每股收益0.5元，市盈率为25倍。",
    "增值税税率为13%，销售额100万元，销项税额13万元。", "贷款期限3年，本金90万元，每年偿还30万元。",
] * 4
QUESTIONS = [
    Question(
        id=str(index), question=f"本金{index + 2}万元，利率10%，利息为____元。", answer="ABCD"[index % 4],
        options=tuple(f"{(index + 2) * 1000 + (place - index % 4) * 100:,}" for place in range(4)), cloze=True,
    )
    for index in range(8)
]


def tokenizer_folder(folder: Path) -> Path:
    """Trains a tokenizer of 400 pieces on TEXTS and saves it."""
    backend = byte_level_bpe()
    backend.train_from_iterator([*TEXTS, "A B C D 答案："], trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder


def base(folder: Path) -> Path:
    """A random Qwen2 checkpoint with that tokenizer."""
    save(transformers_model("qwen2", vocab_size=400, max_position_embeddings=128), folder)
    return tokenizer_folder(folder)


def corpus(folder: Path) -> Path:
    """A corpus folder of TEXTS."""
    write_jsonl(folder / "corpus.jsonl", (
        {"id": str(i), "text": text, "source": "a.md", "title": "a", "split": "train", "sha256": "0" * 64}
        for i, text in enumerate(TEXTS)
    ))
    write_json(folder / "stats.json", {})
    return folder


def numct(path: Path) -> Path:
    """QUESTIONS as numct.jsonl."""
    write_jsonl(path, (
        {"id": q.id, "question": q.question, "options": list(q.options), "answer": q.answer, "context": "",
         "number": {"text": "1", "value": "1", "unit": "CNY", "kind": "amount"}, "source_id": "0",
         "distractors": ["perturbed"] * 3, "split": "train"}
        for q in QUESTIONS
    ))
    return path


def heldout(folder: Path) -> dict[str, str]:
    """Settings of a run that validates on texts and questions of the training's kind, but none of it."""
    write_jsonl(folder / "heldout.jsonl", (
        {"id": str(i), "text": f"本金{i}万元，年利率{i}%，利息为{i * i}00元。", "source": "b.md", "title": "b",
         "split": "heldout", "sha256": "0" * 64}
        for i in range(2, 6)
    ))
    write_jsonl(folder / "heldout-numct.jsonl", (
        {"id": f"h{i}", "question": f"贷款{i}万元，利率10%，利息为____元。", "answer": "ABCD"[i % 4],
         "options": [f"{i * 1000 + (place - i % 4) * 100:,}" for place in range(4)],
         "number": {"text": "1", "value": "1", "unit": "CNY", "kind": "amount"}, "split": "heldout"}
        for i in range(4, 12)
    ))
    return {"heldout_corpus": str(folder / "heldout.jsonl"), "heldout_numct": str(folder / "heldout-numct.jsonl")}


def settings(world: Path, out: str = "run", **changes: Any) -> TrainConfig:
    """A short run on what lies in `world`: base, corpus, numct.jsonl."""
    return TrainConfig(**{
        "model": str(world / "base"), "corpus": str(world / "corpus"), "numct": str(world / "numct.jsonl"),
        "out": str(world / out), "steps": 12, "length": 96, "rows": 2, "questions": 4, "save_every": 5,
        "domain": LoRAConfig(rank=4, alpha=8.0), "numeric": LoRAConfig(rank=2, alpha=4.0),
        "domain_rate": 1e-2, "numeric_rate": 1e-2, **changes,
    })


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    """Path → contents of every adapter's weights below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("adapter_model.safetensors"))
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics rows of a run without what is measured by the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]
