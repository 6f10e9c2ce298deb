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
        ("$\\frac{2t}{3}$与Q=2L+1。", "2|2||other|+", "3|3||other|+", "2|2||other|+", "1|1||other|-"),
        ("载重8t的货车。", "8t|8|t|count|+"),
    ],
    "what a price is for": [
        ("均价1.2万美元，每克拉1.3万美元。", "1.2万美元|12000|USD|amount|+", "1.3万美元|13000|USD/克拉|price|+"),
        ("矿价103.5美元/干吨。", "103.5美元/干吨|103.5|USD/干吨|price|+"),
        ("气价3.2元/立方。", "3.2元/立方|3.2|CNY/立方|price|+"),
    ],
    "a price without its currency": [
        ("二手房均价3.2万/平。", "3.2万/平|32000|CNY/平|price|+"),
        ("单价3500/吨，产量3万/年。", "3500/吨|3500|CNY/吨|price|+", "3万|30000||other|+"),
    ],
    "a share's earnings": [
        ("EPS为0.52/0.68元。", "0.52|0.52|CNY/股|price|+", "0.68元|0.68|CNY/股|price|+"),
        ("GPS设备0.52万元。", "0.52万元|5200|CNY|amount|+"),
    ],
    "multiples of a valuation": [
        ("对应25x 2025E PE。", "25x|25|1|rate|+", "2025E|2025E||identifier|-"),
        ("PE为15-20x。", "15-20x|15|1|rate|+|15|20"),
        ("PB分别为15.2x/12.8x。", "15.2x|15.2|1|rate|+", "12.8x|12.8|1|rate|+"),
        ("令y=2x+3。", "2|2||other|+", "3|3||other|+"),
    ],
    "names with slashes and editions": [
        ("参见doi:10.1016/j.jfineco.2004.09.001。",
         "10.1016/j.jfineco.2004.09.001|10.1016/j.jfineco.2004.09.001||identifier|-"),
        ("arXiv:2106.09685一文。", "2106.09685|2106.09685||identifier|-"),
        ("通过ISO9001:2015认证。", "9001:2015|9001:2015||identifier|-"),
        ("价格10.5000/股。", "10.5000|10.5||price|+"),
    ],
    "telephone numbers in groups": [
        ("热线400 888 8888。", "400 888 8888|400 888 8888||identifier|-"),
        ("致电+86 138 0013 8000。", "86 138 0013 8000|86 138 0013 8000||identifier|-"),
    ],
    "a day of the year between slashes": [
        ("08/27公布。", "08/27|--08-27||date|-"),
        ("截至8/27的余额占8/27。", "8/27|--08-27||date|-", "8/27|8/27|1|rate|+"),
    ],
    "years in a row": [
        ("股价对应2024/2025/2026年PE。", "2024|2024||date|-", "2025|2025||date|-", "2026年|2026||date|-"),
        ("24-26年归母净利润。", "24-26年|24||date|-|24|26"),
        ("2024-26年的需求。", "2024-26年|2024||date|-|2024|2026"),
        ("期限24-26年。", "24-26年|24|year|duration|+|24|26"),
    ],
    "days that last": [
        ("7日（含）至30日的，为0.75%。", "7日|7|day|duration|+", "30日|30|day|duration|+", "0.75%|0.0075|1|rate|+"),
        ("连续3日净流入。", "3日|3|day|duration|+"),
        ("5月7日（含）至30日。", "5月7日|--05-07||date|-", "30日|30||date|-"),
    ],
    "an hour of the day": [
        ("上午10时开会。", "10时|10:00||time|-"),
        ("晚上8点见。", "8点|20:00||time|-"),
    ],
    "ranges without unit": [
        ("杠杆一般为1:10到1:20。", "1:10到1:20|0.05|1|rate|+|0.05|0.1"),
        ("9:30到11:30交易。", "9:30|9:30||time|-", "11:30|11:30||time|-"),
        ("出价100万至200万。", "100万至200万|1000000||other|+|1000000|2000000"),
        ("市盈率在15至20之间。", "15至20|15|1|rate|+|15|20"),
        ("生于1990至2000之间。", "1990|1990||date|-", "2000|2000||date|-"),
    ],
    "a unit written once behind a list": [
        ("期限为1、3、5年。", "1|1|year|duration|+", "3|3|year|duration|+", "5年|5|year|duration|+"),
        ("分别为1.2、1.5和1.8亿元。", "1.2|120000000|CNY|amount|+", "1.5|150000000|CNY|amount|+",
         "1.8亿元|180000000|CNY|amount|+"),
        ("系数为1.2和5%。", "1.2|1.2|1|rate|+", "5%|0.05|1|rate|+"),
        ("结论：2、5年以内的。", "2|2||ordinal|-", "5年|5|year|duration|+"),
    ],
    "points of a quotation": [
        ("黄金点差2个点。", "2个点|2|点|index|+"),
        ("沪指涨50个点，毛利率涨2个点。", "50个点|50|点|index|+", "2个点|0.02|1|rate|+"),
    ],
    "ten thousandths of speech": [
        ("佣金万三，日息万五。", "万三|0.0003|1|rate|+", "万五|0.0005|1|rate|+"),
        ("万一佣金有变。",),
    ],
    "a bare sum beside another": [
        ("甲出三百，乙出五十。", "三百|300||other|+", "五十|50||other|+"),
        ("编号五十。", "五十|50||other|-"),
    ],
    "one and a half between slashes": [
        ("期限1又1/2年。", "1又1/2年|1.5|year|duration|+"),
    ],
    "points beside per cent": [
        ("毛利率下滑2.3ppt至31.7%。", "2.3ppt|0.023|1|rate|+", "31.7%|0.317|1|rate|+"),
        ("提升5pct-8pct。", "5pct-8pct|0.05|1|rate|+|0.05|0.08"),
        ("收益率6.8%-7.2%/年。", "6.8%-7.2%|0.068|1|rate|+|0.068|0.072"),
    ],
    "a magnitude behind the word of a rate": [
        ("申购费率：100万以下1.5%。", "100万|1000000||other|+", "1.5%|0.015|1|rate|+"),
    ],
    "accounts that are booked": [
        ("借记“本年利润”科目35 600。", "35 600|35600||amount|+"),
        ("会计科目1001。", "1001|1001||identifier|-"),
    ],
    "discounts": [
        ("满200减30。", "200|200||other|+", "30|30||other|+"),
        ("打满30分钟。", "30分钟|30|minute|duration|+"),
    ],
    "days in quotation marks": [
        ("“9.24”行情以来。", "9.24|--09-24||date|-"),
        ("“0.85”为其系数。", "0.85|0.85||other|+"),
    ],
    "words that are counted behind 第": [
        ("第二杯半价，第一层次输入值。", "第二杯|2||ordinal|-", "第一层次|1||ordinal|-"),
    ],
    "coins behind coins": [
        ("每斤两块三毛五。", "两块三毛五|2.35|CNY/斤|price|+"),
        ("卖了3块5毛钱。", "3块5毛钱|3.5|CNY|amount|+"),
        ("合计四千一百块。", "四千一百块|4100|CNY|amount|+"),
    ],
    "years of a forecast": [
        ("给予25年15-18倍PE。", "25年|25||date|-", "15-18倍|15|1|rate|+|15|18"),
        ("过去25年净利润翻番。", "25年|25|year|duration|+"),
        ("对应24/25/26年PE。", "24|24||date|-", "25|25||date|-", "26年|26||date|-"),
    ],
    "a unit written once behind slashes": [
        ("增至45亿/52亿美元。", "45亿|4500000000|USD|amount|+", "52亿美元|5200000000|USD|amount|+"),
        ("选3/5/10/15/20年交。", "3|3|year|duration|+", "5|5|year|duration|+", "10|10|year|duration|+",
         "15|15|year|duration|+", "20年|20|year|duration|+"),
        ("自55/60周岁起。", "55|55|岁|count|+", "60周岁|60|岁|count|+"),
        ("选2/10年期组合。", "2|2||other|-", "10年|10|year|duration|+"),
    ],
    "differences in brackets": [
        ("边际贡献率=(10-6)/10=40%。", "10|10||other|+", "6|6||other|+", "10|10||other|+", "40%|0.4|1|rate|+"),
        ("收益11万元（1 311-1 300）。", "11万元|110000|CNY|amount|+", "1 311|1311||other|+", "1 300|1300||other|+"),
        ("长安汽车（2016-2020）。", "2016|2016||date|-", "2020|2020||date|-"),
        ("讲义（P.18-19）。", "18|18||other|-", "19|19||other|-"),
    ],
    "floor space of speech": [
        ("套内89平的房子。", "89平|89|平|count|+"),
        ("100平均分给两组。", "100|100||other|-", "两组|2|组|count|-"),
    ],
    "decimal coefficients": [
        ("C=200+0.75Y，本利和为1.1236P。", "200|200||other|+", "0.75|0.75||other|+", "1.1236|1.1236||other|+"),
        ("print(f'{x:>10.4f}')", "10.4f|10.4f||identifier|-"),
        ("使用2.4G频段。", "2.4G|2.4G||identifier|-"),
    ],
    "numbers of serials and notices": [
        ("刊号CN 11-1081/F。", "11-1081/F|11-1081/F||identifier|-"),
        ("刊号CN11-1081/F。", "11-1081/F|11-1081/F||identifier|-"),
        ("公告编号：临2025-012。", "2025-012|2025-012||identifier|-"),
        ("电话（010）6610 8888。", "（010）6610 8888|（010）6610 8888||identifier|-"),
    ],
    "a sum for each one": [
        ("两万八一平买的。", "两万八|28000||other|+"),
        ("苹果三块五一斤。", "三块五|3.5|CNY|amount|+", "一斤|1|斤|count|+"),
        ("仔猪每头跌至320元。", "320元|320|CNY/头|price|+"),
    ],
    "half of all": [
        ("近一半计划涨薪。", "一半|0.5|1|rate|+"),
        ("一半会儿说不清。",),
    ],
    "points of speech": [
        ("满仓干了十个点，又加了两个点。", "十个点|0.1|1|rate|+", "两个点|0.02|1|rate|+"),
    ],
    "ordinals in a list": [
        ("适用第1、2项。", "第1|1||ordinal|-", "2项|2||ordinal|-"),
        ("第1、2项已缴，另缴3项。", "第1|1||ordinal|-", "2项|2||ordinal|-", "3项|3|项|count|+"),
    ],
    "last digits": [
        ("卡号尾号6789。", "6789|6789||identifier|-"),
    ],
    "a unit at the first character": [
        ("两周内完成。", "两周|2|week|duration|+"),
        ("上两周完成。",),
    ],
    "tenths before 为宜": [
        ("以两成到三成为宜。", "两成到三成|0.2|1|rate|+|0.2|0.3"),
        ("三成为何亏损。",),
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
