"""The shelf: what texts share, near-duplicates, questions kept out, filters, workers, runs taken up, the report."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehave import misbehave, misbehave_all
from test_corpus import prose, reason_to_drop, write_shelf

from numllm.corpus import build_corpus, documents, read_corpus, read_terms
from numllm.corpus.choice import SHARE
from numllm.corpus.clean import han_count
from numllm.corpus.counts import SUSPECT, count
from numllm.corpus.cut import cut
from numllm.corpus.duplicates import BINS, SIMILAR, Sketch, Sketches, gram_set, jaccard, repeats, sketches
from numllm.corpus.judge import SAMPLE, Judged, judge, without_asked
from numllm.corpus.readers import read_plain
from numllm.corpus.relevance import TERMS, Relevance
from numllm.corpus.shelf import held_out
from numllm.corpus.store import Store
from numllm.errors import DataError, NumLLMError
from numllm.overlap import RUN, Runs, gram_hashes, joined_letters, letters, spelled
from numllm.report import write_corpus_report
from numllm.workers import _SERVE, Lost, Workers

ROOT = Path(__file__).resolve().parents[1]


def edited(text: str, seed: int, share: float) -> str:
    """The text with about `share` of its characters exchanged."""
    rng = random.Random(seed)
    return "".join(chr(rng.randint(0x4E00, 0x9FA5)) if rng.random() < share else c for c in text)


def book(seed: int, paragraphs: int = 8) -> str:
    """A small book without headings: paragraphs, different for every seed."""
    return "\n\n".join(prose(1000 * seed + k) for k in range(paragraphs))


def similarity(a: str, b: str) -> float:
    return jaccard(gram_set(a), gram_set(b))


def sketch(text: str) -> Sketch:
    return sketches(*joined_letters([text]))[0]


def write(folder: Path, books: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in books.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def name_of(split: str, start: int = 0, share: float = 0.3) -> str:
    """The first name of a file, from a number on, that falls into the split."""
    return next(
        f"{k}.md" for k in range(start, start + 10_000) if held_out(0, f"{k}.md", share) == (split == "heldout")
    )


def dropped(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text("utf-8").splitlines()]


def texts_of(folder: Path, split: str | None = None) -> list[str]:
    return [row["text"] for row in read_corpus(folder) if split in (None, row["split"])]


# ── letters, n-grams, runs ───────────────────────────────────────────────────────────────────────────

MIXED = st.text(alphabet=st.sampled_from("甲乙ａA１1㈠，。 \n\u3000é㊣\U00020000\U0001d44e😀\ud800"), max_size=60)


@given(MIXED, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_letters_and_grams(text: str, n: int) -> None:
    plain = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).lower()
    found = letters(text)
    assert spelled(found) == "".join(c for c in plain if c.isalnum())
    hashes = gram_hashes(found, n)
    spelt = spelled(found)
    grams = [spelt[k : k + n] for k in range(len(spelt) - n + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))
    assert len({(gram, value) for gram, value in zip(grams, hashes.tolist(), strict=True)}) == len(set(grams))


@given(st.lists(st.text(alphabet="甲乙丙", max_size=12), max_size=6), st.text(alphabet="甲乙丙，", max_size=30))
@settings(max_examples=150, deadline=None)
def test_runs_are_those_that_strings_show(known: list[str], text: str) -> None:
    runs = Runs([(str(k), part) for k, part in enumerate(known)], 4)
    plain = letters(text)
    found = {(place, name) for place, name in runs.find(plain, gram_hashes(plain, 4))}
    spelt = spelled(plain)
    assert found == {
        (place, str(k)) for place in range(len(spelt) - 3) for k, part in enumerate(known)
        if spelt[place : place + 4] in part
    }


def test_runs_want_a_length() -> None:
    with pytest.raises(ValueError, match="at least one letter, got 0"):
        Runs([], 0)
    with pytest.raises(ValueError, match="at least one letter, got 0"):
        gram_hashes(letters("甲"), 0)


# ── near-duplicates ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1, 4, 30], ids=["short", "page", "long"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_a_sketch_estimates_the_similarity(size: int, share: float) -> None:
    errors = []
    for seed in range(12):
        text = book(seed, size)
        other = edited(text, seed, share)
        agreeing = float((sketch(text) == sketch(other)).mean())
        true = similarity(text, other)
        errors.append(agreeing - true)
        assert abs(agreeing - true) < 5 * (max(true * (1 - true), 0.01) / BINS) ** 0.5 + 1e-9
    assert abs(np.mean(errors)) < 0.03


def test_sketches_of_next_to_nothing() -> None:
    assert (sketch("") == sketch("甲乙丙")).all()
    assert similarity("", "，") == 1.0
    one = sketch("甲乙丙丁戊")
    assert len(set(one.tolist())) > BINS // 2  # every bin is filled by a round of its own
    assert (one == sketch("甲乙，丙丁 戊")).all()


SHORT_AND_LONG = ["", "甲乙", "甲乙丙丁戊", book(1, 1), "，。", book(2, 3), book(3, 20), "甲"]


def test_sketches_laid_end_to_end_are_those_of_each() -> None:
    plain, ends = joined_letters(SHORT_AND_LONG)
    assert [part.tobytes() for part in np.split(plain, ends)[:-1]] == [letters(t).tobytes() for t in SHORT_AND_LONG]
    assert (sketches(plain, ends) == np.stack(list(map(sketch, SHORT_AND_LONG)))).all()
    assert sketches(*joined_letters([])).shape == (0, BINS)


@pytest.mark.parametrize("block", [7, 40, 1 << 18], ids=["blocks-of-7", "blocks-of-40", "one-block"])
def test_what_repeats_is_what_comparing_all_pairs_finds(tmp_path: Path, block: int) -> None:
    texts = []
    for seed in range(25):
        texts += [edited(book(seed, 1 + seed % 4), seed + copy, 0.005 * copy) for copy in range(5)]
    random.Random(1).shuffle(texts)
    sets = [gram_set(text) for text in texts]
    written = Sketches(tmp_path / "sketches")
    for text in texts:
        written.add(sketch(text).tobytes())
    found = dict(repeats(written, sets.__getitem__, block=block))
    written.close()
    expected: list[int] = []
    for number in range(len(texts)):  # the rule itself: kept unless it is like one kept before it
        alike = [kept for kept in expected if jaccard(sets[kept], sets[number]) >= SIMILAR]
        if not alike:
            expected.append(number)
        assert bool(alike) == (number in found)
        if alike:
            assert found[number] in alike
    assert 25 <= len(expected) < 100


def test_near_duplicates_across_books_and_splits(tmp_path: Path) -> None:
    first, second = name_of("train"), name_of("train", 500)
    held, other = name_of("heldout"), name_of("heldout", 900)
    original = book(1, 5)
    shelf = write(tmp_path / "shelf", {
        first: original, second: edited(original, 1, 0.004), held: edited(original, 2, 0.004), other: book(2, 5),
    })
    stats = build_corpus([shelf], tmp_path / "out", holdout=0.3, finance=False)
    kept = {row["source"]: row for row in read_corpus(tmp_path / "out")}
    assert set(kept) == {first, other}
    assert kept[first]["text"] == original and kept[other]["split"] == "heldout"
    listed = {entry["source"]: entry for entry in dropped(tmp_path / "out")}
    assert listed[second]["reason"] == "near-duplicate"
    assert listed[held]["reason"] == "held-out near-duplicate of train"
    assert listed[second]["kept"] == listed[held]["kept"] == kept[first]["id"]
    assert stats["dropped"]["near-duplicate"]["count"] == 1
    assert stats["dropped"]["near-duplicate"]["examples"][0]["kept"] == kept[first]["id"]


def test_held_out_text_within_longer_training_text_goes(tmp_path: Path) -> None:
    """Half of a held-out document stands in the middle of a training document: no near-duplicate, but a leak."""
    train, held, apart = name_of("train"), name_of("heldout"), name_of("heldout", 500)
    shared = "\n\n".join(prose(70 + k) for k in range(3))
    shelf = write(tmp_path / "shelf", {
        train: "\n\n".join([prose(1), prose(2), shared, prose(3), prose(4)]),
        held: "\n\n".join([shared, prose(5)]),
        apart: "\n\n".join([prose(6), prose(7), prose(8), prose(9)]),
    })
    assert similarity((shelf / train).read_text("utf-8"), (shelf / held).read_text("utf-8")) < SIMILAR
    build_corpus([shelf], tmp_path / "out", holdout=0.3, finance=False)
    assert [(e["source"], e["reason"]) for e in dropped(tmp_path / "out")] == [(held, "held-out text in train")]
    rows = list(read_corpus(tmp_path / "out"))
    assert {row["source"] for row in rows} == {train, apart}
    assert dropped(tmp_path / "out")[0]["kept"] == next(row["id"] for row in rows if row["source"] == train)


def test_the_copy_named_is_in_the_corpus(tmp_path: Path) -> None:
    """A held-out document is kept for another one, then goes itself because training holds half of it."""
    train, held, copy = name_of("train"), name_of("heldout"), name_of("heldout", 500)
    shared = "\n\n".join(prose(70 + k, 12) for k in range(3))
    leaked = "\n\n".join([shared, prose(5, 12)])
    shelf = write(tmp_path / "shelf", {
        train: "\n\n".join([prose(1), prose(2), shared, prose(3), prose(4)]), held: leaked, copy: leaked + "又及。",
        name_of("heldout", 800): book(9, 4),
    })
    build_corpus([shelf], tmp_path / "out", holdout=0.3, finance=False, target_chars=5000)
    ids = {row["source"]: row["id"] for row in read_corpus(tmp_path / "out")}
    assert {entry["source"]: entry["kept"] for entry in dropped(tmp_path / "out")} == {
        held: ids[train], copy: ids[train]
    }


def test_nothing_of_held_out_is_in_train(tmp_path: Path) -> None:
    rng = random.Random(3)
    pool = [prose(k, 4) for k in range(60)]
    shelf = write(tmp_path / "shelf", {
        f"{k}.md": "\n\n".join(edited(part, k, rng.choice((0, 0.005, 0.02))) for part in rng.sample(pool, 6))
        for k in range(50)
    })
    build_corpus([shelf], tmp_path / "out", holdout=0.4, finance=False)
    train, held = texts_of(tmp_path / "out", "train"), texts_of(tmp_path / "out", "heldout")
    assert len(train) > 10 and dropped(tmp_path / "out")
    known = set(np.concatenate([gram_hashes(letters(text), RUN) for text in train]).tolist())
    for text in held:
        assert max(similarity(text, other) for other in train) < SIMILAR
        runs = gram_hashes(letters(text), RUN).tolist()
        assert sum(run in known for run in runs) < (SHARE + 0.15) * len(runs)  # judged by one run in eight


# ── questions kept out ───────────────────────────────────────────────────────────────────────────────


def test_paragraphs_that_hold_questions_go(tmp_path: Path) -> None:
    asked = "某企业年末存货账面余额为三百万元且可变现净值为二百八十万元应计提多少跌价准备"
    spaced = "  ".join(asked[k : k + 7] for k in range(0, len(asked), 7))
    shelf = write(tmp_path / "shelf", {
        "a.md": f"# 存货\n\n{prose(1)}\n\n前文{asked[3:30]}后文。\n\n{prose(2)}\n",
        "b.md": f"# 题库\n\n{prose(3)[:200]}，{spaced}？\n",
        "c.md": f"# 无关\n\n{prose(4)}\n\n{asked[:19]}。\n",
    })
    stats = build_corpus([shelf], tmp_path / "out", against=[("q1", asked), ("q1", "甲" * 30)], finance=False)
    rows = {row["source"]: row["text"] for row in read_corpus(tmp_path / "out")}
    assert rows["a.md"] == f"# 存货\n\n{prose(1)}\n\n{prose(2)}"
    assert asked[:19] in rows["c.md"]  # one letter fewer than a run
    assert "b.md" not in rows
    entries = [entry for entry in dropped(tmp_path / "out") if entry["reason"] == "shares a run with a question"]
    assert [(entry["source"], entry["question"], len(entry["run"])) for entry in entries] == [
        ("a.md", "q1", RUN), ("b.md", "q1", RUN)
    ]
    assert entries[0]["text"] == f"前文{asked[3:30]}后文。"
    assert stats["dropped"]["shares a run with a question"]["count"] == 2
    assert stats["dropped"]["too short"]["count"] == 1  # what is left of b.md
    assert stats["settings"]["against"] == 1


def test_a_run_over_two_paragraphs_takes_both() -> None:
    asked = "甲公司以银行存款购入一项专利权并支付相关税费若干"
    text = f"{prose(1)}\n\n前{asked[:12]}\n\n{asked[12:]}后\n\n{prose(2)}"
    left, gone = without_asked(text, Runs([("q", asked)]))
    assert left == f"{prose(1)}\n\n{prose(2)}"
    assert [entry["text"] for entry in gone] == [f"前{asked[:12]}", f"{asked[12:]}后"]
    joined = f"{asked[:12]}\n\n{asked}\n\n{asked[12:]}"  # what is left would hold the run again
    assert without_asked(joined, Runs([("q", asked)]))[0] == ""


# ── filters ──────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.lists(
    st.text(st.characters() | st.sampled_from("会计锟ｅé\ufffd\ue000\U00020001\U000f0000\u3000\n Az")), max_size=4
))
def test_counts_are_those_of_patterns(texts: list[str]) -> None:
    assert list(zip(*(part.tolist() for part in count(texts)), strict=True)) == [
        (
            han_count(text), len(re.findall("[A-Za-z]", text)), sum(map(str.isspace, text)),
            len(re.findall(f"[{SUSPECT}]", text)),
        )
        for text in texts
    ]


def test_documents_judged_together_are_judged_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "\n".join(f"- 第{k}号分支机构所在城市与负责人" for k in range(12))
    question = "甲公司以银行存款购入一项专利权并支付相关税费若干"
    books = [
        [book(1), "短。", f"# 名录\n\n{names}", book(2, 1)], [], [COOKING * 3, prose(1)],
        ["\ufffd" * 9 + prose(2), f"## 公式\n\n{prose(3)}$x_1 + y$", "All in English, as some pages are. " * 9],
        [f"{book(3)}\n\n{question}。"],
    ]
    asked = Runs([("q", question)])

    def judged() -> list[list[Judged]]:
        return judge(books, asked, Relevance())

    together = judged()
    assert [[part.reason for part in parts] for parts in together] == [
        [None, "too short", "list without sentences", None], [], ["not about finance", None],
        ["garbled", None, "too little Chinese"], [None],
    ]
    assert together[4][0].text == book(3) and [part["question"] for part in together[4][0].asked] == ["q"]
    for part in itertools.chain.from_iterable(together):
        runs = gram_hashes(letters(part.text), RUN)
        runs = (runs[runs % np.uint64(SAMPLE) == 0] >> np.uint64(32)).astype(np.uint32)
        assert part.runs == (b"" if part.reason else runs.tobytes())
        assert part.sketch == (b"" if part.reason else sketch(part.text).tobytes())
    monkeypatch.setattr("numllm.corpus.judge._TOGETHER", 1)
    assert judged() == together


def test_lists_without_sentences() -> None:
    names = "\n".join(f"- 第{k}号分支机构所在城市与负责人" for k in range(12))
    assert reason_to_drop(names) == "list without sentences"
    assert reason_to_drop(f"# 名录\n\n{names}") == "list without sentences"
    assert reason_to_drop(f"{names}\n\n{prose(1)}") is None
    assert reason_to_drop(names.replace("\n", "；\n")) is None
    assert reason_to_drop("\n".join(f"科目{k} | 期末余额合计 | {k * 7}" for k in range(12))) is None
    assert reason_to_drop(f"由此得到下面各式\n\n{names}\n\n$$\nx = 1\n$$") is None


COOKING = (
    "先把土豆洗净切成细丝，放入清水浸泡十分钟，捞出沥干。锅中倒油烧热，放入花椒和干辣椒炒香，再放入土豆丝大火翻炒，"
    "加盐和醋调味，出锅前撒上葱花。面团揉好以后要盖上湿布醒半个小时，擀成薄片，切成面条，煮熟以后过凉水，拌上黄瓜丝。"
)


def test_relevance(tmp_path: Path) -> None:
    relevant = Relevance()
    assert len(set(TERMS)) == len(TERMS) > 300
    assert relevant(prose(1)) and not relevant(COOKING) and not relevant(COOKING * 20)
    assert relevant(COOKING + "存款") and not relevant(COOKING * 20 + "存款和贷款")
    assert Relevance(["土豆"])(COOKING)
    assert relevant.book([prose(1), COOKING]) and not relevant.book([prose(1, 1), COOKING * 3])

    shelf = write(tmp_path / "shelf", {
        "cook.md": f"# 家常菜\n\n{COOKING}\n", "mixed.md": f"# 会计\n\n{book(1)}\n\n# 附录\n\n{COOKING}\n",
        "finance.md": book(2),
    })
    stats = build_corpus([shelf], tmp_path / "out", target_chars=800)
    assert "cook.md" not in {row["source"] for row in read_corpus(tmp_path / "out")}
    assert any("土豆" in text for text in texts_of(tmp_path / "out"))  # a page of a book about finance
    assert stats["dropped"]["not about finance"]["examples"][0]["source"] == "cook.md"
    build_corpus([shelf], tmp_path / "any", finance=False)
    build_corpus([shelf], tmp_path / "terms", terms=["土豆"])
    for name in ("any", "terms"):
        assert "cook.md" in {row["source"] for row in read_corpus(tmp_path / name)}


def test_terms_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("# 词表\n土豆\t120\n黄瓜 3\n\n面条\n", "utf-8")
    assert read_terms(tmp_path / "terms.txt") == ["土豆", "黄瓜", "面条"]
    (tmp_path / "none.txt").write_text("# 词表\n", "utf-8")
    with pytest.raises(DataError, match="holds no term"):
        read_terms(tmp_path / "none.txt")


# ── chapters and sections ────────────────────────────────────────────────────────────────────────────


def test_chapters_and_sections(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    path.write_text("# 货币银行学\n\n" + "".join(
        f"## 第{c}章 章题{c}\n\n" + "".join(f"### 第{s}节 节题{s}\n\n{book(10 * c + s, 5)}\n\n" for s in range(2))
        for c in range(3)
    ), "utf-8")
    build_corpus([path], tmp_path / "out", holdout=0, target_chars=700)
    rows = list(read_corpus(tmp_path / "out"))
    assert {row["chapter"] for row in rows} == {f"第{c}章 章题{c}" for c in range(3)}
    assert {row["section"] for row in rows} == {f"第{s}节 节题{s}" for s in range(2)}
    for row in rows:
        assert row["title"] == " > ".join(filter(None, ["货币银行学", row["chapter"], row["section"]]))
    (flat,) = cut(read_plain(prose(1)), "讲义", 2000)
    assert (flat.title, flat.chapter, flat.section) == ("讲义", "", "")


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────


def test_workers_outlive_what_goes_wrong() -> None:
    with contextlib.closing(Workers(2, seconds=2)) as workers:
        results = list(workers.ordered(misbehave, range(12)))
        assert list(workers.ordered(str, range(300))) == list(map(str, range(300)))  # another kind of work
        os.kill(workers.workers[0].process.pid, signal.SIGKILL)
        workers.workers[0].process.wait()
        assert list(workers.ordered(abs, [-1, -2, -3])) == [1, 2, 3]
        assert [r if not isinstance(r, Lost) else r.reason for r in results] == [
            0, 1, 4, "the process that read it was killed by signal 9", 16, "took longer than 2 s and was stopped", 36,
            "the process that read it ended with exit code 9", -8, 81, 100, 121,
        ]
        with pytest.raises(DataError, match="negative"):
            list(workers.ordered(misbehave, [1, -1]))
        assert list(workers.ordered(misbehave, [1, 2])) == [1, 4]  # nothing is left of the pass that failed
        assert isinstance(list(workers.ordered(misbehave, [2, 7]))[1], Lost)
        assert list(workers.ordered(misbehave, [])) == []


def whose(number: int) -> tuple[int, int]:
    time.sleep(0.01)
    return number, os.getpid()


def test_a_process_that_helps_works_while_it_would_wait() -> None:
    with contextlib.closing(Workers(1)) as workers:
        results: list[tuple[int, int]] = []

        def items() -> Iterator[int]:
            """As many as it takes until the other process has started and done one."""
            for number in range(6000):
                if len({pid for _, pid in results}) < 2:
                    yield number

        for result in workers.ordered(whose, items(), helping=True):
            assert not isinstance(result, Lost)
            results.append(result)
        assert [number for number, _ in results] == list(range(len(results)))
        assert {pid for _, pid in results} == {os.getpid(), workers.workers[0].process.pid}
        assert list(workers.ordered(whose, [], helping=True)) == []
        with pytest.raises(DataError, match="negative"):
            list(workers.ordered(misbehave, [1, 1, 1, 1, -1], helping=True))


def whose_large(item: str) -> tuple[str, int]:
    return item[0], os.getpid()


def test_a_process_that_helps_does_not_wait_for_another_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numllm.workers._SERVE", "import time; time.sleep(60); " + _SERVE)
    items = [letter * 500_000 for letter in "abcdef"]  # larger than what a connection holds that nobody reads
    with contextlib.closing(Workers(1)) as started:
        results = list(started.ordered(whose_large, items, helping=True))
        assert results == [(letter, os.getpid()) for letter in "abcdef"]
        assert started.workers[0].taking == 1  # it has not answered yet


def test_one_item_of_a_batch_is_lost_alone() -> None:
    with contextlib.closing(Workers(2, seconds=2)) as workers:
        results = list(workers.batched(misbehave_all, [[0, 1], [2, 3, 4], [5], [], [6, 7], [8, 9]]))
        assert [r if not isinstance(r, Lost) else r.reason for r in results] == [
            0, 1, 4, "the process that read it was killed by signal 9", 16, "took longer than 2 s and was stopped", 36,
            "the process that read it ended with exit code 9", -8, 81,
        ]
        with pytest.raises(DataError, match="negative"):
            list(workers.batched(misbehave_all, [[1], [2, -1]]))


def test_workers_send_large_items_and_large_results_at_once() -> None:
    items = [letter * 2_000_000 for letter in "abcdef"]
    results: list[str | Lost] = []
    with contextlib.closing(Workers(1)) as workers:
        # a thread of its own: two processes that wait for each other would wait for ever
        sending = threading.Thread(target=lambda: results.extend(workers.ordered(str.upper, items)), daemon=True)
        sending.start()
        sending.join(60)
        assert results == [item.upper() for item in items]


# ── runs taken up, changed files ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, in this process."""
    names: list[str] = []
    plain = documents.read_path

    def read_path(path: Path):  # noqa: ANN202
        names.append(path.name)
        return plain(path)

    monkeypatch.setattr(documents, "read_path", read_path)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_later_run_redoes_changed_files_only(tmp_path: Path, counted: list[str]) -> None:
    shelf = write_shelf(tmp_path / "shelf")
    build = functools.partial(build_corpus, [shelf], tmp_path / "out", work=tmp_path / "work", overwrite=True)
    build()
    first = contents(tmp_path / "out")
    assert len(counted) == 12
    counted.clear()
    build()
    assert counted == [] and contents(tmp_path / "out") == first
    (shelf / "甲" / "book-03.md").write_text(f"# 新\n\n{prose(99)}", "utf-8")
    (shelf / "甲" / "book-05.md").rename(shelf / "甲" / "renamed.md")  # the same bytes: read already
    (shelf / "甲" / "added.md").write_text(f"# 增\n\n{prose(98)}", "utf-8")
    build()
    assert sorted(counted) == ["added.md", "book-03.md"]
    build_corpus([shelf], tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    counted.clear()
    build(target_chars=900)  # cut afresh, not read afresh
    assert counted == []
    build_corpus([shelf], tmp_path / "short", target_chars=900)
    assert contents(tmp_path / "out") == contents(tmp_path / "short")


def test_an_interrupted_run_is_taken_up(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = write_shelf(tmp_path / "shelf")
    monkeypatch.setattr("numllm.corpus.build._TOGETHER", 1)  # files are cut one by one

    def stop(iterable, total=None, description="", unit="it"):  # noqa: ANN001, ANN202
        for k, item in enumerate(iterable):
            if (description, k) == ("cutting", 5):
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        build_corpus([shelf], tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.unfinished").is_dir()
    counted.clear()
    cuts: list[str] = []
    plain = documents.cut
    monkeypatch.setattr(documents, "cut", lambda blocks, name, target: cuts.append(name) or plain(blocks, name, target))
    build_corpus([shelf], tmp_path / "out")
    assert counted == [] and len(cuts) == 6
    build_corpus([shelf], tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out", "shelf"]


def test_a_killed_run_is_taken_up(tmp_path: Path, counted: list[str]) -> None:
    shelf = tmp_path / "shelf"
    write(shelf, {f"{k}.md": "\n\n".join(f"## 第{j}节\n\n{prose(12 * k + j)}" for j in range(12)) for k in range(60)})
    command = [sys.executable, "-c", "from numllm.cli import main; main()", "corpus", str(shelf), "--out",
               str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    work = tmp_path / ".out.unfinished"

    def finished() -> int:
        return len(Store(work).known) if work.is_dir() else 0

    limit = time.monotonic() + 60
    while finished() < 20 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)  # the workers too: nothing is tidied up
    process.wait()
    found = finished()
    assert 20 <= found < 120 and not (tmp_path / "out").exists()
    subprocess.run([*command, "--work", str(work)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert len(Store(work).known) == 120  # blocks and documents of each file
    build_corpus([shelf], tmp_path / "again", work=work)
    assert counted == []
    build_corpus([shelf], tmp_path / "fresh")
    for name in ("corpus.jsonl", "dropped.jsonl", "stats.json"):
        written = (tmp_path / "fresh" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() == written


def test_half_written_parts_are_as_good_as_absent(tmp_path: Path) -> None:
    store, names = Store(tmp_path / "store"), ("a" * 32, "b" * 32)
    places = [store.save(name, {"甲": [1]}, name.encode(), b"\n\n\xff") for name in names]
    head, parts = store.load(places[1])
    assert head == {"甲": [1]} and [bytes(part) for part in parts] == [names[1].encode(), b"\n\n\xff"]
    store.close()
    (log,) = (tmp_path / "store").iterdir()
    whole = log.read_bytes()
    for cut_at in range(len(whole)):
        log.write_bytes(whole[:cut_at])
        opened = Store(tmp_path / "store")
        assert list(opened.known) == list(names[: cut_at >= places[0].size])
        opened.close()
    log.write_bytes(whole[:-1] + b"\xfe")
    opened = Store(tmp_path / "store")
    assert opened.load(opened.known[names[0]]) is not None and opened.load(opened.known[names[1]]) is None
    opened.close()


def test_the_store_forgets_what_is_not_needed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    places = [store.save(f"{k:032x}", k, bytes(1000)) for k in range(10)]
    store.keep_only(places[2:8])  # more than half
    assert len(Store(tmp_path / "store").known) == 10
    store.keep_only([places[7], places[3]])
    store.close()
    opened = Store(tmp_path / "store")
    assert sorted(opened.known) == [f"{k:032x}" for k in (3, 7)]
    assert opened.load(opened.known[f"{7:032x}"])[0] == 7
    opened.close()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    shelf = write_shelf(tmp_path / "shelf", 4)

    def again(iterable, total=None, description="", unit="it"):  # noqa: ANN001, ANN202
        with pytest.raises(NumLLMError, match="another process is writing"):
            build_corpus([shelf], tmp_path / "out")
        return iterable

    build_corpus([shelf], tmp_path / "out", progress=again)


# ── bad files ────────────────────────────────────────────────────────────────────────────────────────


def test_strict_stops_at_the_first_bad_file(tmp_path: Path, counted: list[str]) -> None:
    shelf = write_shelf(tmp_path / "shelf", 4)
    (shelf / "丙.md").write_bytes(b"\x00\x01")
    with pytest.raises(NumLLMError, match="丙.md: binary file.*--strict") as raised:
        build_corpus([shelf], tmp_path / "out", strict=True)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()
    read_before = len(counted) - 1
    (shelf / "丙.md").unlink()
    counted.clear()
    build_corpus([shelf], tmp_path / "out", strict=True)
    assert len(counted) == 4 - read_before  # what was read before the bad file is taken up


# ── statistics and the report ────────────────────────────────────────────────────────────────────────


def test_statistics_and_report(tmp_path: Path) -> None:
    shelf = write_shelf(tmp_path / "shelf", 20)
    (shelf / "甲" / "copy.md").write_bytes((shelf / "甲" / "book-01.md").read_bytes())
    (shelf / "bad <b>.md").write_bytes(b"\x00")
    (shelf / "短.md").write_text("太短。", "utf-8")
    stats = build_corpus([shelf], tmp_path / "out", holdout=0.2, tokenizer="demo")
    rows = list(read_corpus(tmp_path / "out"))
    from numllm.tokenizer import Tokenizer

    tokens = {row["id"]: len(Tokenizer.open("demo").encode(row["text"])) for row in rows}
    assert stats["tokens"] == sum(tokens.values()) == sum(part["tokens"] for part in stats["sources"].values())
    assert stats["splits"]["heldout"]["tokens"] == sum(tokens[r["id"]] for r in rows if r["split"] == "heldout") > 0
    assert stats["bytes"] == sum(path.stat().st_size for path in shelf.rglob("*.md"))
    lengths = stats["lengths"]
    counted = [0] * len(lengths["documents"])
    for row in rows:
        counted[len(row["text"]) // lengths["step"]] += 1
    assert lengths["documents"] == counted and counted[-1]
    from numllm.numbers import find_numbers

    whole = sum(len(row["text"]) for row in rows)
    amounts = sum(number.kind == "amount" for row in rows for number in find_numbers(row["text"]))
    assert stats["numbers"]["documents"] == len(rows)
    assert stats["numbers"]["per_thousand"]["amount"] == pytest.approx(1000 * amounts / whole, abs=1e-3)
    assert sum(part["count"] for part in stats["dropped"].values()) == len(dropped(tmp_path / "out"))
    assert sum(part["dropped"] for part in stats["sources"].values()) == len(dropped(tmp_path / "out"))
    assert {sample["id"] for sample in stats["samples"]} <= {row["id"] for row in rows}
    assert len(stats["samples"]) == 10

    write_corpus_report(stats, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<svg") == 3 and "src=" not in page and "href=" not in page
    assert "bad &lt;b&gt;.md" in page and "duplicate" in page and f"{stats['tokens']:,}" in page
    assert page.count("<details>") == 10 + sum(len(part["examples"]) for part in stats["dropped"].values())


# ── scale, in short ──────────────────────────────────────────────────────────────────────────────────


def test_a_shelf_of_edited_copies(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import shelf_scale
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    source = write(tmp_path / "source", {f"{k}.md": book(k, 12) for k in range(12)})
    size = sum(path.stat().st_size for path in source.iterdir())
    found = shelf_scale.run(source, tmp_path, 5.2 * size / 1e6, 2, ["--holdout", "0", "--any-topic"])
    assert found["files"] > 12 * 5 and found["kept"].get("light", 0) == 0
    assert set(found["dropped"]["light"]) == {"near-duplicate"}
    assert found["kept"]["original"] == found["kept"]["scrambled"] > 12  # scrambled copies are new text
    assert found["largest_process_mb"] < 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
