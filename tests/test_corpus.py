"""The corpus: readers, normal forms, cutting, splits, duplicates, filters, files written, files read back."""

from __future__ import annotations

import codecs
import hashlib
import json
import random
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numllm.corpus import build_corpus, read_corpus, read_file
from numllm.corpus.blocks import Block
from numllm.corpus.clean import decode, han_count, normalise
from numllm.corpus.counts import count
from numllm.corpus.cut import cut, split_block
from numllm.corpus.filters import reasons_to_drop
from numllm.corpus.inline import inline
from numllm.corpus.markdown import read_markdown
from numllm.corpus.markup import read_tables
from numllm.corpus.readers import read_plain
from numllm.corpus.shelf import held_out
from numllm.errors import DataError, NumLLMError

SENTENCES = (
    "企业应当在资产负债表日对存货进行清查，按照成本与可变现净值孰低计量。",
    "该设备的原价为120万元，预计净残值率为5%，按十年计提折旧。",
    "投资者要求的报酬率由无风险利率和风险补偿两部分构成。",
    "债券的票面利率高于市场利率时，发行价格高于面值。",
    "货币供应量的增长快于产出的增长时，物价水平趋于上升。",
    "租赁期开始日，承租人应当确认使用权资产和租赁负债。",
)


def prose(seed: int, count: int = 6) -> str:
    """A paragraph of real-looking sentences, different for every seed."""
    rng = random.Random(seed)
    return "".join(
        f"{rng.choice(SENTENCES)[:-1]}（第{seed}-{k}号事项，{rng.randint(2, 900)}万元）。" for k in range(count)
    )


def reason_to_drop(text: str) -> str | None:
    return reasons_to_drop([text], count([text]))[0]


def write_shelf(folder: Path, count: int = 12) -> Path:
    """A folder of small books in two sub-folders."""
    for k in range(count):
        path = folder / ("甲" if k % 2 else "乙") / f"book-{k:02d}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# 第{k}册\n\n## 概述\n\n{prose(2 * k)}\n\n## 计量\n\n{prose(2 * k + 1)}\n", "utf-8")
    return folder


def texts(blocks: list[Block]) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in blocks]


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────────

MARKDOWN = [
    ("front-matter", "---\ntitle: 租赁\nms.date: 1\n---\n正文\n", [("heading", "租赁"), ("text", "正文")]),
    (
        "front-matter-and-title",
        "---\ntitle: 租赁\n---\n# 租赁会计\n\n正文\n",
        [("heading", "租赁会计"), ("text", "正文")],
    ),
    ("rule-at-the-top", "---\n正文一\n\n---\n\n正文二\n", [("text", "正文一"), ("text", "正文二")]),
    ("atx", "## 二级 ##\n正文\n", [("heading", "二级"), ("text", "正文")]),
    ("atx-without-space", "##二级\n\n#1 不是标题\n", [("heading", "二级"), ("text", "#1 不是标题")]),
    ("setext", "标题\n====\n\n次级\n----\n正文\n", [("heading", "标题"), ("heading", "次级"), ("text", "正文")]),
    ("atx-underlined", "# 标题\n======\n正文\n", [("heading", "标题"), ("text", "正文")]),
    ("rule-below-a-sentence", "正文到此为止。\n---\n另起一段\n", [("text", "正文到此为止。"), ("text", "另起一段")]),
    ("html-heading", '<h2 class="x">附则</h2>\n正文\n', [("heading", "附则"), ("text", "正文")]),
    ("heading-anchor", '# <a name="set-up"></a>设置 {#set-up}\n', [("heading", "设置")]),
    ("code", "前\n```python\nx = '利率'\n# 注\n```\n后\n", [("text", "前"), ("text", "后")]),
    ("code-tilde-longer", "前\n~~~~\n~~~\ncode\n~~~~\n后\n", [("text", "前"), ("text", "后")]),
    ("code-in-one-line", "运行 ```净现值``` 函数\n", [("text", "运行净现值函数")]),
    (
        "entries-in-a-fence",
        "分录：\n```\n借：库存现金 100\n  贷：主营业务收入 100\n```\n",
        [("text", "分录："), ("text", "借：库存现金 100\n贷：主营业务收入 100")],
    ),
    ("comment", "前<!-- 注 -->后\n\n<!-- 多行\n\n注释 -->\n正文\n", [("text", "前后"), ("text", "正文")]),
    ("comment-unclosed", "前\n\n<!-- 没有结束\n\n后\n", [("text", "前"), ("text", "没有结束"), ("text", "后")]),
    ("comment-in-code", "```\n<!--\n```\n正文\n\n-->\n", [("text", "正文"), ("text", "-->")]),
    ("style", "<style>\nP{color:red}\n</style>\n正文\n", [("text", "正文")]),
    ("style-as-text", ".TRS_Editor P{line-height:1.5;font-family:宋体;}正文\n", [("text", "正文")]),
    (
        "style-escaped", ".TRS\\_Editor P{line-height:1.5;}.TRS\\_Editor TD, .a\\_b\\_c LI{margin:0;}正文\\_下\n",
        [("text", "正文_下")],
    ),
    ("image", '见下图。\n\n![合并](./a.png "标题")\n\n[![徽章](a.svg)](b)\n', [("text", "见下图。")]),
    (
        "link",
        "详见[《租赁准则》](https://a.b/c_(d) '题')和[说明][1]。\n\n[1]: http://x.y\n",
        [("text", "详见《租赁准则》和说明。")],
    ),
    ("autolink", "见<https://a.b>网站\n\nhttps://a.b/c\n", [("text", "见网站")]),
    ("strike", "保留~~删去的话~~的话<del>旧</del><s>旧</s>。\n\n~~整段\n删去~~\n", [("text", "保留的话。")]),
    ("footnote", "利润[^1]增长。\n\n[^1]: 未经审计。\n", [("text", "利润增长。"), ("text", "未经审计。")]),
    ("hard-break", "第一行  \n第二行\\\n第三行\n", [("text", "第一行\n第二行\n第三行")]),
    (
        "wrapped",
        "企业应当以实际收付的现金及现金等价物为基础编制现金流量表，并且将现金\n流量划分为三类\n",
        [("text", "企业应当以实际收付的现金及现金等价物为基础编制现金流量表，并且将现金流量划分为三类")],
    ),
    ("list", "- 甲\n- [ ] 乙\n  续\n* 丙\n", [("list", "- 甲\n- 乙\n续\n- 丙")]),
    ("list-nested", "1. 甲\n   - 乙\n   - 丙\n\n2. 丁\n", [("list", "1. 甲\n  - 乙\n  - 丙\n2. 丁")]),
    ("list-counted", "1. 甲\n1. 乙\n   1. 丙\n   1. 丁\n1. 戊\n", [("list", "1. 甲\n2. 乙\n  1. 丙\n  2. 丁\n3. 戊")]),
    ("list-numbered-by-hand", "2. 甲\n3. 乙\n3. 丙\n", [("list", "2. 甲\n3. 乙\n4. 丙")]),
    ("quote", "> [!NOTE]\n> 注意事项\n> 第二行\n", [("text", "注意事项\n第二行")]),
    ("directive-d365", "[!include [banner](../b.md)]\n正文\n\n[!INCLUDE[f](a.md)]\n", [("text", "正文")]),
    ("toc-links", "- [一](#一)\n    - [二](#二)\n\n正文\n", [("text", "正文")]),
    ("toc-announced", "请参阅：\n\n- [一](a.md)\n- [二](b.md#c)\n\n正文\n", [("text", "正文")]),
    ("toc-mark", "[TOC]\n\n正文\n", [("text", "正文")]),
    ("toc-leaders", "总论 ........ 12\n存货 …………… 34\n\n正文\n", [("text", "正文")]),
    ("outside-links-stay", "- [甲](https://a.b)\n- [乙](https://a.c)\n", [("list", "- 甲\n- 乙")]),
    ("masked", "单位:\\*\\*\\* 姓名:\\*\\*\\*\\*\n\n正文\n", [("text", "正文")]),
    ("container", "::: tip 提示\n正文\n:::\n", [("text", "正文")]),
    (
        "table-in-list",
        "1. 步骤\n\n    |甲|乙|\n    |---|---|\n    |1|2|\n",
        [("list", "1. 步骤"), ("table", "甲 | 乙\n1 | 2")],
    ),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in MARKDOWN], ids=[case[0] for case in MARKDOWN])
def test_markdown(source: str, expected: list[tuple[str, str]]) -> None:
    assert texts(read_markdown(source)) == expected
    assert texts(read_markdown(source.replace("\n", "\r\n"))) == expected


TABLES = [
    ("plain", "| 项目 | 金额 |\n|:--|--:|\n| 存货 | 1,200.50 |\n", "项目 | 金额\n存货 | 1,200.50"),
    ("no-outer-pipes", "项目|金额\n---|---\n存货|5%\n", "项目 | 金额\n存货 | 5%"),
    ("empty-cells", "|项目|借|贷|\n|-|-|-|\n|现金||580|\n|合计|580||\n", "项目 | 借 | 贷\n现金 | | 580\n合计 | 580"),
    ("empty-column", "|甲||乙|\n|-|-|-|\n|1||2|\n", "甲 | 乙\n1 | 2"),
    ("escaped-pipe", "|甲|乙|\n|-|-|\n|a\\|b|`c|d`|\n", "甲 | 乙\na|b | c|d"),
    ("math-pipe", "|甲|乙|\n|-|-|\n|$|x|$|2|\n", "甲 | 乙\n$|x|$ | 2"),
    (
        "html-in-cell",
        "|甲|乙|\n|-|-|\n|<p>一</p><p>二。</p>|<ul><li>三</li><li>四</li></ul>|\n",
        "甲 | 乙\n一；二。 | 三；四",
    ),
    ("markup-in-cell", "|**甲**|[乙](a)|\n|-|-|\n|~~旧~~新|１２％|\n", "甲 | 乙\n新 | 12%"),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES])
def test_pipe_tables(source: str, expected: str) -> None:
    assert texts(read_markdown(source)) == [("table", expected)]


def test_html_tables_in_markdown() -> None:
    word = (
        '前文\n\n<table class="MsoTable" style="mso-cellspacing: 0"><tbody><tr><td rowspan="2" style="W">\n'
        '<p class="MsoNormal"><b><span style="FONT-FAMILY: &quot;微软雅黑&quot;">年度<o:p></o:p></span></b></p></td>'
        "<td colspan=2>金额</td></tr>\n<tr><td>期初</td><td>期末&nbsp;</td></tr><!--[if gte mso 9]><xml/><![endif]-->"
        "<tr><td>2019</td><td>１００</td><td>5％</td></tr></tbody></table>\n\n后文\n"
    )
    assert texts(read_markdown(word)) == [
        ("text", "前文"),
        ("table", "年度 | 金额\n年度 | 期初 | 期末\n2019 | 100 | 5%"),
        ("text", "后文"),
    ]


def test_html_tables_of_every_shape() -> None:
    frame = "<table><tr><td><p>第一段。</p><p>第二段。</p></td></tr></table>"
    assert read_tables(frame) == [(False, "第一段。\n第二段。")]
    nested = "<table><tr><td>外<table><tr><td>1</td><td>2</td></tr></table></td></tr></table>"
    assert read_tables(nested) == [(True, "外\n1 | 2")]
    assert read_tables("<table><tr><td>甲<td>乙<tr><td>1<td>2") == [(True, "甲 | 乙\n1 | 2")]
    assert read_tables("<![if x]>文<table><tr><td colspan=99999999>甲</td><td>乙</td></table>")[0] == (False, "文")
    assert read_tables("<table><tr><td>a &lt; b</td><td><s>旧</s>m<sup>2</sup></td></tr></table>")[0][1].startswith(
        "a < b | m"
    )


MYST = """\
---
jupytext:
  text_representation:
    format_name: myst
---

(top)=
# 求平方根

```{raw} jupyter
<div>标志</div>
```

```{contents} 目录
:depth: 2
```

由{eq}`eq-a`和[](eq-b)，见 {doc}`ar1` 与 {doc}`线性方程 <linear>`，{ref}`top`。

{cite:t}`sargent_velde1995` 指出{math}`x^2`。

```{math}
:label: eq-a
x^2 - 2 x + (1 - \\sigma) = 0
```

$$
y_t = \\lambda y_{t-1}
$$ (eq-b)

```{code-cell} ipython3
:tags: [hide-input]
print('代码单元')
```

````{prf:theorem} 佩龙
:label: thm-1

若矩阵为正，则

```{math}
\\lambda > 0
```
````

```{note}
请注意{prf:ref}`thm-1`。
```

```{exercise-start}
:label: ex-1
```

证明之。

```{exercise-end}
```

```{solution-start} ex-1
:class: dropdown
```

显然。

```{solution-end}
```

% 作者的注释
+++ {"tags": []}

其余[](elsewhere)从略。
+++
"""


def test_myst() -> None:
    assert texts(read_markdown(MYST)) == [
        ("heading", "求平方根"),
        ("text", "由(1)和(2)，见另文与线性方程，“求平方根”。"),
        ("text", "Sargent和Velde (1995) 指出$x^2$。"),
        ("math", "$$\nx^2 - 2 x + (1 - \\sigma) = 0 \\tag{1}\n$$"),
        ("math", "$$\ny_t = \\lambda y_{t-1} \\tag{2}\n$$"),
        ("text", "定理1（佩龙）"),
        ("text", "若矩阵为正，则"),
        ("math", "$$\n\\lambda > 0\n$$"),
        ("text", "请注意定理1。"),
        ("text", "练习1"),
        ("text", "证明之。"),
        ("text", "解答"),
        ("text", "显然。"),
        ("text", "其余从略。"),
    ]


INLINE = [
    ("bold", "转到 **资产租赁 \\> 设置**，选**是**。", "转到资产租赁 > 设置，选是。"),
    ("bold-latin", "the **net** value", "the net value"),
    ("nested", "***甲***和_乙_及__丙__与==丁==", "甲和_乙_及__丙__与丁"),
    ("underscores", "_net_ 和 snake_case_name", "net 和 snake_case_name"),
    ("products-stay", "200*5%*3，2 * 3 * 4，200\\*5%\\*2", "200*5%*3，2 * 3 * 4，200*5%*2"),
    ("number-emphasised", "标记为 *1a*，其 *2*。", "标记为 1a，其 2。"),
    ("math", "若 $a_1*b_1*c$ 则 $x_{2}$ 与 \\(p_i ＝ 1\\)", "若 $a_1*b_1*c$ 则 $x_{2}$ 与 \\(p_i ＝ 1\\)"),
    ("money", "面值$20、股利率６％，共$40 和 $50", "面值$20、股利率6%，共$40 和 $50"),
    ("brackets-escaped", "财会\\[2006\\]3号，\\(Cr\\)", "财会[2006]3号，(Cr)"),
    ("entity", "a &lt; b &amp; c&nbsp;d &copy", "a < b & c d &copy"),
    ("tags", '<span style="a">利</span><b>率</b> <o:p></o:p>x<sup>12</sup>，a<sub>ij</sub>', "利率 x^12，a_(ij)"),
    ("not-tags", "若 a<b 且 c>d，<main account> 与 <参数>", "若 a<b 且 c>d，<main account> 与 <参数>"),
    ("note-mark", "净额<sup>[1]</sup>。", "净额。"),
    ("cited-twice", "Lucas (1978) {cite}`lucas1978asset` 指出", "Lucas (1978) 指出"),
    ("style-open", "见 {a: " + "b c: d " * 40, "见 {a: " + ("b c: d " * 40).strip()),  # once took for ever
    ("code-span", "用 `配方法` 求 `np.sum`", "用配方法求 np.sum"),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in INLINE], ids=[case[0] for case in INLINE])
def test_inline(source: str, expected: str) -> None:
    assert inline(source) == expected


# ── normal forms and encodings ───────────────────────────────────────────────────────────────────────

NORMAL = [
    ("full-width", "２０１９年ＩＦＲＳ增长５．５％，计１，２００，０００元", "2019年IFRS增长5.5%，计1,200,000元"),
    ("punctuation-stays", "（一）甲；乙：丙！", "（一）甲；乙：丙！"),
    ("enumeration-stays", "１，２，３", "1，2，3"),
    ("traditional-stays", "資產負債表與損益表", "資產負債表與損益表"),
    ("invisible", "\ufeff资\u200b产\u00ad负\u202a债\x07表", "资产负债表"),
    ("spaces", "第一条\u3000\u3000本法\xa0适用", "第一条 本法 适用"),
    ("beside-punctuation", "折旧。 租赁 ，（ 一 ）", "折旧。租赁，（一）"),
    ("before-a-quote", "填入字段。 “类别”页，“甲” 、“乙” ）", "填入字段。“类别”页，“甲”、“乙”）"),
    (
        "beside-a-quote-in-prose",
        "第三条 “投资方” 是指按照累计折旧等科目的余额核算的企业，借记 “累计折旧” 科目，选 “ID” 字段。",
        "第三条 “投资方” 是指按照累计折旧等科目的余额核算的企业，借记“累计折旧”科目，选 “ID” 字段。",
    ),
    ("number-and-unit", "共 5 个，5 %，第 12 条，金额的 40% 过帐", "共5个，5%，第12条，金额的40%过帐"),
    ("latin-kept-apart", "使用  Python  计算", "使用 Python 计算"),
    ("spread-out", "会 计 科 目", "会计科目"),
    (
        "page-wrap",
        "对于信用评分在正常以上的贷款申请，甲银行认为借款人有能力按合同规定履行偿还贷款的义 务，因 而批准。",
        "对于信用评分在正常以上的贷款申请，甲银行认为借款人有能力按合同规定履行偿还贷款的义务，因而批准。",
    ),
    ("line-ends", "甲\r\n乙\r丙 \n 丁", "甲\n乙\n丙\n丁"),
    ("radicals", "⾦融", "金融"),
    ("latex-untouched", "设 $x＝１  ＋ y$ 为５％", "设 $x＝１  ＋ y$ 为5%"),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in NORMAL], ids=[case[0] for case in NORMAL])
def test_normalise(source: str, expected: str) -> None:
    assert normalise(source) == expected
    assert normalise(expected) == expected


@given(st.text(alphabet=st.sampled_from("甲乙１２3％%，。. \n\t\u3000{}()ａA*_`<>|#-个“”"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_normalise_is_stable(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert not any(c in once for c in "\t\u3000１２％ａ")


CHINESE = "企业会计准则规定，存货应当按照成本进行初始计量。" * 4


@pytest.mark.parametrize(
    "data",
    [
        CHINESE.encode(),
        codecs.BOM_UTF8 + CHINESE.encode(),
        CHINESE.encode("gb18030"),
        codecs.BOM_UTF16_LE + CHINESE.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + CHINESE.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + CHINESE.encode("utf-32-le"),
        CHINESE.encode("utf-16-le"),
        CHINESE.encode("utf-16-be"),
    ],
    ids=["utf-8", "utf-8-bom", "gb18030", "utf-16-le", "utf-16-be", "utf-32-le", "utf-16-le-bare", "utf-16-be-bare"],
)
def test_decode(data: bytes) -> None:
    assert decode(data) == CHINESE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (codecs.BOM_UTF8, "empty"),
        (b"MZ\x00\x01binary", "binary"),
        (bytes(range(128, 256)) * 8, "neither UTF-8"),
        ("Les états financiers présentés à l'assemblée générale".encode("latin-1") * 4, "neither UTF-8"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8\x00", "not valid at byte"),
    ],
    ids=["empty", "blank", "only-bom", "nul", "noise", "latin-1", "utf-16-broken"],
)
def test_undecodable(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(data)


# ── plain text, HTML pages, structure ────────────────────────────────────────────────────────────────


def test_plain_text(tmp_path: Path) -> None:
    source = (
        "货币银行学\n\n目  录\n第一章 货币 ...... 1\n第二章 信用 ...... 9\n\n第一章 货币\n"
        "　　货币是固定充当一般等价物的商品，它的本质在于价值尺度与流通手段\n的统一。\n　　货币的职能有五种。\n\n"
        "一、价值尺度\n价值尺度是指货币表现商品价值的职能。\n第二章 信用\n信用是以偿还为条件的价值运动。\n"
    )
    path = tmp_path / "money.txt"
    path.write_text(source, "gb18030")
    assert [(b.level, b.text) for b in read_file(path)] == [
        (0, "货币银行学"),
        (1, "第一章 货币"),
        (0, "货币是固定充当一般等价物的商品，它的本质在于价值尺度与流通手段的统一。"),
        (0, "货币的职能有五种。"),
        (2, "一、价值尺度"),
        (0, "价值尺度是指货币表现商品价值的职能。"),
        (1, "第二章 信用"),
        (0, "信用是以偿还为条件的价值运动。"),
    ]


def test_chapter_words_in_prose_are_no_headings() -> None:
    for line in ("第一章的规定适用于本准则", "第三节，见下文", "一、企业应当：", "一、甲，乙", "第二条 本法"):
        assert [b.kind for b in read_plain(line)] == ["text"]


def test_tables_of_contents_and_echoes(tmp_path: Path) -> None:
    path = tmp_path / "law.md"
    path.write_text(
        "# 税法\n\n税 法\n\n## 目录\n\n第一章 总则\n\n第二章 税率\n\n"
        "第一章 总则\n\n第一条 为了征税。\n\n第二章 税率\n\n第二条 税率为3%。\n",
        "utf-8",
    )
    assert [b.render() for b in read_file(path)] == [
        "# 税法",
        "## 第一章 总则",
        "第一条 为了征税。",
        "## 第二章 税率",
        "第二条 税率为3%。",
    ]


PAGE = """<?xml version="1.0" encoding="gb2312"?>
<html><head><title>折旧 | 网站</title><style>p{}</style></head><body>
<nav><a href="/">首页</a></nav><div class="left sidebar">菜单</div>
<main><h1>固定资产<small>折旧</small></h1><p>原价<b>120</b>万元，
残值率&nbsp;5％。</p><ul><li>直线法</li><li><p>工作量法</p><p>续</p><ol><li>甲<li>乙</ol></li></ul>
<table><tr><th>年</th><th>折旧</th></tr><tr><td>1</td><td>22.8</td></tr></table>
<pre>code()</pre><p>面积为m<sup>2</sup><sup>[3]</sup><del>旧</del>。<!-- 注 --></p></main>
<footer>版权所有</footer><script>x()</script></body></html>"""


def test_html_page(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    path = tmp_path / "page.html"
    path.write_text(PAGE, "utf-8")
    assert texts(read_file(path)) == [
        ("heading", "固定资产折旧"),
        ("text", "原价120万元，残值率5%。"),
        ("list", "- 直线法\n- 工作量法\n续\n  1. 甲\n  2. 乙"),
        ("table", "年 | 折旧\n1 | 22.8"),
        ("text", "面积为m^2。"),
    ]


def test_html_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    monkeypatch.setitem(sys.modules, "lxml", None)
    with pytest.raises(DataError, match=r"numllm\[textbooks\]"):
        read_file(tmp_path / "a.html")


# ── cutting ──────────────────────────────────────────────────────────────────────────────────────────


def test_cut_at_sections() -> None:
    blocks = [Block("heading", "书", 1)]
    for chapter in range(3):
        blocks.append(Block("heading", f"第{chapter}章", 2))
        for section in range(3):
            blocks += [Block("heading", f"第{section}节", 3), Block("text", prose(chapter * 3 + section))]
    pieces = cut(blocks, "stem", 700)
    assert all(len(piece.text) <= 700 for piece in pieces)
    assert pieces[0].title == "书 > 第0章"
    assert pieces[0].text.startswith("# 书\n\n## 第0章\n\n### 第0节\n\n")
    assert {piece.title for piece in pieces} >= {"书 > 第1章", "书 > 第2章"}
    joined = "\n\n".join(piece.text for piece in pieces)
    assert joined == "\n\n".join(block.render() for block in blocks)


def test_cut_long_blocks() -> None:
    rows = ["年度 | 金额", *(f"{year} | {year * 7}" for year in range(300))]
    parts = split_block(Block("table", "\n".join(rows)), 400)
    assert all(part.text.startswith("年度 | 金额\n") and len(part.text) <= 400 for part in parts)
    assert [line for part in parts for line in part.text.split("\n")[1:]] == rows[1:]

    text = prose(3, 40)
    parts = split_block(Block("text", text), 300)
    assert "".join(part.text for part in parts) == text
    assert all(len(part.text) <= 300 and part.text.endswith("。") for part in parts)

    endless = "无标点" * 500
    assert "".join(piece.text for piece in cut([Block("text", endless)], "x", 200)) == endless.replace("\n", "")
    formula = Block("math", "$$\n" + "x+" * 400 + "y\n$$")
    assert split_block(formula, 200) == [formula]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 900)), min_size=1, max_size=15), st.integers(100, 700))
@settings(max_examples=120, deadline=None)
def test_cut_loses_nothing(shape: list[tuple[int, int]], target: int) -> None:
    blocks = [
        Block("heading", f"题{k}", level) if level else Block("text", f"{k}，" + "计量。" * (size // 3))
        for k, (level, size) in enumerate(shape)
    ]
    pieces = cut(blocks, "x", target)
    lines = [line for piece in pieces for line in piece.text.split("\n\n")]
    body = "".join(line for line in lines if not line.startswith("#"))
    assert body == "".join(block.text for block in blocks if block.kind == "text")
    headings = [line for line in lines if line.startswith("#")]
    assert headings == [b.render() for b in blocks if b.kind == "heading" and b.render() in set(headings)]
    assert all(len(piece.text) <= target + 30 for piece in pieces)  # headings that stay with their text


# ── building ─────────────────────────────────────────────────────────────────────────────────────────


def test_rows(tmp_path: Path) -> None:
    shelf = write_shelf(tmp_path / "shelf")
    (shelf / ".hidden.md").write_text(prose(90), "utf-8")
    (shelf / ".git").mkdir()
    (shelf / ".git" / "a.md").write_text(prose(91), "utf-8")
    (shelf / "图.png").write_bytes(b"\x89PNG")
    (shelf / "LICENSE").write_text("x", "utf-8")
    stats = build_corpus([shelf], tmp_path / "out", holdout=0.3)
    rows = list(read_corpus(tmp_path / "out"))
    keys = ("id", "text", "source", "title", "split", "sha256", "chapter", "section")
    assert [tuple(row) for row in rows] == [keys] * len(rows)
    assert [row["source"] for row in rows] == sorted(row["source"] for row in rows)
    assert {row["source"] for row in rows} == {p.relative_to(shelf).as_posix() for p in shelf.glob("[甲乙]/*.md")}
    assert all(hashlib.sha256(row["text"].encode()).hexdigest() == row["sha256"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert rows[0]["title"] == "第0册"
    assert list(read_corpus(tmp_path / "out" / "corpus.jsonl")) == rows

    assert stats["files"] == stats["files_read"] == 12
    assert stats["skipped"] == {"no suffix": 1, "unsupported suffix .png": 1}
    assert stats["documents"] == len(rows)
    assert stats["characters"] == sum(len(row["text"]) for row in rows)
    assert stats["chinese_characters"] == sum(han_count(row["text"]) for row in rows)
    assert sorted(stats["sources"]) == ["乙", "甲"]
    assert sum(group["documents"] for group in stats["sources"].values()) == len(rows)
    assert stats["seconds"] >= 0
    written = json.loads((tmp_path / "out" / "stats.json").read_text("utf-8"))
    assert written == {key: value for key, value in stats.items() if key != "seconds"}
    assert written["corpus_sha256"] == hashlib.sha256((tmp_path / "out" / "corpus.jsonl").read_bytes()).hexdigest()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["corpus.jsonl", "dropped.jsonl", "stats.json"]


def test_same_bytes_whatever_the_jobs(tmp_path: Path) -> None:
    shelf = write_shelf(tmp_path / "shelf")
    for name, jobs in (("one", 1), ("two", 2)):
        build_corpus([shelf], tmp_path / name, holdout=0.3, jobs=jobs)
    for file in ("corpus.jsonl", "stats.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_split_is_whole_files_and_stays(tmp_path: Path) -> None:
    shelf = write_shelf(tmp_path / "shelf", 40)

    def splits(name: str, seed: int = 0) -> dict[str, str]:
        stats = build_corpus([shelf], tmp_path / name, holdout=0.25, seed=seed)
        assert stats["split_by"] == "file"
        found: dict[str, str] = {}
        for row in read_corpus(tmp_path / name):
            assert found.setdefault(row["source"], row["split"]) == row["split"]
        return found

    before = splits("a")
    assert 3 <= sum(split == "heldout" for split in before.values()) <= 20
    assert splits("seed", seed=1) != before
    for k in range(40, 50):
        (shelf / f"new-{k}.md").write_text(f"# 新{k}\n\n{prose(1000 + k)}", "utf-8")
    after = splits("b")
    assert {name: after[name] for name in before} == before


def test_one_file_is_split_by_document(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    path.write_text("# 书\n" + "".join(f"\n## 第{k}章\n\n{prose(k, 12)}\n" for k in range(60)), "utf-8")
    stats = build_corpus([path], tmp_path / "out", holdout=0.2)
    assert stats["split_by"] == "document"
    assert stats["splits"]["train"]["documents"] > stats["splits"]["heldout"]["documents"] > 3
    assert {row["source"] for row in read_corpus(tmp_path / "out")} == {"book.md"}


def test_held_out_share() -> None:
    share = sum(held_out(7, f"book-{k}.md", 0.05) for k in range(4000)) / 4000
    assert 0.035 < share < 0.065
    assert not held_out(7, "a", 0.0)


def test_duplicates(tmp_path: Path) -> None:
    def with_split(split: bool, start: int) -> str:
        return next(f"{k}.md" for k in range(start, 10_000) if held_out(0, f"{k}.md", 0.3) == split)

    train, other = with_split(False, 0), with_split(False, 500)
    held = with_split(True, 0)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name in (train, other, held):
        (shelf / name).write_text(prose(1), "utf-8")
    (shelf / with_split(True, 900)).write_text(prose(2), "utf-8")
    stats = build_corpus([shelf], tmp_path / "out", holdout=0.3)
    rows = list(read_corpus(tmp_path / "out"))
    assert len(rows) == 2
    kept = next(row for row in rows if row["split"] == "train")
    assert stats["dropped"]["duplicate"]["count"] == 1
    assert stats["dropped"]["duplicate"]["examples"][0]["kept"] == kept["id"]
    leaked = stats["dropped"]["held-out duplicate of train"]
    assert leaked["count"] == 1
    assert (leaked["examples"][0]["source"], leaked["examples"][0]["kept"]) == (held, kept["id"])


def test_filters(tmp_path: Path) -> None:
    assert reason_to_drop(prose(1)) is None
    assert reason_to_drop("# 很长的标题" * 20 + "\n\n正文太短。") == "too short"
    assert reason_to_drop("The quick brown fox jumps over the lazy dog. " * 5 + "中文") == "too little Chinese"
    assert reason_to_drop("锟斤拷锟斤拷" + prose(2)) == "garbled"
    assert reason_to_drop(prose(2) + "\ufffd" * 9) == "garbled"
    assert reason_to_drop("æ\x9c\x89é\x99\x90å\x85¬å\x8f¸" * 20) == "garbled"
    shelf = write_shelf(tmp_path / "shelf", 4)
    for k in range(8):
        (shelf / f"en-{k}.txt").write_text(f"Number {k}: " + "nothing Chinese in this text at all. " * 4, "utf-8")
    (shelf / "short.txt").write_text("本规定自发布之日起施行。", "utf-8")
    stats = build_corpus([shelf], tmp_path / "out")
    assert stats["dropped"]["too little Chinese"]["count"] == 8
    assert len(stats["dropped"]["too little Chinese"]["examples"]) == 5
    assert stats["dropped"]["too short"]["examples"][0]["source"] == "short.txt"


def test_repeated_footers_go(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    footer = "* * *\n\n     更多内容请关注： [论坛](https://a.b) 微信公众号:MY.\n"
    for k in range(6):
        middle = "本页同样的一句话也可以出现在正文之中，它不在边上。"
        body = "\n\n".join(prose(10 * k + j) for j in range(8))
        (shelf / f"{k}.md").write_text(f"# 题{k}\n\n{body[:700]}\n\n{middle}\n\n{body}\n\n{footer}", "utf-8")
    stats = build_corpus([shelf], tmp_path / "out")
    whole = "\n".join(row["text"] for row in read_corpus(tmp_path / "out"))
    assert "更多内容" not in whole
    assert whole.count("它不在边上") == 6
    assert stats["repeated_edges"] == {
        "count": 6,
        "examples": [{"text": "更多内容请关注：论坛 微信公众号:MY.", "files": 6}],
    }


def test_copies_are_no_footers(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for k in range(4):
        (shelf / f"{k}.md").write_text(f"# 题\n\n{SENTENCES[0]}\n\n{SENTENCES[1]}\n", "utf-8")
    stats = build_corpus([shelf], tmp_path / "out", holdout=0.0)
    assert (stats["documents"], stats["dropped"]["duplicate"]["count"]) == (1, 3)


def test_one_bad_file_never_stops_the_shelf(tmp_path: Path) -> None:
    shelf = write_shelf(tmp_path / "shelf", 4)
    (shelf / "binary.md").write_bytes(b"\x00\x01\x02")
    (shelf / "empty.txt").write_bytes(b"")
    (shelf / "code.md").write_text("```python\nx = 1\n```\n", "utf-8")
    (shelf / "noise.txt").write_bytes(bytes(range(128, 256)) * 9)
    stats = build_corpus([shelf], tmp_path / "out", jobs=2)
    assert {f["source"]: f["reason"].split(" (")[0] for f in stats["failed"]} == {
        "binary.md": "binary file",
        "code.md": "no text in it",
        "empty.txt": "the file is empty",
        "noise.txt": "neither UTF-8",
    }
    assert (stats["files"], stats["files_read"]) == (8, 4)


def test_nothing_to_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no such file or folder"):
        build_corpus([tmp_path / "missing"], out)
    with pytest.raises(DataError, match="no source given"):
        build_corpus([], out)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    with pytest.raises(DataError, match="found none") as raised:
        build_corpus([tmp_path / "a"], out)
    assert "\n" not in str(raised.value)
    (tmp_path / "a" / "x.md").write_bytes(b"\x00")
    (tmp_path / "a" / "y.md").write_bytes(b"")
    with pytest.raises(DataError, match="none of 2 files could be read; the first, x.md: binary"):
        build_corpus([tmp_path / "a"], out)
    (tmp_path / "a" / "z.md").write_text("Only English here.", "utf-8")
    with pytest.raises(DataError, match="no document is left after cleaning"):
        build_corpus([tmp_path / "a"], out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = write_shelf(tmp_path / "shelf", 4)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(NumLLMError, match="holds the current folder"):
        build_corpus([shelf], ".")
    build_corpus([shelf], "in-it")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "shelf"]
    assert [p.name for p in Path().iterdir()] == ["in-it"]


def test_existing_output(tmp_path: Path) -> None:
    shelf = write_shelf(tmp_path / "shelf", 4)
    build_corpus([shelf], tmp_path / "out")
    with pytest.raises(NumLLMError, match="not empty"):
        build_corpus([shelf], tmp_path / "out")
    build_corpus([shelf], tmp_path / "out", seed=3, overwrite=True)
    assert json.loads((tmp_path / "out" / "stats.json").read_text("utf-8"))["settings"]["seed"] == 3


@pytest.mark.parametrize("wrong", [{"holdout": 1.0}, {"holdout": -0.1}, {"jobs": 0}, {"target_chars": 5}])
def test_wrong_arguments(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build_corpus([tmp_path], tmp_path / "out", **wrong)  # type: ignore[arg-type]


def test_several_sources(tmp_path: Path) -> None:
    one, two = write_shelf(tmp_path / "one", 2), tmp_path / "two"
    (two / "乙").mkdir(parents=True)
    (two / "乙" / "book-00.md").write_text(prose(77), "utf-8")
    build_corpus([one, two, one / "乙" / "book-00.md"], tmp_path / "out")
    assert {row["source"] for row in read_corpus(tmp_path / "out")} == {
        "乙/book-00.md",
        "甲/book-01.md",
        "two/乙/book-00.md",
    }


def test_progress_is_told(tmp_path: Path) -> None:
    told = []

    def progress(iterable, total=None, description="", unit="it"):  # noqa: ANN001, ANN202
        told.append((description, total, unit))
        return iterable

    build_corpus([write_shelf(tmp_path / "shelf", 4)], tmp_path / "out", progress=progress)
    assert told == [
        ("reading", 4, "file"), ("cutting", 4, "file"), ("comparing", None, "duplicate"), ("writing", 4, "file")
    ]


# ── reading back ─────────────────────────────────────────────────────────────────────────────────────

ROW = {"id": "a-0", "text": "正文", "source": "a.md", "title": "甲", "split": "train", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, {k: v for k, v in ROW.items() if k != "title"}], "line 2: the key 'title' is missing"),
        ([ROW | {"text": 3}], "line 1: 'text' must be a string, got int"),
        ([ROW | {"text": " "}], "line 1: 'text' is empty"),
        ([ROW | {"id": ""}], "line 1: 'id' is empty"),
        ([ROW | {"split": "test"}], "line 1: 'split' must be"),
        ([ROW, ROW], "line 2: the 'id' 'a-0' stands on an earlier line"),
        ([], "holds no document"),
    ],
    ids=["missing", "type", "blank", "no-id", "split", "twice", "none"],
)
def test_read_corpus_refuses(tmp_path: Path, rows: list[dict], message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(DataError, match=message):
        list(read_corpus(tmp_path))


def test_read_corpus_keeps_further_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(ROW | {"page": 3}) + "\n\n", "utf-8")
    assert list(read_corpus(path)) == [ROW | {"page": 3}]
    with pytest.raises(DataError, match="cannot be read"):
        list(read_corpus(tmp_path / "absent.jsonl"))


# ── any input, real input ────────────────────────────────────────────────────────────────────────────

ATOMS = (
    "[ ] ( ) ![ ]( * ** _ ` `` ```\n $ $$ \\( \\[ \\begin{a} <table> <td> </td> <del> <!-- --> ~~ {a}` { } | |-|\n "
    ":::{note}\n :::\n ```{note}\n -\t \n > # 一、 第一章 1.\t ---\n 字 ， 。 9 &amp; <![ <sup> [a] == \0 \ufffd"
).split(" ")


@given(st.lists(st.sampled_from(ATOMS), max_size=120))
@settings(max_examples=200, deadline=None)
def test_any_markup_is_read(parts: list[str]) -> None:
    text = "".join(parts)
    for reader in (read_markdown, read_plain):
        for piece in cut(reader(text), "x", 100):
            assert piece.text.strip()
    read_tables(text)


@pytest.mark.parametrize(
    "atom", ["[", "![](", "*", "`", "$$", "\\begin{a}", "<!--", "<del>", ":::{note}\n", "|-|\n", "> "]
)
def test_no_text_takes_quadratic_time(atom: str) -> None:
    text = atom * (60_000 // len(atom))
    start = time.perf_counter()
    cut(read_markdown(text), "x", 2000)
    assert time.perf_counter() - start < 10  # quadratic readers take minutes


def test_real_textbooks(shared_data: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    for folder in (
        "cas-standards",
        "d365-finance-zh",
        "quantecon-intro-zh",
        "laws-just-laws",
        "mgmt-science-economics",
    ):
        for path in sorted((shared_data / "textbooks" / folder).rglob("*.md"))[::12]:
            copy = shelf / folder / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.with_name(f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    stats = build_corpus([shelf], tmp_path / "out")
    rows = list(read_corpus(tmp_path / "out"))
    assert stats["documents"] == len(rows) > 200
    whole = "\n".join(row["text"] for row in rows)
    for residue in (
        "code-cell",
        "```",
        "](",
        "<td",
        "<span",
        "&nbsp;",
        "[!NOTE]",
        "[!include",
        "jupytext:",
        "**",
        "更多内容请关注",
    ):
        assert residue not in whole, residue
    assert whole.count("$$") % 2 == 0
    assert " | " in whole
    assert stats["chinese_characters"] > 0.5 * stats["characters"]
    assert max(len(row["text"]) for row in rows) <= 2100
