"""Units of money, rates, time and counts: the words, their kind, and the power of ten to the base unit."""

from __future__ import annotations

import string
from typing import NamedTuple

__all__ = ["CODES", "LONGEST", "MAGNITUDES", "NOT_BEFORE", "NOT_MAGNITUDE", "SIGNS", "SPACE", "UNITS", "VAGUE", "Unit"]

_CURRENCIES = {
    "CNY": "元 块钱 人民币 元人民币 圆 圆人民币 人民币元 RMB CNY",
    "USD": "美元 美金 USD",
    "HKD": "港元 港币 元港币 HKD",
    "EUR": "欧元 EUR",
    "JPY": "日元 日圆 日币 JPY",
    "GBP": "英镑 GBP",
    "AUD": "澳元 澳币 澳大利亚元 AUD",
    "CAD": "加元 加币 加拿大元 CAD",
    "CHF": "瑞士法郎 CHF",
    "SGD": "新加坡元 新元 新币 SGD",
    "TWD": "新台币 台币 TWD",
    "MOP": "澳门元 澳门币 MOP",
    "KRW": "韩元 韩圆 韩币 KRW",
    "INR": "卢比 INR",
    "RUB": "卢布 RUB",
    "THB": "泰铢 THB",
    "NZD": "新西兰元 纽元 NZD",
    "MYR": "林吉特 马来西亚林吉特 MYR",
    "BRL": "雷亚尔 巴西雷亚尔 BRL",
    "ZAR": "兰特 南非兰特 ZAR",
    "SEK": "瑞典克朗 SEK",
    "NOK": "挪威克朗 NOK",
    "DKK": "丹麦克朗 DKK",
    "IDR": "印尼盾 IDR",
    "VND": "越南盾 VND",
    "TRY": "里拉 土耳其里拉 TRY",
    "AED": "迪拉姆 AED",
    "XDR": "特别提款权 SDR XDR",
}
_DURATIONS = {
    "year": "年 周年 个年度 个会计年度 个完整会计年度 个纳税年度 个自然年",
    "quarter": "个季度 个会计季度",
    "month": "个月 个自然月",
    "week": "周 个周 个星期 星期 个礼拜",
    "day": "天 个自然日 日历天 自然日",
    "workday": "个工作日 工作日",
    "tradingday": "个交易日 交易日",
    "hour": "小时 个小时 个钟头 课时 h",
    "minute": "分钟 min",
    "second": "秒 秒钟",
}
# rates: power of ten that takes the written number to a fraction
_RATES = {
    -1: "成 折",
    -2: "% ％ ﹪ 厘 个百分点 百分点 个点 pct PCT pcts pp ppt ppts",
    -3: "‰ 个千分点",
    -4: "‱ 个基点 基点 bp bps BP BPs BPS 个bp 个BP 个bps 个BPs 个BPS",
    0: "倍",
}
_MEASURED = (
    "吨 公吨 万吨 公斤 斤 市斤 千克 克 毫克 公里 千米 米 厘米 毫米 "
    "平方米 立方米 平方公里 平米 亩 公顷 升 毫升 公升 桶 盎司 千瓦时 千瓦 兆瓦 "
    "千伏安 蒲式耳 磅 英亩 英里 海里 人次 人月 工时 机器工时 人工工时 台时 工日 个工日 人日 人天 "
    "℃ 架次 班次 批次 兆瓦时 吉瓦 纳米 微米 学时 学分 艘次 枝 马力 标准箱 户次 车次 大卡 千卡 分贝 赫兹 "
    "kg km mm cm ha g t L mg ml m² km² m³ ㎡ kW MW GW kWh MWh GWh TWh kVA MB GB TB GHz MHz Gbps Mbps TEU DWT"
)
_CONCRETE = "股 件 台 人 名 户 岁 辆 头 艘 架 栋 幢 手 份 张 公斤"
_ABSTRACT = (
    "个 项 种 类 次 家 位 组 批 期 笔 套 部 座 本 册 支 枚 间 步 轮 分 条 点 片 根 块 粒 箱 袋 瓶 盒 单位 只 篇 道 票 "
    "趟 包 亿次 颗 副 幅 宗 场 门 层 天次 口 例 年级 起 处 单 档 席 班 株 题 小题 平"
)
# with a lone Chinese numeral these count ideas as often as things: 三个方面, 两种方法, 四项原则
VAGUE = frozenset(
    "个 项 种 类 组 部 本 册 步 分 条 点 片 根 块 层 门 级 处 档 题 小题 起 单 道 例 年级 席 班 口 篇 单位".split()
)
_NUMBERED = "号 章 节 级 页 楼 版 届 卷 世纪 代 年代 款 集 回 阶 号楼 号线 季度 度 次方 元组"
# a unit word is none when one of these characters follows it
NOT_BEFORE = {
    "元": "素件旦首老器宵勋月",
    "成": "立为本员交果功长就分熟品套都绩份人型家因员效年群",
    "折": "旧算现合叠返扣让腰线射",
    "倍": "数感率",
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
    "位": "于置数一",
    "票": "据面价房根子证款额贴息",
    "点": "击击率",
    "条": "件款约例目",
    "分": "别为之析布录类红配部期成公行支摊",
    "期": "权货间限末初",
    "个": "别体性",
    "项": "目",
    "种": "类子植",
    "类": "别似型",
    "组": "成合织",
    "本": "期金年法准币息身",
    "套": "期利",
    "口": "径",
    "例": "如外",
    "次": "级日年月要贷函曲型",
    "级": "别",
    "代": "表理码码替",
    "克": "服",
    "米": "",
    "升": "值至级",
    "股": "东权本份利票市息指",
    "户": "口",
    "份": "额",
    "头": "寸部",
    "层": "次面级",
    "场": "所景地",
    "节": "气",
    "集": "中合团体聚资成",
    "平": "均方安米台静衡等板仓常原日时抑价息分行稳凡面庸局盘复整抛今开移",
    "次方": "程",
    "门": "店槛",
    "步": "骤走",
    "日": "元常记期历报",
    "厘": "米定清",
    "包": "括含装裹销商办容揽干费政服责规",
    "人民币": "壹贰叁肆伍陆柒捌玖拾",
    "支": "持付出撑配",
    "单位": "产成价净名",
    "起": "始点算码源来见施诉草因伏止步征付息飞到",
    "处": "理罚于以置分境方所级长在",
    "批": "价发量准复次文示",
    "单": "位元价笔个独日月纯人边一户只季晶词利",
    "档": "案次期",
    "席": "位卷",
    "班": "级组次期",
    "h": "(_^}+*/=-",
    "min": "(_{\\",
    "g": ")+-*/^_=(}'",
    "个点": "位击",
    "个周": "期岁年",
    "题": "目材库型意干",
    "美元": "指",
}


_WIDE = {ord(c): ord(c) + 0xFEE0 for c in string.ascii_uppercase}  # ＵＳＤ


class Unit(NamedTuple):
    """What a unit word says of its number."""

    kind: str
    name: str
    shift: int  # power of ten to the base unit
    grade: int  # 3 money, rate, duration, measure; 2 concrete classifier; 1 abstract classifier; 0 a label


def _unit_table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}

    def add(words: str, kind: str, name: str | None, shift: int, grade: int) -> None:
        for word in words.split():
            table[word] = Unit(kind, word if name is None else name, shift, grade)

    add(_NUMBERED, "ordinal", "", 0, 0)
    add(_ABSTRACT, "count", None, 0, 1)
    add(_CONCRETE, "count", None, 0, 2)
    add("周岁", "count", "岁", 0, 3)
    add(_MEASURED, "count", None, 0, 3)
    table["万吨"] = Unit("count", "吨", 4, 3)
    table["公吨"] = Unit("count", "吨", 0, 3)
    for code, words in _CURRENCIES.items():
        add(words, "amount", code, 0, 3)
        add(" ".join(word.translate(_WIDE) for word in words.split() if word.isascii()), "amount", code, 0, 3)
    for word, code in (("美分", "USD"), ("美仙", "USD"), ("港仙", "HKD"), ("欧分", "EUR")):
        add(word, "amount", code, -2, 3)
    for name, words in _DURATIONS.items():
        add(words, "duration", name, 0, 3)
    for shift, words in _RATES.items():
        add(words, "rate", "1", shift, 3)
    table["度电"] = Unit("count", "度", 0, 3)
    table["课时"] = Unit("count", "课时", 0, 1)
    return table


UNITS = _unit_table()
LONGEST: dict[str, int] = {}  # first character -> length of the longest unit word that begins with it
for _word in UNITS:
    LONGEST[_word[0]] = max(LONGEST.get(_word[0], 0), len(_word))
CODES = {word for words in _CURRENCIES.values() for word in words.split() if word.isascii()}
CODES |= {word.translate(_WIDE) for word in CODES}
SIGNS = {
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
    "NZ$": "NZD",
    "CA$": "CAD",
    "AU$": "AUD",
    "R$": "BRL",
    "CN¥": "CNY",
    "₩": "KRW",
    "₹": "INR",
    "฿": "THB",
    "₽": "RUB",
}
MAGNITUDES = {"百": 2, "千": 3, "万": 4, "十万": 5, "百万": 6, "千万": 7, "亿": 8, "十亿": 9, "百亿": 10}
MAGNITUDES |= {"千亿": 11, "万亿": 12, "万万": 8}
NOT_MAGNITUDE = {"百": "分货姓度", "千": "克米瓦卡焦赫伏字", "万": "分科达华", "亿": ""}
SPACE = " \u00a0\u2009\u202f\u3000"
