"""What a question asks of its reader: to recall a rule, to work the number out, or neither.

`derivable`: the number stands in a written equation that holds, or follows from the other numbers (`relations`).
`recall`: a sentence of a general rule, without a story's persons, years and amounts. `given`: neither, and chosen by
the writer for an example, a story or a manual. `other`: all else, facts of the text; of amounts, limits of cases that
are told (100万元以上) and the world's large ones of a year.

Rules and stories share many words: 若银行没有缴足准备金 supposes a rule's case, 若物价涨6% a story's. A sentence that
has only such words is a story where it says what becomes of a figure (降到, 约 …), or nothing that is settled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from ..numbers import Number
from .relations import Target

__all__ = [
    "ANSWERABLE", "BLANK", "KINDS", "LETTERS", "TAGS", "is_given", "is_manual", "is_rule", "is_statute", "target_of",
]

BLANK = "____"
"""What stands in a question for the number that is asked."""

LETTERS = "ABCDE"
"""The names of its options."""

ANSWERABLE = ("recall", "derivable", "other")
"""What a reader can know or work out, and facts of the text."""

TAGS = (*ANSWERABLE, "given")

KINDS = ("amount", "rate", "price", "count", "duration", "index")
"""Kinds of numbers that can be asked."""

_ARTICLE = re.compile(r"(?m)^[\s*#]*第[一二三四五六七八九十百零〇0-9]{1,7}条")
_ARTICLES, _ARTICLE_LENGTH = 5, 600  # a statute has so many articles, of so many characters on average at most

# a program's manual tells what to do with its pages, and its figures are examples
_HANDLING = (
    "单击", "点击", "键入", "勾选", "启用", "选项卡", "字段", "窗格", "下拉", "对话框", "复选框", "菜单", "按钮",
    "页面", "过帐", "日记帐",
)
_HANDLINGS, _HANDLING_LENGTH = 3, 400  # such words in one, and characters to each of them, at most

# words of a norm or a custom; what is prescribed in so many words; weaker words that a story uses as well
_NORM = re.compile(
    r"应当|不得|不许|必须|规定|一般(?!公司|企业|贷款|存款|债权|风险)|通常|习惯上|惯例|惯用|称为|称作|是指|视[为同]|至少|至多|不(?:低于|高于|少于|多于|超过|晚于|迟于)|"
    r"最[低高长短多少]|[上下]限|限额|时限|门槛|封顶|起步|法定|监管|允许|有权|征收率|免征|减按|我国|法律|条例|准则|办法|交易所|"
    r"法则|原则上|常见|常用|多半|起码|只能|适用|定为|个人所得税"
)
_PRESCRIBED = re.compile(
    r"应当|不得|必须|不(?:低于|高于|少于|多于|超过|晚于|迟于|足)|规定|法定|处以?[^，。；]{0,24}(?:以[上下]|罚[款金])|有期徒刑|拘役|"
    r"最[低高长短多少]|之日起|以[上下内]的?|日内|经[^，。；]{0,24}(?:通过|同意)"
)
_WEAK_NORM = re.compile(
    r"税率|费率|标准(?![价工用差成])|期限|扣除|计提|以[上下内]|满|每[年季月周日天]|面值|国际|协议|归为|提取|充足率|准备金率|公积|"
    r"增值税|所得税|印花税|契税|关税|营业税|房产税|消费税|巴塞尔|存款保险|涨跌幅|起征点|有效期|任期|时效"
)
# what marks a story or a calculation: its persons and firms, what is supposed, asked, worked out
_STORY = re.compile(
    r"[甲乙丙丁戊己庚辛壬癸](?![类级种])|某|[A-Z]\s?(?:公司|企业|银行|股票|债券|基金|产品|项目|方案|国)|"
    r"该(?:银行|厂|设备|产品|笔|批|组合|期权|居民|户)|这(?:批|台|只)|本(?:例|题|案|单位)|上(?:例|题)|我(?:司|公司|单位)|"
    r"今年|去年|两人|小[王李张刘陈赵周吴林杨黄孙马何]|老[张王李赵]|先生|女士|夫[妇妻]|假[设定使]|(?:^|[，。；：])设(?![备定立计施有置])|"
    r"(?<![比条惯])例(?![外会])|"
    r"比如|譬如|又如|再如|设想|解[：:]|题中|[=＝≈×÷]|默认|字段|选项|键入|[此该](?:例|方案|示例)"
)
_STATUTE_STORY = re.compile(
    r"某|[甲乙丙丁](?:[方公企银]|为)|例如|比如|假[如设]|(?:^|[。；：])例[：:0-9一二三]|[=＝≈×÷？?]|小[王李张]"
)
# what stories and rules both say: their persons and times, what is supposed, concluded, asked
_EITHER = re.compile(
    r"(?<![每各应])该(?:公司|企业|项目|债券|股票|基金|客户|投资者|合约|员工)|这(?:家|笔|名|位|个|张|份|种情|一年|样|里)|"
    r"本(?:月|期|年|季)|上(?:年|月|期|述)|[当次](?:年|月(?!平均))|(?<![其])[他她]|假如|答[：:]|？|\?|净[赚亏]|"
    r"(?<![请要需谋寻追])求(?=[^权])|如果|若(?!干|无相反)|(?<![建开增敷])设(?=[^备定立计施有得一])|(?<![准原规细法总附])则|因此|于是|可见|"
    r"问(?=[^题])|(?<![最至])[多少][付还缴提]"
)
# what becomes of a figure in the case at hand
_CASE = re.compile(
    r"容差|[A-Za-z]{4,}|约(?=[0-9一二三四五六七八九十])|(?<!可以)[降升涨跌改变增减提压落延](?:高|低|长|成)?[到至为成](?!止)|(?<!怎样)变成|"
    r"余下|剩|损失(?![率责])|亏(?!损)|赚|[上下][涨跌](?!超)|涨(?!跌)|跌[去幅]|反而|若能|拟|只[算取][0-9一二三四五六七八九十]|这里|这家|"
    r"有一[个家项]|以下(?:方法|公式)|(?:若|如果|假如)[^，。]{1,16}[为是]\s?(?=[0-9一二三四五六七八九十])"
)
# what sets an amount; what tells that it was worked out nevertheless; what sets other numbers, besides the norms
_LIMIT = re.compile(
    r"[最至][多少高低小]|[0-9%元日天年月倍]以[内上下]|免征|减免|每|能否|有没有|封顶|起征|限额|答案|定额"
)
_FOLLOWS = re.compile("因此|于是|可见")
_SETTLED = re.compile(
    r"[按须]|可以|属于|算作|叫|公式|系数|总是|一律|不[宜能]|难以|界线|安全线|触发|从[价量]|答|记[住得]|税|[越超]过|为限"
)
# what a story says of its figures, and a rule seldom: it tells against a rule that is not prescribed in so many words
_TOLD = re.compile(
    r"本公司|[年月期]末|[年月期]初|当期|其余|剩|改为|变为|比[^例率重值较价]|节约|提高|下降|下调|上调|上升|增加|减少|涨(?!跌)|跌(?!幅)|"
    r"亏(?!损)|盈(?!余)|另有|还有|其中|合计|共[^同有]|所得为|当日"
)
# a limit of amounts, before and behind the number; what else sets one; what points at something told before
_UP_TO = re.compile(
    r"(?:[超高低]过?于?|不[满足]|未?达到?|至[少多]|最[高低多少]|限额为?|征[点额]为?|突破|折合)(?:人民币)?$"
)
_OR_MORE = re.compile(r"(?:/.)?\s?(?:（含[^）]*）)?以[上下内]")
_SET = re.compile(r"额度|底线|要有|等值|自[^，。；]{2,12}[起后]")
_POINTED = re.compile(r"(?:[这那]|其他|接下来的?|剩下的?|额外的?|上述)$")
_SCENE = re.compile(r"情景|情形\s?[0-9A-Z]")
_PENAL = re.compile(r"罚[款金]|处以?[^，。；]{0,24}以[上下]|没收|注册资本|实缴")
_WORKED = re.compile(r"例\s?[0-9]|解[：:]|[=≈？]|[某甲乙丙丁]")
_MEASURED = frozenset(("amount", "rate", "price", "count", "duration", "index", "other"))
_MOST_OTHERS = 5  # numbers besides the asked one that a rule may hold, in a statute twice as many
_MOST_DIGITS = 3  # significant digits that they may have


def is_statute(text: str) -> bool:
    """Whether a document is a law or a regulation: articles (第…条), one after the other."""
    least = max(_ARTICLES, len(text) / _ARTICLE_LENGTH)
    return text.count("条") >= least and sum(1 for _ in _ARTICLE.finditer(text)) >= least


def is_manual(text: str) -> bool:
    """Whether a document tells how to use a program."""
    words = sum(map(text.count, _HANDLING))
    return words >= _HANDLINGS and len(text) <= _HANDLING_LENGTH * words


def is_rule(
    sentence: str, before: str, number: Number, digits: int, others: Sequence[Number], statute: bool = False,
    example: bool = False,
) -> bool:
    """Whether a sentence states a general rule, so that its number is known rather than found.

    before: the sentence before it; digits: significant digits of the number, few in a rule; statute: whether the
    document is one (`is_statute`), where a sentence is a rule unless it tells a story; example: whether the sentence
    is part of a worked example, where one that could tell of the case at hand does.
    """
    if len(others) > _MOST_OTHERS * (1 + statute) or not _are_round(number, digits, others):
        return False
    if statute:
        return _STATUTE_STORY.search(sentence) is None
    if _STORY.search(sentence) is not None or _is_case(sentence, number, others):
        return False
    if example and _EITHER.search(sentence) is not None:
        return False
    if _TOLD.search(sentence) is not None:
        return _PRESCRIBED.search(sentence) is not None and _WORKED.search(before) is None
    if _NORM.search(sentence) is not None:
        return True
    few = sum(n.variable for n in others) <= 1 and _WORKED.search(before) is None
    if number.kind in ("amount", "price"):
        return few and _PENAL.search(sentence) is not None
    return few and _WEAK_NORM.search(sentence) is not None


def is_given(sentence: str, number: Number, digits: int, others: Sequence[Number], example: bool) -> bool:
    """Whether a number of a sentence that is neither derived nor a rule's is one that its writer chose: of a worked
    example, of a story's persons and firms, supposed, an illustration, an amount in a ledger. No reader could tell it.

    example: whether the sentence is part of a worked example, or of a manual.
    """
    if example or _STORY.search(sentence) is not None or _SCENE.search(sentence) is not None:
        return True
    before, _, behind = sentence.partition(number.text)
    if _POINTED.search(before) is not None:
        return True
    if number.kind in ("amount", "price") and not (any(n.variable for n in others) or _is_limit(before, behind)):
        if all(cue.search(sentence) is None for cue in (_NORM, _PRESCRIBED, _WEAK_NORM, _LIMIT, _SET)):
            return "亿" not in number.text or all(n.kind != "date" for n in others)
    if _EITHER.search(sentence) is None:
        return False
    return not _are_round(number, digits, others) or _is_case(sentence, number, others)


def _is_limit(before: str, behind: str) -> bool:
    """Whether what stands before a number and behind it makes it the limit of a case."""
    return _UP_TO.search(before) is not None or _OR_MORE.match(behind) is not None


def _are_round(number: Number, digits: int, others: Sequence[Number]) -> bool:
    """Whether a number of so many significant digits, and those beside it, are such as rules have."""
    return digits <= (2 if number.kind == "amount" else 4) and all(
        len(n.value.replace(".", "").strip("0")) <= _MOST_DIGITS for n in others if n.kind in _MEASURED
    )


def _is_case(sentence: str, number: Number, others: Sequence[Number]) -> bool:
    """Whether a sentence without a story's own words tells of a case: it is dated; or it speaks as stories and rules
    both do, and of what becomes of its figures, or of nothing that is settled."""
    if any(n.kind == "date" for n in others):
        return True
    if _EITHER.search(sentence) is None:
        return False
    if _CASE.search(sentence) is not None:
        return True
    if any(n.kind in ("amount", "price") for n in (number, *others)):
        return _LIMIT.search(sentence) is None or _FOLLOWS.search(sentence) is not None
    return all(cue.search(sentence) is None for cue in (_NORM, _PRESCRIBED, _WEAK_NORM, _SETTLED))


def target_of(number: Number, m: int, scale: int, units: int) -> Target:
    """The target of a number written as the whole number `m`, each worth `scale` / `units` of the base unit."""
    step = Fraction(scale, units)
    value = m * step if not number.value.startswith("-") else -m * step
    return Target(value, step, number.unit, number.kind, m)
