"""A tiny tokenizer, texts, questions and a base checkpoint for tests of training."""

from __future__ import annotations

import json
from pathlib import Path

from models import save, transformers_model
from tokenizers import pre_tokenizers, trainers

from numllm.files import write_json, write_jsonl
from numllm.questions import Question
from numllm.tokenizer import byte_level_bpe

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
