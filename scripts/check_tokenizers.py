"""Ids of every tokenizer against the library it comes from, over real text, all of Unicode and mixed odd pieces.

    python -m scripts.check_tokenizers --data DATA

Prints a row a tokenizer: files, characters and texts compared, and how many differ. Exit code 1 if any does.
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from numllm.tokenizer import Tokenizer
from numllm.tokenizer.byte_level import QWEN2_SPLIT, QWEN_SPECIALS

Encode = Callable[[str], list[int]]
Decode = Callable[[list[int]], str]

ODD = (
    "a", "b", " ", "  ", "\n", "\t", "\r\n", "\u2581", "\u3000", "\x00", "\u200d", "\ufffd", "\ufb01", "é", "e\u0301",
    "1", "２", "0", "%", ".", "-", "=", "----------", "###", "'s", "ab", "哈", "的", "。", "万", "元", "🙂",
    "<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<think>",
)
"""Pieces of the odd texts: spaces, runs, digits of both widths, marks, control tokens."""


def folder(root: Path, **files: Path) -> Path:
    """A folder of links, named by the arguments with "__" for the dot."""
    root = Path(tempfile.mkdtemp(dir=root))
    for name, path in files.items():
        (root / name.replace("__", ".")).symlink_to(path.resolve())
    return root


def _tiktoken(path: Path) -> tuple[Encode, Decode]:
    import tiktoken

    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1])
             for line in path.read_text(encoding="ascii").splitlines()}
    engine = tiktoken.Encoding(
        "qwen", pat_str=QWEN2_SPLIT, mergeable_ranks=ranks,
        special_tokens={name: len(ranks) + at for at, name in enumerate(QWEN_SPECIALS)},
    )
    return lambda text: engine.encode_ordinary(unicodedata.normalize("NFC", text)), engine.decode


def _sentencepiece(path: Path) -> tuple[Encode, Decode]:
    import sentencepiece

    engine = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return engine.encode, engine.decode


def _transformers(path: Path, kind: str) -> tuple[Encode, Decode]:
    import transformers

    engine = getattr(transformers, kind).from_pretrained(path)
    return lambda text: engine(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], engine.decode


def peers(data: Path, scratch: Path) -> dict[str, tuple[Tokenizer, Encode, Decode]]:
    """Name → (ours, the original's encode and decode)."""
    root = data / "tokenizers"
    tiktoken, llama, mistral = (
        root / name for name in ("qwen1/qwen.tiktoken", "llama2/tokenizer.model", "mistral/tokenizer.model.v1")
    )
    found = {
        "Qwen (qwen.tiktoken): tiktoken": (folder(scratch, qwen__tiktoken=tiktoken), _tiktoken(tiktoken)),
        "Llama 2 (tokenizer.model): sentencepiece": (folder(scratch, tokenizer__model=llama), _sentencepiece(llama)),
        "Mistral (tokenizer.model): sentencepiece": (
            folder(scratch, tokenizer__model=mistral), _sentencepiece(mistral)
        ),
        "Qwen2 (vocab.json + merges.txt): transformers": (
            root / "qwen2", _transformers(root / "qwen2", "Qwen2Tokenizer")
        ),
        "MiniMind (tokenizer.json): transformers": (
            root / "minimind", _transformers(root / "minimind", "PreTrainedTokenizerFast")
        ),
    }
    return {name: (Tokenizer(path), *engine) for name, (path, engine) in found.items()}


def books(data: Path) -> Iterator[str]:
    """The text of every file of the textbooks."""
    for path in sorted((data / "textbooks").rglob("*")):
        if path.is_file():
            yield path.read_bytes().decode("utf-8-sig", errors="replace")


def planes(width: int = 64) -> Iterator[str]:
    """Every character of Unicode, in blocks: bare, between spaces, between Chinese characters.

    Left out are the combining marks whose order the tokenizers library knows and this Python's unicodedata does
    not, or the reverse: they are of different versions of Unicode.
    """
    from tokenizers import normalizers

    theirs = normalizers.NFC()
    for first in range(0, 0x110000, width):
        block = [chr(code) for code in range(first, first + width) if not 0xD800 <= code < 0xE000]
        for between in ("", " ", "字"):
            text = between.join(block)
            if theirs.normalize_str(text) == unicodedata.normalize("NFC", text):
                yield text


def odd(count: int, seed: int = 0) -> Iterator[str]:
    """Texts mixed of ODD, some repeated."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice(ODD) * rng.choice((1, 1, 1, 2, 3, 5, 9)) for _ in range(rng.randint(0, 12)))


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with tokenizers/ and textbooks/")
    parser.add_argument("--odd", type=int, default=20_000, help="odd texts")
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        print("| tokenizer: original | files | characters | Unicode blocks | odd texts | different |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, (ours, encode, decode) in peers(given.data, Path(scratch)).items():
            counts, characters, different = [], 0, 0
            for texts in (books(given.data), planes(), odd(given.odd)):
                count = 0
                for text in texts:
                    ids = encode(text)
                    different += ours.encode(text) != ids or ours.decode(ids, skip_special=False) != decode(ids)
                    count += 1
                    characters += len(text) if not counts else 0
                counts.append(count)
            cells = (name, *(f"{n:,}" for n in (counts[0], characters, *counts[1:], different)))
            print(f"| {' | '.join(cells)} |", flush=True)
            wrong += different
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
