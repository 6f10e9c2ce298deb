"""numllm.numbers: a value written in any of the forms, alone or in a row, is read back exactly; spans never overlap."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from numllm.numbers import find_numbers, int_to_chinese, may_vary, variables

Reading = tuple[str, Fraction, str]
"""What is written, what it is worth in its base unit, and that unit."""

WIDE = str.maketrans("0123456789.,", "０１２３４５６７８９．，")
FORMAL = str.maketrans("一二三四五六七八九十百千", "壹贰叁肆伍陆柒捌玖拾佰仟")
CHINESE = str.maketrans("0123456789", "零一二三四五六七八九")


def _decimal(digits: int, places: int) -> tuple[str, Fraction]:
    value = Fraction(digits, 10**places)
    whole = str(digits).zfill(places + 1)
    return (f"{whole[:-places]}.{whole[-places:]}" if places else whole), value


def _spaced(m: int) -> str:
    return f"{m:,}".replace(",", " ")


def _formal(m: int) -> str:
    text = int_to_chinese(m).translate(FORMAL)
    return f"壹{text}" if text.startswith("拾") else text


def _decimals(unit: str, name: str, worth: Fraction) -> Callable[[int, int], Reading]:
    def write(m: int, places: int) -> Reading:
        text, value = _decimal(m, places)
        return f"{text}{unit}", value * worth, name

    return write


def _whole(write: Callable[[int], str], name: str, worth: Fraction | int = 1) -> Callable[[int, int], Reading]:
    return lambda m, places: (write(m), Fraction(m) * worth, name)


def _cents(m: int, places: int) -> Reading:
    jiao, fen = 1 + m % 9, 1 + m // 9 % 9
    text = f"{_formal(m)}元{_formal(jiao)}角{_formal(fen)}分"
    return text, Fraction(100 * m + 10 * jiao + fen, 100), "CNY"


def _thousandths(m: int, places: int) -> Reading:
    whole, rest = divmod(m, 1000)
    text = f"百分之{int_to_chinese(whole % 100)}点{f'{rest:03d}'.translate(CHINESE)}"
    return text, (whole % 100 + Fraction(rest, 1000)) / 100, "1"


def _scientific(m: int, places: int) -> Reading:
    return f"{m}e{places + 1}元", Fraction(m * 10 ** (places + 1)), "CNY"


def _part(m: int, places: int) -> Reading:
    top, bottom = 1 + m % 8, 9 + places
    return f"{int_to_chinese(bottom)}分之{int_to_chinese(top)}", Fraction(top, bottom), "1"


def _slash(m: int, places: int) -> Reading:
    return f"{m}/{m + places + 1}", Fraction(m, m + places + 1), "1"


FORMS: dict[str, Callable[[int, int], Reading]] = {
    "1,234.5元": lambda m, p: (f"{m:,}.5元", m + Fraction(1, 2), "CNY"),
    "full width": lambda m, p: (f"{m:,}.5元".translate(WIDE), m + Fraction(1, 2), "CNY"),
    "1 234元": _whole(lambda m: f"{_spaced(m)}元", "CNY"),
    "1.2e5": _scientific,
    "−3": _whole(lambda m: f"−{m:,}元", "CNY", -1),
    "负3": _whole(lambda m: f"负{m}元", "CNY", -1),
    "5%": _decimals("%", "1", Fraction(1, 100)),
    "full-width %": _decimals("％", "1", Fraction(1, 100)),
    "5‰": _decimals("‰", "1", Fraction(1, 1000)),
    "5个百分点": _decimals("个百分点", "1", Fraction(1, 100)),
    "25bp": _decimals("bp", "1", Fraction(1, 10_000)),
    "25个基点": _decimals("个基点", "1", Fraction(1, 10_000)),
    "百分之五": lambda m, p: (f"百分之{int_to_chinese(m % 10_000)}", Fraction(m % 10_000, 100), "1"),
    "千分之五": lambda m, p: (f"千分之{int_to_chinese(m % 10_000)}", Fraction(m % 10_000, 1000), "1"),
    "万分之五": lambda m, p: (f"万分之{int_to_chinese(m % 10_000)}", Fraction(m % 10_000, 10_000), "1"),
    "百分之三点五": _thousandths,
    "三成": lambda m, p: (f"{'一二三四五六七八九'[m % 9]}成", Fraction(1 + m % 9, 10), "1"),
    "三成五": lambda m, p: (f"{'二三四五六七八九'[m % 8]}成五", Fraction(25 + 10 * (m % 8), 100), "1"),
    "五折": lambda m, p: (f"{'二三四五六七八九'[m % 8]}折", Fraction(2 + m % 8, 10), "1"),
    "8.5折": lambda m, p: (f"{1 + m % 9}.5折", Fraction(15 + 10 * (m % 9), 100), "1"),
    "3.5亿元": _decimals("亿元", "CNY", Fraction(10**8)),
    "三千万元": _whole(lambda m: f"{int_to_chinese(m)}元", "CNY"),
    "1万2千": lambda m, p: (f"{m % 999 + 1}万{m % 9 + 1}千元", Fraction((m % 999 + 1) * 10 + m % 9 + 1) * 1000, "CNY"),
    "两百五": lambda m, p: (f"{'两三四五六七八九'[m % 8]}百{'一二三四五六七八九'[m % 9]}十元",
                         Fraction(200 + 100 * (m % 8) + 10 * (1 + m % 9)), "CNY"),
    "formal": _whole(lambda m: f"{_formal(m)}元整", "CNY"),
    "角分": _cents,
    "三分之一": _part,
    "1/3": _slash,
    "1:2": lambda m, p: (f"{m}∶{2 ** (1 + p)}", Fraction(m, 2 ** (1 + p)), "1"),
    "¥": _whole(lambda m: f"¥{m:,}", "CNY"),
    "US$": _whole(lambda m: f"US${m:,}", "USD"),
    "HK$": _whole(lambda m: f"HK${m:,}", "HKD"),
    "€": _whole(lambda m: f"€{m:,}", "EUR"),
    "港元": _decimals("港元", "HKD", Fraction(1)),
    "万美元": _decimals("万美元", "USD", Fraction(10_000)),
    "元/股": _decimals("元/股", "CNY/股", Fraction(1)),
    "元/吨": _decimals("元/吨", "CNY/吨", Fraction(1)),
    "万元/平方米": _decimals("万元/平方米", "CNY/平方米", Fraction(10_000)),
    "years": _decimals("年", "year", Fraction(1)),
    "quarters": _whole(lambda m: f"{m}个季度", "quarter"),
    "months": _whole(lambda m: f"{int_to_chinese(m)}个月", "month"),
    "days": _whole(lambda m: f"{m}天", "day"),
    "hours": _decimals("小时", "hour", Fraction(1)),
    "and a half": lambda m, p: (f"{'两三四五六七八九'[m % 8]}年半", 2 + m % 8 + Fraction(1, 2), "year"),
    "shares": _decimals("万股", "股", Fraction(10_000)),
    "times": _decimals("倍", "1", Fraction(1)),
    "points": lambda m, p: (f"{m:,}.25点", m + Fraction(1, 4), "点"),
    "LaTeX %": _decimals("$\\%$", "1", Fraction(1, 100)),
    "LaTeX $": lambda m, p: (f"$\\${m:,}$".replace(",", "{,}"), Fraction(m), "USD"),
    "½": lambda m, p: (f"{m % 999}{'½¼¾⅛'[p % 4]}年", m % 999 + (Fraction(1, 2), Fraction(1, 4), Fraction(3, 4),
                                                          Fraction(1, 8))[p % 4], "year"),
    "full-width code": lambda m, p: (f"ＵＳＤ{m}万元".translate(WIDE), Fraction(m * 10_000), "USD"),
    "角分 alone": lambda m, p: (
        f"{_formal(1 + m % 9)}角{_formal(1 + p)}分", Fraction(10 * (1 + m % 9) + 1 + p, 100), "CNY"
    ),
    "元 in brackets": _whole(lambda m: f"{m:,}（元）", "CNY"),
}
RANGED = [("年", "year", 1), ("个月", "month", 1), ("%", "1", Fraction(1, 100)), ("万元", "CNY", 10**4)]
MODIFIERS = ("", "约", "近", "逾", "不超过", "至少", "共", "为")
_VALUES = st.integers(2, 99_999_999)
_SHORT = {"1/3", "years"}  # four digits before 年 are a date, 1998/2001 are two


def _write(name: str, m: int, places: int) -> Reading:
    if name in _SHORT and places == 0:
        m = m % 999 + 1
    return FORMS[name](m, places)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=40, deadline=None)
@given(m=_VALUES, places=st.integers(0, 4), modifier=st.sampled_from(MODIFIERS))
def test_every_form_is_read_back(name: str, m: int, places: int, modifier: str) -> None:
    text, value, unit = _write(name, m, places)
    found = find_numbers(f"本年的金额{modifier}{text}。")
    assert [(Fraction(n.value), n.unit, n.variable) for n in found] == [(value, unit, True)], text
    assert found[0].text == text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(FORMS)), _VALUES, st.integers(0, 4)), min_size=2, max_size=8))
def test_forms_in_a_row_are_read_back_and_never_overlap(drawn: list[tuple[str, int, int]]) -> None:
    written = [_write(*one) for one in drawn]
    text = "；其中有".join(one for one, _, _ in written)
    found = find_numbers(f"合计为{text}。")
    assert [(Fraction(n.value), n.unit) for n in found] == [(value, unit) for _, value, unit in written]
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))


@settings(max_examples=60, deadline=None)
@given(
    low=st.integers(1, 999), more=st.integers(1, 999), dash=st.sampled_from(["至", "到", "-", "～", "—", "~", "–"]),
    unit=st.sampled_from(RANGED),
    twice=st.booleans(),
)
@example(low=7, more=8, dash="至", unit=("年", "year", 1), twice=False)
@example(low=5, more=3, dash="～", unit=("%", "1", Fraction(1, 100)), twice=True)
def test_ranges_are_read_back(
    low: int, more: int, dash: str, unit: tuple[str, str, Fraction | int], twice: bool
) -> None:
    word, name, worth = unit
    text = f"{low}{word if twice else ''}{dash}{low + more}{word}"
    (number,) = find_numbers(f"幅度为{text}。")
    assert number.low is not None and number.high is not None
    assert (number.text, Fraction(number.low), Fraction(number.high), number.unit) == (
        text, low * worth, (low + more) * worth, name
    )


@settings(max_examples=60, deadline=None)
@given(
    digit=st.integers(3, 8), size=st.sampled_from(["", "十", "百", "千"]), unit=st.sampled_from(["元", "万元", "户"])
)
def test_two_digits_side_by_side_are_a_range(digit: int, size: str, unit: str) -> None:
    pair = f"{int_to_chinese(digit)}{int_to_chinese(digit + 1)}{size}{unit}"
    worth = {"": 1, "十": 10, "百": 100, "千": 1000}[size] * (10_000 if unit[0] == "万" else 1)
    (number,) = find_numbers(f"约有{pair}。")
    assert (number.text, number.value, number.low) == (pair, str(digit * worth), str(digit * worth))
    assert (number.high, number.variable) == (str((digit + 1) * worth), True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(11, 999), min_size=2, max_size=5), st.integers(1, 9))
def test_numbers_between_slashes_share_the_last_ones_unit(values: list[int], tenth: int) -> None:
    found = find_numbers(f"净利润分别为{'/'.join(f'{value}.{tenth}' for value in values)}亿元。")
    assert [Fraction(n.value) for n in found] == [(value + Fraction(tenth, 10)) * 10**8 for value in values]
    assert {n.unit for n in found} == {"CNY"}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**9), st.integers(0, 99))
def test_an_accountants_negative(m: int, cents: int) -> None:
    (number,) = find_numbers(f"| ({m:,}.{cents:02d}) |")
    assert Fraction(number.value) == -Fraction(100 * m + cents, 100)


def test_ten_megabytes_of_digits_in_one_line_do_not_hang() -> None:
    begin = time.process_time()
    (number,) = find_numbers("5" * 10_000_000)
    assert time.process_time() - begin < 10
    assert (number.kind, number.variable) == ("identifier", False)


PIECES = "一 十 第 （ ） 1 23 456 , ， . % 元 年 月 日 万 亿 至 - 分之 点 半 成 折 每 / 股 $ \\ { } 负 ( ) :"
PIECES += " 块 毛 平 个点 x PE 、 和 又 10.1016/a 08/27 科目 两万八一 １　２３４"
PIECES += " 壹 拾 角 2024 × 几 余 个 ½ · 七八 \\[ 2024.3 起 ＵＳＤ"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from(PIECES.split())), max_size=24).map("".join))
def test_any_unicode_string_gives_spans_that_do_not_overlap(text: str) -> None:
    last = 0
    for number in find_numbers(text):
        assert last <= number.start < number.end <= len(text) and text[number.start : number.end] == number.text
        last = number.end


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PIECES.split(), *"第" * 30]), max_size=8).map("".join))
def test_a_text_that_may_not_vary_has_no_variable(text: str) -> None:
    assert may_vary(text) or not variables(find_numbers(text))


@pytest.mark.parametrize("text", ["", "一般规定", "第三十条之规定", "第3章、第二章"])
def test_what_stands_behind_an_ordinal_mark_may_not_vary(text: str) -> None:
    assert not may_vary(text)
    assert may_vary(f"{text}，期限为三年")
