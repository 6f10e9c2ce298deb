"""Patterns that several readers share: where a number can begin, and the forms it may have."""

from __future__ import annotations

import re

from .numerals import CN, D

__all__ = [
    "AFTER_ONE",
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
    "年个日天周元倍成折半小分美港欧季月吨公米亩亿万千百十点星工平升桶盎英块角毛比又至到〇零○一二三四五六七八九两、)）交刻廿卅人名手股"
)
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
    r"每([股件吨人桶台份张克月年天度箱瓶盒套辆亩升]|平方米|立方米|公斤|千克|小时|千瓦时|盎司)"
)
PER_WORDS = {"股", "件", "吨", "桶", "台", "份", "张", "克", "人", "天", "月", "年", "小时", "平方米", "公斤", "千克"}
PER_WORDS |= {
    "盎司",
    "升",
    "辆",
    "套",
    "个",
    "只",
    "户",
    "次",
    "千瓦时",
    "瓦",
    "亩",
    "米",
    "公里",
    "手",
    "度",
    "箱",
    "支",
}
PER_WORDS |= {"笔", "点", "单位", "立方米", "工时", "蒲式耳", "瓶", "日", "吨公里", "kg", "t", "kWh", "人天", "人月"}
PER_WORDS |= {"平米", "公顷", "磅", "加仑", "百万英热单位", "百万英热", "千瓦", "人次", "人日", "工日", "分钟", "季度", "季", "周", "晚", "间", "期"}
PER_WORDS |= {"课时", "学时", "学分", "片", "头", "羽", "本", "册", "枚", "颗", "包", "袋", "根", "条", "块", "单", "栋", "盒", "台班", "车"}
PER_WORDS |= {"W", "Wh", "kW", "MW", "MWh", "g", "L", "km", "ton", "lb", "oz", "bbl", "gal", "MMBtu", "GB", "TB", "TEU", "FEU", "㎡", "m²", "m³"}
INDEX_CUE = re.compile(r"(?:指数|点位|大盘|沪指|深成指)[^。；;\n0-9 ]{0,10}\Z")
MOVED = re.compile("(?:[涨跌升降调挫]|贴水|走[高低]|[收扩]窄?)[了约近逾超]?\\Z")  # 下调14点
MARK_BEFORE = re.compile(r"(?:^|[\n。；;：:！？!?])[\s>#*|\-—“\"（(]{0,6}\Z")
