"""The robust rules: what they give, and that malicious groups within the tolerance do not move it away."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.strategies.robust import RULES, geometric_median, robust_change
from coordinator.wire.robustness import Rule, fewest_groups

EVERY_RULE = sorted(RULES)
PER_COORDINATE = ["median", "trimmed-mean"]
WEIGHTS = 40
SPREAD = 0.01
"""Honest changes lie this close to their centre in every coordinate."""
HUGE = [1.0, -1.0, 1e4, -1e4, 1e9, -1e9]


def honest(count: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    center = random.uniform(-0.5, 0.5, WEIGHTS)
    return [
        (center + random.uniform(-SPREAD, SPREAD, WEIGHTS)).astype(np.float32) for _ in range(count)
    ]


def attacked(rule: Rule, malicious: int, seed: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The result with as many malicious groups as the rule stands, and the honest changes."""
    groups = fewest_groups(rule, malicious)
    good = honest(groups - malicious, seed)
    bad = [np.full(WEIGHTS, size * (1 + number), np.float32) for number in range(malicious)]
    return robust_change(rule, [*bad, *good], malicious=malicious), np.stack(good)


@pytest.mark.parametrize("rule", EVERY_RULE)
@pytest.mark.parametrize("malicious", [1, 2])
@pytest.mark.parametrize("size", HUGE)
def test_as_many_malicious_groups_as_promised_do_not_drag_the_result_away(rule, malicious, size):
    found, good = attacked(rule, malicious, seed=3, size=size)
    middle = good.mean(axis=0)
    # Krum picks an honest change; the others stay within a few spreads of the honest ones.
    assert np.linalg.norm(found - middle) <= 4 * SPREAD * np.sqrt(WEIGHTS)


@pytest.mark.parametrize("rule", PER_COORDINATE)
@given(seed=st.integers(0, 2**32), malicious=st.integers(1, 4), size=st.sampled_from(HUGE))
@settings(max_examples=30, deadline=None)
def test_each_coordinate_stays_between_honest_ones(rule, seed, malicious, size):
    found, good = attacked(rule, malicious, seed, size)
    assert (found >= good.min(axis=0) - 1e-6).all()
    assert (found <= good.max(axis=0) + 1e-6).all()


@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if rule != "bulyan"])
@given(seed=st.integers(0, 2**32), malicious=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_groups_does_not_matter(rule, seed, malicious):
    changes = honest(fewest_groups(rule, malicious) + 1, seed)
    order = np.random.default_rng(seed).permutation(len(changes))
    shuffled = [changes[number] for number in order]
    np.testing.assert_allclose(
        robust_change(rule, shuffled, malicious=malicious),
        robust_change(rule, changes, malicious=malicious),
        atol=1e-6,
    )


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_groups_that_agree_are_believed(rule):
    change = np.linspace(-1, 1, WEIGHTS, dtype=np.float32)
    found = robust_change(rule, [change.copy() for _ in range(7)], malicious=1)
    np.testing.assert_allclose(found, change, atol=1e-7)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_the_result_moves_with_the_changes(rule):
    changes = honest(7, seed=5)
    moved = [2 * change + np.float32(0.25) for change in changes]
    expected = 2 * robust_change(rule, changes, malicious=1) + 0.25
    np.testing.assert_allclose(robust_change(rule, moved, malicious=1), expected, atol=1e-5)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_what_the_groups_said_is_left_as_it_was(rule):
    changes = honest(7, seed=6)
    before = [change.copy() for change in changes]
    found = robust_change(rule, changes, malicious=1)
    found += 1.0
    np.testing.assert_array_equal(changes, before)


def test_with_one_malicious_group_too_many_the_median_is_ruined():
    good, bad = honest(2, seed=7), [np.full(WEIGHTS, 1e6, np.float32)] * 3
    assert robust_change("median", [*good, *bad], malicious=2).min() == 1e6


@pytest.mark.parametrize(("malicious", "expected"), [(0, 22.0), (1, 3.0), (2, 3.0)])
def test_the_trimmed_mean_leaves_out_as_many_as_it_is_told_at_either_end(malicious, expected):
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    changes = [np.full(3, value, np.float32) for value in values]
    found = robust_change("trimmed-mean", changes, malicious=malicious)
    np.testing.assert_allclose(found, expected)


def test_krum_gives_one_of_the_changes_and_multi_krum_the_mean_of_the_closest():
    changes = [np.full(3, value, np.float32) for value in (0.0, 1.0, 1.2, 1.4, 50.0)]
    np.testing.assert_array_equal(robust_change("krum", changes, malicious=1), changes[2])
    # 5 - 1 - 2 changes: 1.2 with neighbours at 0.2 and 0.2, then 1.0 at 0.2 and 0.4 (or 1.4, alike).
    found = robust_change("multi-krum", changes, malicious=1)
    assert found[0] in (np.float32(1.1), np.float32(1.3))


def test_the_geometric_median_of_a_triangle_is_its_fermat_point():
    corners = [np.array(xy, np.float32) for xy in ((0, 0), (4, 0), (2, 2 * np.sqrt(3)))]
    np.testing.assert_allclose(geometric_median(corners), [2, 2 / np.sqrt(3)], atol=1e-4)


@given(seed=st.integers(0, 2**32), groups=st.integers(3, 9))
@settings(max_examples=20, deadline=None)
def test_no_point_nearby_has_a_smaller_sum_of_distances_than_the_geometric_median(seed, groups):
    random = np.random.default_rng(seed)
    changes = random.normal(size=(groups, 5)).astype(np.float32)

    def total(point):
        return np.linalg.norm(changes - point, axis=1).sum()

    found = geometric_median(list(changes)).astype(np.float64)
    nearby = [total(found + 1e-2 * random.normal(size=5)) for _ in range(20)]
    assert total(found) <= min(nearby) + 1e-4


def test_the_geometric_median_is_the_point_where_more_than_half_are():
    changes = [np.full(4, 0.5, np.float32)] * 3 + [np.full(4, 9.0, np.float32)] * 2
    np.testing.assert_array_equal(geometric_median(changes), changes[0])


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_change_of_several_blocks_is_combined_whole(rule, monkeypatch):
    changes = honest(7, seed=8)
    whole = robust_change(rule, changes, malicious=1)
    monkeypatch.setattr("coordinator.strategies.robust.BLOCK", 7)
    np.testing.assert_allclose(robust_change(rule, changes, malicious=1), whole, atol=1e-6)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_too_few_groups_for_the_malicious_ones_are_refused(rule):
    changes = honest(fewest_groups(rule, 2) - 1, seed=9)
    with pytest.raises(ValueError, match="Expected at least"):
        robust_change(rule, changes, malicious=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_mean_that_is_not_finite_is_refused(value):
    changes = honest(5, seed=10)
    changes[1][3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        robust_change("median", changes, malicious=1)


def test_changes_of_different_lengths_and_a_plain_mean_are_refused():
    with pytest.raises(ValueError, match="one length"):
        robust_change("median", [np.zeros(3, np.float32), np.zeros(4, np.float32)], malicious=0)
    with pytest.raises(ValueError, match="mean"):
        robust_change("mean", honest(3, seed=1), malicious=0)
