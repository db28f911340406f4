"""How many malicious sites a rule and its groups stand, and how a cohort is split."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.group_means import promise_problem
from coordinator.wire.groups import draw_groups, group_context, group_of, group_sum, groups_problem
from coordinator.wire.robustness import RobustPlan, fewest_groups, least_group, tolerance
from tests.sims.small_federation import small_plan, small_spec

TWELVE = tuple(f"site-{number:02d}" for number in range(12))
MASKED = {"sites": 12, "quorum": 3, "robust": {"rule": "median", "groups": 3, "tolerate": 1}}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return small_plan(small_spec(tmp_path_factory.mktemp("run"), **MASKED), cohort=TWELVE)


@pytest.mark.parametrize(
    ("rule", "malicious", "groups"),
    [
        ("mean", 0, 1),
        ("median", 0, 1),
        ("median", 1, 3),
        ("median", 3, 7),
        ("trimmed-mean", 2, 5),
        ("geometric-median", 2, 5),
        ("krum", 1, 5),
        ("multi-krum", 2, 7),
        ("bulyan", 1, 7),
        ("bulyan", 2, 11),
    ],
)
def test_a_rule_needs_as_many_groups_as_its_paper_says(rule, malicious, groups):
    assert fewest_groups(rule, malicious) == groups
    stands = tolerance(RobustPlan(rule=rule, tolerate=malicious), groups=groups, sites=64)
    assert (stands.tolerated, stands.promised, stands.fewest_groups) == (
        malicious,
        malicious,
        groups,
    )


@pytest.mark.parametrize(
    ("rule", "malicious", "groups"),
    [
        ("median", 1, 2),
        ("trimmed-mean", 2, 4),
        ("geometric-median", 3, 6),
        ("krum", 1, 4),
        ("multi-krum", 1, 4),
        ("bulyan", 1, 6),
    ],
)
def test_a_promise_with_one_group_too_few_is_refused(rule, malicious, groups):
    with pytest.raises(ValueError, match=f"cannot stand tolerate={malicious}"):
        tolerance(RobustPlan(rule=rule, tolerate=malicious), groups=groups, sites=64)


def test_a_mean_stands_nobody_however_many_groups():
    assert tolerance(RobustPlan(), groups=9, sites=36).tolerated == 0
    with pytest.raises(ValueError, match="a mean stands no malicious site at all"):
        tolerance(RobustPlan(tolerate=1), groups=9, sites=36)


@pytest.mark.parametrize(
    ("rule", "groups", "stands"),
    [("median", 8, 3), ("geometric-median", 9, 4), ("trimmed-mean", 9, 1), ("krum", 9, 1)],
)
def test_a_median_stands_what_the_groups_allow_and_the_others_what_they_expect(
    rule, groups, stands
):
    found = tolerance(RobustPlan(rule=rule, tolerate=1), groups=groups, sites=groups)
    assert found.tolerated == stands
    assert (
        f"Tolerates {stands} malicious sites of {groups} ({rule}, {groups} groups)" in found.words
    )


@given(count=st.integers(1, 64), data=st.data())
@settings(max_examples=60, deadline=None)
def test_groups_hold_every_site_once_and_differ_by_one_site_at_most(count, data):
    cohort = tuple(f"s{number:02d}" for number in range(count))
    groups = draw_groups(cohort, data.draw(st.integers(1, count)))
    assert sorted(site for group in groups for site in group) == list(cohort)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert list(groups) == sorted(tuple(sorted(group)) for group in groups)


@pytest.mark.statistical
def test_any_two_sites_meet_in_a_group_as_often_as_chance_has_it():
    """Twelve sites in three groups: a pair meets with probability 3/11. With 2000 draws a pair is off by 5 standard
    deviations (0.05) with probability 6e-7, any of 66 with 4e-5."""
    meetings: Counter[tuple[str, str]] = Counter()
    draws = 2000
    for _ in range(draws):
        for group in draw_groups(TWELVE, 3):
            meetings.update((a, b) for a in group for b in group if a < b)
    shares = [meetings[a, b] / draws for a in TWELVE for b in TWELVE if a < b]
    assert max(abs(share - 3 / 11) for share in shares) < 0.05


@pytest.mark.parametrize("groups", [0, 13, -1])
def test_more_groups_than_sites_or_none_are_refused(groups):
    with pytest.raises(ValueError, match="groups="):
        draw_groups(TWELVE, groups)


@pytest.mark.parametrize(
    ("scheme", "quorum", "groups", "least"),
    [
        ("mask", 3, 3, 4),
        ("mask", 5, 3, 5),
        ("mask", 3, 1, 3),
        ("plain", 1, 8, 1),
        ("ckks", 2, 2, 4),
    ],
)
def test_one_of_several_hidden_groups_has_four_sites_or_more(scheme, quorum, groups, least):
    assert least_group(scheme, quorum, groups=groups) == least


def test_a_plan_splits_its_cohort_and_sizes_each_sum_for_its_group(plan):
    assert groups_problem(plan) == ""
    assert [len(group) for group in plan.groups] == [4, 4, 4]
    assert plan.secure_sum.max_sites == 4
    total = group_sum(plan, 1)
    assert (total.max_sites, total.quorum, total.threshold) == (4, 3, 3)
    site = plan.groups[2][0]
    assert group_of(plan, site) == 2


def test_two_plans_of_one_cohort_are_split_differently(tmp_path):
    spec = small_spec(tmp_path, **MASKED)
    drawn = {small_plan(spec, cohort=TWELVE).groups for _ in range(8)}
    assert len(drawn) > 1  # 5775 ways to split: eight alike by chance with probability 5e-27


def test_a_smaller_group_has_a_threshold_of_its_own(tmp_path):
    plan = small_plan(small_spec(tmp_path, **MASKED | {"sites": 13}), cohort=(*TWELVE, "zoe"))
    sizes = {len(group): group_sum(plan, n) for n, group in enumerate(plan.groups)}
    assert sizes[5] == plan.secure_sum
    assert (sizes[4].max_sites, sizes[4].threshold) == (4, 3)
    assert (sizes[5].max_sites, sizes[5].threshold) == (5, 4)
    assert sizes[4].encoding.scale == sizes[5].encoding.scale


def test_one_group_has_the_sum_of_the_plan(tmp_path):
    plan = small_plan(small_spec(tmp_path))
    assert plan.groups == (plan.cohort,)
    assert group_sum(plan, 0) == plan.secure_sum


def test_a_message_of_one_group_serves_no_other(plan):
    first, second = (group_context(plan, b"plan", group) for group in (0, 1))
    assert first != second
    assert first.name == second.name  # sealed once, whichever the group


def test_fewer_sites_make_fewer_groups_as_long_as_the_promise_holds(tmp_path):
    spec = small_spec(
        tmp_path, sites=20, quorum=3, robust={"rule": "median", "groups": 5, "tolerate": 1}
    )
    assert spec.fewest_sites == 12
    assert len(small_plan(spec, cohort=TWELVE).groups) == 3


@pytest.mark.parametrize(
    "groups",
    [
        (),
        (TWELVE[:6],),
        (TWELVE[:6], TWELVE[5:]),
        (TWELVE[6:], TWELVE[:6]),
        (TWELVE[:6][::-1], TWELVE[6:]),
        ((), TWELVE),
        (TWELVE[:4], TWELVE[4:]),
        (TWELVE, ("zoe",)),
    ],
)
def test_groups_that_are_no_split_of_the_cohort_are_found(plan, groups):
    assert groups_problem(replace(plan, groups=groups)) != ""


def test_a_site_outside_all_groups_is_in_none(plan):
    with pytest.raises(ValueError, match="zoe"):
        group_of(plan, "zoe")


@pytest.mark.parametrize(
    ("rule", "tolerate", "left", "spoilt", "goes_on"),
    [
        ("median", 1, 3, 0, True),
        ("median", 1, 2, 0, False),
        ("median", 1, 2, 1, True),  # the malicious site is out with its group
        ("median", 1, 2, 2, False),  # more malicious sites than promised
        ("median", 2, 4, 1, True),
        ("median", 2, 4, 0, False),
        ("median", 1, 0, 1, False),
        ("bulyan", 1, 6, 0, False),
        ("bulyan", 1, 6, 1, True),
        ("mean", 0, 1, 0, True),
        ("mean", 0, 0, 0, False),
        ("mean", 0, 1, 2, True),
    ],
)
def test_an_attempt_goes_on_while_the_groups_that_are_left_keep_the_promise(
    plan, rule, tolerate, left, spoilt, goes_on
):
    attempt = replace(plan, robust=RobustPlan(rule=rule, tolerate=tolerate))
    problem = promise_problem(attempt, left=left, spoilt=spoilt)
    assert (problem == "") is goes_on
