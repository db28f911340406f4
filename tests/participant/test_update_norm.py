"""The bound on one site's change, kept by the site's own code."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.wire.contribution import BLOCK, contribution_layout, pack_contribution
from coordinator.wire.robustness import RobustPlan
from participant.release import within_norm
from tests.participant.test_release import CHANGE, PARAMETERS, Site
from tests.sims.small_federation import WITH_DP, small_plan, small_spec

LONG = float(np.linalg.norm(CHANGE))


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return small_spec(tmp_path_factory.mktemp("run"), **WITH_DP)


def sent_norm(folder, spec, *, of_plan=None, of_site=None):
    """L2 norm of the change in the vector that a site seals; its weight is 0.4."""
    site = Site(folder, max_update_norm=of_site)
    plan = replace(small_plan(spec), robust=RobustPlan(update_norm=of_plan))
    site.gate.charge(plan)
    vector = site.contribute(plan, patients=40.0)
    assert contribution_layout(plan.model, plan.table, plan.privacy).parameters == PARAMETERS
    return float(np.linalg.norm(vector[:PARAMETERS])) * plan.update_range / 0.4


@pytest.mark.parametrize(
    ("of_plan", "of_site", "expected"),
    [
        (None, None, LONG),
        (0.5, None, 0.5),
        (None, 0.25, 0.25),
        (0.5, 0.25, 0.25),
        (0.25, 0.5, 0.25),
        (100.0, 200.0, LONG),
    ],
)
def test_a_long_change_is_shortened_to_the_smaller_bound(
    tmp_path, spec, of_plan, of_site, expected
):
    found = sent_norm(tmp_path, spec, of_plan=of_plan, of_site=of_site)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_shortened_change_is_what_is_stored_and_sent_again(tmp_path, spec):
    site = Site(tmp_path, max_update_norm=0.25)
    plan = small_plan(spec)
    site.gate.charge(plan)
    vector = site.contribute(plan)
    np.testing.assert_array_equal(site.restart().contribute(plan, change=3 * CHANGE), vector)


@given(
    change=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=30),
    bound=st.floats(1e-6, 1e6),
)
@settings(max_examples=60, deadline=None)
def test_no_change_is_longer_than_the_bound_and_its_direction_is_kept(change, bound):
    values = np.array(change, np.float32)
    found = within_norm(values, bound).astype(np.float64)
    assert np.linalg.norm(found) <= bound * (1 + 1e-5)
    length = np.linalg.norm(values.astype(np.float64))
    np.testing.assert_allclose(
        found * max(1.0, length / bound), values, rtol=1e-5, atol=1e-6 * bound
    )


def test_a_short_change_is_the_very_same():
    change = np.ones(4, np.float32)
    assert within_norm(change, 2.0) is change
    assert within_norm(change, float("inf")) is change
    assert not within_norm(np.zeros(4, np.float32), 1.0).any()


def test_the_norm_is_over_all_blocks():
    change = np.zeros(BLOCK + 1, np.float32)
    change[[0, -1]] = 3.0, 4.0
    np.testing.assert_allclose(within_norm(change, 1.0)[[0, -1]], [0.6, 0.8])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_change_that_is_not_finite_is_still_refused(spec, value):
    change = CHANGE.copy()
    change[7] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack_contribution(
            small_plan(spec), change=within_norm(change, 1.0), patients=1.0, loss_sum=0.0
        )
