"""numllm.numbers: forms in reports, notes, notices and speech, class by class, each with its trap."""

from __future__ import annotations

import pytest

from numllm.numbers import Number, find_numbers

# a text, then each of its numbers as text|value|unit|kind|+ or - for variable[|low|high]
CLASSES: dict[str, list[tuple[str, ...]]] = {
    "a lone Chinese digit before points": [
        ("上调三个百分点。", "三个百分点|0.03|1|rate|+"),
        ("毛利率掉了五个点。", "五个点|0.05|1|rate|+"),
        ("两个点之间的连线。",),
    ],
    "pages and chapters that are counted": [
        ("合同共捌页。", "捌页|8|页|count|+"),
        ("全书共五章，第四章论商誉。", "五章|5|章|count|+", "第四章|4||ordinal|-"),
    ],
    "coins of speech": [
        ("菜价每斤涨了五毛。", "五毛|0.5|CNY/斤|price|+"),
        ("豆油每斤两块八。", "两块八|2.8|CNY/斤|price|+"),
        ("午饭花了12块，水卖三块五。", "12块|12|CNY|amount|+", "三块五|3.5|CNY|amount|+"),
        ("三角债久拖不决。",),
        ("手机12块屏的订单。", "12块|12|块|count|+"),
    ],
    "full-width groups": [
        ("货币资金１　２３４　５６７元。", "１　２３４　５６７元|1234567|CNY|amount|+"),
        ("余额为１２　０００．５０元。", "１２　０００．５０元|12000.5|CNY|amount|+"),
    ],
    "a magnitude behind 多 or 余": [
        ("发行4.5万多亿元。", "4.5万多亿元|4500000000000|CNY|amount|+"),
        ("投资3万余元。", "3万余元|30000|CNY|amount|+"),
    ],
    "two digits before 百 or 千": [
        ("礼金两三百。", "两三百|200||other|+|200|300"),
        ("二三线城市。",),
    ],
    "numerals of sayings": [
        ("三百六十行，行行出状元。",),
        ("三十而立的他。",),
        ("二十四节气之首。",),
    ],
    "units of volume and weight": [
        ("搭载1.5L排量发动机。", "1.5L|1.5|L|count|+"),
        ("载重8t的货车。", "8t|8|t|count|+"),
    ],
    "what a price is for": [
        ("均价1.2万美元，每克拉1.3万美元。", "1.2万美元|12000|USD|amount|+", "1.3万美元|13000|USD/克拉|price|+"),
        ("矿价103.5美元/干吨。", "103.5美元/干吨|103.5|USD/干吨|price|+"),
        ("气价3.2元/立方。", "3.2元/立方|3.2|CNY/立方|price|+"),
    ],
}


def _written(number: Number) -> str:
    sign = "+" if number.variable else "-"
    fields = [number.text, number.value, number.unit, number.kind, sign, number.low, number.high]
    return "|".join(field for field in fields if field is not None)


@pytest.mark.parametrize("name", CLASSES)
def test_every_case_of_the_class(name: str) -> None:
    for text, *numbers in CLASSES[name]:
        assert [_written(number) for number in find_numbers(text)] == numbers, text
