"""Numbers in Chinese financial text: where they stand, what they are worth, and whether they mean something.

`find_numbers` walks once over a text. A compiled regular expression finds the next character that can begin a
number; small anchored readers then read the number (`_core`), its unit (`_unit`) and, where both fail to decide,
its surroundings. Every reader looks only a bounded distance ahead and back (digits apart, which are read once),
so the time is linear in the length of the text. All arithmetic is exact: digits are shifted as strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

__all__ = ["Number", "chinese_to_int", "decimal_string", "find_numbers", "int_to_chinese"]


@dataclass(frozen=True, slots=True)
class Number:
    """One number as it stands in a text; `text == source[start:end]`.

    A range (`7至15年`) is one Number whose `low` and `high` are its ends and whose `value` is its low end.
    """

    text: str
    """The characters of the number: currency sign, minus, digits, magnitude and unit."""
    start: int
    """Offset of the first character."""
    end: int
    """Offset behind the last character."""
    value: str
    """Exact decimal in the base unit (`3.5亿元` is "350000000", `5%` is "0.05"), or "p/q" in lowest terms where
    no finite decimal exists (`三分之一` is "1/3"). Dates are ISO 8601 as far as given ("2024-03", a masked year
    keeps its mask as X: "20X4"), times "14:30", ratios of three "5:3:2", identifiers their own characters."""
    unit: str
    """ISO code for money ("CNY"), "CNY/股" for a price, "1" for rates, "year" "quarter" "month" "week" "day"
    "workday" "tradingday" "hour" "minute" "second" for durations, the classifier for counts, "" for none."""
    kind: str
    """amount, rate, price, count, duration, index, date, time, ordinal, identifier, formula or other."""
    variable: bool
    """True for a quantity with a meaning of its own, False for dates, headings, citations, labels and so on."""
    low: str | None = None
    """Lower end of a range, as `value`."""
    high: str | None = None
    """Upper end of a range, as `value`."""


# ---------------------------------------------------------------------------------------------- units

_CURRENCIES = {
    "CNY": "元 块钱 人民币 元人民币 圆 圆人民币 人民币元 RMB CNY",
    "USD": "美元 美金 USD",
    "HKD": "港元 港币 元港币 HKD",
    "EUR": "欧元 EUR",
    "JPY": "日元 JPY",
    "GBP": "英镑 GBP",
    "AUD": "澳元 澳大利亚元 AUD",
    "CAD": "加元 加拿大元 CAD",
    "CHF": "瑞士法郎 CHF",
    "SGD": "新加坡元 新元 SGD",
    "TWD": "新台币 台币 TWD",
    "MOP": "澳门元 澳门币 MOP",
    "KRW": "韩元 KRW",
    "INR": "卢比 INR",
    "RUB": "卢布 RUB",
    "THB": "泰铢 THB",
}
_DURATIONS = {
    "year": "年 周年 个年度 个会计年度 个完整会计年度 个纳税年度 个自然年 年期",
    "quarter": "个季度 个会计季度",
    "month": "个月 个自然月 个月期",
    "week": "周 个周 个星期 星期 个礼拜",
    "day": "天 天期 个自然日 日历天 自然日",
    "workday": "个工作日 工作日",
    "tradingday": "个交易日 交易日",
    "hour": "小时 个小时 个钟头 课时",
    "minute": "分钟",
    "second": "秒 秒钟",
}
# rates: power of ten that takes the written number to a fraction
_RATES = {
    -1: "成 折",
    -2: "% ％ 个百分点 百分点 pct",
    -3: "‰ 个千分点",
    -4: "‱ 个基点 基点 bp bps BP BPs BPS 个bp 个BP",
    0: "倍",
}
_MEASURED = (
    "吨 公吨 万吨 公斤 千克 克 公里 千米 米 厘米 毫米 平方米 立方米 平方公里 亩 公顷 升 桶 盎司 千瓦时 千瓦 兆瓦 "
    "千伏安 蒲式耳 磅 英亩 英里 海里 人次 人月 工时 机器工时 人工工时 台时 kg km ha kWh"
)
_CONCRETE = "股 件 台 人 名 户 岁 辆 头 艘 架 栋 幢 手 份 张 公斤"
_ABSTRACT = (
    "个 项 种 类 次 家 位 组 批 期 笔 套 部 座 本 册 支 枚 间 步 轮 分 条 点 片 根 块 粒 箱 袋 瓶 盒 单位 只 篇 道 "
    "亿次 颗 副 幅 宗 场 门 层 天次 口 例 年级"
)
_NUMBERED = "号 章 节 级 页 楼 版 届 卷 世纪 代 年代 款 集 回 阶 号楼 号线 ℃ 度 次方 象限 元组"
# a unit word is none when one of these characters follows it
_NOT_BEFORE = {
    "元": "素件旦首老器宵勋月",
    "成": "立为本员交果功长就分熟品套都绩份人型家因员效年",
    "折": "旧算现合价叠返扣让腰线射",
    "倍": "数增感率",
    "年": "级代报鉴",
    "天": "然气津生地猫使平",
    "周": "期转边岁围一二三四五六年日末知",
    "度": "量假过",
    "人": "民员均力工口",
    "名": "义称单录",
    "家": "庭具",
    "件": "下",
    "台": "湾账阶",
    "手": "续机段",
    "张": "某",
    "部": "分门委位",
    "位": "于置数",
    "点": "击击率",
    "条": "件款约例",
    "分": "别为之析布录类红配部期成公行支摊",
    "期": "权货间限末初",
    "个": "人别体性",
    "项": "目",
    "种": "类子植",
    "类": "别似型",
    "组": "成合织",
    "本": "期金年法准币息身",
    "套": "期利",
    "口": "径",
    "例": "如外",
    "次": "级日年月要贷",
    "级": "别",
    "代": "表理码码替",
    "克": "服",
    "米": "",
    "升": "值至级",
    "股": "东权本份利票市息",
    "户": "口",
    "份": "额",
    "头": "寸部",
    "号": "召",
    "层": "次面级",
    "场": "所景地",
    "门": "店槛",
    "步": "骤",
    "日": "元常记期历报",
    "块": "",
    "支": "持付出撑配",
    "单位": "产成价净名",
    "美元": "指",
}


class _Unit(NamedTuple):
    kind: str
    name: str
    shift: int  # power of ten to the base unit
    grade: int  # 3 money, rate, duration, measure; 2 concrete classifier; 1 abstract classifier; 0 a label


def _unit_table() -> dict[str, _Unit]:
    table: dict[str, _Unit] = {}

    def add(words: str, kind: str, name: str | None, shift: int, grade: int) -> None:
        for word in words.split():
            table[word] = _Unit(kind, word if name is None else name, shift, grade)

    add(_NUMBERED, "ordinal", "", 0, 0)
    add(_ABSTRACT, "count", None, 0, 1)
    add(_CONCRETE, "count", None, 0, 2)
    add("周岁", "count", "岁", 0, 3)
    add(_MEASURED, "count", None, 0, 3)
    table["万吨"] = _Unit("count", "吨", 4, 3)
    table["公吨"] = _Unit("count", "吨", 0, 3)
    for code, words in _CURRENCIES.items():
        add(words, "amount", code, 0, 3)
    for name, words in _DURATIONS.items():
        add(words, "duration", name, 0, 3)
    for shift, words in _RATES.items():
        add(words, "rate", "1", shift, 3)
    table["课时"] = _Unit("count", "课时", 0, 1)
    return table


_UNITS = _unit_table()
_LONGEST: dict[str, int] = {}  # first character -> length of the longest unit word that begins with it
for _word in _UNITS:
    _LONGEST[_word[0]] = max(_LONGEST.get(_word[0], 0), len(_word))
_CODES = {word for words in _CURRENCIES.values() for word in words.split() if word.isascii()}
_SIGNS = {
    "¥": "CNY",
    "￥": "CNY",
    "$": "USD",
    "＄": "USD",
    "€": "EUR",
    "£": "GBP",
    "￡": "GBP",
    "US$": "USD",
    "HK$": "HKD",
    "NT$": "TWD",
    "A$": "AUD",
    "C$": "CAD",
    "S$": "SGD",
}
_MAGNITUDES = {"百": 2, "千": 3, "万": 4, "十万": 5, "百万": 6, "千万": 7, "亿": 8, "十亿": 9, "百亿": 10}
_MAGNITUDES |= {"千亿": 11, "万亿": 12, "万万": 8}
_NOT_MAGNITUDE = {"百": "分货姓度", "千": "克米瓦卡焦赫伏字", "万": "分", "亿": ""}
_SPACE = " \u00a0\u2009\u202f\u3000"

# ------------------------------------------------------------------------------------------ numerals

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")}
_DIGITS |= {"〇": 0, "○": 0, "两": 2}
_DIGITS |= {c: i for i, c in enumerate("壹贰叁肆伍陆柒捌玖", 1)}
_TENS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_CN = "零〇○一二三四五六七八九十百千万亿两廿卅"
_FORMAL = "壹贰叁肆伍陆柒捌玖拾佰仟"
_D = "0-9０-９"
_FOLD = str.maketrans("０１２３４５６７８９．，－", "0123456789.,-")
_CIRCLED = {chr(base + i): i + 1 for base in (0x2460, 0x2474, 0x2488) for i in range(20)}
_CIRCLED |= {chr(0x3220 + i): i + 1 for i in range(10)}

# a lone 一 is by far the most frequent numeral and nearly always part of a word (一般, 一种, 统一): passed over in
# the search itself unless an ordinal or list mark stands before it or a measure after it
_AFTER_ONE = (
    "年个日天周元倍成折半小分美港欧季月吨公米亩亿万千百十点星工平升桶盎英块至到〇零○一二三四五六七八九两、)）交刻廿卅"
)
_SEED = re.compile(rf"[<{_D}{_CN}{_FORMAL}半①-⒛㈠-㈩](?!(?<=一)(?<!第一)[^{_AFTER_ONE}])")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,4000}>")
_ARABIC = re.compile(
    rf"(?:[0-9]{{1,3}}(?:(?:,|\{{,\}})[0-9]{{3}})+(?![0-9])|[０-９]{{1,3}}(?:[，,][０-９]{{3}})+(?![０-９])|[{_D}]+)"
    rf"(?:[.．][{_D}]+)?(?:[eE][+\-−]?[0-9]{{1,3}}(?![0-9A-Za-z.]))?"
)
_WIDE_COMMA = re.compile(r"，000(?![0-9，,.])")
_SPACED = re.compile(r"[0-9]{1,3}(?:[ \u00a0\u2009\u202f][0-9]{3})+(?![0-9])(?:\.[0-9]+)?")
_CN_RUN = re.compile(f"[{_CN}]{{1,64}}")
_FORMAL_RUN = re.compile(f"[{_FORMAL}零万亿]{{1,64}}")
_FORMAL_MONEY = re.compile(
    rf"(?P<whole>[{_FORMAL}零万亿]{{1,64}})(?:人民币)?[元圆](?:零?(?P<jiao>[壹贰叁肆伍陆柒捌玖])角)?"
    rf"(?:零?(?P<fen>[壹贰叁肆伍陆柒捌玖])分)?[整正]?"
)
_CHANGE = re.compile(
    rf"(?:(?P<jiao>[{_D}一二三四五六七八九])角(?:(?P<fen>[{_D}一二三四五六七八九])分)?|零?(?P<only>[{_D}一二三四五六七八九])分)(?!之)"
)
_CN_FRACTION = re.compile("点([零〇○一二三四五六七八九]{1,32})(百万|千万|百亿|千亿|万亿|[万亿])?")
_MIXED = re.compile(r"([0-9]+(?:\.[0-9]+)?)([十百千]?[万亿]|[百千])")
_CALENDAR = "零〇○一二三四五六七八九"
_CN_DATE = re.compile(
    f"(?:(?P<y>[{_CALENDAR}0０Ｏ]{{4}})年(?:(?P<ym>[一二三四五六七八九十]{{1,3}})月(?:(?P<yd>[一二三四五六七八九十]{{1,3}})[日号])?)?"
    f"|(?P<m>[一二三四五六七八九十]{{1,2}})月(?:份|(?P<d>[一二三四五六七八九十]{{1,3}})[日号])?)"
)
_YEAR_DATE = re.compile(
    rf"(?P<y>[{_D}]{{4}})\s?年(?:度|\s?(?P<m>[{_D}]{{1,2}})\s?月(?!至)(?:份|\s?(?P<d>[{_D}]{{1,2}})\s?[日号])?)?"
)
_SHORT_YEAR = re.compile(r"(?:[5-9][0-9]年(?:代|初|末|底)|[0-9]{2}年\s?[0-9]{1,2}月(?:\s?[0-9]{1,2}日)?)")
_MASKED_YEAR = re.compile(
    r"(?P<y>[12２][0-9０-９]?[×xX＊*✕╳][0-9０-９×xX＊*]{1,2}|[12][0-9][×xX＊*✕╳]{1,2}[0-9０-９l]{0,2}|"
    r"[12][0-9]{2}[×xX＊*✕╳])"
    r"(?:\s?年(?:度|\s?(?P<m>[0-9０-９]{1,2})\s?月(?:份|\s?(?P<d>[0-9０-９]{1,2})\s?[日号])?)?"
    r"|(?=\s?[-—–~～至到]\s?[12][0-9]?[×xX＊*✕╳0-9]{1,3}\s?年))"
)
_MONTH_DATE = re.compile(rf"(?P<m>[{_D}]{{1,2}})\s?月(?:份|\s?(?P<d>[{_D}]{{1,2}})\s?[日号])?")
_ISO_DATE = re.compile(
    r"(?P<y>[12][0-9]{3})(?P<s>[-/.．])(?P<m>0?[1-9]|1[0-2])(?:(?P=s)(?P<d>3[01]|[12][0-9]|0?[1-9]))?(?![0-9.%])"
)
_AMERICAN_DATE = re.compile(r"(0?[1-9]|1[0-2])/(3[01]|[12][0-9]|0?[1-9])/((?:19|20)[0-9]{2})(?![0-9/])")
_TIME = re.compile(r"(?:[01]?[0-9]|2[0-4])[:：][0-5][0-9](?:[:：][0-5][0-9])?(?![0-9])")
_CLOCK = re.compile(r"([0-9]{1,2})\s?[时点](?:\s?([0-9]{1,2})\s?分(?!之)|整|半|(?=[前后至到,，。]))")
_RATIO = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:\s?[:：∶]\s?[0-9]+(?:\.[0-9]+)?){1,8}")
_SLASH = re.compile(r"/([0-9]{1,12})(?![0-9/.])")
_CREDIT_TERMS = re.compile(r"[0-9]+/[0-9]+(?:[,，、;；\s]{0,2}[0-9]+/[0-9]+){0,4}[,，、;；\s]{0,2}[nN]/[0-9]+")
_DOTTED = re.compile(rf"(?:[.\-–—][{_D}A-Za-z]+)+")
_WORD_TAIL = re.compile(r"[0-9A-Za-z_.%&=\-]*[0-9A-Za-z_]")
_RANGE = re.compile(r"\s?(?:至|到|[-–—―~～－−﹣]{1,2})\s?(?=[$¥￥]?[0-9０-９零一二三四五六七八九十两百壹贰叁])")
_ISSUE = re.compile(r"\s?第\s?[0-9０-９]{1,6}\s?号")
_BRACKET_ISSUE = re.compile(r"[〕\]］)）】]\s?(?:第\s?)?[0-9０-９]{1,6}\s?号")
_PHONE = re.compile(r"(?:0[0-9]{2,3}[-－][0-9]{7,8}|1[3-9][0-9]{9}|400[-－]?[0-9]{3}[-－]?[0-9]{4})(?![0-9])")
_PERCENT_TEX = re.compile(r"\s?\$?\s?\\(?:%|textperthousand)(?:\s?\$)?")
_PER = re.compile(r"\s?[/／]\s?([\u4e00-\u9fff]{1,3}|[A-Za-z]{1,4})|每([股件吨人桶台份张克月年天]|平方米)")
_PER_WORDS = {"股", "件", "吨", "桶", "台", "份", "张", "克", "人", "天", "月", "年", "小时", "平方米", "公斤", "千克"}
_PER_WORDS |= {"盎司", "升", "辆", "套", "个", "只", "户", "次", "千瓦时", "瓦", "亩", "米", "公里", "手", "度", "箱", "支"}
_PER_WORDS |= {"单位", "立方米", "工时", "蒲式耳", "瓶", "日", "吨公里", "kg", "t", "kWh", "人天", "人月"}
_PER_BEFORE = re.compile(
    r"每(1|一)?(股|件|吨|桶|台|份|张|套|辆|平方米|公斤|千克|盎司|小时|工时|单位|箱|只)[^，。；、,;：:0-9每\n]{0,10}\Z"
)
_LABEL = re.compile(
    r"(?:(?<![比条惯])例题?|图|表|公式|式|(?<!银)行|附件|附录|附注|步骤|习题|案例|题|页|阶段|情形|方案|版本|版|章|节|卷|"
    r"No\.|NO\.|Table|Figure|Fig\.|Eq\.|Section|Chapter|Step|第)\s{0,1}[（(]?\Z"
)
_IDENTIFIER_CUE = re.compile(
    r"(?:电话|传真|帐号|账号|卡号|账户|帐户|编号|编码|代码|号码|邮编|ISBN|ISSN|证号|文号|科目|ID|单号|信箱|QQ|版本|KB|凭证|"
    r"批号|序号|端口|主科目)[\s:：为是（(“\"*-]{0,4}\Z"
)
_CUE = re.compile(  # the last cue decides: 边际消费倾向 is a rate
    r".*(?:(?P<rate>(?<!汇)率|系数|倍数|因子|现值指数|比例|比重|占比|倾向|弹性|乘数|权重|概率|贝塔|β|标准差|方差)|(?P<price>单价|价格|股价|市价|行权价|收盘价|报价)|"
    r"(?P<index>指数|点位|大盘)|(?P<amount>金额|成本|收入|利润|余额|价值|费用|价款|资产|负债|现金|利息|税额|税款|资本|支出|借：|贷：|存款|"
    r"账款|收益|损失|产值|GDP|总额|净额|投资|消费|股利|薪酬|准备|折旧|摊销))[^，。；、,;0-9\n]{0,5}\Z"
)
_INDEX_CUE = re.compile(r"(?:指数|点位|大盘|沪指|深成指)[^。；;\n0-9 ]{0,10}\Z")
_LABEL_ENDS = "例题图表式行件录注骤案页段形本版章节卷号.eenrp第"
_IDENTIFIER_ENDS = "话真号户码编NID目箱Q本B证口:：为是“\"*-"
_ACRONYM = re.compile(r"(?<![A-Za-z])[A-Z]{2,6} \Z")
_MARK_BEFORE = re.compile(r"(?:^|[\n。；;：:！？!?])[\s>#*|\-—“\"（(]{0,6}\Z")
_LINE_START = re.compile(r"(?:^|\n)[\s>#*|\-【\[]{0,8}\Z")
_DAYS_AFTER = re.compile(r"(?:以?之?内|以?前|以?后|以上|以下|之前|之后|的?期限|届满|的?时间|期满|为限)")
_DAYS_BEFORE = re.compile(r"(?:起满?|[满过于逾达近约隔]|至少|不足|提前|最长|为期|期限为|[算按]|每隔)\Z")
_MONTH_BEFORE = re.compile(r"(?:月|每月|次月|月的?)\Z")
_OPERATORS = "×÷+=≈＝＋−*✕"
_ARITHMETIC = tuple("×÷+=≈＝＋−*✕－-—–/^")
_TENTHS = re.compile("[一二三四五六七八九](?![十百千万个年月天人家股次条项])")
_STEP_WORDS = "这那某同上下前后另任头本哪"  # 这一年, 上一季度: a step in a row, no duration
_HALF = re.compile(r"半(?:(?P<m>个月)|(?P<y>年)(?!度|报)|(?P<d>天)|(?P<h>个?小时)|(?P<q>个季度))")
_NO_MONEY_ONE = "线性论化次函方程回模期悖"


def decimal_string(digits: str, exponent: int = 0, negative: bool = False) -> str:
    """`digits` (ASCII, no sign or point) times 10**exponent as a plain decimal, without needless zeros.

    >>> decimal_string("0350", -2)
    '3.5'
    """
    if exponent >= 0:
        whole, rest = digits + "0" * exponent, ""
    elif len(digits) > -exponent:
        whole, rest = digits[:exponent], digits[exponent:].rstrip("0")
    else:
        whole, rest = "0", ("0" * (-exponent - len(digits)) + digits).rstrip("0")
    whole = whole.lstrip("0") or "0"
    text = f"{whole}.{rest}" if rest else whole
    return "-" + text if negative and text != "0" else text


def _exact(value: Fraction) -> str:
    """A fraction as a finite decimal, or as "p/q" where none exists."""
    denominator, twos, fives = value.denominator, 0, 0
    while denominator % 2 == 0:
        denominator //= 2
        twos += 1
    while denominator % 5 == 0:
        denominator //= 5
        fives += 1
    if denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    return decimal_string(str(abs(value.numerator) * 10**places // value.denominator), -places, value < 0)


def chinese_to_int(numeral: str) -> int | None:
    """The whole number a Chinese numeral names, or None when it is not a well-formed one.

    Plain and formal digits, 十 to 亿, 廿 and 卅, 两, and the short forms 两百五 (250) and 一万五 (15000).
    A bare 百, 千, 万 or 亿 and a row of digits (二〇二四, 三五) are None.
    """
    if not numeral or numeral[0] in "百千万亿佰仟":
        return None
    total = section = 0  # below 亿; below 万
    hundred_millions: int | None = None
    digit: int | None = None
    unit, zero = 10**12, False  # the unit last read, whether 零 stands since
    for c in numeral:
        if c in "廿卅":
            if digit is not None or unit <= 10:
                return None
            section += 20 if c == "廿" else 30
            unit, zero = 10, False
        elif c in "万亿":
            part = section + (digit or 0)
            if c == "万":
                if part == 0 or total:
                    return None
                total, unit = part * 10_000, 10_000
            else:
                if total + part == 0 or hundred_millions is not None:
                    return None
                hundred_millions, total, unit = total + part, 0, 10**8
            section, digit, zero = 0, None, False
        elif (ten := _TENS.get(c)) is not None:
            if digit == 0 or (digit is None and not (ten == 10 and (section == 0 or zero))):
                return None
            if section and unit <= ten:
                return None
            section += (1 if digit is None else digit) * ten
            unit, digit, zero = ten, None, False
        else:
            value = _DIGITS[c]
            if digit is not None and not (digit == 0 and value):
                return None
            zero = zero or value == 0
            digit = value
    if digit is not None:
        # 两百五, 一万五: the last digit counts tenths of the unit before it
        section += digit * (unit // 10 if 100 <= unit < 10**12 and not zero else 1)
    return (hundred_millions or 0) * 10**8 + total + section


def int_to_chinese(value: int) -> str:
    """The plain Chinese numeral of 0 <= value < 10**16 (10 is 十, 205 is 二百零五). ValueError outside."""
    if not 0 <= value < 10**16:
        raise ValueError(f"wanted a whole number from 0 to 10**16 - 1, got {value}")
    if value == 0:
        return "零"
    for size, name in ((10**8, "亿"), (10**4, "万")):
        if value >= size:
            high, low = divmod(value, size)
            return int_to_chinese(high) + name + _low_part(low, size // 10)
    text = ""
    for size, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, value = divmod(value, size)
        if digit:
            text += "零一二三四五六七八九"[digit] + name
        elif text and not text.endswith("零"):
            text += "零"
    text = text.rstrip("零")
    return text[1:] if text.startswith("一十") else text


def _low_part(value: int, place: int) -> str:
    if value == 0:
        return ""
    text = int_to_chinese(value)
    return ("零" if value < place else "") + ("一" + text if text.startswith("十") else text)


# --------------------------------------------------------------------------------------------- reading


class _Core(NamedTuple):
    """A numeral without its unit: digits x 10**exponent, or an exact fraction."""

    start: int  # with a currency sign and minus
    end: int
    digits: str
    exponent: int
    negative: bool
    style: str  # "a" Arabic, "c" Chinese
    lone: bool  # one Chinese character
    scaled: bool  # a magnitude (万) or 分之 was read
    currency: str
    fraction: Fraction | None = None

    def value(self, shift: int = 0) -> str:
        if self.fraction is not None:
            return _exact(self.fraction * Fraction(10) ** shift)
        return decimal_string(self.digits, self.exponent + shift, self.negative)


class _Measure(NamedTuple):
    end: int
    unit: _Unit
    add: Fraction | None = None  # 半 or 角分 behind the unit


_RATIO_MEASURE = _Measure(0, _Unit("rate", "1", 0, 3))


def _magnitude(text: str, j: int) -> tuple[int, int]:
    """(end, power of ten) of the magnitude at j; (j, 0) when there is none."""
    k = j + 1 if text[j : j + 1] in _SPACE and j < len(text) else j
    two = text[k : k + 2]
    if not two or two[0] not in "十百千万亿":
        return j, 0
    for word in (two, two[0]):
        power = _MAGNITUDES.get(word)
        if power is not None:
            end = k + len(word)
            after = text[end : end + 1]
            if after and after in _NOT_MAGNITUDE[word[-1]]:
                continue
            return end, power
    return j, 0


def _before(text: str, i: int, floor: int) -> tuple[int, bool, str]:
    """(start, negative, currency): the minus and the currency sign that stand directly before i."""
    start, negative, currency = i, False, ""
    for _ in range(2):
        p = text[start - 1] if start > floor else ""
        if not p:
            break
        if p in "-−－﹣–" and not negative:
            q = text[start - 2] if start > 1 else ""
            r = text[start - 3] if start > 2 and q in " \t" else q
            closed = r.isascii() and (r.isalnum() or r in ")]}%'\"")
            if (r and (closed or r in "０１２３４５６７８９％）］元年月日股-—–−×")) or start - 1 < floor:
                break
            start, negative = start - 1, True
        elif p == "负" and not negative and text[start - 2 : start - 1] not in ("正", "自", "抱", "胜", "税"):
            start, negative = start - 1, True
        elif not currency:
            k = start - 1 if p in " \u00a0" else start
            c = text[k - 1 : k]
            if c in _SIGNS:
                begin = k - 1
                for size in (3, 2):
                    if k - size >= floor and text[k - size : k] in _SIGNS:
                        begin = k - size
                        break
                if c == "$" and begin == k - 1 and _is_math(text, k):
                    break
                currency = _SIGNS[text[begin:k]]
                if begin > floor and c == "$" and text[begin - 1] == "\\":
                    begin -= 1
                start = begin
            elif k - 3 >= floor and text[k - 3 : k] in _CODES and not (k > 3 and text[k - 4].isalpha()):
                start, currency = k - 3, _UNITS[text[k - 3 : k]].name
            else:
                break
        else:
            break
    return start, negative, currency


def _is_math(text: str, k: int) -> bool:
    """Whether the `$` that ends at k opens or closes LaTeX mathematics rather than naming dollars."""
    if text[k - 2 : k - 1] == "\\" and k >= 2:
        return False
    close = text.find("$", k, k + 80)
    if close < 0:
        return False
    inside = text[k:close]
    if "\n" in inside or text[close + 1 : close + 2].isdecimal():
        return False
    # `$5 至 $7` has words between; mathematics has none
    return not any("\u4e00" <= c <= "\u9fff" or c in "，。；、" for c in inside)


def _arabic(text: str, i: int, floor: int) -> _Core:
    match = _ARABIC.match(text, i)
    assert match is not None
    j = match.end()
    raw = match.group()
    if j < len(text) and text[j] in " \u00a0\u2009\u202f" and len(raw) <= 3 and text[j + 1 : j + 4].isdecimal():
        spaced = _SPACED.match(text, i)
        if spaced is not None and (
            len(raw) < 3 or " 000" in spaced.group() or _unit(text, _magnitude(text, spaced.end())[0])
        ):
            j, raw = spaced.end(), spaced.group()
    if not raw.isascii():
        raw = raw.translate(_FOLD)
    exponent = 0
    digits = raw
    if not raw.isdigit():
        for e in "eE":
            head, sign, tail = digits.partition(e)
            if sign:
                digits, exponent = head, int(tail.replace("−", "-"))
        for separator in ("{,}", ",", " ", "\u00a0", "\u2009", "\u202f"):
            digits = digits.replace(separator, "")
        whole, _, rest = digits.partition(".")
        digits, exponent = whole + rest, exponent - len(rest)
    start, negative, currency = _before(text, i, floor)
    scaled = False
    c = text[j : j + 1]
    if c == "，" and exponent == 0 and j - i <= 3 and _WIDE_COMMA.match(text, j) is not None:  # 1，000元
        j, digits = j + 4, digits + "000"
        c = text[j : j + 1]
    if c and (c in "十百千万亿" or c in _SPACE):
        end, power = _magnitude(text, j)
        if power:
            total = _mixed(text, i, end)
            if total is not None:
                j, value = total
                digits, exponent = _split(value)
            else:
                j, exponent = end, exponent + power
            scaled = True
    return _Core(start, j, digits, exponent, negative, "a", False, scaled, currency)


def _split(value: Fraction) -> tuple[str, int]:
    """(digits, exponent) of a non-negative finite decimal."""
    whole, _, rest = _exact(value).partition(".")
    return whole + rest, -len(rest)


def _mixed(text: str, i: int, end: int) -> tuple[int, Fraction] | None:
    """(end, value) of `1万2千`, `2亿3千5百万`; None when no further group follows the first magnitude."""
    if not text[end : end + 1].isdecimal() or not text[end : end + 1].isascii():
        return None
    total, last, k = Fraction(0), 10**13, i
    for _ in range(6):
        group = _MIXED.match(text, k)
        if group is None or len(group.group(1)) > 20:
            break
        power = 10 ** _MAGNITUDES[group.group(2)]
        if power >= last:
            break
        total, last, k = total + Fraction(group.group(1)) * power, power, group.end()
    return (k, total) if k > end else None


def _chinese(text: str, i: int, floor: int) -> _Core | None:
    """The Chinese numeral at i, with 分之 and 点; None when the run of numerals is not a number."""
    run = _CN_RUN.match(text, i)
    if run is None:
        return None
    j, numeral = run.end(), run.group()
    p = text[i - 1] if i > floor else ""
    start, negative = (i - 1, True) if p == "负" else (i, False)
    if text[j : j + 2] == "分之":
        return _parts(text, start, j, numeral, negative)
    if p and p in "几数上" and numeral[0] in "十百千万亿":
        return None
    value = chinese_to_int(numeral)
    if value is None:
        return None
    digits, exponent = str(value), 0
    scaled = numeral[-1] in "万亿" and len(numeral) > 1
    if text[j : j + 1] == "点":
        point = _CN_FRACTION.match(text, j)
        if point is not None:
            rest = "".join(str(_DIGITS[c]) for c in point.group(1))
            power = _MAGNITUDES[point.group(2)] if point.group(2) else 0
            return _Core(start, point.end(), digits + rest, power - len(rest), negative, "c", False, bool(power), "")
    if text[j : j + 1] == "几":
        return None
    return _Core(start, j, digits, exponent, negative, "c", len(numeral) == 1, scaled, "")


_PARTS = {"百": 100, "千": 1000, "万": 10_000, "十": 10, "亿": 10**8, "百万": 10**6, "十万": 10**5}


def _parts(text: str, start: int, j: int, numeral: str, negative: bool) -> _Core | None:
    """`百分之五`, `千分之3.5`, `三分之二`: the numeral before 分之 ends at j."""
    whole = _PARTS.get(numeral) or chinese_to_int(numeral)
    k = j + 2
    if not whole:
        return None
    if text[k : k + 1] in _SPACE:
        k += 1
    c = text[k : k + 1]
    if not c or c == "几":
        return None
    if c.isdecimal():
        match = _ARABIC.match(text, k)
        if match is None or len(match.group()) > 40:
            return None
        top = Fraction(match.group().translate(_FOLD).replace(",", "").replace("{}", ""))
        end = match.end()
    else:
        run = _CN_RUN.match(text, k)
        if run is None:
            return None
        value = 100 if run.group() == "百" else chinese_to_int(run.group())
        if value is None or text[run.end() : run.end() + 1] == "几":
            return None
        top, end = Fraction(value), run.end()
        point = _CN_FRACTION.match(text, end)
        if point is not None and not point.group(2):
            rest = "".join(str(_DIGITS[c]) for c in point.group(1))
            top, end = top + Fraction(int(rest), 10 ** len(rest)), point.end()
    fraction = top / whole
    return _Core(start, end, "", 0, False, "c", False, True, "", -fraction if negative else fraction)


def _unit(text: str, j: int) -> _Measure | None:
    """The unit word that begins at j, or one space behind it."""
    c = text[j : j + 1]
    if not c:
        return None
    if c in _SPACE:
        j += 1
        c = text[j : j + 1]
    longest = _LONGEST.get(c)
    if longest is None:
        if c in "\\$":
            match = _PERCENT_TEX.match(text, j)
            if match is not None:
                return _Measure(match.end(), _UNITS["%" if "%" in match.group() else "‰"])
        return None
    for size in range(longest, 0, -1):
        word = text[j : j + size]
        unit = _UNITS.get(word)
        if unit is None or len(word) < size:
            continue
        end = j + size
        after = text[end : end + 1]
        if after:
            if c.isascii() and after.isascii() and after.isalnum() and c != "%":
                continue
            if after in _NOT_BEFORE.get(word, ""):
                continue
            if c in "%％" and after.isascii() and after.isalnum() and text[end : end + 2].isalnum():
                if text[end : end + 2].isascii() and text[end : end + 2].upper() == text[end : end + 2]:
                    continue  # %7C in an address
        return _Measure(end, unit)
    return None


def _measure(text: str, core: _Core) -> _Measure | None:
    """The unit of a numeral with what may trail it: 半, 角分, `/股`, and 多 or 余 before it."""
    j = core.end
    c = text[j : j + 1]
    if c and c in "多余":
        end, power = _magnitude(text, j + 1)
        found = _unit(text, end)
        if found is None or found.unit.grade == 0:
            return None
        return found._replace(unit=found.unit._replace(shift=found.unit.shift + power))
    if c and c in "（(" and core.style == "a":
        return _bracketed(text, core)
    if c == "个" and text[j + 1 : j + 2] == "半":
        for word, name in (("月", "month"), ("小时", "hour"), ("星期", "week"), ("季度", "quarter")):
            if text.startswith(word, j + 2):
                return _Measure(j + 2 + len(word), _Unit("duration", name, 0, 3), Fraction(1, 2))
    found = _unit(text, j)
    if found is None:
        return None
    unit, end = found.unit, found.end
    if unit.kind == "amount":
        if unit.name == "CNY" and text[end : end + 1].isnumeric() and text[end - 1] in "元块圆":
            change = _CHANGE.match(text, end)
            if change is not None:
                cents = 0
                for name, worth in (("jiao", 10), ("fen", 1), ("only", 1)):
                    if digit := change.group(name):
                        cents += worth * (_DIGITS[digit] if digit in _DIGITS else int(digit))
                return _Measure(change.end(), unit, Fraction(cents, 100))
        if text[end : end + 1] in "/／每 " and end < len(text):
            per = _PER.match(text, end)
            if per is not None:
                word = per.group(1) or per.group(2)
                for size in range(len(word), 0, -1):
                    if word[:size] in _PER_WORDS:
                        name = f"{unit.name}/{word[:size]}"
                        start = per.start(1) if per.group(1) else per.start(2)
                        return _Measure(start + size, _Unit("price", name, unit.shift, 3))
    elif unit.shift == -1 and text[end - 1] == "成" and _TENTHS.match(text, end) is not None:
        return _Measure(end + 1, unit, Fraction(_DIGITS[text[end]], 100))  # 六成五
    elif unit.kind == "duration" and text[end : end + 1] == "半" and unit.name in ("year", "day", "week"):
        if text[end - 1] in "年天周" and text[end + 1 : end + 2] not in ("年", "天", "周"):
            return _Measure(end + 1, unit, Fraction(1, 2))
    return found


def _bracketed(text: str, core: _Core) -> _Measure | None:
    """A unit in brackets behind the number: `6,600（元）`, `12.87（万元）`."""
    end, power = _magnitude(text, core.end + 1)
    if text[end : end + 1] in ("（", "("):
        return None
    found = _measure(text, core._replace(end=end))
    if found is None or found.add is not None or found.unit.grade < 2:
        return None
    if text[found.end : found.end + 1] not in ("）", ")"):
        return None
    return _Measure(found.end + 1, found.unit._replace(shift=found.unit.shift + power))


# ---------------------------------------------------------------------------------------------- deciding


def find_numbers(text: str) -> list[Number]:
    """Every number of a text, in order of place, without overlap.

    Found are Arabic numerals (thousands separators, full width, spaced groups, exponents, LaTeX), Chinese and
    formal numerals, fractions and ratios, currency signs and units, ranges, and, as `variable=False`, dates,
    times, ordinals, list marks, labels, document numbers, identifiers and indices in formulas. Numerals that are
    part of a word (一般, 三角债, 四大行, 万一) are words and are not returned.

    Any string is accepted; the time is linear in its length.
    """
    found: list[Number] = []
    position = floor = 0
    search = _SEED.search
    while (seed := search(text, position)) is not None:
        i = seed.start()
        c = text[i]
        if c in "0123456789０１２３４５６７８９":
            number, position = _read_arabic(text, i, floor)
        elif c in _CIRCLED:
            number, position = Number(c, i, i + 1, str(_CIRCLED[c]), "", "ordinal", False), i + 1
        elif c == "<":
            tag = _TAG.match(text, i)
            position = tag.end() if tag is not None else i + 1
            continue
        elif c == "半":
            number, position = _read_half(text, i)
        elif c in _FORMAL:
            number, position = _read_formal(text, i)
        else:
            number, position = _read_chinese(text, i, floor)
        if number is not None:
            if number.kind == "count" and found and _continues(text, found[-1], number):
                number = replace(number, unit="", kind="ordinal", variable=False)
            found.append(number)
            floor = number.end
    return found


def _continues(text: str, last: Number, number: Number) -> bool:
    """Whether a count goes on from an ordinal before it: 第五十条、五十一条."""
    gap = number.start - last.end
    return (
        last.kind == "ordinal" and gap == 1 and text[last.end] in "、和至或及到,，" and last.text[-1] == number.text[-1]
    )


def _make(
    text: str, start: int, end: int, value: str, unit: str, kind: str, variable: bool
) -> tuple[Number, int]:
    return Number(text[start:end], start, end, value, unit, kind, variable), end


def _date(year: str | None, month: int | None, day: int | None) -> str:
    parts = [year if year is not None else "-"] if year is not None or month is not None else []
    if month is not None:
        parts.append(f"{month:02d}")
    if day is not None:
        parts.append(f"{day:02d}")
    return "-".join(parts)


def _dated(text: str, match: re.Match[str]) -> tuple[Number, int] | None:
    groups = match.groupdict()
    year = groups.get("y")
    month = int(groups["m"].translate(_FOLD)) if groups.get("m") else None
    day = int(groups["d"].translate(_FOLD)) if groups.get("d") else None
    if (month is not None and not 1 <= month <= 12) or (day is not None and not 1 <= day <= 31):
        return None
    if year is not None:
        year = year.translate(_FOLD).translate(str.maketrans("×x＊*✕╳l", "XXXXXX1"))
    return _make(text, match.start(), match.end(), _date(year, month, day), "", "date", False)


def _read_arabic(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    p = text[i - 1] if i else ""
    if p == "第" or (p in _SPACE and i > 1 and text[i - 2] == "第"):
        return _read_ordinal(text, i, floor)
    if p and p.isascii() and (p.isalpha() or p in "_^\\@#" or (p == "{" and text[i - 2 : i - 1] in ("^", "_"))):
        index = _read_index(text, i, floor, p)
        if index is not None:
            return index
    if p and p in "%=&/_-.?" and _in_address(text, i):
        tail = _WORD_TAIL.match(text, i)
        end = tail.end() if tail else i + 1
        return None, end
    core = _arabic(text, i, floor)
    j = core.end
    n = text[j : j + 1]
    plain = not core.scaled and not core.currency and j - i <= 4
    if plain and n:
        dated = _try_date(text, i, j, n)
        if dated is not None:
            return dated
    if n:
        special = _try_special(text, i, core, n)
        if special is not None:
            return special
    if j - i > 40:
        return _make(text, i, j, text[i:j].translate(_FOLD), "", "identifier", False)
    measure = _measure(text, core)
    ranged = _try_range(text, core, measure)
    if ranged is not None:
        return ranged
    if measure is None:
        return _bare(text, core, floor)
    if measure.unit.grade == 1 and not core.scaled and j - i <= 3:
        label = _labelled(text, core, text[max(0, i - 14) : i], text[i:j], text[i:j].isdigit())
        if label is not None:
            return label
    return _with_unit(text, core, measure)


def _try_date(text: str, i: int, j: int, n: str) -> tuple[Number, int] | None:
    """A date that begins at i, where the digits end at j and n is the character behind them."""
    k = n if n not in _SPACE else text[j + 1 : j + 2]
    match = None
    if k in "年" and k:
        match = _YEAR_DATE.match(text, i)
        if match is not None:
            issue = _ISSUE.match(text, match.end()) if match.group("m") is None else None
            if issue is not None:
                return _make(text, i, issue.end(), text[i : issue.end()].translate(_FOLD), "", "identifier", False)
        elif j - i == 2:
            short = _SHORT_YEAR.match(text, i)
            if short is not None:
                return _make(text, i, short.end(), text[i:j], "", "date", False)
    elif k and k in "×xX＊*✕╳" and text[i] in "12２":
        match = _MASKED_YEAR.match(text, i)
    elif k == "月":
        match = _MONTH_DATE.match(text, i)
    elif n in "-/.．" and j - i == 4:
        match = _ISO_DATE.match(text, i)
    elif j - i == 4 and n in "〕]］)）】" and text[i - 1 : i] in tuple("〔[［(（【"):
        issue = _BRACKET_ISSUE.match(text, j)
        if issue is not None:
            span = text[i - 1 : issue.end()].translate(_FOLD)
            return _make(text, i - 1, issue.end(), span, "", "identifier", False)
    return _dated(text, match) if match is not None else None


def _try_special(text: str, i: int, core: _Core, n: str) -> tuple[Number, int] | None:
    """Times, ratios, fractions, credit terms, telephone numbers and dotted identifiers that begin at i."""
    j = core.end
    if n in ":：∶" or (n == " " and text[j + 1 : j + 2] in ("∶", ":")):
        match = _RATIO.match(text, i)
        if match is not None and not core.scaled and len(match.group()) <= 60:
            clock = _TIME.match(text, i)
            left = text[max(0, i - 4) : i]
            if clock is not None and clock.end() == match.end() and not any(c in left for c in "比例按率"):
                return _make(text, i, clock.end(), clock.group().replace("：", ":"), "", "time", False)
            parts = re.split(r"\s?[:：∶]\s?", match.group())
            if len(parts) == 2 and Fraction(parts[1]):
                value = _exact(Fraction(parts[0]) / Fraction(parts[1]))
            else:
                value = ":".join(parts)
            return _make(text, i, match.end(), value, "1", "rate", True)
    elif n == "/" and core.exponent == 0 and not core.scaled:
        terms = _CREDIT_TERMS.match(text, i)
        if terms is not None:
            return _make(text, i, terms.end(), terms.group(), "", "other", False)
        american = _AMERICAN_DATE.match(text, i)
        if american is not None:
            value = f"{american.group(3)}-{american.group(1):0>2}-{american.group(2):0>2}"
            return _make(text, i, american.end(), value, "", "date", False)
        slash = _SLASH.match(text, j)
        if (
            slash is not None
            and text[i - 1 : i] != "/"
            and len(core.digits) <= 12
            and int(core.digits) < int(slash.group(1))
        ):
            value = Fraction(int(core.digits), int(slash.group(1)))
            return _make(text, core.start, slash.end(), _exact(-value if core.negative else value), "1", "rate", True)
    elif n in "-－":
        phone = _PHONE.match(text, i)
        if phone is not None:
            return _make(text, i, phone.end(), phone.group(), "", "identifier", False)
    elif n in ".．" and text[j + 1 : j + 2].isalnum() and text[j + 1].isascii():
        dotted = _DOTTED.match(text, j)
        if dotted is not None and not core.currency:
            value = text[i : dotted.end()].translate(_FOLD)
            return _make(text, i, dotted.end(), value, "", "identifier", False)
    elif n in "时点 ":
        clock = _CLOCK.match(text, i)
        if clock is not None and int(clock.group(1)) <= 24 and not _INDEX_CUE.search(text[max(0, i - 16) : i]):
            minute = clock.group(2) or ("30" if clock.group().endswith("半") else "00")
            return _make(text, i, clock.end(), f"{int(clock.group(1)):02d}:{minute:0>2}", "", "time", False)
    return None


def _try_range(text: str, core: _Core, measure: _Measure | None) -> tuple[Number, int] | None:
    """`7至15年`, `5%-8%`, `20-30万元`: core is the low end, measure its unit if it has one."""
    after = measure.end if measure is not None else core.end
    c = text[after : after + 1]
    if not c or c not in "至到-–—―~～－−﹣ ":
        return None
    separator = _RANGE.match(text, after)
    if separator is None or (measure is not None and (measure.add is not None or measure.unit.grade == 0)):
        return None
    k = separator.end()
    if text[k] in "$¥￥":
        k += 1
    other = _arabic(text, k, k) if text[k] in "0123456789０１２３４５６７８９" else _chinese(text, k, k)
    if other is None or other.end - k > 40:
        return None
    sign = separator.group().strip()
    dash = sign not in ("至", "到")
    n = text[other.end : other.end + 1]
    if dash and measure is None:
        if n and n in "-–—/.":  # 1-2-3, 3-5/7
            return None
        if core.digits == "1" and text[core.start - 1 : core.start] in ("(", "（"):  # (1-20%)
            return None
    if dash and text[core.start - 1 : core.start] in _ARITHMETIC:
        return None
    if measure is None and n == "日":
        days = _day(text, other, core.start)[0]
        if days.variable and core.fraction is None and Fraction(core.value()) < Fraction(days.value):
            end, low = days.end, core.value()
            return Number(text[core.start : end], core.start, end, low, "day", "duration", True, low, days.value), end
    if measure is None and core.style == "a" and n and (n in "年月日" or text[other.end : other.end + 2] == " 年"):
        if (number := _date_range(text, core, other, n)) is not None:
            return number
    found = _RATIO_MEASURE._replace(end=other.end) if other.fraction is not None else _measure(text, other)
    if found is None or found.unit.grade == 0 or found.add is not None:
        if measure is not None:
            return None
        if core.currency and (other.currency or text[separator.end()] in "$¥￥"):
            unit, end = _Unit("amount", core.currency, 0, 3), other.end
        elif core.exponent < 0 and other.exponent < 0 and _cue(text, core.start) == "rate":
            unit, end = _UNITS["倍"], other.end
        else:
            return None
    else:
        unit, end = found.unit, found.end
        if unit.name == "day" and text[end - 1] == "日":
            return None
    if dash and text[end : end + 1] in _ARITHMETIC:
        return None
    low = core
    if measure is None:
        if core.fraction is not None or other.fraction is not None:
            return None
        if not core.scaled and other.scaled and core.style == "a":
            low = core._replace(exponent=core.exponent + _scale_of(text, k, other))
    elif measure.unit != unit:
        return None
    first, second = low.value(unit.shift), other.value(unit.shift)
    if "/" in first or "/" in second or Fraction(first) >= Fraction(second):
        return None
    lone = core.lone and other.lone and unit.grade < 2
    number = Number(
        text[core.start : end], core.start, end, first, unit.name, unit.kind, not lone, first, second
    )
    return number, end


def _scale_of(text: str, i: int, core: _Core) -> int:
    """The power of ten of the magnitude word that ends a numeral read at i."""
    match = _ARABIC.match(text, i)
    return _magnitude(text, match.end())[1] if match is not None else 0


def _date_range(text: str, core: _Core, other: _Core, n: str) -> tuple[Number, int] | None:
    """`2014-2018年`, `1-6月`, `10-15日`: years, months and days of the calendar, not durations."""
    end = other.end + (1 if n in "年月日" else 2)
    low, high = core.digits, other.digits
    if core.exponent or other.exponent or len(low) > 4 or len(high) > 4:
        return None
    if n == "月":
        calendar = 1 <= int(low) <= 12 and 1 <= int(high) <= 12
        low, high = f"--{low:0>2}", f"--{high:0>2}"
    elif n == "日":
        calendar = 1 <= int(low) <= 31 and 1 <= int(high) <= 31
    else:
        calendar = len(low) == 4 and len(high) == 4
    if not calendar:
        return None
    if n not in "月日" and text[end : end + 1] == "度":
        end += 1
    number = Number(text[core.start : end], core.start, end, low, "", "date", False, low, high)
    return number, end


def _with_unit(text: str, core: _Core, measure: _Measure) -> tuple[Number, int]:
    """The Number of a numeral that has a unit word."""
    unit, start, end = measure.unit, core.start, measure.end
    kind, name, variable = unit.kind, unit.name, True
    value = core.value(unit.shift)
    if measure.add is not None:
        whole = Fraction(value)
        value = _exact(whole - measure.add if core.negative else whole + measure.add)
    if unit.grade == 0:
        return _make(text, start, end, value, "", "ordinal" if kind == "ordinal" else kind, False)
    if kind == "rate" and unit.shift == -1 and text[end - 1] == "折" and core.style == "a":
        # 85折 is 0.85, 8.5折 and 8折 are 0.85 and 0.8
        if core.exponent == 0 and len(core.digits) == 2 and core.digits != "10":
            value = core.value(-2)
    elif kind == "amount":
        if (per := _PER_BEFORE.search(text, max(0, start - 20), start)) is not None:
            kind, name = "price", f"{name}/{per.group(2)}"
        if core.currency:
            name = core.currency if unit.name == "CNY" else name
    elif name == "点":
        if _INDEX_CUE.search(text, max(0, start - 16), start) or (core.style == "a" and (len(core.digits) >= 3 or core.exponent < 0)):
            kind = "index"
        else:
            variable = False
            kind = "other"
    elif core.lone and unit.grade < 3:
        variable = unit.grade >= 2 and core.digits != "1"
    return _make(text, start, end, value, name, kind, variable)


def _bare(text: str, core: _Core, floor: int) -> tuple[Number | None, int]:
    """A numeral in Arabic digits without any unit: decided by what stands around it."""
    start, j = core.start, core.end
    value = core.value()
    left = text[max(0, start - 14) : start]
    n = text[j : j + 1]
    p = left[-1:]
    raw = text[start:j]
    digits = raw.isdigit()
    if n and (n == "日" or (n in _SPACE and text[j + 1 : j + 2] == "日")):
        return _day(text, core)
    if core.currency:
        per = _PER.match(text, j)
        if per is not None and per.group(1) and per.group(1)[0] in _PER_WORDS:
            unit = f"{core.currency}/{per.group(1)[0]}"
            return _make(text, start, per.start(1) + 1, value, unit, "price", True)
        return _make(text, start, j, value, core.currency, "amount", True)
    if p and p in "（(" and n and n in "）)" and start > floor:
        if digits and len(raw) <= 2:
            return _make(text, start - 1, j + 1, value, "", "ordinal", False)
        if ("," in raw or "." in raw) and _negative_entry(text, start - 1, j + 1):
            return _make(text, start - 1, j + 1, core._replace(negative=True).value(), "", "amount", True)
    if not core.scaled and (label := _labelled(text, core, left, raw, digits)) is not None:
        return label
    if n and n.isascii() and (n.isalpha() or n == "_"):
        tail = _WORD_TAIL.match(text, j)
        end = tail.end() if tail is not None else j + 1
        return _make(text, start, end, text[start:end], "", "identifier", False)
    whole = len(text) - (j - start) <= 16 and text.strip() == raw
    after = text[j + 1 : j + 2] if n and n in _SPACE else n
    before = left[-2:-1] if p and p in _SPACE else p
    operated = (after and after in _OPERATORS) or (before and before in _OPERATORS)
    if operated and "*" in (n, p):  # Markdown emphasis, not a product
        operated = False
    term = (after and after in "×÷+−*＋") or (operated and value in "01")  # part of a sum, not what the word names
    cue = None if term else _cue(text, start)
    if digits and cue is None and not whole and not core.scaled:
        six = len(raw) == 6 and p and p in "（(" and n and n in "）)."
        if len(raw) >= 8 or six:
            return _make(text, start, j, raw.translate(_FOLD), "", "identifier", False)
        if len(raw) == 4 and not operated and "1900" <= raw.translate(_FOLD) <= "2099":
            return _make(text, start, j, value, "", "date", False)
    if cue is not None:
        return _make(text, start, j, value, "1" if cue == "rate" else "", cue, True)
    marked = core.scaled or not digits or core.negative or (operated and value != "1") or whole
    return _make(text, start, j, value, "", "other", bool(marked))


def _cue(text: str, start: int) -> str | None:
    """The kind that a word shortly before start gives to a numeral without unit (利率, 单价, 余额), or None."""
    left = text[max(0, start - 40) : start].rstrip(" \t*|$\u00a0\u3000")[-14:]
    if not left or left.isascii() or left[-1].isdigit() or left.endswith(("除以", "乘以", "乘", "加上", "减去")):
        return None
    match = _CUE.match(left)
    return match.lastgroup if match is not None else None


def _labelled(text: str, core: _Core, left: str, raw: str, digits: bool) -> tuple[Number, int] | None:
    """List marks (`1.`), labels (表2-1), section numbers, account numbers: numerals that only name something."""
    start, j = core.start, core.end
    n = text[j : j + 1]
    if digits and len(raw) <= 3 and n and n in ".、．)）]】\\" and _MARK_BEFORE.search(left):
        return _make(text, start, j, core.value(), "", "ordinal", False)
    word = left.rstrip(" （(")[-1:]
    if word and word in _LABEL_ENDS and len(raw) <= 6 and _LABEL.search(left) is not None:
        tail = _DOTTED.match(text, j)
        end = tail.end() if tail is not None else j
        return _make(text, start, end, text[start:end].translate(_FOLD), "", "ordinal", False)
    if len(raw) <= 5 and not core.negative and n and (not left or left[-1] in "\n \t>#*|-【[") and "," not in raw:
        if _LINE_START.search(left) is not None:
            if n in "-–—" and digits and (tail := _DOTTED.match(text, j)) is not None:
                span = text[start : tail.end()].translate(_FOLD)
                return _make(text, start, tail.end(), span, "", "ordinal", False)
            title = "\u4e00" <= n <= "\u9fff" or (n == " " and "\u4e00" <= (text[j + 1 : j + 2] or " ") <= "\u9fff")
            if "." in raw and title:
                return _make(text, start, j, core.value(), "", "ordinal", False)
    if word and word in _IDENTIFIER_ENDS and _IDENTIFIER_CUE.search(left) is not None:
        tail = _DOTTED.match(text, j) or _WORD_TAIL.match(text, j)
        end = tail.end() if tail is not None else j
        return _make(text, start, end, text[start:end].translate(_FOLD), "", "identifier", False)
    if left[-1:] == " " and digits and "A" <= left[-2:-1] <= "Z" and _ACRONYM.search(left) is not None:
        return _make(text, start, j, core.value(), "", "identifier", False)
    return None


def _negative_entry(text: str, start: int, end: int) -> bool:
    """Whether `(1,234.5)` stands alone in a cell or line, the accountant's way to write a negative."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return (not before or before in " \t|\n\u3000") and (not after or after in " \t|\n\r\u3000")


def _day(text: str, core: _Core, begin: int | None = None) -> tuple[Number, int]:
    """`30日内` is a duration, `5日` a day of the month; `begin` is where a range starts that core ends."""
    j = core.end + (1 if text[core.end : core.end + 1] in _SPACE else 0) + 1
    begin = core.start if begin is None else begin
    left = text[max(0, begin - 6) : begin]
    value = core.value()
    if _MONTH_BEFORE.search(left) is None and (
        len(core.digits) > 2
        or int(core.digits) > 31
        or _DAYS_AFTER.match(text, j) is not None
        or _DAYS_BEFORE.search(left) is not None
    ):
        return _make(text, core.start, j, value, "day", "duration", True)
    return _make(text, core.start, j, value, "", "date", False)


def _read_index(text: str, i: int, floor: int, p: str) -> tuple[Number | None, int] | None:
    """Digits stuck to a letter (d1, R2, x_1, IFRS16) or an exponent; None when they are a currency code's."""
    if p.isalpha():
        k = i - 1
        while k > max(floor, i - 12) and text[k - 1].isascii() and text[k - 1].isalpha():
            k -= 1
        if text[k:i] in _CODES:
            return None
        kind = "formula" if i - k == 1 else "identifier"
    else:
        kind = "formula" if p in "^_{" else "identifier"
    match = _ARABIC.match(text, i)
    assert match is not None
    end = match.end()
    if kind == "identifier" and (tail := _WORD_TAIL.match(text, end)) is not None:
        end = tail.end()
    if kind == "identifier" and (tail := _DOTTED.match(text, end)) is not None:
        end = tail.end()
    return _make(text, i, end, text[i:end].translate(_FOLD), "", kind, False)


def _in_address(text: str, i: int) -> bool:
    """Whether i lies inside a URL or an HTML tag: looked for within a bounded distance to the left."""
    if text[i - 1] == "/" and i > 1 and text[i - 2].isascii() and text[i - 2].isalpha():
        return True
    left = text[max(0, i - 160) : i]
    mark = left.rfind("://")
    if mark >= 0 and not re.search(r"[\s)）>\]\"'，。；、\u4e00-\u9fff]", left[mark:]):
        return True
    return False


_ORDINAL_TO = re.compile(r"\s?[-–—~～至到]\s?[0-9]{1,4}")
_ORDINAL_WORDS = "章节条款项编部分类种个次期年季步号页回届位名卷阶层轮批方代集题组段句行列点级"


def _read_ordinal(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    """第3章, 第一百二十三条, 第一, 第3-5页: the whole from 第 to the word that is counted."""
    begin = i - 1 if text[i - 1] == "第" else i - 2
    if text[i] in "0123456789０１２３４５６７８９":
        match = _ARABIC.match(text, i)
        assert match is not None
        j, value = match.end(), match.group().translate(_FOLD)
        if j - i > 12:
            return _make(text, i, j, value, "", "identifier", False)
    else:
        run = _CN_RUN.match(text, i)
        assert run is not None
        whole = chinese_to_int(run.group())
        if whole is None:
            return None, run.end()
        j, value = run.end(), str(whole)
    tail = _ORDINAL_TO.match(text, j)
    if tail is not None and text[i].isdecimal():
        j = tail.end()
    if text[j : j + 1] in tuple("方者"):  # 第三方, 第三者
        return None, j
    word = j + 1 if text[j : j + 1] in _SPACE and text[j : j + 1] else j
    if text[word : word + 2] == "季度":
        j = word + 2
    elif text[word : word + 1] and text[word] in _ORDINAL_WORDS:
        j = word + 1
    return _make(text, max(begin, floor), j, value, "", "ordinal", False)


def _read_half(text: str, i: int) -> tuple[Number | None, int]:
    """半年, 半个月, 半天: half of one unit."""
    match = _HALF.match(text, i)
    if match is None or text[i - 1 : i] in tuple("上下前后大小过多各一夜"):
        return None, i + 1
    name = {"m": "month", "y": "year", "d": "day", "h": "hour", "q": "quarter"}[match.lastgroup or ""]
    return _make(text, i, match.end(), "0.5", name, "duration", True)


def _read_formal(text: str, i: int) -> tuple[Number | None, int]:
    """壹佰贰拾叁元肆角伍分整, 叁年: formal numerals."""
    money = _FORMAL_MONEY.match(text, i)
    if money is not None and (whole := chinese_to_int(money.group("whole").rstrip("零"))) is not None:
        cents = 100 * whole
        for name, worth in (("jiao", 10), ("fen", 1)):
            if digit := money.group(name):
                cents += worth * _DIGITS[digit]
        return _make(text, i, money.end(), _exact(Fraction(cents, 100)), "CNY", "amount", True)
    run = _FORMAL_RUN.match(text, i)
    assert run is not None
    value = chinese_to_int(run.group())
    if value is None:
        return None, run.end()
    core = _Core(i, run.end(), str(value), 0, False, "c", len(run.group()) == 1, False, "")
    measure = _measure(text, core)
    if measure is None or (core.lone and measure.unit.grade < 3):
        return None, run.end()
    return _with_unit(text, core, measure)


def _read_chinese(text: str, i: int, floor: int) -> tuple[Number | None, int]:
    p = text[i - 1] if i > floor else ""
    if p == "第":
        return _read_ordinal(text, i, floor)
    run = _CN_RUN.match(text, i)
    assert run is not None
    j = run.end()
    if text[i] == "零" and j - i > 1:  # 一年零三个月
        return None, i + 1
    n = text[j : j + 1]
    if n and n in "年月0０Ｏ":
        date = _CN_DATE.match(text, i)
        if date is not None and (number := _chinese_date(text, date)) is not None:
            return number
    if n and n in "、)）" and j - i <= 3 and _is_mark(text, i, j, p):
        value = chinese_to_int(run.group())
        if value is not None:
            parenthesised = p in "（(" and bool(p) and n in "）)"
            start, end = (i - 1, j + 1) if parenthesised else (i, j)
            return _make(text, start, end, str(value), "", "ordinal", False)
    if n == "折" and j - i == 2 and all(c in "一二三四五六七八九" for c in run.group()):
        if text[j + 1 : j + 2] not in tuple(_NOT_BEFORE["折"]):
            value = decimal_string("".join(str(_DIGITS[c]) for c in run.group()), -2)
            return _make(text, i, j + 1, value, "1", "rate", True)
    if run.group() == "一" and n == "半":
        after = text[j + 1 : j + 2]
        if after and (after in "以的股多左不时" or not "\u4e00" <= after <= "\u9fff"):
            return _make(text, i, j + 1, "0.5", "1", "rate", True)
        return None, j + 1
    core = _chinese(text, i, floor)
    if core is None:
        return None, j
    if core.fraction is not None and core.fraction.denominator == 1 and core.fraction == 0:
        return _make(text, core.start, core.end, "0", "1", "rate", True)
    ratio = _RATIO_MEASURE._replace(end=core.end) if core.fraction is not None else None
    measure = ratio or _chinese_measure(text, core, p)
    ranged = _try_range(text, core, measure)
    if ranged is not None:
        return ranged
    if measure is None:
        if text[core.end : core.end + 1] == "日":
            number, end = _chinese_day(text, core)
            return number, end
        if core.scaled or (not core.lone and core.exponent < 0):
            return _make(text, core.start, core.end, core.value(), "", "other", True)
        if core.lone or not any(c in _TENS or c in "万亿" for c in run.group()[1:]):
            return None, max(core.end, i + 1)
        return _make(text, core.start, core.end, core.value(), "", "other", False)
    if core.lone and core.digits == "1" and (measure.unit.grade < 3 or (p and p in _STEP_WORDS)):
        return None, j
    return _with_unit(text, core, measure)


def _chinese_measure(text: str, core: _Core, p: str) -> _Measure | None:
    """`_measure` with the traps of a lone Chinese numeral: 三元论, 一成不变, 一折, 四季度, 九折."""
    measure = _measure(text, core)
    if measure is None or not core.lone:
        return measure
    after = text[measure.end : measure.end + 1]
    word = text[measure.end - 1]
    if word == "元" and after and after in _NO_MONEY_ONE:
        return None
    if word == "成" and after and after in "不":
        return None
    if word == "周" and p in "上下本":
        return None
    if (word == "折" and core.digits == "1" and after and after not in "，。、优出销") or (word == "门" and p == "花"):
        return None
    if after and word + after in ("套房", "类户"):
        return None
    if word in "分点手头份张" or core.digits == "0":
        return None if word in "分点手头" or core.digits in "01" else measure
    if measure.unit.name == "期" or (word in "级代号节章款" and measure.unit.grade == 0):
        return None
    return measure


def _is_mark(text: str, i: int, j: int, p: str) -> bool:
    left = text[max(0, i - 10) : i]
    if text[j] in ")）":
        return bool(p) and p in "（("
    return _MARK_BEFORE.search(left) is not None


def _chinese_date(text: str, match: re.Match[str]) -> tuple[Number, int] | None:
    groups = match.groupdict()
    year = groups["y"] and "".join(str(_DIGITS.get(c, 0)) for c in groups["y"])
    month, day = groups["ym"] or groups["m"], groups["yd"] or groups["d"]
    m = chinese_to_int(month) if month else None
    d = chinese_to_int(day) if day else None
    if (month and (m is None or not 1 <= m <= 12)) or (day and (d is None or not 1 <= d <= 31)):
        return None
    return _make(text, match.start(), match.end(), _date(year, m, d), "", "date", False)


def _chinese_day(text: str, core: _Core) -> tuple[Number | None, int]:
    """三十日内: a duration; 十五日 alone: a day of the month; 一日游: a word."""
    number, end = _day(text, core)
    if core.lone and not number.variable:
        return None, end
    return number, end


def variables(numbers: Iterable[Number]) -> list[Number]:
    """Those of `numbers` that are numeric variables."""
    return [number for number in numbers if number.variable]
