"""From the groups' sums to the mean that moves the model."""

from dataclasses import replace

import numpy as np
import pytest

from coordinator.errors import AggregationError
from coordinator.group_means import mean_of_groups
from coordinator.wire.contribution import contribution_layout, pack_contribution, unpack_sum
from coordinator.wire.robustness import RobustPlan
from privacy.secagg.protocol import SumResult
from tests.sims.small_federation import WITH_DP, small_plan, small_spec

NAMES = ("a", "b", "c", "d", "e", "f")
ALONE = {"sites": 6, "quorum": 1, "robust": {"rule": "median", "groups": 6, "tolerate": 2}}
SCALE = 2.0**23
RULES = ["median", "trimmed-mean", "geometric-median"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    spec = small_spec(
        tmp_path_factory.mktemp("run"),
        **WITH_DP | ALONE,
        secure_sum={"scheme": "plain"},
    )
    plan = small_plan(spec, cohort=NAMES)
    released = replace(plan.privacy, auc_epsilon=0.1, load_noise_multiplier=9.0)
    return replace(plan, privacy=released)


def with_rule(plan, rule, tolerate=2):
    return replace(plan, robust=RobustPlan(rule=rule, tolerate=tolerate))


def packed(plan, seed, *, patients=50.0):
    random = np.random.default_rng(seed)
    layout = contribution_layout(plan.model, plan.table, plan.privacy)
    return pack_contribution(
        plan,
        change=random.normal(0.1, 0.01, layout.parameters).astype(np.float32),
        patients=patients,
        loss_sum=0.6 * patients,
        counts=np.full(layout.counts, patients / layout.counts * 10).astype(np.int64),
        loads=np.full(layout.loads, patients, np.float32),
    )


def result(vectors, *sites):
    total = np.rint(np.sum(vectors, axis=0) * SCALE).astype(np.int32)
    return SumResult(integers=total, scale=SCALE, sites=sites)


def poison(plan, value, *, weight=1.0, loss=1.0):
    vector = np.full_like(packed(plan, 0), value)
    vector[-2:] = weight, loss
    return vector


def honest_groups(plan, count):
    return {n: result([packed(plan, n, patients=20.0 + 10 * n)], NAMES[n]) for n in range(count)}


def with_two_malicious(plan, *bad):
    sums = honest_groups(plan, 4)
    return sums | {4: result([bad[0]], "e"), 5: result([bad[1]], "f")}


def test_the_plain_mean_over_groups_is_the_mean_over_one_sum(plan):
    vectors = [packed(plan, n, patients=20.0 + 10 * n) for n in range(4)]
    whole = result(vectors, *NAMES[:4])
    expected = unpack_sum(plan, whole.integers, step=1.0 / SCALE)
    groups = {0: result(vectors[:3], *"abc"), 1: result(vectors[3:], "d")}
    found = mean_of_groups(with_rule(plan, "mean", 0), groups)
    assert found.spoilt == {}
    np.testing.assert_allclose(found.mean.change, expected.change, atol=1e-6)
    assert found.mean.weight == pytest.approx(expected.weight, abs=1e-6)
    assert found.mean.loss == pytest.approx(expected.loss, abs=1e-5)
    assert found.mean.loads is not None
    assert expected.loads is not None
    np.testing.assert_allclose(found.mean.loads, expected.loads, atol=1e-6)


def test_one_sum_under_a_plain_mean_is_what_it_always_was(plan):
    sums = honest_groups(plan, 1)
    expected = unpack_sum(plan, sums[0].integers.copy(), step=1.0 / SCALE)
    found = mean_of_groups(with_rule(plan, "mean", 0), sums).mean
    np.testing.assert_array_equal(found.change, expected.change)
    assert (found.weight, found.loss) == (expected.weight, expected.loss)


def test_sums_of_groups_that_need_more_than_32_bits_together_are_added_exactly(plan):
    vector = poison(plan, 0.5)
    steps = np.rint(vector * 2.0**30).astype(np.int32)
    groups = {
        n: SumResult(integers=steps.copy(), scale=2.0**30, sites=(NAMES[n],)) for n in range(4)
    }
    found = mean_of_groups(with_rule(plan, "mean", 0), groups).mean
    np.testing.assert_array_equal(found.change, np.float32(0.5))
    assert found.weight == 4.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_two_malicious_groups_of_six_move_nothing_far(plan, rule, value):
    bad = poison(plan, value)
    found = mean_of_groups(with_rule(plan, rule), with_two_malicious(plan, bad, bad)).mean
    assert abs(found.change - 0.1).max() < 0.05
    assert found.loss == pytest.approx(0.6, abs=0.05)


def test_two_malicious_groups_of_six_ruin_a_plain_mean(plan):
    sums = with_two_malicious(plan, poison(plan, -1.0), poison(plan, -1.0))
    found = mean_of_groups(with_rule(plan, "mean", 0), sums).mean
    assert found.change.max() < -0.4


def test_a_group_cannot_make_itself_heavier(plan):
    light, heavy = poison(plan, 0.001, weight=0.001), poison(plan, 1.0, weight=1.0)
    found = mean_of_groups(plan, with_two_malicious(plan, light, heavy)).mean
    assert abs(found.change - 0.1).max() < 0.05


def test_scores_and_loads_are_those_of_the_middle_group(plan):
    sums = with_two_malicious(plan, poison(plan, 1.0), poison(plan, -1.0))
    found = mean_of_groups(plan, sums).mean
    # Per patient all honest groups say the same: loads of one per patient, so per unit of the weight cap.
    steps = plan.training.local_steps
    assert found.loads is not None
    assert found.counts is not None
    np.testing.assert_allclose(found.loads, found.weight / steps, rtol=1e-3)
    assert (found.counts > 0).all()
    assert found.counts.max() < 3 * found.counts.min()
    assert 0.2 * 6 <= found.weight <= 0.5 * 6


@pytest.mark.parametrize("weight", [0.0, -0.5])
def test_a_group_without_weight_is_out_and_counts_as_one_of_the_malicious(plan, weight):
    sums = with_two_malicious(plan, poison(plan, 1.0, weight=weight), poison(plan, 1.0))
    found = mean_of_groups(plan, sums)
    assert list(found.spoilt) == [4]
    assert "cannot be averaged" in found.spoilt[4]
    assert abs(found.mean.change - 0.1).max() < 0.05


def test_a_tiny_weight_does_not_make_numbers_that_are_not_finite(plan):
    sums = with_two_malicious(plan, poison(plan, 1.0, weight=2 / SCALE), poison(plan, 1.0))
    found = mean_of_groups(with_rule(plan, "geometric-median"), sums).mean
    assert np.isfinite(found.change).all()
    assert abs(found.change - 0.1).max() < 0.05


def test_more_groups_without_weight_than_malicious_sites_abort_the_attempt(plan):
    sums = honest_groups(plan, 5) | {5: result([poison(plan, 1.0, weight=-1.0)], "f")}
    with pytest.raises(AggregationError, match="3 groups cannot stem from honest sites"):
        mean_of_groups(plan, sums, spoilt=2)


def test_too_few_groups_for_the_promise_abort_the_attempt(plan):
    with pytest.raises(AggregationError, match="4 groups are left of 6; median needs 5"):
        mean_of_groups(plan, honest_groups(plan, 4))
    assert mean_of_groups(plan, honest_groups(plan, 4), spoilt=1).spoilt == {}


def test_a_plain_mean_without_weight_aborts_the_attempt(plan):
    sums = {0: result([poison(plan, 0.0, weight=0.0)], "a")}
    with pytest.raises(AggregationError, match=r"cannot be averaged.*aborted"):
        mean_of_groups(with_rule(plan, "mean", 0), sums)
