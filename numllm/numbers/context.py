"""What a numeral is, decided by what stands around it: labels, cues, brackets, indices, addresses."""

from __future__ import annotations

import re
from fractions import Fraction

from .core import MANY, Core
from .measures import Measure
from .number import Number, make
from .numerals import FOLD, exact_decimal
from .patterns import DOTTED, INDEX_CUE, MARK_BEFORE, MOVED, WORD_TAIL
from .units import SPACE, UNITS, VAGUE

__all__ = [
    "counted_label",
    "cue_before",
    "day_at",
    "label_at",
    "month_at",
    "price_before",
    "with_ordinal_words",
    "with_unit",
]

_PER_BEFORE = re.compile(
    r"每(1|一)?(股|件|斤|吨|桶|度|平米|平(?![均方])|台|份|张|套|辆|平方米|公斤|千克|克拉|克|盎司|蒲式耳|磅|小时|工时|单位|箱|只|头|羽|盒|袋|公里|杯|升|瓶|亩|单(?![位价])|枚|枝|笔|点|手|户|千瓦时|立方米|标箱|米|本|根|间|颗|片|栋|加仑|立方)(?:每[年月日天季])?[^，。；、,;：:0-9每\n]{0,10}\Z"
)
_PER_SHARE = re.compile("(?<![A-Za-z])(?:EPS|DPS|BVPS|BPS)[^，。；、,;：:0-9\n]{0,8}\\Z")
_LABEL = re.compile(
    r"(?:(?<![比条惯])例题?|定理|引理|命题|推论|公式|附件|附录|附注|步骤|习题|案例|阶段|情形|方案|版本|"
    r"(?:(?<![\u4e00-\u9fff0-9])|(?<=[见如附下上本该此在和与及或由按据用照看从对将把的页]))(?:图|表|式|行|题|页|版|章|节|卷)|章节|"
    r"No\.|NO\.|Table|Figure|Fig\.|Eq\.|Section|Chapter|Step|第)\s{0,1}[（(]?\Z"
)
_IDENTIFIER_CUE = re.compile(
    r"(?:电话|传真|帐号|账号|卡号|账户|帐户|编号|编码|代码|号码|邮编|ISBN|ISSN|DOI|doi|arXiv|证号|文号|科目|ID|单号|信箱|QQ|版本|KB|凭证|"
    r"批号|序号|端口|尾号|[后末][四4]位|主科目|拨打|致电|热线|分机|验证码|(?:[0-9]{3}|传真|电话)转)[\s:：为是（(“\"*-]{0,4}(?:[A-Z]{1,6}-|临)?\Z"
)
_CUE = re.compile(  # the last cue decides: 边际消费倾向 is a rate
    r".*(?:(?P<rate>(?<!汇)率|系数|倍数|因子|(?:现值|获利|盈利)指数|比例|比重|占比|倾向|弹性|乘数|权重|概率|贝塔|β|标准差|(?<!协)方差|(?<![同环相对])比(?=[约分]?[为是达：:=＝]|\Z))|(?P<price>单价|价格|股价|市价|行权价|收盘价|报价)|"
    r"(?P<index>(?<!现值)(?<![获盈]利)指数|点位|[撑力]位|大盘|PMI|VIX|[CP]PI)|(?P<amount>金额|成本|收入|利润|余额|价值|费用|价款|资产|负债|现金|利息|税额|税款|资本|支出|借：|贷：|存款|"
    r"账款|收益|损失|产值|GDP|总额|净额|投资|消费|股利|薪酬|准备|折旧|摊销|扣除数))[^，。；、,;0-9\n]{0,5}\Z"
)
# a word of _CUE ends in one of these, at most five characters before the numeral
_CUE_ENDS = frozenset("率数子例重比向性弹β塔差价格位盘额本入润值用款债金息出：益失P资费利酬备旧销产")
_ASIDE = re.compile(  # 系数（8%，5年）为
    r"(?<=[\u4e00-\u9fff])[（(][^（()）]{1,20}[)）](?=(?:[约分]?[为是]|等于|达|[:：=＝])\s?\Z)"
)
_LABEL_ENDS = "例题理论图表式行件录注骤案页段形本版章节卷号.eenrp第"
_IDENTIFIER_ENDS = '话真号户码编NIiDv临目箱Q本B证口线机转位打电:：为是“"*-'
_INDEX_NAME = re.compile(  # 沪深300
    "(?:沪深|中证|上证|深证|国证|北证|科创|创业板|标普|纳斯达克|日经|富时|罗素|恒生)\\Z"
)
_NUMBERED_THING = re.compile(r"[\u4e00-\u9fff]号[:：\s]{0,2}\Z")
_SECTION_TITLE = re.compile("[.．][ \u3000]?[A-Za-z\u4e00-\u9fff★]")  # 1.2. 国民收入
_GROUPS = re.compile("(?: [0-9]{4}){2,5}(?: [0-9]{1,3})?(?![0-9])")  # 6228 4800 1234 5678 901
_PART = re.compile("-[0-9]{1,4}(?![0-9])(?:/[A-Z][0-9]{0,3}(?![A-Za-z0-9]))?")  # ISO 14064-1, CN 11-1081/F
_SOFTWARE = re.compile(  # Python 3.11
    "(?:Python|Windows|Office|Excel|Word|Java|Android|iOS|HarmonyOS|Linux|Ubuntu|Stata|SPSS|Matlab|MATLAB|EViews|Oracle|MySQL"
    "|HTTP|TLS|SAP|GPT|ChatGPT|Basel|Web|Wi-Fi|USB) ?\\Z"
)
_HYPHENATED = re.compile("[A-Za-z]{2,}-\\Z")  # GPT-3.5
_ACRONYM = re.compile(r"(?<![A-Za-z])[A-Z]{2,6} \Z")
_LINE_START = re.compile(r"(?:^|\n)[\s>#*|\-【\[\ufeff]{0,8}\Z")
_DAYS_AFTER = re.compile(
    r"(?:以?之?内|以?前|以?后|以上|以下|之前|之后|的?期限|届满|的?时间|期满|为限"
    r"|[（(]不?含|年化|均线|移动平均|滚动|通知存款|逆回购|理财|的?[犹冷宽等免观]|无理由|线(?![上下]))"
)
_DAYS_BEFORE = re.compile(
    r"(?:(?<![日学假周本上每])期[为是共]?|起满?|连续|持续|累计|"
    r"[满过逾达近约隔首]|(?<![之目日])前|[大小少多低高短长]于|至少|不足|提前|延长|顺延|宽限|展期|缩短|免赔|最长|"
    r"为期|期限为|[算按]|每隔)\Z"
)
# 7日（含）至30日
_FROM_DAYS = re.compile(r"(?:\A|[^月0-9])[0-9]{1,3}日[（(]不?含[^（()）]{0,3}[)）]\s?[至到\-–—~～]\s?\Z")
_MONTH_BEFORE = re.compile(r"(?:月|每月|次月|月的?)\Z")
_NAMED = re.compile("(?:方[式法案]|情[景形况]|实验|假设|命题|定理|推论|引理|性质|任务|示例|类型|注)\\s?\\Z")


def with_unit(text: str, core: Core, measure: Measure) -> tuple[Number, int]:
    """The Number of a numeral that has a unit word."""
    unit, start, end = measure.unit, core.start, measure.end
    kind, name, variable = unit.kind, unit.name, True
    value = core.value(unit.shift)
    if measure.add is not None:
        whole = Fraction(value)
        value = exact_decimal(whole - measure.add if core.negative else whole + measure.add)
    if name == "year" and text[start - 2 : start] == "民国":
        return make(text, start, end, str(1911 + int(core.digits)), "", "date", False)
    if name == "起" and (dated := month_at(text, start, core.end, text[max(0, start - 14) : start])) is not None:
        return dated
    if name == "起" and (core.scaled or _COUNTED_CASES.match(text, end) is None):  # 总价100万起 counts no cases
        return make(text, start, core.end, value, "", "other", core.scaled or core.exponent < 0)
    if unit.grade == 0:
        counted = counted_label(text, start, end)
        return make(text, start, end, value, text[end - 1] if counted else "", "count" if counted else kind, counted)
    if kind == "rate" and unit.shift == -1 and text[end - 1] == "折" and core.style == "a":
        # 85折 is 0.85, 8.5折 and 8折 are 0.85 and 0.8
        if core.exponent == 0 and len(core.digits) == 2 and core.digits != "10":
            value = core.value(-2)
    elif unit.shift == -2 and text.endswith("个点", start, end) and _PIPS.search(text, max(0, start - 12), start):
        kind, name, value = "index", "点", core.value()
    elif kind == "amount":
        kind, name = price_before(text, start, name)
        if unit.name == "CNY" and (currency := core.currency or _currency_word(text, start)):
            name = name.replace("CNY", currency)
    elif name == "点":
        quoted = _PIPS.search(text, max(0, start - 12), start) or INDEX_CUE.search(text, max(0, start - 16), start)
        if quoted or MOVED.search(text, max(0, start - 3), start) or (
            len(core.digits) >= 3 or (core.style == "a" and core.exponent < 0)
        ):
            kind = "index"
        else:
            variable = False
            kind = "other"
    elif core.lone and unit.grade < 3:
        variable = unit.grade >= 2 or name not in VAGUE or text[core.end] in MANY  # 两家, 十来个, but 三个方面
    return make(text, start, end, value, name, kind, variable)


_COUNTED_CASES = re.compile("[\u4e00-\u9fff]{0,8}(?:案|事|诉|并购|投|交易|违|件|纠纷|重组|收购|融资|罚|其中|，其|。)")
_COUNTABLE = "章节页款集回卷级度"
_COUNT_CUE = re.compile(
    "(?:共有?|合?计|分[为成]|约|逾|超过?|达|仅|推出|上线|发布|涵盖|代销|在售|新增|多达|至少|不[少多]于|全[书文套]有?|电量?)\\Z"
)
_COUNT_NOUN = re.compile("款(?:产品|理财|基金|保险|车型|新品|新车|手机|游戏|软件|App|APP)")
_CURRENCY_WORD = re.compile("(?:港币|美金|新?台币)\\Z")
_MONTH = re.compile(r"((?:19|20)[0-9]{2})\.(0?[1-9]|1[0-2])")
_MONTH_FROM = re.compile(
    r"(?:[自从]|截[至止]|(?<![升降增减涨跌收大小高低等])[至到于]|(?:日期|时间)[:：为是]?"
    r"|(?:19|20)[0-9]{2}\.[0-9]{1,2}\s?[-–—~～])\s?\Z"
)
_MONTH_TO = re.compile(r"\s?(?:起|止|以?[前后]|[-–—~～至到]\s?(?:(?:19|20)[0-9]{2}\.[0-9]{1,2}(?![0-9])|今))")
# points of a quotation, not per cent
_PIPS = re.compile("(?:点差|[沪深股恒纳道标]指|指数|大盘|汇[率价])[^，。；0-9]{0,7}\\Z")
_BOOKED = re.compile("[借贷]记?[^，。；\n]{1,22}科目\\Z")  # 借记“本年利润”科目35 600


def counted_label(text: str, start: int, end: int) -> bool:
    """Whether the chapters, pages … that text[start:end] names are so many of them: 共12章, 3款产品."""
    if text[end - 1] not in _COUNTABLE:
        return False
    cue = _COUNT_CUE.search(text, max(0, start - 6), start) or _COUNT_NOUN.match(text, end - 1)
    return cue is not None


def _currency_word(text: str, start: int) -> str:
    """The currency that a word directly before an amount in 元 names: 港币100元; "" where there is none."""
    word = _CURRENCY_WORD.search(text, max(0, start - 4), start) if text[start - 1 : start] in ("币", "金") else None
    return UNITS[word.group().strip()].name if word is not None else ""


def price_before(text: str, start: int, currency: str) -> tuple[str, str]:
    """(kind, unit) of money that begins at start: a price where 每股, 每吨 … stands shortly before."""
    begin = max(0, start - 20)
    per = _PER_BEFORE.search(text, begin, start) if text.find("每", begin, start) >= 0 else None
    if per is None and text.find("PS", begin, start) >= 0 and _PER_SHARE.search(text, begin, start) is not None:
        return "price", f"{currency}/股"
    return ("price", f"{currency}/{per.group(2)}") if per is not None else ("amount", currency)


def month_at(text: str, start: int, end: int, left: str) -> tuple[Number, int] | None:
    """`自2024.3起`: a month of a year where the words beside it say that it is a date."""
    month = _MONTH.fullmatch(text, start, end)
    if month is None or (_MONTH_FROM.search(left) is None and _MONTH_TO.match(text, end) is None):
        return None
    return make(text, start, end, f"{month.group(1)}-{month.group(2):0>2}", "", "date", False)


def with_ordinal_words(text: str, start: int, end: int) -> tuple[int, int]:
    """The span of a mark in brackets, with what makes it an ordinal: 第（二）项."""
    ordinal = text[start - 1 : start] == "第" and text[end : end + 1] in tuple("项款类条种点目列行步题组式")
    return (start - 1, end + 1) if ordinal else (start, end)


def cue_before(text: str, start: int) -> str | None:
    """The kind that a word shortly before start gives to a numeral without unit (利率, 单价, 余额), or None."""
    left = text[max(0, start - 40) : start].rstrip(" \t*|$\u00a0\u3000")
    if ")" in left or "）" in left:
        left = _ASIDE.sub("", left)
    left = left[-14:]
    if _CUE_ENDS.isdisjoint(left[-6:]) or left[-1].isdigit() or left.endswith(("除以", "乘以", "乘", "加上", "减去")):
        return None
    match = _CUE.match(left)
    return match.lastgroup if match is not None else None


def label_at(text: str, core: Core, left: str, raw: str, digits: bool) -> tuple[Number, int] | None:
    """List marks (`1.`), labels (表2-1), section numbers, account numbers: numerals that only name something."""
    start, j = core.start, core.end
    n = text[j : j + 1]
    if digits and len(raw) <= 3 and n and n in ".、．)）]】\\" and (MARK_BEFORE.search(left) or _spaced_mark(left, n)):
        return make(text, start, j, core.value(), "", "ordinal", False)
    if digits and len(raw) <= 2 and n and n in "：:、" and _NAMED.search(left) is not None:
        return make(text, start, j, core.value(), "", "ordinal", False)
    word = left.rstrip(" （(")[-1:]
    if word and word in _LABEL_ENDS and len(raw) <= 6 and _LABEL.search(left) is not None:
        tail = DOTTED.match(text, j)
        end = tail.end() if tail is not None else j
        return make(text, start, end, text[start:end].translate(FOLD), "", "ordinal", False)
    if len(raw) <= 5 and not core.negative and n and (not left or left[-1] in "\n \t>#*|-【[") and "," not in raw:
        if _LINE_START.search(left) is not None:
            if n in "-–—" and digits and (tail := DOTTED.match(text, j)) is not None:
                span = text[start : tail.end()].translate(FOLD)
                return make(text, start, tail.end(), span, "", "ordinal", False)
            title = "\u4e00" <= n <= "\u9fff" or (n == " " and text[j + 1 : j + 2].isalpha())
            if "." in raw and (title or (n in ".．" and _SECTION_TITLE.match(text, j) is not None)):
                return make(text, start, j, core.value(), "", "ordinal", False)
    booked = word == "目" and _BOOKED.search(text, max(0, start - 28), start) is not None
    counted = len(raw) <= 3 and n and n in "个家户张项笔"  # 冻结账户5个
    if word and word in _IDENTIFIER_ENDS and not (booked or counted) and _IDENTIFIER_CUE.search(left) is not None:
        tail = _GROUPS.match(text, j) or DOTTED.match(text, j) or WORD_TAIL.match(text, j)
        end = tail.end() if tail is not None else j
        return make(text, start, end, text[start:end].translate(FOLD), "", "identifier", False)
    if digits and 2 <= len(raw) <= 4 and not (n.isascii() and n.isalpha()):
        if _INDEX_NAME.search(left) is not None or text.startswith("合约", j):
            return make(text, start, j, core.value(), "", "identifier", False)
    last = left[-1:]
    if last == " " and "0" <= left[-2:-1] <= "z":
        if digits and "A" <= left[-2:-1] <= "Z" and _ACRONYM.search(left) is not None:
            end = j if (part := _PART.match(text, j)) is None else part.end()
            return make(text, start, end, text[start:end].translate(FOLD), "", "identifier", False)
        if _SOFTWARE.search(left) is not None:
            return make(text, start, j, raw.translate(FOLD), "", "identifier", False)
    elif last == "-" and "." in raw and _HYPHENATED.search(left) is not None:
        return make(text, start, j, raw.translate(FOLD), "", "identifier", False)
    if (digits or len(raw) > 9) and len(raw) > 3 and _NUMBERED_THING.search(left) is not None:
        tail = DOTTED.match(text, j) or WORD_TAIL.match(text, j)
        end = tail.end() if tail is not None else j
        return make(text, start, end, text[start:end].translate(FOLD), "", "identifier", False)
    return None


def _spaced_mark(left: str, n: str) -> bool:
    """Whether a numeral before the bracket `n` is a list mark behind a space, with no bracket open: `元 2）本期`."""
    return n in ")）" and left[-1:] in ("\u3000", " ") and max(map(left.rfind, "（(")) <= max(map(left.rfind, "）)"))


def day_at(text: str, core: Core, begin: int | None = None) -> tuple[Number, int]:
    """`30日内` is a duration, `5日` a day of the month; `begin` is where a range starts that core ends."""
    j = core.end + (1 if text[core.end : core.end + 1] in SPACE else 0) + 1
    begin = core.start if begin is None else begin
    left = text[max(0, begin - 6) : begin]
    value = core.value()
    if _MONTH_BEFORE.search(left) is None and (
        len(core.digits) > 2
        or int(core.digits) > 31
        or _DAYS_AFTER.match(text, j) is not None
        or (_DAYS_BEFORE.search(left) is not None and (value != "1" or left[-1:] != "前"))  # 前一日
        or (left[-2:-1] in tuple(")）") and _FROM_DAYS.search(text, max(0, begin - 16), begin) is not None)
    ):
        return make(text, core.start, j, value, "day", "duration", True)
    return make(text, core.start, j, value, "", "date", False)


