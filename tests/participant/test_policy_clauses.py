"""What a site refuses about groups, rules against malicious sites, and shortened updates."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.wire.plan import RoundPlan
from coordinator.wire.robustness import RobustPlan
from participant.errors import PolicyRefusal
from participant.policy import SitePolicy
from tests.participant.test_policy import DISTRIBUTED, PLAN, POLICY, check

TWELVE = tuple("abcdefghijkl")
GROUPS = (tuple("aefg"), tuple("bcdh"), tuple("ijkl"))
GROUPED = replace(PLAN, cohort=TWELVE, groups=GROUPS, robust=RobustPlan(rule="median", tolerate=1))


def with_groups(*groups: str) -> RoundPlan:
    return replace(GROUPED, groups=tuple(tuple(group) for group in groups))


def refusal(plan: RoundPlan, policy: SitePolicy = POLICY) -> PolicyRefusal:
    with pytest.raises(PolicyRefusal) as caught:
        check(plan, policy)
    return caught.value


def test_a_site_takes_part_in_the_sum_of_its_group() -> None:
    check(GROUPED)


@pytest.mark.parametrize(
    "plan",
    [
        with_groups("aefg", "cdh", "ijkl"),  # this site, b, is in none
        with_groups("abef", "bcdh", "ijkl"),  # in two
        with_groups("aefg", "bcdh", "ijkm"),  # a stranger
        with_groups("aefg", "bcdh"),  # a third of the cohort is missing
        with_groups("bcdh", "aefg", "ijkl"),  # not sorted
        with_groups("aefg", "hdcb", "ijkl"),
        with_groups("acdefghi", "bjkl"),  # sizes that a draw never gives
        with_groups(),
    ],
)
def test_groups_that_are_no_split_of_the_cohort_are_refused(plan: RoundPlan) -> None:
    assert refusal(plan).clause == "plan.groups"


def test_a_group_below_the_quorum_is_refused() -> None:
    small = with_groups("ae", "bc", "dh", "fg", "ij", "kl")
    assert refusal(small).clause == "plan.secure_sum"


def test_a_quorum_in_the_group_below_the_policy_is_refused() -> None:
    assert refusal(GROUPED, replace(POLICY, minimum_quorum=4)).clause == "minimum_quorum"


@pytest.mark.parametrize(
    "robust",
    [
        RobustPlan(rule="median", tolerate=2),
        RobustPlan(rule="krum", tolerate=1),
        RobustPlan(rule="bulyan", tolerate=1),
        RobustPlan(rule="mean", tolerate=1),
        RobustPlan(rule="median", tolerate=-1),
        RobustPlan(rule="median", tolerate=1, update_norm=0.0),
        RobustPlan(rule="median", tolerate=1, update_norm=-1.0),
    ],
)
def test_a_promise_that_the_groups_cannot_keep_is_refused(robust: RobustPlan) -> None:
    assert refusal(replace(GROUPED, robust=robust)).clause == "plan.robust"


@pytest.mark.parametrize(
    "changes",
    [
        {"robust": RobustPlan(rule="median")},
        {"robust": RobustPlan(update_norm=1.0)},
        {"cohort": TWELVE, "groups": GROUPS},
    ],
)
def test_shared_noise_takes_one_sum_and_a_plain_mean(changes: dict[str, Any]) -> None:
    assert refusal(replace(DISTRIBUTED, **changes)).clause in ("plan.robust", "plan.distributed")


def test_a_site_that_shortens_updates_takes_no_share_of_noise() -> None:
    policy = replace(POLICY, max_update_norm=1.0)
    check(GROUPED, policy)
    assert refusal(DISTRIBUTED, policy).clause == "max_update_norm"


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_no_policy(norm: float) -> None:
    with pytest.raises(ValueError, match="max_update_norm"):
        SitePolicy(bundles=(), max_update_norm=norm)
