"""numllm.numbers: an annotated table, round trips, and promises for any string."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numllm.numbers import Number, chinese_to_int, decimal_string, find_numbers, int_to_chinese, variables

ROOT = Path(__file__).resolve().parents[1]

# a text, then each of its numbers as text|value|unit|kind|+ or - for variable[|low|high]
CASES = [
    ("营业收入为1,234.5元", "1,234.5元|1234.5|CNY|amount|+"),
    ("１，２３４元", "１，２３４元|1234|CNY|amount|+"),
    ("制造业PMI为49.4", "49.4|49.4||index|+"),
    ("本期亏损−3万元", "−3万元|-30000|CNY|amount|+"),
    ("同比增长-3%", "-3%|-0.03|1|rate|+"),
    ("增速为负3%", "负3%|-0.03|1|rate|+"),
    ("净利润为负百分之五", "负百分之五|-0.05|1|rate|+"),
    ("年利率5%", "5%|0.05|1|rate|+"),
    ("年利率5％", "5％|0.05|1|rate|+"),
    ("日利率5‰", "5‰|0.005|1|rate|+"),
    ("利率8\\%左右", "8\\%|0.08|1|rate|+"),
    ("利率8$\\%$左右", "8$\\%$|0.08|1|rate|+"),
    ("成本为$\\$1{,}000$", "$\\$1{,}000$|1000|USD|amount|+"),
    ("样本量为1.2e5元", "1.2e5元|120000|CNY|amount|+"),
    ("净值为(1,234.50)", "1,234.50|1234.5||other|+"),
    ("百分之五以上股份", "百分之五|0.05|1|rate|+"),
    ("按千分之三缴纳", "千分之三|0.003|1|rate|+"),
    ("每日万分之五", "万分之五|0.0005|1|rate|+"),
    ("百分之零点五", "百分之零点五|0.005|1|rate|+"),
    ("百分之一百二十", "百分之一百二十|1.2|1|rate|+"),
    ("上升5个百分点", "5个百分点|0.05|1|rate|+"),
    ("上调25个基点", "25个基点|0.0025|1|rate|+"),
    ("利差为25bp", "25bp|0.0025|1|rate|+"),
    ("首付三成", "三成|0.3|1|rate|+"),
    ("打五折销售", "五折|0.5|1|rate|+"),
    ("八五折优惠", "八五折|0.85|1|rate|+"),
    ("按7.5折出售", "7.5折|0.75|1|rate|+"),
    ("注册资本三千万元", "三千万元|30000000|CNY|amount|+"),
    ("合计1万2千元", "1万2千元|12000|CNY|amount|+"),
    ("资产为3.5亿元", "3.5亿元|350000000|CNY|amount|+"),
    ("十五万元", "十五万元|150000|CNY|amount|+"),
    ("两百五十元", "两百五十元|250|CNY|amount|+"),
    ("价款一万五千元", "一万五千元|15000|CNY|amount|+"),
    ("罚款五千元", "五千元|5000|CNY|amount|+"),
    ("壹佰贰拾叁元肆角伍分", "壹佰贰拾叁元肆角伍分|123.45|CNY|amount|+"),
    ("人民币壹仟元整", "壹仟元整|1000|CNY|amount|+"),
    ("每半年付息一次", "半年|0.5|year|duration|+"),
    ("占1/3的股份", "1/3|1/3|1|rate|+"),
    ("三分之一以上董事", "三分之一|1/3|1|rate|+"),
    ("三分之二以上通过", "三分之二|2/3|1|rate|+"),
    ("按1:2的比例", "1:2|0.5|1|rate|+"),
    ("利润按5:3:2分配", "5:3:2|5:3:2|1|rate|+"),
    ("¥1,000", "¥1,000|1000|CNY|amount|+"),
    ("US$100", "US$100|100|USD|amount|+"),
    ("HK$ 20", "HK$ 20|20|HKD|amount|+"),
    ("€30", "€30|30|EUR|amount|+"),
    ("售价3.5元/股", "3.5元/股|3.5|CNY/股|price|+"),
    ("铜价为50,000元/吨", "50,000元/吨|50000|CNY/吨|price|+"),
    ("单价4元／件", "4元／件|4|CNY/件|price|+"),
    ("原油80美元/桶", "80美元/桶|80|USD/桶|price|+"),
    ("100港元", "100港元|100|HKD|amount|+"),
    ("300万美元", "300万美元|3000000|USD|amount|+"),
    ("5亿欧元", "5亿欧元|500000000|EUR|amount|+"),
    ("1,000日元", "1,000日元|1000|JPY|amount|+"),
    ("USD 1,000", "USD 1,000|1000|USD|amount|+"),
    ("RMB 500万", "RMB 500万|5000000|CNY|amount|+"),
    ("每股派发现金红利0.5元", "0.5元|0.5|CNY/股|price|+"),
    ("每件成本为70元", "70元|70|CNY/件|price|+"),
    ("每吨3,000元", "3,000元|3000|CNY/吨|price|+"),
    ("期限为7至15年", "7至15年|7|year|duration|+|7|15"),
    ("增长5%-8%", "5%-8%|0.05|1|rate|+|0.05|0.08"),
    ("增长5%～8%", "5%～8%|0.05|1|rate|+|0.05|0.08"),
    ("分成3到5个阶段", "3到5个|3|个|count|+|3|5"),
    ("投入20-30万元", "20-30万元|200000|CNY|amount|+|200000|300000"),
    ("500万-1000万元", "500万-1000万元|5000000|CNY|amount|+|5000000|10000000"),
    ("百分之三至百分之五", "百分之三至百分之五|0.03|1|rate|+|0.03|0.05"),
    ("期限三至五年", "三至五年|3|year|duration|+|3|5"),
    ("刑期八至十年", "八至十年|8|year|duration|+|8|10"),
    ("3-6个月", "3-6个月|3|month|duration|+|3|6"),
    ("1.5元至2元", "1.5元至2元|1.5|CNY|amount|+|1.5|2"),
    ("2024年3月5日", "2024年3月5日|2024-03-05||date|-"),
    ("1月1日", "1月1日|--01-01||date|-"),
    ("2024年", "2024年|2024||date|-"),
    ("20×4年12月31日", "20×4年12月31日|20X4-12-31||date|-"),
    ("2×17 年 12 月 31 日", "2×17 年 12 月 31 日|2X17-12-31||date|-"),
    ("20X3年末", "20X3年|20X3||date|-"),
    ("2014-2018年", "2014-2018年|2014||date|-|2014|2018"),
    ("1-6月", "1-6月|--01||date|-|--01|--06"),
    ("2024-03-05", "2024-03-05|2024-03-05||date|-"),
    ("2024/3/5", "2024/3/5|2024-03-05||date|-"),
    ("二〇二四年三月五日", "二〇二四年三月五日|2024-03-05||date|-"),
    ("一九九八年", "一九九八年|1998||date|-"),
    ("三月五日召开", "三月五日|--03-05||date|-"),
    ("十二月三十一日", "十二月三十一日|--12-31||date|-"),
    ("98年底", "98年底|98||date|-"),
    ("90年代", "90年代|90||date|-"),
    ("18年6月29日完工", "18年6月29日|18||date|-"),
    ("06/03/2022", "06/03/2022|2022-06-03||date|-"),
    ("第3章", "第3章|3||ordinal|-"),
    ("第一百二十三条", "第一百二十三条|123||ordinal|-"),
    ("第二款", "第二款|2||ordinal|-"),
    ("第三季度", "第三季度|3||ordinal|-"),
    ("第一次", "第一次|1||ordinal|-"),
    ("每张分别为1,010元和990元", "1,010元|1010|CNY/张|price|+", "990元|990|CNY/张|price|+"),
    ("每股0.5元及2亿元", "0.5元|0.5|CNY/股|price|+", "2亿元|200000000|CNY|amount|+"),
    ("每股派息由0.12港元增至0.15港元", "0.12港元|0.12|HKD/股|price|+", "0.15港元|0.15|HKD/股|price|+"),
    ("收窄3.2、5.1和6.8bp", "3.2|0.00032|1|rate|+", "5.1|0.00051|1|rate|+", "6.8bp|0.00068|1|rate|+"),
    ("为0.2、-0.3和0.8亿元", "0.2|20000000|CNY|amount|+", "-0.3|-30000000|CNY|amount|+",
     "0.8亿元|80000000|CNY|amount|+"),
    ("不低于5,000、6,200和7,500万元", "5,000|50000000|CNY|amount|+", "6,200|62000000|CNY|amount|+",
     "7,500万元|75000000|CNY|amount|+"),
    ("营业收入（万元）：1,234.5", "1,234.5|12345000|CNY|amount|+"),
    ("净额（万元） -4,512.37 1,880.96", "-4,512.37|-45123700|CNY|amount|+", "1,880.96|18809600|CNY|amount|+"),
    ("| 每股收益（元/股） | 0.43 | 0.39 |", "0.43|0.43|CNY/股|price|+", "0.39|0.39|CNY/股|price|+"),
    ("毛利率（%） 35.2 36.1", "35.2|0.352|1|rate|+", "36.1|0.361|1|rate|+"),
    ("租赁期(月)：24", "24|24|month|duration|+"),
    ("| 增速（%） |\n| 12 | 2.5 |", "12|12||other|-", "2.5|2.5||other|+"),
    ("单位：千元 短期借款 350,000 2024 第3项", "350,000|350000000|CNY|amount|+", "2024|2024||date|-",
     "第3项|3||ordinal|-"),
    ("（百万港元）：零售 682；批发 (45)", "682|682000000|HKD|amount|+", "(45)|-45000000|HKD|amount|+"),
    ("价格单位为元、数量单位为件，共卖250", "250|250||other|-"),
    ("变量f(t) 3.5", "3.5|3.5||other|+"),
    ("末期股息每股18港仙", "18港仙|0.18|HKD/股|price|+"),
    ("减息0.25厘", "0.25厘|0.0025|1|rate|+"),
    ("升破142日圆", "142日圆|142|JPY|amount|+"),
    ("欧线每标箱2,250美元", "2,250美元|2250|USD/标箱|price|+"),
    ("2024/25/26年收入", "2024|2024||date|-", "25|2025||date|-", "26年|2026||date|-"),
    ("每月不到九十块。", "九十块|90|CNY|amount|+"),
    ("扣了三百来块", "三百来块|300|CNY|amount|+"),
    ("存一万块一年", "一万块|10000|CNY|amount|+", "一年|1|year|duration|+"),
    ("把蛋糕切成8块", "8块|8|块|count|+"),
    ("12块土地", "12块|12|块|count|+"),
    ("王五人民币捌万陆仟元整", "捌万陆仟元整|86000|CNY|amount|+"),
    ("首付两成就行", "两成|0.2|1|rate|+"),
    ("利率比活期高差不多两个点", "两个点|0.02|1|rate|+"),
    ("连续三期未还", "三期|3|期|count|+"),
    ("三个方面", "三个|3|个|count|-"),
    ("二次函数与三包费用",),
    ("3到5个人工窗口", "3到5个|3|个|count|+|3|5"),
    ("市值约2千9百万元", "2千9百万元|29000000|CNY|amount|+"),
    ("15日的犹豫期", "15日|15|day|duration|+"),
    ("用电1,600度", "1,600度|1600|度|count|+"),
    ("旋转90度", "90度|90||ordinal|-"),
    ("金融街15号召开", "15号|15||ordinal|-"),
    ("存货跌价准备（万元）　期初1,024.6　转销512.3", "1,024.6|10246000|CNY|amount|+", "512.3|5123000|CNY|amount|+"),
    ("月度误差（%） = sqrt(0.28 ÷ 5)", "0.28|0.28||other|+", "5|5||other|+"),
    ("期限为3+2年期", "3|3|year|duration|+", "2年|2|year|duration|+"),
    ("研发队伍年轻",),
    ("贷：银行存款 542 400", "542 400|542400||amount|+"),
    ("电影甲 8,215.6 -12.4%", "8,215.6|8215.6||other|+", "-12.4%|-0.124|1|rate|+"),
    ("20世纪80年代", "20世纪80年代|198||date|-"),
    ("二十世纪八十年代", "二十世纪八十年代|198||date|-"),
    ("定理3.2（分离", "3.2|3.2||ordinal|-"),
    ("均价0.83元/枝", "0.83元/枝|0.83|CNY/枝|price|+"),
    ("当年买入价每枚630美元", "630美元|630|USD/枚|price|+"),
    ("共48学时，计3学分", "48学时|48|学时|count|+", "3学分|3|学分|count|+"),
    ("收回$\\$1{,}035$后", "$\\$1{,}035$|1035|USD|amount|+"),
    ("2023年度报告", "2023年|2023||date|-"),
    ("2022/23年度小麦", "2022/23年|2022||date|-"),
    ("证书编号GR202311001234，", "GR202311001234|GR202311001234||identifier|-"),
    ("表3-7 分产品收入", "3-7|3-7||ordinal|-"),
    ("被冻结银行账户5个", "5个|5|个|count|+"),
    ("电缆每米36.5元", "36.5元|36.5|CNY/米|price|+"),
    ("单位：万元 附注 12 货币资金 1,234", "12|12||ordinal|-", "1,234|12340000|CNY|amount|+"),
    ("单位：万元。销售费用 4,018.7", "4,018.7|40187000|CNY|amount|+"),
    ("净额（万元） 其中（自产） 为1,024.6", "1,024.6|10246000|CNY|amount|+"),
    ("约（元左右） 12.5", "12.5|12.5||other|+"),
    ("数量 | 增速（%）\n12.5 | 3", "12.5|12.5||other|+", "3|3||other|-"),
    ("金额（元） 其中收益率为3.5", "3.5|3.5|1|rate|+"),
    ("规模（万元） 3万", "3万|30000||other|+"),
    ("$\\$5+x$", "\\$5|5|USD|amount|+"),
    ("8$\\%$\\$7$", "8$\\%$|0.08|1|rate|+", "\\$7|7|USD|amount|+"),
    ("还剩三块，", "三块|3|块|count|-"),
    ("租金五块一年", "五块|5|CNY|amount|+", "一年|1|year|duration|+"),
    ("鸡蛋三块一斤", "三块|3|CNY|amount|+", "一斤|1|斤|count|+"),
    ("每台3万元和5万元", "3万元|30000|CNY/台|price|+", "5万元|50000|CNY/台|price|+"),
    ("每股0.12港元增至0.15元", "0.12港元|0.12|HKD/股|price|+", "0.15元|0.15|CNY|amount|+"),
    ("2024、10年期国债", "2024|2024||date|-", "10年|10|year|duration|+"),
    ("乘以1.2和5%", "1.2|1.2||other|+", "5%|0.05|1|rate|+"),
    ("分别为3.2、5.1和6.8%", "3.2|0.032|1|rate|+", "5.1|0.051|1|rate|+", "6.8%|0.068|1|rate|+"),
    ("让利五厘",),
    ("分别收窄5.1和6.8bp", "5.1|0.00051|1|rate|+", "6.8bp|0.00068|1|rate|+"),
    ("单位：万元 门店 12 收入 1,234", "12|12||other|-", "1,234|12340000|CNY|amount|+"),
    ("请拨打95533", "95533|95533||identifier|-"),
    ("EPS为0.84、1.08及1.37元", "0.84|0.84|CNY/股|price|+", "1.08|1.08|CNY/股|price|+", "1.37元|1.37|CNY/股|price|+"),
    ("每股股利0.5元或0.6元", "0.5元|0.5|CNY/股|price|+", "0.6元|0.6|CNY/股|price|+"),
    ("每股派0.5元及2亿元", "0.5元|0.5|CNY/股|price|+", "2亿元|200000000|CNY|amount|+"),
    ("每股5元，10元起", "5元|5|CNY/股|price|+", "10元|10|CNY|amount|+"),
    ("对应PE为20、16和14倍", "20|20|1|rate|+", "16|16|1|rate|+", "14倍|14|1|rate|+"),
    ("市盈率20倍、3家公司", "20倍|20|1|rate|+", "3家|3|家|count|+"),
    ("营收YoY+8.6%，QoQ-1.3%", "8.6%|0.086|1|rate|+", "-1.3%|-0.013|1|rate|+"),
    ("净利润yoy -3.2%，MoM−0.5pct", "-3.2%|-0.032|1|rate|+", "−0.5pct|-0.005|1|rate|+"),
    ("型号ABC-5%与PE-20倍", "5%|0.05|1|rate|+", "20倍|20|1|rate|+"),
    ("违反第五十条、五十一条规定", "第五十条|50||ordinal|-", "五十一条|51||ordinal|-"),
    ("（1）收入", "（1）|1||ordinal|-"),
    ("（一）总则", "（一）|1||ordinal|-"),
    ("①确认", "①|1||ordinal|-"),
    ("1. 总则", "1|1||ordinal|-"),
    ("2、计量", "2|2||ordinal|-"),
    ("一、概述", "一|1||ordinal|-"),
    ("例 3-1", "3-1|3-1||ordinal|-"),
    ("表2-1", "2-1|2-1||ordinal|-"),
    ("图 3.2", "3.2|3.2||ordinal|-"),
    ("如表2所示", "2|2||ordinal|-"),
    ("2007年第5号", "2007年第5号|2007年第5号||identifier|-"),
    ("财会〔2017〕22号", "〔2017〕22号|〔2017〕22号||identifier|-"),
    ("2号准则", "2号|2||ordinal|-"),
    ("ISBN 978-7-111", "978-7-111|978-7-111||identifier|-"),
    ("电话010-12345678", "010-12345678|010-12345678||identifier|-"),
    ("版本10.0.14", "10.0.14|10.0.14||identifier|-"),
    ("账号6222021234", "6222021234|6222021234||identifier|-"),
    ("（600519）", "600519|600519||identifier|-"),
    ("CAS 14的规定", "14|14||identifier|-"),
    ("COVID-19疫情", "19|19||identifier|-"),
    ("(1 + 3.2%)^6", "1|1||other|-", "3.2%|0.032|1|rate|+", "6|6||formula|-"),
    ("d1与d2", "1|1||formula|-", "2|2||formula|-"),
    ("R2为0.9", "2|2||formula|-", "0.9|0.9||other|+"),
    ("14:30开盘", "14:30|14:30||time|-"),
    ("9点30分", "9点30分|09:30||time|-"),
    ("按2/10，1/20，N/30付款", "2/10，1/20，N/30|2/10，1/20，N/30||other|-"),
    ("访问https://a.com/x?id=123&b=5",),
    ("一般情况",),
    ("三角债",),
    ("四大行",),
    ("十分重要",),
    ("万一发生",),
    ("五险一金",),
    ("一定条件",),
    ("一个企业",),
    ("共一个",),
    ("一个多月以前",),
    ("赚了一个亿", "一个亿|100000000||other|+"),
    ("一个工作日内", "一个工作日|1|workday|duration|+"),
    ("上升一个百分点", "一个百分点|0.01|1|rate|+"),
    ("一个到三个品种", "一个到三个|1|个|count|-|1|3"),
    ("一种方法",),
    ("之一",),
    ("同一控制",),
    ("统一标准",),
    ("一方面",),
    ("两者之和",),
    ("一元线性回归",),
    ("一成不变",),
    ("十三五规划",),
    ("百分百",),
    ("千万不要",),
    ("二级市场",),
    ("三方协议",),
    ("期限三年", "三年|3|year|duration|+"),
    ("五个月后", "五个月|5|month|duration|+"),
    ("增长两倍", "两倍|2|1|rate|+"),
    ("价款十万元", "十万元|100000|CNY|amount|+"),
    ("期限一年", "一年|1|year|duration|+"),
    ("自公告之日起三十日内", "三十日|30|day|duration|+"),
    ("10日内", "10日|10|day|duration|+"),
    ("每月15日前", "15日|15||date|-"),
    ("15个工作日内", "15个工作日|15|workday|duration|+"),
    ("12个月", "12个月|12|month|duration|+"),
    ("4个季度", "4个季度|4|quarter|duration|+"),
    ("6周", "6周|6|week|duration|+"),
    ("90天", "90天|90|day|duration|+"),
    ("8小时", "8小时|8|hour|duration|+"),
    ("两年半", "两年半|2.5|year|duration|+"),
    ("三个半月", "三个半月|3.5|month|duration|+"),
    ("半个月内", "半个月|0.5|month|duration|+"),
    ("上半年",),
    ("一半以上", "一半|0.5|1|rate|+"),
    ("近一个半小时", "一个半小时|1.5|hour|duration|+"),
    ("3000点", "3000点|3000|点|index|+"),
    ("上证指数上涨50点", "50点|50|点|index|+"),
    ("发行100万股", "100万股|1000000|股|count|+"),
    ("3家公司", "3家|3|家|count|+"),
    ("三家公司", "三家|3|家|count|+"),
    ("三名董事", "三名|3|名|count|+"),
    ("二人以上", "二人|2|人|count|+"),
    ("两种方法", "两种|2|种|count|-"),
    ("100余万元", "100余万元|1000000|CNY|amount|+"),
    ("10多家", "10多家|10|家|count|+"),
    ("数百万元",),
    ("几十万元",),
    ("十几年",),
    ("销售价格为2000万元", "2000万元|20000000|CNY|amount|+"),
    ("账面价值1 000 万元", "1 000 万元|10000000|CNY|amount|+"),
    ("借：固定资产 1 000 000", "1 000 000|1000000||amount|+"),
    ("贷：银行存款 113,000", "113,000|113000||amount|+"),
    ("共计9000 万", "9000 万|90000000||other|+"),
    (
        "700万元－40万元=660万元",
        "700万元|7000000|CNY|amount|+",
        "40万元|400000|CNY|amount|+",
        "660万元|6600000|CNY|amount|+",
    ),
    ("80,000 × 2.75%", "80,000|80000||other|+", "2.75%|0.0275|1|rate|+"),
    ("税率为0.13", "0.13|0.13|1|rate|+"),
    ("单价为12.5", "12.5|12.5||price|+"),
    ("0.5倍", "0.5倍|0.5|1|rate|+"),
    ("1.06亿股", "1.06亿股|106000000|股|count|+"),
    ("25吨", "25吨|25|吨|count|+"),
    ("120平方米", "120平方米|120|平方米|count|+"),
    ("40岁", "40岁|40|岁|count|+"),
    ("3元5角", "3元5角|3.5|CNY|amount|+"),
    ("2.5%", "2.5%|0.025|1|rate|+"),
    ("100%", "100%|1|1|rate|+"),
    ("处五万元以上五十万元以下罚款", "五万元|50000|CNY|amount|+", "五十万元|500000|CNY|amount|+"),
    ("一倍以上五倍以下罚款", "一倍|1|1|rate|+", "五倍|5|1|rate|+"),
    ("不超过六个月", "六个月|6|month|duration|+"),
    ("廿五元", "廿五元|25|CNY|amount|+"),
    ("卅日内", "卅日|30|day|duration|+"),
    ("这一年",),
    ("上一年",),
    (" (1,234.50) ", "(1,234.50)|-1234.5||amount|+"),
    (
        "注册资本不低于人民币二亿元，且在五年内缴足。",
        "二亿元|200000000|CNY|amount|+",
        "五年|5|year|duration|+",
    ),
    (
        "该债券面值100元，票面利率4.72%，期限5年。",
        "100元|100|CNY|amount|+",
        "4.72%|0.0472|1|rate|+",
        "5年|5|year|duration|+",
    ),
    (
        "2×18年，甲公司以1,200万元取得乙公司30%的股权。",
        "2×18年|2X18||date|-",
        "1,200万元|12000000|CNY|amount|+",
        "30%|0.3|1|rate|+",
    ),
    (
        "股价从12.5元/股跌至9.8元/股，跌幅21.6%。",
        "12.5元/股|12.5|CNY/股|price|+",
        "9.8元/股|9.8|CNY/股|price|+",
        "21.6%|0.216|1|rate|+",
    ),
    (
        "第二十三条　违反本法的，处一百万元以上一千万元以下的罚款。",
        "第二十三条|23||ordinal|-",
        "一百万元|1000000|CNY|amount|+",
        "一千万元|10000000|CNY|amount|+",
    ),
    ("代表十分之一以上表决权的股东", "十分之一|0.1|1|rate|+"),
    ("年利率5.5%，比基准上浮30个基点，每季度付息。", "5.5%|0.055|1|rate|+", "30个基点|0.003|1|rate|+"),
    (
        "甲、乙双方各占一半，期限一年零三个月。",
        "一半|0.5|1|rate|+",
        "一年|1|year|duration|+",
        "三个月|3|month|duration|+",
    ),
    ("员工1,050人，平均年龄35.2岁。", "1,050人|1050|人|count|+", "35.2岁|35.2|岁|count|+"),
    ("## 1.2 利率的种类", "1.2|1.2||ordinal|-"),
    ("1-25 现金流量的分类", "1-25|1-25||ordinal|-"),
    ("| 100 | 2,500.00 |", "100|100||other|-", "2,500.00|2500||other|+"),
    ("存货周转率为4.5次", "4.5次|4.5|次|count|+"),
    ("市盈率为15倍", "15倍|15|1|rate|+"),
    ("准备金率下调0.5个百分点", "0.5个百分点|0.005|1|rate|+"),
    ("报价为每盎司2,350美元", "2,350美元|2350|USD/盎司|price|+"),
    ("负债率-2.5%", "-2.5%|-0.025|1|rate|+"),
    ("8%的税率", "8%|0.08|1|rate|+"),
    ("十二个月以内", "十二个月|12|month|duration|+"),
    ("自2024年1月1日起5年内", "2024年1月1日|2024-01-01||date|-", "5年|5|year|duration|+"),
    ("三百六十五天", "三百六十五天|365|day|duration|+"),
    ("二十万平方米", "二十万平方米|200000|平方米|count|+"),
    ("<td>45%</td>", "45%|0.45|1|rate|+"),
    ("<td width=\"30\">12%</td>", "12%|0.12|1|rate|+"),
    ("1200", "1200|1200||other|+"),
    ("-50", "-50|-50||other|+"),
    ("",),
    ("没有数字的句子。",),
    ("三年期定期存款", "三年|3|year|duration|+"),
    ("一年期LPR", "一年|1|year|duration|+"),
    ("1，000元", "1，000元|1000|CNY|amount|+"),
    ("利息 = 6,600（元）", "6,600（元）|6600|CNY|amount|+"),
    ("贴现息为12.87（万元）", "12.87（万元）|128700|CNY|amount|+"),
    ("发行价12.5（元/股）", "12.5（元/股）|12.5|CNY/股|price|+"),
    ("30至60日内", "30至60日|30|day|duration|+|30|60"),
    ("十五至二十日内", "十五至二十日|15|day|duration|+|15|20"),
    ("10月20日至25日", "10月20日|--10-20||date|-", "25日|25||date|-"),
    ("六成五", "六成五|0.65|1|rate|+"),
    ("年满18周岁", "18周岁|18|岁|count|+"),
    ("201X年", "201X年|201X||date|-"),
    ("一年零三个月", "一年|1|year|duration|+", "三个月|3|month|duration|+"),
    ("10年期国债", "10年|10|year|duration|+"),
    ("7天逆回购", "7天|7|day|duration|+"),
    ("5G与90后", "5G|5G||identifier|-", "90|90||other|-"),
    ("前五大客户",),
    ("零息债券",),
    ("三至五倍", "三至五倍|3|1|rate|+|3|5"),
    ("12:00-13:30", "12:00|12:00||time|-", "13:30|13:30||time|-"),
]


def _written(number: Number) -> str:
    sign = "+" if number.variable else "-"
    fields = [number.text, number.value, number.unit, number.kind, sign, number.low, number.high]
    return "|".join(field for field in fields if field is not None)


@pytest.mark.parametrize("case", CASES, ids=[case[0] or "empty" for case in CASES])
def test_annotated(case: tuple[str, ...]) -> None:
    assert [_written(number) for number in find_numbers(case[0])] == list(case[1:])


def test_annotated_table_is_large_and_without_repeats() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 200


def test_offsets_point_into_the_text() -> None:
    text = "".join(f"{case[0]}。\n" for case in CASES)
    for number in find_numbers(text):
        assert text[number.start : number.end] == number.text


def test_variables_keeps_only_variables() -> None:
    found = find_numbers("2024年3月，第2章：利率5%")
    assert [n.text for n in variables(found)] == ["5%"]
    assert [n.kind for n in found] == ["date", "ordinal", "rate"]


@pytest.mark.parametrize(
    ("numeral", "value"),
    [
        ("零", 0),
        ("十", 10),
        ("十五", 15),
        ("二十", 20),
        ("一百零五", 105),
        ("一百一十", 110),
        ("两百五", 250),
        ("一万五", 15_000),
        ("一万零五", 10_005),
        ("三千二百万", 32_000_000),
        ("一亿二千万", 120_000_000),
        ("一万亿", 10**12),
        ("壹佰贰拾叁", 123),
        ("廿五", 25),
        ("", None),
        ("百", None),
        ("万", None),
        ("三五", None),
        ("十三五", None),
        ("二〇二四", None),
        ("百万", None),
        ("五十百", None),
        ("一亿亿", None),
    ],
)
def test_chinese_to_int(numeral: str, value: int | None) -> None:
    assert chinese_to_int(numeral) == value


@given(st.integers(0, 10**16 - 1))
def test_chinese_numerals_round_trip(value: int) -> None:
    assert chinese_to_int(int_to_chinese(value)) == value


@pytest.mark.parametrize("value", [-1, 10**16])
def test_int_to_chinese_refuses_what_it_cannot_write(value: int) -> None:
    with pytest.raises(ValueError, match="wanted a whole number"):
        int_to_chinese(value)


@given(st.integers(0, 10**30), st.integers(-40, 40))
def test_decimal_string_is_exact(digits: int, exponent: int) -> None:
    text = decimal_string(str(digits), exponent)
    assert Fraction(text) == Fraction(digits) * Fraction(10) ** exponent
    assert not text.startswith("00") and not (("." in text) and text.endswith("0"))


WIDE = str.maketrans("0123456789.,", "０１２３４５６７８９．，")
FORMS = {
    "grouped yuan": lambda m: (f"{m:,}元", m, "CNY"),
    "plain yuan": lambda m: (f"{m}元", m, "CNY"),
    "wide yuan": lambda m: (f"{m:,}元".translate(WIDE), m, "CNY"),
    "ten thousands": lambda m: (f"{m}万元", m * 10**4, "CNY"),
    "hundred millions": lambda m: (f"{m}亿美元", m * 10**8, "USD"),
    "Chinese yuan": lambda m: (f"{int_to_chinese(m)}元", m, "CNY"),
    "negative": lambda m: (f"-{m:,}元", -m, "CNY"),
    "months": lambda m: (f"{m}个月", m, "month"),
    "Chinese months": lambda m: (f"{int_to_chinese(m)}个月", m, "month"),
    "shares": lambda m: (f"{m:,}股", m, "股"),
    "per share": lambda m: (f"{m}元/股", m, "CNY/股"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@given(value=st.integers(2, 10**9))
@settings(max_examples=60)
def test_whole_numbers_round_trip(form: Callable[[int], tuple[str, int, str]], value: int) -> None:
    text, expected, unit = form(value)
    (number,) = find_numbers(f"共{text}。")
    assert (number.text, number.value, number.unit, number.variable) == (text, str(expected), unit, True)


RATES = {"%": 2, "％": 2, "‰": 3, "个百分点": 2, "个基点": 4, "bp": 4, "\\%": 2, "$\\%$": 2}


@pytest.mark.parametrize("sign", RATES)
@given(digits=st.integers(1, 10**6), places=st.integers(0, 4))
@settings(max_examples=40)
def test_rates_round_trip(sign: str, digits: int, places: int) -> None:
    written = decimal_string(str(digits), -places)
    (number,) = find_numbers(f"利率为{written}{sign}，")
    assert (number.text, number.unit, number.kind) == (f"{written}{sign}", "1", "rate")
    assert number.value == decimal_string(str(digits), -places - RATES[sign])


@given(top=st.integers(1, 99), kind=st.sampled_from([("百", 2), ("千", 3), ("万", 4)]))
def test_shares_round_trip(top: int, kind: tuple[str, int]) -> None:
    text = f"{kind[0]}分之{int_to_chinese(top)}"
    (number,) = find_numbers(f"按{text}计算")
    assert (number.text, number.value) == (text, decimal_string(str(top), -kind[1]))


@given(low=st.integers(1, 500), more=st.integers(1, 500), dash=st.sampled_from(["至", "到", "-", "～", "—"]))
def test_ranges_round_trip(low: int, more: int, dash: str) -> None:
    text = f"{low}{dash}{low + more}个月"
    (number,) = find_numbers(f"期限为{text}。")
    assert (number.text, number.low, number.high) == (text, str(low), str(low + more))


ALPHABET = (
    "0123456789０９.,，:-−–%％‰$¥/\\(（）)〔〕[]<>^_{}一二三十百千万亿零两半壹佰元角分"
    "之点成折倍年月日个股第①至到～ \n\tabAZ负约每"
)


@given(st.one_of(st.text(), st.text(ALPHABET), st.text(ALPHABET, min_size=60, max_size=200)))
@settings(max_examples=600, deadline=None)
def test_any_string_is_handled(text: str) -> None:
    last = 0
    for number in find_numbers(text):
        assert last <= number.start < number.end <= len(text)
        assert text[number.start : number.end] == number.text
        assert number.value and (number.low is None) == (number.high is None)
        last = number.end


PATTERNS = [
    "1", "1,234", "1 234 ", "十", "一", "百分之", "1-", "1.", "1:", "1/", "$1", "(1", "<a", "第", "a1", "1至",
    "1、2", "(2-", "1.5x/", "１　２３４　", "08/27", "1:10到", "45亿/", "24/25", "10.1016/a",
    "1×10^", "3个亿", "(1.1)", "$1$", "1比", "PMI1.", "US$1-", "（2023）京01", "1234 5678 ", "\\\\1&", "7x",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_time_is_linear(pattern: str) -> None:
    """A quadratic reader would need minutes for these lines; the bound leaves room for a slow, busy machine."""
    text = (pattern * (300_000 // len(pattern) + 1))[:300_000]
    begin = time.process_time()
    find_numbers(text)
    assert time.process_time() - begin < 20


def test_a_long_line_of_digits_is_one_identifier() -> None:
    text = "7" * 1_000_000
    begin = time.process_time()
    (number,) = find_numbers(text)
    assert time.process_time() - begin < 2
    assert (number.kind, number.variable, number.end) == ("identifier", False, 1_000_000)


def test_real_text(shared_data: Path) -> None:
    """On laws many variables are found, and none of the measured kinds without its unit."""
    files = sorted((shared_data / "textbooks" / "laws-just-laws").rglob("*.md"))
    found = [n for file in files[:20] for n in find_numbers(file.read_text("utf-8"))]
    assert sum(n.variable for n in found) > 300
    assert all(n.unit for n in found if n.kind in ("duration", "count", "rate") and n.variable)


def readme_rows():
    page = (ROOT / "numllm" / "numbers" / "README.md").read_text(encoding="utf-8")
    table = page.partition("| in the text |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


@pytest.mark.parametrize(("text", "value", "unit", "kind", "variable"), readme_rows())
def test_the_readme_says_what_is_found(text, value, unit, kind, variable):
    found = find_numbers(text)
    if value == "(none)":
        assert not found
        return
    (number,) = found
    shown = number.value if number.low is None else f"{number.low} to {number.high}"
    assert (shown, number.unit, number.kind, number.variable) == (value, unit, kind, variable == "yes")
