"""numllm.numct: what every question holds, determinism, and an audit that finds rigged sets and clears built ones."""

from __future__ import annotations

import functools
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from numllm import numct
from numllm.errors import DataError
from numllm.files import no_progress
from numllm.numbers import find_numbers
from numllm.numct import BLANK, TAGS, audit, rounds
from numllm.numct.auditing import _chi_square_p
from numllm.numct.candidates import candidates
from numllm.numct.form import UNIT8, read_form
from numllm.numct.limits import limits

Row = dict[str, Any]
build = functools.partial(numct.build, tags=TAGS)  # the sentences here are stories: their numbers are given

SENTENCES: list[Callable[[random.Random], str]] = [
    lambda r: f"{r.choice('甲乙丙丁')}公司本年向银行借入长期借款{r.randint(2, 90) * 100:,}万元用于扩建厂房。",
    lambda r: f"这笔借款的合同年利率为{r.randint(20, 90) / 10}%，到期一次还本付息。",
    lambda r: f"合同约定的借款期限为{r.randint(2, 30)}年，提前还款须书面通知贷款人。",
    lambda r: f"公司以每股{r.randint(30, 400) / 10}元的价格向全体股东定向发行新的普通股。",
    lambda r: f"本次发行的普通股总数为{r.randint(2, 90) * 10}万股，全部由原股东认购。",
    lambda r: "债务人应当自收到书面通知之日起" + r.choice(["三十", "十五", "六十", "二十"]) + "日内提出异议。",
    lambda r: "持有公司股份百分之" + r.choice(["三", "五", "十", "二十"]) + "以上的股东可以请求召开临时会议。",
]


def _documents(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        parts = [rng.choice(SENTENCES)(rng) for _ in range(12)]
        text = "\n\n".join("".join(parts[k : k + 3]) for k in range(0, 12, 3))
        rows.append({"id": f"doc-{seed}-{i}", "text": text, "split": "heldout" if i % 10 == 0 else "train"})
    return rows


@pytest.fixture(scope="module")
def documents() -> list[Row]:
    return _documents(120)


@pytest.fixture(scope="module")
def rows(documents: list[Row]) -> list[Row]:
    return list(build(documents))


def _value(row: Row, option: str) -> str:
    stem, _, rest = row["question"].partition(BLANK)
    last = len(stem) + len(option)
    found = [n for n in find_numbers(f"{stem}{option}{rest}") if n.start < last and n.end > len(stem)]
    assert len(found) == 1, (row["question"], option)
    return found[0].value


def test_rows_have_the_agreed_fields(rows: list[Row]) -> None:
    fields = {"id", "question", "options", "answer", "context", "number", "source_id", "distractors", "split"}
    fields |= {"tag", "relation"}
    assert len(rows) > 300
    for row in rows:
        assert set(row) == fields
        assert set(row["number"]) == {"text", "value", "unit", "kind"}
        assert row["tag"] in TAGS and (row["relation"] is not None) == (row["tag"] == "derivable")
        assert row["question"].count(BLANK) == 1
        assert len(row["options"]) == 4 and len(row["distractors"]) == 3
        assert set(row["distractors"]) <= {"document", "corpus", "mistake", "perturbed"}
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_answer_is_the_number_of_the_sentence(rows: list[Row], documents: list[Row]) -> None:
    texts = {row["id"]: row for row in documents}
    for row in rows:
        answer = row["options"]["ABCD".index(row["answer"])]
        whole = row["question"].replace(BLANK, answer)
        source = texts[row["source_id"]]
        assert whole in source["text"] and row["split"] == source["split"]
        assert _value(row, answer) == row["number"]["value"]


def test_options_are_four_different_values_of_one_unit(rows: list[Row]) -> None:
    for row in rows:
        values = [_value(row, option) for option in row["options"]]
        assert len(set(values)) == 4
        assert not any(value.startswith("-") for value in values)


def test_options_share_the_answers_form(rows: list[Row]) -> None:
    for row in rows:
        shapes = {re.sub("[0-9]+", "9", option.replace(",", "")) for option in row["options"]}
        if "百分之" in row["options"][0]:
            assert all(option.startswith("百分之") for option in row["options"])
        elif re.search("[0-9]", row["options"][0]):
            assert len(shapes) == 1, row["options"]
            places = {len(option.partition(".")[2].rstrip("%万")) for option in row["options"]}
            assert len(places) == 1
        else:
            assert not any(re.search("[0-9]", option) for option in row["options"])


def test_no_option_stands_in_question_or_context(rows: list[Row]) -> None:
    for row in rows:
        there = {(n.value, n.unit) for n in find_numbers(row["context"] + row["question"])}
        for option in row["options"]:
            assert (_value(row, option), row["number"]["unit"]) not in there


def test_context_comes_before_in_the_same_document(rows: list[Row], documents: list[Row]) -> None:
    texts = {row["id"]: row["text"].replace("\n\n", "") for row in documents}
    assert sum(bool(row["context"]) for row in rows) > len(rows) / 2
    for row in rows:
        assert row["context"] in texts[row["source_id"]]
        assert row["context"].count("。") <= 2 or row["tag"] == "derivable"


def test_context_begins_after_a_sentence_that_tells_the_answer() -> None:
    text = "借款合同的期限为3年。合同约定的年利率为5%。借款人须按时付息。到期时仍按约定的年利率5%支付全部的利息和本金。"
    (row,) = build([{"id": "a", "text": text}], context=4)
    assert row["number"]["text"] == "5%" and row["context"] == "借款人须按时付息。"


def test_headings_stand_before_the_sentences(documents: list[Row]) -> None:
    text = "# 票据法\n\n## 第四章 时效\n\n出票人应当按期付款。持票人应当自被拒绝付款之日起三十日内书面通知其前手。\n"
    (row,) = numct.build([{"id": "a", "text": text, "title": "法律"}])
    assert row["context"] == "法律 > 第四章 时效\n出票人应当按期付款。" and row["tag"] == "recall"
    (row,) = numct.build([{"id": "a", "text": text.replace("第四章 时效", "三十日的时效")}])
    assert row["context"] == "出票人应当按期付款。"


def test_context_reaches_back_to_the_givens_of_an_example() -> None:
    given = "【例3】甲公司以86,400元购入一台设备，预计残值为5,940元。"
    filler = "设备于当月投入使用。运行情况良好。财务部门选定了折旧的方法。"
    text = f"{given}{filler}甲公司按使用9年计算，因此每年应当计提的折旧额为8,940元。"
    (row,) = [row for row in numct.build([{"id": "a", "text": text}]) if row["number"]["value"] == "8940"]
    assert row["relation"] == "(86400 − 5940) ÷ 9 = 8940"
    assert row["context"] == given + filler


def test_numbers_of_the_headings_are_near_and_taken() -> None:
    text = "# 八年期借款的条件\n\n借款合同应当载明用途。借款的期限一般不得超过三年，并不得展期。\n"
    (reading,) = candidates([{"id": "a", "text": text}], 2)
    ((one,),) = [found.wanted for found in reading.asked]
    assert one.context.startswith("八年期借款的条件\n")
    assert math.log(8) in one.near and 8 in one.limits.barred


def test_only_wanted_tags_are_read_whole_and_all_are_told(documents: list[Row]) -> None:
    every = candidates(documents[:30], 2)
    some = candidates(documents[:30], 2, ("recall",))
    assert [[found.key for found in reading.asked] for reading in some] == [
        [found.key for found in reading.asked] for reading in every
    ]
    pairs = [pair for a, b in zip(every, some, strict=True) for pair in zip(a.asked, b.asked, strict=True)]
    assert any(found.others for _, found in pairs) and any(found.wanted for _, found in pairs)
    for whole, found in pairs:
        assert found.wanted == [one for one in whole.wanted if one.tag == "recall"]
        assert sorted(found.others) == sorted(one.tag for one in whole.wanted if one.tag != "recall")
        assert found.size == whole.size


def test_a_frequency_counts_what_questions_show() -> None:
    text = "公司的注册资本一般不得低于8万元。公司应当自成立之日起60日内缴足7万元的注册资本。"
    (reading,) = candidates([{"id": "a", "text": text}], 1, TAGS)
    shown = {(unit, value // UNIT8): count for (unit, value), count in reading.shown.items()}
    assert [one.number["text"] for found in reading.asked for one in found.wanted] == ["8万元", "60日", "7万元"]
    assert shown == {("CNY", 80_000): 2, ("day", 60): 1, ("CNY", 70_000): 1}


@pytest.mark.parametrize(
    ("text", "kind", "unit", "bounds"),
    [
        ("5.5%", "rate", "1", (0, None)), ("85%", "rate", "1", (0, None)), ("150%", "rate", "1", (0, None)),
        ("30天", "duration", "day", (0, None)), ("3个月", "duration", "month", (0, None)),
        ("12万元", "amount", "CNY", (8 * 10**4 * UNIT8, 50 * 10**4 * UNIT8)),
        ("1,200.50元", "amount", "CNY", (1000 * UNIT8 + 1, None)),
    ],
)
def test_limits_are_what_may_stand_beside_the_answer(
    text: str, kind: str, unit: str, bounds: tuple[int, int | None]
) -> None:
    (number,) = find_numbers(text)
    form, m = read_form(number, "") or pytest.fail(text)
    assert (number.kind, number.unit) == (kind, unit)
    taken = {(m + 1) * form.scale, (m - 1) * form.scale, m * form.scale + 1}
    least, most, barred = limits(form, m, kind, taken, bounds)

    def may(other: int) -> bool:
        value, answer, (low, high) = other * form.scale, m * form.scale, bounds
        if other == m or value in taken or not answer < 16 * value < 256 * answer:
            return False
        if value <= low or (high is not None and value >= high):
            return False
        if kind == "rate" and answer < UNIT8:
            return value < UNIT8
        return kind != "duration" or value <= max(60, 4 * (answer // UNIT8)) * UNIT8

    assert any(map(may, range(1, 20 * m)))
    for other in range(20 * m):
        assert (least <= other <= most and other not in barred) == (other > 0 and may(other)), other


@pytest.mark.parametrize(
    ("label", "asked"),
    [("第三条 ", True), ("2003年3月3日起，", True), ("借款三笔的，", False), ("第三条 三年期的，", False)],
)
def test_only_a_quantity_of_the_answers_value_tells_it(label: str, asked: bool) -> None:
    text = f"{label}借款合同所约定的借款期限一般不得超过三年，并不得展期。"
    assert [row["number"]["text"] for row in build([{"id": "a", "text": text}])] == ["三年"] * asked


def test_an_operand_is_not_asked_where_its_digits_stand_beside_the_equation() -> None:
    text = "出售该债券所形成的收益为11万元（311−310+10），其中包含转出的金额10万元。"
    values = {row["number"]["value"] for row in build([{"id": "a", "text": text}], per_sentence=9)}
    assert "311" in values and "10" not in values
    text = text.replace("10万元", "若干元")
    assert "10" in {row["number"]["value"] for row in build([{"id": "a", "text": text}], per_sentence=9)}


def test_what_is_too_easily_guessed_is_tried_again(documents: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    def built(tries: int) -> tuple[list[Row], Counter[str]]:
        left_out: Counter[str] = Counter()
        monkeypatch.setattr(rounds, "_TRIES", tries)
        return list(build(documents, left_out=left_out)), left_out

    (once, left), (again, less) = built(1), built(5)
    assert left["too easily guessed"] > 20 and less["too easily guessed"] < 0.8 * left["too easily guessed"]
    assert len(again) > len(once) and len({row["id"] for row in again}) == len(again)
    for rows, left_out in ((once, left), (again, less)):
        assert len(rows) + left_out.total() == len(once) + left.total()  # each number is asked or counted, once


def test_what_a_writer_chose_is_left_out_and_counted() -> None:
    text = "【例1】甲公司以3,200万元购入一台大型设备，预计使用8年。企业应当按照税后利润的10%提取法定盈余公积。"
    left_out: Counter[str] = Counter()
    (row,) = numct.build([{"id": "a", "text": text}], left_out=left_out)
    assert row["tag"] == "recall" and row["number"]["text"] == "10%"
    assert +left_out == {"given: chosen by the writer, neither known nor to be worked out": 2}
    assert {row["tag"] for row in build([{"id": "a", "text": text}], per_sentence=2)} == {"recall", "given"}
    assert audit([], left_out)["left_out"] == dict(+left_out)


def test_processes_change_nothing(documents: list[Row], rows: list[Row]) -> None:
    assert list(build(documents[:40], jobs=2)) == list(build(documents[:40]))


def test_context_can_be_left_out(documents: list[Row]) -> None:
    assert all(row["context"] == "" for row in build(documents[:10], context=0))


def test_positions_are_balanced_in_every_block(rows: list[Row]) -> None:
    for start in range(0, len(rows) - 3, 4):
        assert sorted(row["answer"] for row in rows[start : start + 4]) == list("ABCD")


def test_same_seed_same_questions(documents: list[Row], rows: list[Row]) -> None:
    assert list(build(documents)) == rows
    assert list(build(documents, seed=1)) != rows


def test_questions_are_streamed(documents: list[Row], rows: list[Row]) -> None:
    read = 0

    def counted() -> Any:
        nonlocal read
        for row in documents:
            read += 1
            yield row

    assert next(build(counted())) == rows[0]
    assert read < 10


def test_progress_sees_every_document(documents: list[Row]) -> None:
    seen: list[str] = []

    def progress(items: Any, total: int | None = None, description: str = "", unit: str = "it") -> Any:
        seen.append(f"{description} {unit}")
        return no_progress(items)

    list(build(documents[:3], progress=progress))
    assert seen == ["numct doc"]


@pytest.mark.parametrize("limit", [1, 3])
def test_max_per_doc(documents: list[Row], limit: int) -> None:
    counts = Counter(row["source_id"] for row in build(documents, max_per_doc=limit))
    assert max(counts.values()) == limit
    assert len(counts) > 100


def test_per_sentence() -> None:
    text = "甲公司以3,200万元购入设备，预计使用8年，预计净残值率为5%，采用年限平均法计提折旧。"
    filler = "".join(f"设备第二年的维修支出为{n}00万元，全部计入管理费用。" for n in (3, 4, 6, 7, 9))
    document = {"id": "a", "text": f"{text}\n\n{filler}", "split": "train"}
    once = [row for row in build([document]) if "购入设备" in row["question"]]
    more = [row for row in build([document], per_sentence=3) if "购入设备" in row["question"]]
    assert len(once) == 1 and 2 <= len(more) <= 3
    assert len({row["number"]["kind"] for row in more}) == len(more)


def test_a_sentence_is_asked_once_in_the_corpus(documents: list[Row]) -> None:
    copies = [{**row, "id": f"copy of {row['id']}", "split": "heldout"} for row in documents[:10]]
    built = list(build([*documents[:10], *copies]))
    assert not [row for row in built if row["source_id"].startswith("copy")]


@pytest.mark.parametrize("options", [2, 3, 5])
def test_number_of_options(documents: list[Row], options: int) -> None:
    built = list(build(documents[:20], options=options))
    assert built
    assert all(len(row["options"]) == options == len(row["distractors"]) + 1 for row in built)
    for start in range(0, len(built) - options + 1, options):
        assert sorted(row["answer"] for row in built[start : start + options]) == list("ABCDE"[:options])


NOT_ASKED = {
    "heading": "## 第二节 注册资本最低限额为500万元的有限责任公司的设立条件",
    "table": "| 长期借款的合同金额为 | 500万元以及相应的应付利息 | 3年以上到期的部分金额 |",
    "code": "```\n本年向银行借入长期借款500万元用于扩建厂房和购置设备。\n```",
    "mathematics": "$$\n本年向银行借入长期借款500万元用于扩建厂房和购置设备。\n$$",
    "entry": "借：银行存款和其他货币资金以及应收票据合计 500万元",
    "date": "财政部于2006年2月15日发布了新的企业会计准则并要求上市公司首先执行。",
    "ordinal": "企业应当按照本准则第十四条和第二十条的规定确认和计量相关的金融资产。",
    "short": "利率为5%。",
    "answer stands in the sentence before": "合同约定的年利率为5%。到期时仍按合同约定的年利率5%支付全部的利息和本金。",
    "nothing smaller": "合同约定的借款期限为1年，提前还款须书面通知贷款人并取得同意。",
}


@pytest.mark.parametrize("text", NOT_ASKED.values(), ids=NOT_ASKED.keys())
def test_not_asked(text: str) -> None:
    assert list(build([{"id": "a", "text": text}])) == []


FORMS = {
    "thousands": ("公司本年实现的营业收入总额为12,480元，比上年略有增加。", r"[0-9]{1,3}(,[0-9]{3})+|[0-9]{3}"),
    "ten thousands": ("公司本年实现的营业收入总额为1,250万元，比上年略有增加。", r"([0-9]{1,2},)?[0-9]+万"),
    "per cent": ("公司本年的加权平均净资产收益率为12.5%，比上年略有增加。", r"[0-9]+\.[0-9]%"),
    "wide": ("公司本年的加权平均净资产收益率为１２．５％，比上年略有增加。", r"[０-９]+．[０-９]％"),
    "share": ("持有公司股份百分之十五以上的股东可以请求召开临时股东大会。", r"百分之[一二三四五六七八九十]+"),
    "fraction": ("公司章程的修改应当经股东所持表决权的三分之二以上通过。", r"[二三四五六八十]分之[一二三四五六七八九]"),
    "Chinese": ("债务人应当自收到书面通知之日起三十日内向人民法院提出异议。", r"[一二三四五六七八九十百]+"),
    "dollars": ("客户为这项服务向公司一次性支付的价款总额为$1,200，并取得发票。", r"([0-9]{1,2},)?[0-9]+"),
    "negative": ("公司本年实现的归属于母公司股东的净利润为-350万元，比上年减少。", r"-[0-9]+万"),
}


@pytest.mark.parametrize(("text", "form"), FORMS.values(), ids=FORMS.keys())
def test_every_option_is_written_like_the_answer(text: str, form: str) -> None:
    for seed in range(8):
        (row,) = build([{"id": "a", "text": text}], seed=seed)
        assert all(re.fullmatch(form, option) for option in row["options"]), row["options"]


def test_options_respect_the_other_end_of_a_range() -> None:
    text = "公司违反本条规定的，由主管机关责令改正，并处二十万元以上六十万元以下的罚款。"
    for seed in range(12):
        (row,) = build([{"id": "a", "text": text}], seed=seed)
        values = [float(_value(row, option)) for option in row["options"]]
        below = row["number"]["value"] == "200000"
        assert max(values) < 600_000 if below else min(values) > 200_000


def test_the_unit_stays_outside_the_blank() -> None:
    (row,) = build([{"id": "a", "text": "公司本年实现的营业收入总额为1,250万元，比上年略有增加。"}])
    assert row["question"] == f"公司本年实现的营业收入总额为{BLANK}元，比上年略有增加。"
    assert row["number"] == {"text": "1,250万元", "value": "12500000", "unit": "CNY", "kind": "amount"}


@pytest.mark.parametrize(
    ("name", "value"), [("options", 1), ("options", 6), ("context", -1), ("per_sentence", 0), ("max_per_doc", 0)]
)
def test_wrong_arguments(name: str, value: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        list(build([], **{name: value}))


def test_a_row_without_text_is_refused() -> None:
    with pytest.raises(DataError, match="needs the texts id and text, got the keys id, body"):
        list(build([{"id": "a", "body": "x"}]))


# ------------------------------------------------------------------------------------------ audit


def test_audit_counts(rows: list[Row]) -> None:
    report = audit(rows)
    assert report["n"] == len(rows) == sum(report["by_kind"].values()) == sum(report["by_unit"].values())
    assert sum(report["by_tier"].values()) == 3 * len(rows)
    assert sum(report["by_split"].values()) == len(rows)
    assert report["positions"]["p"] > 0.9
    assert report["chance"] == 0.25
    assert len(report["cheats"]) >= 8
    for cheat in report["cheats"].values():
        low, high = cheat["ci95"]
        assert 0 <= low <= cheat["accuracy"] <= high <= 1


def _rigged(count: int, wrong: Callable[[int], list[str]]) -> list[Row]:
    """Questions whose answer is always A and 40 万 or the like, with wrong options of `wrong`."""
    rng = random.Random(3)
    made = []
    for i in range(count):
        answer = rng.randint(40, 60)
        number = {"text": f"{answer}元", "value": str(answer), "unit": "CNY", "kind": "amount"}
        made.append(
            {
                "id": str(i),
                "question": f"价款为{BLANK}元。",
                "options": [str(answer), *wrong(answer)],
                "answer": "A",
                "context": "",
                "number": number,
                "source_id": "a",
                "distractors": ["perturbed"] * 3,
                "split": "train",
                "tag": "other",
                "relation": None,
            }
        )
    return made


@pytest.mark.parametrize(
    ("cheat", "wrong"),
    [
        ("largest", lambda m: [str(m - 3), str(m - 5), str(m - 7)]),
        ("smallest", lambda m: [str(m + 3), str(m + 5), str(m + 7)]),
        ("shortest", lambda m: [str(m + 100), str(m + 200), str(m + 300)]),
        ("longest", lambda m: ["7", "8", "9"]),
        ("odd one out by form", lambda m: ["1.5", "2.5", "3.5"]),
        ("roundest", lambda m: ["1.234", "2.345", "3.456"]),
    ],
)
def test_audit_finds_a_rigged_set(cheat: str, wrong: Callable[[int], list[str]]) -> None:
    report = audit(_rigged(60, wrong))
    assert report["cheats"][cheat]["accuracy"] == 1.0
    assert report["positions"]["p"] < 1e-6


def test_audit_finds_the_frequent_and_the_near() -> None:
    made = _rigged(60, lambda m: ["70", "20", "90"])
    for i, row in enumerate(made):
        row["options"][0] = row["number"]["value"] = "50"
        row["options"][1:] = [str(100 + i), str(200 + i), str(300 + i)]
        row["context"] = "上年为51元。"
    cheats = audit(made)["cheats"]
    assert cheats["most frequent answer"]["accuracy"] == 1.0
    assert cheats["nearest to a number of the text"]["accuracy"] == 1.0


def test_audit_of_nothing() -> None:
    report = audit([])
    assert report["n"] == 0 and report["cheats"] == {}


@pytest.mark.parametrize(
    ("square", "freedom", "p"),
    [(3.841, 1, 0.05), (5.991, 2, 0.05), (7.815, 3, 0.05), (9.488, 4, 0.05), (16.266, 3, 0.001), (0.0, 3, 1.0)],
)
def test_chi_square_p(square: float, freedom: int, p: float) -> None:
    assert _chi_square_p(square, freedom) == pytest.approx(p, rel=2e-3)


def test_cheats_fail_on_real_textbooks(shared_data: Path) -> None:
    """On more than 5,000 questions no way to guess is further than 4 points from chance."""
    documents = []
    for path in sorted((shared_data / "textbooks").rglob("*.md")):
        name = str(path.relative_to(shared_data))
        documents.append({"id": name, "text": path.read_text("utf-8-sig", errors="replace"), "split": "train"})
    report = audit(build(documents, context=1, per_sentence=4))
    assert report["n"] > 5000 and len(report["cheats"]) >= 16
    far = {name: c["accuracy"] for name, c in report["cheats"].items() if abs(c["accuracy"] - 0.25) > 0.04}
    assert far == {}, far
    assert report["by_tag"]["recall"] > 2000 and report["by_tag"]["derivable"] > 800


def test_the_regression_finds_what_no_single_cheat_does() -> None:
    """The answer is the larger of the two options that resemble each other."""
    rng = random.Random(5)
    made = []
    for i in range(400):
        low, other = rng.randint(21, 49), rng.randint(51, 89)
        pair = [low, low + 1]
        options = [str(max(pair)), str(min(pair)), str(other), str(other + 7)]
        row = _rigged(1, lambda m, options=options: options[1:])[0]
        row["options"], row["number"] = options, {"text": f"{options[0]}元", "value": options[0], "unit": "CNY"}
        row["number"]["kind"], row["id"] = "amount", str(i)
        made.append(row)
    cheats = audit(made)["cheats"]
    assert cheats["logistic regression"]["accuracy"] > 0.9
    singles = [c["accuracy"] for name, c in cheats.items() if name not in ("logistic regression", "middle")]
    assert max(singles) < 0.9
