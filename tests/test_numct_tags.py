"""Which questions are derivable, how, and which are rules; and that relations are not found by chance."""

from __future__ import annotations

import random
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numllm.numbers import find_numbers
from numllm.numct import build, candidates, tags
from numllm.numct.arithmetic import equation, evaluate
from numllm.numct.form import UNIT8, read_form
from numllm.numct.mistakes import mistakes
from numllm.numct.relations import Target, find_relation

TEXTBOOK = Path(tags.__file__).parents[1] / "demo" / "textbook"

EXPRESSIONS = {
    "80,000 × 2.75% × 3": Fraction(6600),
    "(1 + 5%) ÷ (1 + 2%) − 1": Fraction(3, 102),
    "2 − 3 × 4": Fraction(-10),
    "2^3^2": Fraction(512),
    "-2^2": Fraction(-4),
    "100 × (1 + 0.5)^(−2)": Fraction(400, 9),
    r"\frac{5}{1.05}": Fraction(100, 21),
    r"28 \times (1 + 3\%)^{2}": Fraction(28 * 103**2, 10_000),
    "3.5亿元 × 5%": Fraction(17_500_000),
    "１２＋３": Fraction(15),
    "12 ÷ 0": None,
    "2^0.5": None,
    "2^9999": None,
    "5 +": None,
    "(5": None,
    "本金 × 5%": None,
    "": None,
}


@pytest.mark.parametrize(("text", "value"), EXPRESSIONS.items(), ids=EXPRESSIONS.keys())
def test_evaluate(text: str, value: Fraction | None) -> None:
    assert evaluate(text) == value


def _expression(depth: int) -> st.SearchStrategy[tuple[str, Fraction]]:
    number = st.integers(1, 999).map(lambda n: (str(n), Fraction(n)))
    if depth == 0:
        return number
    inner = _expression(depth - 1)

    def join(a: tuple[str, Fraction], sign: str, b: tuple[str, Fraction]) -> tuple[str, Fraction]:
        x, y = a[1], b[1]
        value = {"+": x + y, "−": x - y, "×": x * y, "÷": x / y if y else Fraction(0)}[sign]
        return f"({a[0]} {sign} {b[0]})", value if y or sign != "÷" else x

    return st.one_of(number, st.builds(join, inner, st.sampled_from("+−×"), inner))


@settings(max_examples=80, deadline=None)
@given(_expression(3))
def test_evaluate_agrees_with_exact_arithmetic(pair: tuple[str, Fraction]) -> None:
    assert evaluate(pair[0]) == pair[1]


@pytest.mark.parametrize(
    ("left", "answer", "right", "relation"),
    [
        ("到期利息 = 80,000 × 2.75% × 3 = ", "6,600（元）", "", "80,000 × 2.75% × 3 = 6,600(元)"),
        ("存款终值 = 28 × (1 + 3.2%)^6 ≈ ", "33.82（万元）", "", "28 × (1 + 3.2%)^6 ≈ 33.82(万元)"),
        ("到期利息 = 80,000 × ", "2.75%", " × 3 = 6,600（元）", "80,000 × 2.75% × 3 = 6,600(元)"),
        ("到期利息 = 80,000 × 2.75% × 3 = ", "6,601（元）", "", None),
        ("每股收益为", "0.84元", "，比上年略有增加。", None),
        ("税率 = ", "25%", "", None),
        ("应享有的净资产为", "1 500 万元", "（2 000×75%）；", "2000×75% = 1500"),
        ("应享有的净资产为1 500 万元（2 000×", "75%", "）；", "2000×75% = 1500"),
        ("公允价值为", "3700 万元", "［4000×（92.5÷100）=3 700］。", "4000×(92.5÷100) = 3700"),
        ("账面价值为", "368000元", "（即，736000x5/10）。", "736000×5/10 = 368000"),
        ("注：475000x（P/A,6%,7）=", "2651640（元）", "", "475000×5.5824 = 2651640(元)"),
        ("应享有的净资产为", "1 501 万元", "（2 000×75%）；", None),
        ("注：475000x（P/A,6%,7）=", "2651600（元）", "", None),
    ],
)
def test_equation(left: str, answer: str, right: str, relation: str | None) -> None:
    assert equation(left, answer, right) == relation


# a text whose last number is asked, and the relation that gives it
DERIVABLE = [
    ("住房总价300万元，首付比例为30%，因此首付款为90万元。", "3000000 × 0.3 = 900000"),
    ("总价300万元，付了首付90万元，其余向银行借款210万元。", "3000000 − 900000 = 2100000"),
    ("营业收入由2,150万元增至2,494万元，增长16%。", "(24940000 − 21500000) ÷ 21500000 = 0.16"),
    ("公司以每股7.85元的价格发行1,240万股，共筹得9,734万元。", "7.85 × 12400000 = 97340000"),
    ("本金52,300元，年利率3.4%，存满3年，按单利得利息5,334.60元。", "52300 × 0.034 × 3 = 5334.6"),
    ("本金52,300元，年利率3.4%，存满3年，按复利的终值为57,818.03元。", "52300 × (1 + 0.034)^3 ≈ 57818.03"),
    ("5年后的64,500元按6.2%折现，现值约为47,746.02元。", "64500 ÷ (1 + 0.062)^5 ≈ 47746.02"),
    ("每年年末存入12,500元，年利率4.2%，共8年，现值为83,468.61元。", "12500 × ((1 − (1 + 0.042)^(−8)) ÷ 0.042) ≈"),
    ("设备原价86,400元，预计残值5,940元，使用9年，每年折旧8,940元。", "(86400 − 5940) ÷ 9 = 8940"),
    ("贷款分30年按月归还，前后一共要供360个月。", "30 × 12 = 360"),
    ("房贷年利率3.96%，折合每月的月利率为0.33%。", "0.0396 ÷ 12 = 0.0033"),
    ("名义利率12%，每季计息一次，有效年利率约为12.551%。", "(1 + 0.12 ÷ 4)^4 − 1 ≈ 0.12551"),
    ("无风险利率2.5%，贝塔系数1.3，市场收益率9.5%，要求的收益率为11.6%。", "0.025 + 1.3 × (0.095 − 0.025) = 0.116"),
    ("下一年的股利为1.35元，要求收益率11%，增长率4.5%，因此股价约为20.77元。", "1.35 ÷ (0.11 − 0.045) ≈ 20.77"),
    ("甲出资128万元，乙出资245万元，丙出资96万元，合计469万元。", "1280000 + 2450000 + 960000 = 4690000"),
    ("资产100万元，每年收益率为-50%，2年后合计为25万元。", "1000000 × (1 + (-0.5))^2 = 250000"),  # 1 + r t is 0
    ("收入865万元，成本512万元，税率为20%，因此应纳税70.6万元。", "(8650000 − 5120000) × 0.2 = 706000"),
]


def _ask(text: str) -> Any:
    """The relation of the last number of a text to the others."""
    numbers = [n for n in find_numbers(text) if n.kind != "ordinal"]
    parsed = read_form(numbers[-1], "")
    assert parsed is not None
    form, m = parsed
    return find_relation(tags.target_of(numbers[-1], m, form.scale, UNIT8), numbers[:-1], [], text)


@pytest.mark.parametrize(("text", "relation"), DERIVABLE, ids=[relation for _, relation in DERIVABLE])
def test_derivable(text: str, relation: str) -> None:
    found = _ask(text)
    assert found is not None and found.text.startswith(relation)


@pytest.mark.parametrize(
    "text",
    [
        "住房总价300万元，首付比例为30%，因此首付款为95万元。",
        "本金52,300元，年利率3.4%，存满3年，按复利的终值为57,818.13元。",
        "公司有员工1,200人，设备40台，本年支付租金37万元。",
        "一年按360天计算，月利率乘以12。",
        "公司年利率为5%，期限为3年，借款共7万元。",
    ],
)
def test_not_derivable(text: str) -> None:
    assert _ask(text) is None


def test_every_relation_on_the_mini_textbook_is_true(textbook: list[dict[str, Any]]) -> None:
    """What a question states can be computed again by anyone: left side rounds to the right side."""
    stated = [row for row in textbook if row["tag"] == "derivable"]
    assert len(stated) > 120
    for row in stated:
        left, sign, right = row["relation"].replace("≈", "=").partition("=")
        computed, written = evaluate(left), evaluate(right.split("(")[0] if right.strip()[0] != "(" else right)
        assert sign and computed is not None and written is not None, row["relation"]
        if "≈" not in row["relation"]:
            units = {Fraction(1), Fraction(1, 100), Fraction(1, 1000)}
            assert computed / written in units if written else computed == 0, row["relation"]


def test_chance_makes_few_relations(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the answers exchanged among questions of one unit and precision, few find a relation."""
    calls: list[tuple[Target, Any, Any, str, bool]] = []

    def spy(target: Target, others: Any, window: Any, text: str, most: int = 8) -> Any:
        found = find_relation(target, others, window, text, most)
        calls.append((target, others, window, text, found is not None))
        return found

    monkeypatch.setattr(candidates, "find_relation", spy)
    list(build(_documents()))
    alike = defaultdict(list)
    for target, *_ in calls:
        alike[target.unit, target.kind, target.step].append(target)
    rng = random.Random(1)
    tried = hits = 0
    for target, others, window, text, _ in calls:
        known = {n.value for n in [*others, *window]}
        choice = [t for t in alike[target.unit, target.kind, target.step] if t.value != target.value]
        choice = [t for t in choice if not any(v == str(float(t.value)).removesuffix(".0") for v in known)]
        if choice:
            tried += 1
            hits += find_relation(rng.choice(choice), others, window, text) is not None
    assert tried > 700
    assert hits < 0.025 * tried
    assert hits < 0.12 * sum(call[-1] for call in calls)


MISTAKES = {
    "80000 × (1 + 0.05)^2 = 88200": {88000, 84000, 92610, 72200},  # simple, one year less, one more, a discount
    "52300 × 0.034 × 3 = 5334.6": {Fraction(8891, 5)},  # the years forgotten
    "0.0396 ÷ 12 = 0.0033": {Fraction(396, 10_000)},  # the year's rate
    "(24940000 − 21500000) ÷ 21500000 = 0.16": {Fraction(344, 2494)},  # the wrong base
    "0.0872 − 0.0042 = 0.083": {Fraction(914, 10_000)},
}


@pytest.mark.parametrize(("relation", "wrong"), MISTAKES.items(), ids=MISTAKES.keys())
def test_mistakes(relation: str, wrong: set[Fraction]) -> None:
    found = mistakes(relation)
    assert wrong <= set(found) and len(set(found)) == len(found) and all(value > 0 for value in found)


def test_mistakes_become_wrong_options(textbook: list[dict[str, Any]]) -> None:
    rows = [row for row in textbook if "mistake" in row["distractors"]]
    assert len(rows) > 20 and all(row["tag"] == "derivable" for row in rows)


RULES = {
    "企业应当按税后利润的10%提取法定盈余公积。": True,
    "商业汇票的付款期限，自出票日起最长不得超过6个月。": True,
    "个人养老金账户每年能存的钱有上限，定为12,000元。": True,
    "法定盈余公积按照税后利润的10%提取。": True,
    "销售货物的增值税税率为13%。": True,
    "巴塞尔协议要求银行的资本充足率达到8%。": True,
    "股票买卖的印花税按成交金额的0.5‰由卖方缴纳。": True,
    "增加或者减少注册资本的决议，应当经代表三分之二以上表决权的股东通过。": True,
    "流动性资产余额与流动性负债余额的比例不得低于百分之二十五。": True,
    "有前款行为的，并处违法所得一倍以上五倍以下的罚款。": True,
    "公司的毛利率比上年提高3个百分点，其中家电下降2%。": False,
    "将税率字段的默认值设置为18%。": False,
    "该企业本年的增值税税率由16%降到13%。": False,
    "甲公司按规定提取法定盈余公积35万元。": False,
    "某企业适用的所得税税率为25%。": False,
    "预期利润1,236万元，应当发行债券。": False,
    "若年利率为5%，一般应当选择分期付款。": False,
    "一般公司贷款占用的资本是余额的8%。": False,
}


@pytest.mark.parametrize(("text", "rule"), RULES.items(), ids=RULES.keys())
def test_rules(text: str, rule: bool) -> None:
    number, *others = find_numbers(text)
    digits = len(number.value.strip("0.").replace(".", ""))
    assert tags.is_rule(text, "", number, digits, others) is rule


# whether the writer chose the first number of a sentence
CHOSEN = {
    "存款保险的保费要按存款余额的0.1%缴纳，这笔钱存入专门账户。": False,
    "若银行没有按时报送报表，每天按应报数的万分之三受罚。": False,
    "如果逾期超过90天，则应当推定该金融工具已发生违约。": False,
    "公司当年的税后利润须拿出10%列入法定公积金。": False,
    "若有人问普通企业按多少税率缴所得税，答案是25%。": False,
    "对本年度内投资收益占净利润比例达50%以上的公司，应当披露其来源。": False,
    "租赁期不超过12个月的租赁是否属于短期租赁？": False,
    "纳税人多缴的税款，可以在以后五年里用余额抵补。": False,
    "按月申报的免征额为10万元以内，按季申报的则每季30万元以内免征。": False,
    "县城的建设税税率设为5%，市区则按7%缴纳。": False,
    "方差的公式里带二分之一这个系数。": False,
    "若是一组关联客户，以资本净额的20%为限。": False,
    "投资者追求的年化波动目标一般是10%。": False,
    "2012年全行业收入首次突破1,000亿元，其后又增加了两成。": False,
    "黑龙江的口岸上，货柜有300个仍在等候。": False,
    "物价若涨6%，实际工资反而减少。": True,
    "公式很好记，例题的近似值为2.55元。": True,
    "若只想把贝塔系数降到0.5，卖出期货就够了。": True,
    "因此注册资本5,000万元的公司，转增以后至少留存1,250万元。": True,
    "如果征收率为1%，平衡点随之降低。": True,
    "这家企业的真实年利率约为3.64%。": True,
    "设某户人家的房屋价值60万元。": True,
    "再如，企业转移了一组应收款项现金流量90%的权利。": True,
    "丙公司的无差别点为880万元。": True,
    "若当地月平均工资为8,000元，每月的缴费随之确定。": True,
    "把税率字段改成18%。": True,
    "问起这位储户，他只取5万元，每年如此。": True,
    "支持计划的收入将以 $190.99 的金额过帐到收入帐户。": True,
    "在资产负债表日，贷款的损失准备余额为100万元。": True,
    "无论选哪种方法，发出成本与期末存货相加总是10,550,000元。": True,
    "情景A：企业签署票据，承诺在三年后偿还。": True,
    "在这6个月的期间内，双方均有交换现金的权利。": True,
    "诈骗数额在100万元以上的；": False,
    "单笔金额不超过500万元的交易由总经理决定。": False,
    "法人想成为合格投资者，净资产的底线是1,000万元。": False,
    "个人购汇的便利化额度是等值5万美元。": False,
    "自2022年审查后，一单位特别提款权所含的人民币为1.0993元。": False,
    "以沪深300为标的的指数期权，报价中的一点折合100元。": False,
    "2024年中国与欧洲的贸易额将近2,500亿美元。": False,
    "本金12万元，年利率3.6%，分36期归还，每期供款约3,521.74元。": False,
}


@pytest.mark.parametrize(("text", "chosen"), CHOSEN.items(), ids=CHOSEN.keys())
def test_what_a_writer_chose(text: str, chosen: bool) -> None:
    found = find_numbers(text)
    number = next(n for n in found if n.variable)
    others = [n for n in found if n is not number]
    digits = len(number.value.strip("0.").replace(".", ""))
    assert tags.is_given(text, number, digits, others, False) is chosen
    assert not (chosen and tags.is_rule(text, "", number, digits, others))


def test_in_an_example_a_sentence_that_may_tell_of_it_does() -> None:
    text = "若持有期限超过1年，则一般适用20%的税率。"
    number, other = find_numbers(text)
    assert tags.is_rule(text, "", number, 1, [other])
    assert not tags.is_rule(text, "", number, 1, [other], example=True)
    assert tags.is_given(text, number, 1, [other], example=True)


def test_in_a_statute_every_sentence_is_a_rule_but_a_story() -> None:
    article = "第{n}条 申请人应当在{n}十日内提交第{n}类材料，主管机关自受理之日起处理。\n"
    law = "".join(article.format(n=n) for n in "二三四五六七八九")
    story = "甲公司于本年以1,200万元购入设备，预计使用8年。\n" * 40
    assert tags.is_statute(law) and not tags.is_statute(story) and not tags.is_statute(law + story * 20)
    plain = "载客人数为9人的乘用车的税额标准为每辆480元。"
    for text, rule in ((plain, True), (f"某企业购入{plain}", False)):
        number, *others = find_numbers(text)
        assert tags.is_rule(text, "", number, 1, others, True) is rule
    rows = list(build([{"id": "law", "text": law}]))
    assert rows and {row["tag"] for row in rows} == {"recall"}


def test_the_figures_of_a_manual_are_its_examples() -> None:
    manual = "在税码页面上单击新建，然后在字段中键入代码。\n基准税码的比率是8%，采用净额计算的方法。\n"
    book = "消费者得到的是剩余，生产者也是。\n流转环节的基准比率是8%，采用净额计算的方法。\n"
    assert tags.is_manual(manual) and not tags.is_manual(book) and not tags.is_manual(manual + book * 80)
    rule = "导入的日期范围不得超过90天，否则系统拒绝这一批记录。\n"
    for text, wanted in ((manual, []), (book, ["other"]), (manual + rule, []), (book + rule, ["other", "recall"])):
        assert [row["tag"] for row in build([{"id": "one", "text": text}])] == wanted


def test_a_count_of_fewer_than_ten_in_words_is_not_asked() -> None:
    for count, asked in (("三家", 0), ("十二家", 1), ("3家", 1)):
        text = f"发行人应当在公告后的期间内选择{count}评级机构，对拟发行的债券逐一进行信用评级。"
        assert len(list(build([{"id": "one", "text": text}]))) == asked, count


def _documents() -> list[dict[str, Any]]:
    return [
        {"id": path.name, "text": path.read_text(encoding="utf-8"), "split": "train"}
        for path in sorted(TEXTBOOK.glob("*.md"))[:7]
    ]


@pytest.fixture(scope="module")
def textbook() -> list[dict[str, Any]]:
    return list(build(_documents()))


def test_tags_are_kept_as_asked(textbook: list[dict[str, Any]]) -> None:
    assert {row["tag"] for row in textbook} == set(tags.ANSWERABLE)
    kept = list(build(_documents()[:2], tags=("recall", "derivable")))
    assert {row["tag"] for row in kept} == {"recall", "derivable"}
    with pytest.raises(ValueError, match="tags must be some of recall, derivable, other, given, got rule"):
        list(build([], tags=("rule",)))


def test_the_command_keeps_tags_and_names_a_wrong_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from test_cli import run

    from numllm.corpus import build_corpus
    from numllm.files import read_jsonl

    build_corpus([TEXTBOOK / "01-time-value.md"], tmp_path / "corpus", holdout=0.0)
    out = tmp_path / "numct.jsonl"
    code, text, error = run(capfd, "numct", tmp_path / "corpus", "--out", out, "--tags", "derivable")
    assert code == 0, error
    rows = [row for _, row in read_jsonl(out)]
    assert rows and {row["tag"] for row in rows} == {"derivable"} and f"{len(rows)} derivable" in text
    code, _, error = run(capfd, "numct", tmp_path / "corpus", "--out", out, "--tags", "rule")
    assert code == 1 and "--tags wants some of recall,derivable,other,given, got rule" in error
