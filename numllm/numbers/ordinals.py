"""Numerals behind 第: 第3章, 第一百二十三条, 第3-5页."""

from __future__ import annotations

import re

from .number import Number, make
from .numerals import FOLD, chinese_to_int
from .patterns import ARABIC, CN_RUN
from .units import SPACE

__all__ = ["read_ordinal"]

_TO = re.compile(r"\s?[-–—~～至到]\s?[0-9]{1,4}")
_TO_CHINESE = re.compile("[至到][一二三四五六七八九十百]{1,5}(?=[条款项章节编期])")
_PARTS = re.compile(r"(?:\.[0-9]{1,3})+(?=\s?[条款项章节])")  # 第14.1.2条
_WORDS = "章节条款项编部分类种个次期年季步号页回届位名卷阶层轮批方代集题组段句行列点级"
_WORDS += "杯件版讲课篇册辑套家笔张只天周日月排档"
_PAIRS = ("季度", "层次", "部分", "分编", "分册", "单元", "顺位", "梯队", "财季")
_FIRST = (  # names and idioms
    "创业", "财经", "医药", "太平",
    "手资", "手数", "手信", "桶金", "线", "要务", "生产力", "印象", "反应",
)
_NO_WORD = {"部": "门委", "周": "期", "天": "然", "家": "庭", "课": "堂", "套": "期", "日": "元", "单": "元"}


def read_ordinal(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    """第3章, 第一百二十三条, 第一, 第3-5页: the whole from 第 to the word that is counted."""
    begin = i - 1 if text[i - 1] == "第" else i - 2
    if text[i] in "0123456789０１２３４５６７８９":
        match = ARABIC.match(text, i)
        assert match is not None
        j, value = match.end(), match.group().translate(FOLD).replace(",", "")
        if j - i > 12:
            return make(text, i, j, value, "", "identifier", False)
    else:
        run = CN_RUN.match(text, i)
        assert run is not None
        whole = chinese_to_int(run.group())
        if whole is None:
            return None, run.end()
        j, value = run.end(), str(whole)
    if text[i].isdecimal():
        if (tail := _TO.match(text, j)) is not None:
            j = tail.end()
        elif (tail := _PARTS.match(text, j)) is not None:
            j = tail.end()
            value += tail.group()
    elif (tail := _TO_CHINESE.match(text, j)) is not None:
        j = tail.end()
    if text[j : j + 1] in tuple("方者") or text[j - 1 : j + 1] == "三人":  # 第三方, 第三者, 第三人
        return None, j
    if value == "1" and text[i] == "一" and text.startswith(_FIRST, j):
        return None, j
    word = j + 1 if text[j : j + 1] in SPACE and text[j : j + 1] else j
    if text.startswith(_PAIRS, word):
        j = word + 2
    elif text[word : word + 1] and text[word] in _WORDS:
        if text[word + 1 : word + 2] not in tuple(_NO_WORD.get(text[word], "")):
            j = word + 1
    return make(text, max(begin, floor), j, value, "", "ordinal", False)
