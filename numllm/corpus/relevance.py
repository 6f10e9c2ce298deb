"""Whether a text is about finance: by terms of accounting, banking, markets, tax, insurance and economics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError
from ..files import read_text

TERMS: tuple[str, ...] = tuple(
    """
    会计 资产 负债 利润 成本 收入 费用 现金 存货 折旧 摊销 税率 税款 所得税 增值税 利率 利息 贷款 存款 债券 股票
    股东 股份 投资 融资 金融 银行 货币 汇率 基金 证券 期货 期权 保险 审计 财务 财政 预算 信贷 信用 市场 价格 价值
    资本 风险 收益 合同 企业 经济 均衡 通货膨胀 宏观 微观 边际 效用 弹性 消费 储蓄 就业 失业 工资 贸易 关税 进口
    出口 国际收支 外汇 借方 贷方 分录 科目 账户 过账 记账 凭证 总账 明细账 账簿 对账 结账 报表 资产负债表 利润表
    现金流量 所有者权益 留存收益 应收 应付 预收 预付 坏账 减值 公允价值 历史成本 可变现净值 账面价值 净值 残值 商誉
    无形资产 固定资产 使用权资产 租赁 承租 出租 股权 子公司 母公司 联营 合营 控股 少数股东 长期股权投资 金融工具
    金融资产
    套期 衍生 摊余成本 实际利率 折现 贴现 现值 终值 年金 净现值 内部收益率 回收期 杠杆 财务费用 管理费用 销售费用
    营业收入 营业成本 毛利 净利 每股收益 市盈率 市净率 股利 分红 纳税 征税 税法 税务 税收 免税 抵扣 进项 销项 消费税
    印花税 契税 房产税 土地增值税 个人所得税 企业所得税 递延 计税 发票 申报 票据 汇票 本票 支票 承兑 背书 贴息 结算
    清算 转账 信用证 保函 担保 抵押 质押 保证金 准备金 拨备 不良 授信 额度 敞口 央行 中央银行 商业银行 货币政策
    财政政策 公开市场 再贴现 利差 基准 流动性 资本充足率 拨备覆盖率 巴塞尔 同业 拆借 回购 国债 地方债 企业债 公司债
    可转债 票面 到期 收益率 久期 凸性 信用利差 评级 违约 承销 上市 招股 募集 配股 增发 退市 夏普 贝塔 阿尔法 波动率
    方差 资产定价 套利 多头 空头 对冲 互换 远期 行权 权利金 标的 做市 撮合 交易所 行情 涨跌 保费 投保 被保险人 受益人
    理赔 赔付 承保 再保险 精算 寿险 财险 保单 免赔 偿付能力 养老金 社保 信托 理财 资管 受托 破产 重整 债权 债务 偿债
    清偿 注册资本 出资 实收资本 资本公积 盈余公积 未分配利润 董事会 监事会 股东大会 章程 法人 合伙 采购 销售 供应商 订单
    库存 物料 工单 工时 制造费用 直接材料 直接人工 标准成本 作业成本 变动成本 固定成本 盈亏平衡 绩效 定价 垄断 寡头 博弈
    福利 外部性 公共物品 帕累托 国民收入 生产总值 生产函数 技术进步 菲利普斯 本金 单利 复利 年利率 名义利率 分期 还款
    按揭 首付 质保金 罚息 滞纳金 手续费 佣金 差价 报价 成交 持仓 平仓 结售汇 购汇 内部控制 舞弊 审计证据 审计意见 函证
    监盘 注册会计师 准则 披露 附注 会计政策 会计估计 会计期间 权责发生制 收付实现制 捐赠 补助 政府补助 职工薪酬 股份支付
    或有事项 预计负债 资产处置 投资性房地产 生物资产 在建工程 借款费用 外币 折算 汇兑 分部 经营 利得 损失 盈余 亏损 收支
    筹资 资金 账款 余额 金额 币种 人民币 美元 万元 亿元 百分点 同比 环比
    概率 统计 随机 回归 矩阵 向量 特征值 均值 正态分布 期望值 最大化 最小化
    最优化 拉格朗日 马尔可夫 马尔科夫 贝叶斯 时间序列 动态规划 微分方程
    """.split()
)
"""Chinese terms of finance in the wide sense of the field's textbooks: from accounting to economics and its methods."""

MOST = 3
"""Different terms that are enough for a text of any length."""
_PER_TERM = 500


class Relevance:
    """Whether texts are about finance: they hold enough different terms."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self.terms = list(dict.fromkeys([*TERMS, *more]))
        """Those that were found last come first: text of one book repeats its terms."""

    def __call__(self, text: str) -> bool:
        """Whether a text holds three different terms, two below 1,000 characters, one below 500."""
        wanted = min(MOST, 1 + len(text) // _PER_TERM)
        found: list[int] = []
        for place, term in enumerate(self.terms):
            if term in text:
                found.append(place)
                if len(found) == wanted:
                    if place >= MOST:
                        self.terms[:0] = [self.terms.pop(at) for at in reversed(found)][::-1]
                    return True
        return False

    def book(self, texts: Sequence[str]) -> bool:
        """Whether a book, given as its documents, is about finance: the documents that are make up half of it."""
        wanted = sum(map(len, texts))
        for text in texts:
            if wanted > 0 and self(text):
                wanted -= 2 * len(text)
        return wanted <= 0


def read_terms(path: str | Path) -> list[str]:
    """The terms in a text file, one a line; what follows a tab or a space (a frequency) and lines with # are passed
    over. DataError when there is none."""
    terms = [line.split()[0] for line in read_text(path).splitlines() if line.strip() and line[0] != "#"]
    if not terms:
        raise DataError(f"{path}: holds no term; wanted one a line")
    return terms
