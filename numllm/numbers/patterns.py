"""Patterns that several readers share: where a number can begin, and the forms it may have."""

from __future__ import annotations

import re

from .numerals import CN, D
from .units import SPACE, UNITS

__all__ = [
    "AFTER_ONE",
    "AFTER_ONE_PIECE",
    "ARABIC",
    "CALENDAR",
    "CN_RUN",
    "DOTTED",
    "INDEX_CUE",
    "MARK_BEFORE",
    "MOVED",
    "PER",
    "PER_WORDS",
    "WORD_TAIL",
]

# a lone 一 is by far the most frequent numeral and nearly always part of a word (一般, 一种, 统一): passed over in
# the search itself unless an ordinal or list mark stands before it or a measure after it
AFTER_ONE = (
    "年个日天周元倍成折半斤小分美港欧季月吨公米亩亿万千百十点星工平升桶盎英块角毛比又至到〇零○一二三四五六七八九两、)）交刻廿卅人名手股"
)
# 一个 is most of the rest: passed over unless a longer unit (个月), a half, a magnitude (个亿) or a range goes on there
AFTER_ONE_PIECE = "".join(sorted({word[1] for word in UNITS if word[0] == "个" and word != "个"}))
AFTER_ONE_PIECE += rf"半亿多余至到~～–—―－−﹣{SPACE}\-"
ARABIC = re.compile(
    rf"(?:[0-9]{{1,3}}(?:(?:,|\{{,\}})[0-9]{{3}})+(?![0-9])|[０-９]{{1,3}}(?:[，,][０-９]{{3}})+(?![０-９])|[{D}]+)"
    rf"(?:[.．][{D}]+)?(?:[eE][+\-−]?[0-9]{{1,3}}(?![0-9A-Za-z.]))?"
)
CN_RUN = re.compile(f"[{CN}]{{1,64}}")
CALENDAR = "零〇○一二三四五六七八九"
DOTTED = re.compile(rf"(?:[.\-–—][{D}A-Za-z]+)+")
WORD_TAIL = re.compile(r"[0-9A-Za-z_.%&=\-]*[0-9A-Za-z_]")
PER = re.compile(
    r"\s?[/／]\s?([\u4e00-\u9fff]{1,6}|m[²³]|[A-Za-z]{1,5}(?![A-Za-z])|㎡)|"
    r"每([股件斤吨人桶台份张月年天度箱瓶盒套辆亩升]|平方米|平米|平|立方米|公斤|千克|克拉|克|小时|千瓦时|盎司)"
)
PER_WORDS = set(
    (
        "㎡ 个 斤 亩 人 件 份 克 册 包 升 单 只 台 吨 周 块 天 头 套 季 年 度 张 户 手 支 日 晚 月 期 本 条 枚 栋 根 "
        "桶 次 点 片 瓦 瓶 盒 磅 笔 箱 米 羽 股 袋 车 辆 间 颗 m² m³ 人天 人日 人月 人次 公斤 公里 公顷 分钟 加仑 "
        "千克 千瓦 单位 台班 季度 学分 学时 小时 工日 工时 平米 盎司 课时 千瓦时 吨公里 平方米 立方米 蒲式耳 "
        "百万英热 百万英热单位 标箱 兆瓦时 枝 平 方 立方 标方 干吨 湿吨 克拉 "
        "L W g t GB MW TB Wh kW kg km lb oz FEU MWh TEU bbl gal kWh ton MMBtu"
    ).split()
)
INDEX_CUE = re.compile(r"(?:指数|点位|大盘|沪指|深成指)[^。；;\n0-9 ]{0,10}\Z")
MOVED = re.compile("(?:[涨跌升降调挫掉]|贴水|提高|增加|减少|回落|走[高低]|[收扩]窄?)[了约近逾超]?\\Z")  # 下调14点
MARK_BEFORE = re.compile(r"(?:^|[\n。；;：:！？!?])[\s>#*|\-—“\"（(]{0,6}\Z")
