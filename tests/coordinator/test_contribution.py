import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.wire.contribution import EXTRA_COORDINATES, LOSS_CAP, pack_contribution, unpack_sum

CHANGE = np.array([0.5, -0.25, 0.0], np.float32)


def packed(change=CHANGE, *, patients=50.0, loss_sum=20.0, update_range=1.0, weight_cap=100):
    return pack_contribution(
        change=change,
        patients=patients,
        loss_sum=loss_sum,
        update_range=update_range,
        weight_cap=weight_cap,
    )


def test_a_contribution_is_the_weighted_change_then_weight_then_loss():
    assert packed() == pytest.approx([0.25, -0.125, 0.0, 0.5, 20 / (LOSS_CAP * 100)])


def test_the_mean_weighs_every_site_by_its_patients():
    first, second = packed(patients=10, loss_sum=5.0), packed(-CHANGE, patients=30, loss_sum=30.0)
    total = first.astype(np.float64) + second
    mean = unpack_sum(total, update_range=1.0)
    assert mean.change == pytest.approx((10 * CHANGE - 30 * CHANGE) / 40, abs=1e-6)
    assert mean.weight == pytest.approx(0.4)
    assert mean.loss == pytest.approx(35 / 40, abs=1e-6)
    assert mean.change.dtype == np.float32


def test_the_update_range_cancels_out():
    mean = unpack_sum(packed(update_range=4.0).astype(np.float64), update_range=4.0)
    assert mean.change == pytest.approx(CHANGE, abs=1e-6)


def test_a_change_beyond_the_range_is_clipped_to_it():
    vector = packed(np.array([9.0, -9.0], np.float32), patients=100, update_range=2.0)
    assert vector[:2] == pytest.approx([1.0, -1.0])


def test_the_weight_stops_growing_at_the_cap():
    assert packed(patients=1e9)[-2] == 1.0
    assert packed(patients=-5)[-2] == 0.0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_never_becomes_a_contribution(poison):
    with pytest.raises(ValueError, match="Nothing was sent"):
        packed(np.array([0.1, poison], np.float32))


@given(
    change=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    patients=st.floats(0, 1e9),
    loss_sum=st.floats(-1e9, 1e9),
    update_range=st.floats(1e-3, 1e3),
    weight_cap=st.integers(1, 10**6),
)
def test_every_entry_lies_within_the_range_of_the_sum(
    change, patients, loss_sum, update_range, weight_cap
):
    vector = packed(
        np.array(change, np.float32),
        patients=patients,
        loss_sum=loss_sum,
        update_range=update_range,
        weight_cap=weight_cap,
    )
    assert vector.shape == (len(change) + EXTRA_COORDINATES,)
    # One step of float32 above 1; the encoding of the secure sum clips that.
    assert np.abs(vector).max() <= 1 + 2**-22


@pytest.mark.parametrize("weight", [0.0, -0.25, np.nan, np.inf])
def test_a_sum_without_a_positive_weight_is_refused(weight):
    with pytest.raises(ValueError, match="cannot be averaged"):
        unpack_sum(np.array([0.1, weight, 0.0]), update_range=1.0)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_is_refused(poison):
    with pytest.raises(ValueError, match="all finite: False"):
        unpack_sum(np.array([poison, 0.5, 0.0]), update_range=1.0)


def test_integers_become_the_mean_in_their_own_memory():
    step = 2.0**-20
    total = np.rint(packed().astype(np.float64) / step).astype(np.int32)
    expected = unpack_sum(total * step, update_range=1.0)
    mean = unpack_sum(total, update_range=1.0, step=step)
    assert (mean.change == expected.change).all()
    assert mean.weight == expected.weight
    assert np.shares_memory(mean.change, total)
