"""Made-up card holders of four banks: what they owe, how they pay, and whether they fail to pay next month.

The tables are computed, not collected: no row stands for a person. They have the columns of a credit card ledger
(six months of delays, bills and payments) so that a rehearsal can be run on many people without anybody's data.

How a person comes about:
1. age, wealth and strain are drawn from the bank's own distribution; education, marriage, work and the card's limit
   follow from age and wealth;
2. month by month, from the oldest: the used share of the limit drifts around a level that rises with strain; the month
   is paid late with a probability that rises with strain, use and an earlier delay; delays add up until the customer
   catches up; what is paid falls with strain;
3. the log-odds of default are a fixed function of these values (`default_log_odds`), the same at every bank but for a
   small constant, the local economy; the label is one draw from them;
4. the bank loses some values: the oldest months of new customers, and here and there the source of income.

The function holds thresholds and products of columns, so a linear model of the columns cannot reach the best possible
score, an AUC of about 0.84. Everything follows from the seed.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# N people, M months, the latest first; K choices

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MONTHS = 6
RECENT_MONTHS = 4
"""Months that are known of new customers too."""
EDUCATIONS = ("school", "university", "graduate", "other")
MARRIAGES = ("single", "married", "other")
WORKS = ("employed", "self-employed", "none")
SELF_EMPLOYED = WORKS.index("self-employed")
MARRIED = MARRIAGES.index("married")
LABEL = "default"
UNKNOWN_WORK = 0.05
"""Share of customers whose source of income the bank does not know."""
INTERCEPT = -2.2
"""Makes 22 % of all people default."""


@dataclass(frozen=True, kw_only=True)
class Bank:
    """How a bank's customers differ from those of the others."""

    name: str
    share: float
    """Of all people."""
    age: float
    """Mean, in years."""
    wealth: float
    """Mean of the logarithm, relative to the country."""
    strain: float
    """Mean of how hard it is to pay, in standard deviations."""
    self_employed: float
    """Share, before age is looked at."""
    new_customers: float
    """Share whose oldest months are missing."""
    economy: float
    """Added to everybody's log-odds; in no column."""


BANKS = (
    Bank(
        name="harbour",
        share=0.4,
        age=41,
        wealth=0.1,
        strain=-0.1,
        self_employed=0.15,
        new_customers=0.05,
        economy=0.0,
    ),
    Bank(
        name="northern",
        share=0.3,
        age=48,
        wealth=0.3,
        strain=-0.3,
        self_employed=0.10,
        new_customers=0.02,
        economy=-0.1,
    ),
    Bank(
        name="campus",
        share=0.2,
        age=29,
        wealth=-0.5,
        strain=0.35,
        self_employed=0.08,
        new_customers=0.30,
        economy=0.1,
    ),
    Bank(
        name="traders",
        share=0.1,
        age=44,
        wealth=0.2,
        strain=0.6,
        self_employed=0.45,
        new_customers=0.10,
        economy=0.15,
    ),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class People:
    """Complete values of some people, before a bank loses any."""

    age_N: Floats = field(repr=False)  # noqa: N815 - shape suffix
    """Years."""
    education_N: Integers = field(repr=False)  # noqa: N815 - shape suffix
    """Index into EDUCATIONS."""
    marriage_N: Integers = field(repr=False)  # noqa: N815 - shape suffix
    """Index into MARRIAGES."""
    work_N: Integers = field(repr=False)  # noqa: N815 - shape suffix
    """Index into WORKS."""
    limit_N: Floats = field(repr=False)  # noqa: N815 - shape suffix
    """EUR."""
    delay_NM: Integers = field(repr=False)  # noqa: N815 - shape suffix
    """Months past due, 0 to MONTHS."""
    bill_NM: Floats = field(repr=False)  # noqa: N815 - shape suffix
    """EUR owed at the end of the month."""
    paid_NM: Floats = field(repr=False)  # noqa: N815 - shape suffix
    """EUR paid in the month."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Customers:
    """A bank's table and what no bank knows."""

    table: pd.DataFrame = field(repr=False)
    """The published columns and the label, as text; empty where missing."""
    log_odds_N: Floats = field(repr=False)  # noqa: N815 - shape suffix
    """Of default, from complete values: no model can rank people better."""


def draw_customers(seed: int, *, people: int) -> dict[str, Customers]:
    """Customers of every bank, `people` in all: other people for every seed, the same for the same seed.

    Raises:
        ValueError: the seed is negative or the number of people is too small for four banks.
    """
    if seed < 0 or people < 10 * len(BANKS):
        raise ValueError(f"Expected seed={seed} >= 0 and people={people} >= {10 * len(BANKS)}.")
    return {
        bank.name: _customers(
            bank, round(bank.share * people), np.random.default_rng([seed, place])
        )
        for place, bank in enumerate(BANKS)
    }


def default_log_odds(people: People) -> Floats:
    """Log-odds of default next month [N], without the local economy."""
    use_NM = people.bill_NM / people.limit_N[:, None]
    use_N, use_before_N = use_NM[:, 0], use_NM[:, 3]
    paid_N, owed_N = people.paid_NM[:, :3].mean(1), people.bill_NM[:, :3].mean(1)
    late_N = people.delay_NM[:, 0]
    is_young_N = people.age_N < 28
    is_self_employed_N = people.work_N == SELF_EMPLOYED
    separate_N = (
        0.8 * (late_N >= 1)
        + 0.7 * (late_N >= 2)
        + 0.3 * (people.delay_NM[:, 1] >= 2)
        + 0.22 * (people.delay_NM >= 1).sum(1)
        + 0.9 * np.clip(use_N, 0, 1)
        - 0.9 * np.minimum(paid_N / (owed_N + 50), 1)
        - 0.4 * np.log(people.limit_N / 4000)
        + 0.35 * (is_young_N | (people.age_N > 62))
        + np.array([0.15, 0.0, -0.25, 0.1])[people.education_N]
        + np.array([0.05, -0.1, 0.2])[people.marriage_N]
        + np.array([-0.1, 0.1, 0.3])[people.work_N]
    )
    joint_N = (
        0.7 * ((use_N > 0.8) & (late_N >= 1))
        + 0.7 * (is_young_N & (use_N > 0.6))
        - 0.6 * (is_self_employed_N & (late_N == 1))  # irregular income: late once, then paid
        + 0.8 * (is_self_employed_N & (use_N - use_before_N > 0.15))
        - 0.5 * ((people.marriage_N == MARRIED) & (people.age_N > 45) & (use_N > 0.5))
    )
    return np.asarray(INTERCEPT + separate_N + joint_N, dtype=np.float64)


def _customers(bank: Bank, count: int, random: np.random.Generator) -> Customers:
    people = _draw_people(bank, count, random)
    log_odds_N = default_log_odds(people) + bank.economy
    defaults_N = random.random(count) < _chance(log_odds_N)
    is_new_N = random.random(count) < bank.new_customers
    is_work_known_N = random.random(count) >= UNKNOWN_WORK
    columns = {
        "limit": _text(people.limit_N),
        "education": np.array(EDUCATIONS)[people.education_N],
        "marriage": np.array(MARRIAGES)[people.marriage_N],
        "work": np.where(is_work_known_N, np.array(WORKS)[people.work_N], ""),
        "age": _text(people.age_N),
    }
    for name, values_NM in (
        ("delay", people.delay_NM),
        ("bill", people.bill_NM),
        ("paid", people.paid_NM),
    ):
        for month in range(MONTHS):
            is_lost_N = is_new_N & (month >= RECENT_MONTHS)
            columns[f"{name}_{month + 1}"] = np.where(is_lost_N, "", _text(values_NM[:, month]))
    columns[LABEL] = _text(defaults_N.astype(np.int64))
    return Customers(table=pd.DataFrame(columns), log_odds_N=log_odds_N)


def _draw_people(bank: Bank, count: int, random: np.random.Generator) -> People:
    normal = random.standard_normal
    age_N = np.clip(np.round(bank.age + 11 * normal(count)), 21, 79)
    wealth_N = bank.wealth + 0.012 * (age_N - 42) + 0.5 * normal(count)
    strain_N = bank.strain - 0.5 * wealth_N + 0.9 * normal(count)
    limit_N = np.exp(8.4 + 0.8 * wealth_N + 0.45 * normal(count))
    limit_N = np.clip(np.round(limit_N, -2), 300, 50_000)
    works = np.log([1 - bank.self_employed, bank.self_employed, 0.05])
    delay_NM, bill_NM, paid_NM = _draw_months(limit_N, strain_N, random)
    return People(
        age_N=age_N,
        education_N=_choose([0.9, 0, -0.8, -2.2], wealth_N, [-0.5, 0.2, 0.9, 0], random),
        marriage_N=_choose([0.2, 0, -2], age_N - 36, [-0.06, 0.06, 0.03], random),
        work_N=_choose(works, np.abs(age_N - 42), [0, 0, 0.06], random),
        limit_N=limit_N,
        delay_NM=delay_NM,
        bill_NM=bill_NM,
        paid_NM=paid_NM,
    )


def _draw_months(
    limit_N: Floats, strain_N: Floats, random: np.random.Generator
) -> tuple[Integers, Floats, Floats]:
    """Delays, bills and payments [N, M]; each month follows from the one before."""
    count = len(limit_N)
    normal = random.standard_normal
    level_N = -0.7 + 0.9 * strain_N + 0.8 * normal(count)
    carelessness_N = 0.8 * strain_N + 0.7 * normal(count)
    drift_N, delay_N = np.zeros(count), np.zeros(count, dtype=np.int64)
    months: list[tuple[Integers, Floats, Floats]] = []
    for _ in range(MONTHS):
        drift_N = 0.8 * drift_N + 0.45 * normal(count)
        use_N = 1.05 * _chance(level_N + drift_N)
        lateness_N = -2.5 + 1.1 * carelessness_N + 0.9 * use_N + 1.3 * (delay_N > 0)
        is_late_N = random.random(count) < _chance(lateness_N)
        delay_N = np.where(is_late_N, delay_N + 1, 0)
        bill_N = np.round(limit_N * use_N, 1)
        paid_share_N = _chance(0.2 - strain_N + 0.9 * normal(count)) * np.where(is_late_N, 0.1, 1.0)
        months.append((delay_N, bill_N, np.round(bill_N * paid_share_N, 1)))
    delays, bills, payments = zip(*reversed(months), strict=True)
    return np.stack(delays, 1), np.stack(bills, 1), np.stack(payments, 1)


def _choose(
    start_K: NDArray[np.float64] | list[float],
    value_N: Floats,
    slope_K: list[float],
    random: np.random.Generator,
) -> Integers:
    """One of K for everybody, with log-odds `start + slope * value`."""
    log_odds_NK = np.asarray(start_K) + np.outer(value_N, slope_K)
    noisy_NK = log_odds_NK + random.gumbel(size=log_odds_NK.shape)
    return np.asarray(noisy_NK.argmax(axis=1), dtype=np.int64)


def _chance(log_odds_N: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-log_odds_N)), dtype=np.float64)


def _text(values_N: Floats | Integers) -> NDArray[np.str_]:
    """At most five digits before the point and one behind it: all that `:g` keeps."""
    return np.array([f"{value:g}" for value in values_N])
