import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy.dp.distributed import noised_contribution, run_distributed_sum
from privacy.dp.noise import SAMPLING_REMAINDER
from privacy.dp.share_sizing import (
    CLIPPED_NOISE,
    MOST_VALUE_BITS,
    ROUNDING_VARIANCE,
    bits_needed,
    clipping_probability,
    largest_noise,
    scheme_problem,
    share_deviation,
    size_share,
)
from privacy.fixed_point import FixedPoint
from privacy.randomness import OsRandom, SeededRandom
from privacy.secagg.plan import SumPlan

# A run of moderate size: a range of 64 clipping norms, 10 000 weights, noise 2 of which four sites make the whole.
USUAL = {
    "target": 2.0,
    "honest_sites": 4,
    "sites": 5,
    "sensitivity": 1.0 / 64.0,
    "coordinates": 10_000,
    "value_bits": 24,
}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0.3, 50.0), st.integers(1, 64), st.floats(5_000.0, 1e8))
def test_the_shares_of_the_honest_sites_make_the_target_after_rounding(
    target: float, honest: int, sensitivity: float
) -> None:
    deviation = share_deviation(target, honest_sites=honest, sensitivity=sensitivity)
    continuous = math.sqrt(honest * deviation**2 - ROUNDING_VARIANCE)
    assert continuous >= target * sensitivity
    assert continuous <= target * sensitivity * 1.002


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"target": 0.0}, "target=0.0"),
        ({"target": math.nan}, "target=nan"),
        ({"honest_sites": 0}, "honest_sites=0"),
        ({"honest_sites": 65}, "honest_sites=65"),
        ({"sensitivity": 0.0}, "sensitivity=0.0"),
        ({"sensitivity": 80.0}, "finer grid"),
    ],
)
def test_a_share_out_of_range_is_refused(arguments: dict[str, float], complaint: str) -> None:
    good = {"target": 1.0, "honest_sites": 4, "sensitivity": 1000.0}
    with pytest.raises(ValueError, match=complaint):
        share_deviation(**(good | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("value_bits", [16, 20, 24, 25])
@pytest.mark.parametrize("sites", [4, 5, 64])
def test_noise_and_values_fill_the_encoding_and_never_leave_it(value_bits: int, sites: int) -> None:
    sizing = size_share(**(USUAL | {"value_bits": value_bits, "sites": sites}))  # type: ignore[arg-type]
    encoding = FixedPoint(value_range=1.0, max_addends=sites, value_bits=value_bits)
    noise = largest_noise(sizing.deviation, sites=sites, coordinates=10_000)
    assert sizing.largest_value + noise == encoding.limit
    assert sites * encoding.limit < 2 ** (encoding.modulus_bits - 1)
    assert sizing.largest_value >= encoding.limit // 2
    assert encoding.scale == sizing.steps_of_range


@pytest.mark.parametrize("value_bits", [16, 20, 24])
def test_the_chance_of_cut_off_noise_is_a_small_share_of_delta(value_bits: int) -> None:
    sizing = size_share(**(USUAL | {"value_bits": value_bits}))  # type: ignore[arg-type]
    assert CLIPPED_NOISE / 1e3 < sizing.clipped_noise <= CLIPPED_NOISE
    assert 10_000 * sizing.clipped_noise < SAMPLING_REMAINDER


@pytest.mark.parametrize("value_bits", [18, 20, 24])
def test_a_coarser_grid_costs_noise_for_its_rounding_and_never_privacy(value_bits: int) -> None:
    sizing = size_share(**(USUAL | {"value_bits": value_bits}))  # type: ignore[arg-type]
    step = 1.0 / sizing.steps_of_range
    # In shares of the range: the clipping norm and a step for the rounding of every coordinate.
    moved = 1.0 / 64.0 + step * math.sqrt(10_000)
    assert 2.0 * sizing.deviation * step >= 2.0 * moved
    assert sizing.rounding == pytest.approx(64.0 * step * 100.0)


def test_the_bits_needed_are_enough_and_one_fewer_is_refused() -> None:
    arguments = {name: value for name, value in USUAL.items() if name != "value_bits"}
    needed = bits_needed(**arguments)  # type: ignore[arg-type]
    assert needed < 24
    size_share(**arguments, value_bits=needed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finer grid"):
        size_share(**arguments, value_bits=needed - 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"value_bits": 7}, "value_bits=7"),
        ({"value_bits": MOST_VALUE_BITS + 1}, "not exact"),
        ({"sensitivity": 1e-9}, "finer grid"),
        ({"sensitivity": 0.5}, "larger update_range"),
        ({"sensitivity": 0.0}, r"sensitivity=0\.0"),
        ({"sites": 65}, "sites=65"),
    ],
)
def test_noise_that_does_not_fit_the_bits_is_refused(
    changes: dict[str, float], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        size_share(**(USUAL | changes))  # type: ignore[arg-type]


def test_a_need_beyond_all_bits_is_refused() -> None:
    arguments = {name: value for name, value in USUAL.items() if name != "value_bits"}
    with pytest.raises(ValueError, match="finer grid"):
        bits_needed(**(arguments | {"sensitivity": 1e-9}))  # type: ignore[arg-type]


def test_a_rarer_failure_needs_more_room() -> None:
    often = largest_noise(1000.0, sites=4, coordinates=100, failure=0.1)
    assert often < largest_noise(1000.0, sites=4, coordinates=100)
    assert clipping_probability(often, deviation=1000.0, sites=4, coordinates=100) <= 0.1
    with pytest.raises(ValueError, match=r"failure=0\.0"):
        largest_noise(1000.0, sites=4, coordinates=100, failure=0.0)


@pytest.mark.statistical
def test_contributions_leave_the_room_as_rarely_as_stated() -> None:
    """With failure 0.05 over 10 coordinates of 4 sites; the bound is met but for a chance below 1e-9 if it were tight."""
    sampled = noised_contribution(
        np.zeros(400_000, dtype=np.int64),
        largest_value=0,
        deviation=70.0,
        random=SeededRandom(5, "room"),
    )
    largest = largest_noise(70.0, sites=4, coordinates=10, failure=0.05)
    releases = np.abs(sampled).reshape(10_000, 40).max(axis=1)
    assert (releases > largest).sum() < 0.05 * 10_000


@pytest.mark.parametrize("scheme", ["mask", "ckks", "ckks-light", "paillier"])
def test_sums_that_hide_single_vectors_may_carry_shared_noise(scheme: str) -> None:
    assert scheme_problem(scheme) == ""


@pytest.mark.parametrize("scheme", ["plain", "anything else"])
def test_other_sums_may_not_and_the_reason_is_told(scheme: str) -> None:
    assert "shows every site's share" in scheme_problem(scheme)


@pytest.mark.parametrize("value_bits", [12, 16, 24, 25])
def test_whole_steps_pass_the_stochastic_rounding_of_the_encoding_unchanged(
    value_bits: int,
) -> None:
    encoding = FixedPoint(value_range=1.0, max_addends=5, value_bits=value_bits)
    integers = np.random.default_rng(1).integers(-encoding.limit, encoding.limit + 1, 100_000)
    integers[:2] = -encoding.limit, encoding.limit
    travelling = (integers / (1 << (value_bits - 1))).astype(np.float32)
    np.testing.assert_array_equal(encoding.encode(travelling, OsRandom()), integers)


@pytest.mark.parametrize("scheme", ["mask"])
@pytest.mark.parametrize("value_bits", [18, 24])
def test_the_opened_sum_is_the_sum_of_the_noised_integers(scheme: str, value_bits: int) -> None:
    sizing = size_share(**(USUAL | {"value_bits": value_bits, "coordinates": 1_000, "sites": 4}))  # type: ignore[arg-type]
    plan = SumPlan(
        scheme=scheme,  # type: ignore[arg-type]
        dimension=1_000,
        max_sites=4,
        quorum=4,
        threshold=3,
        value_range=float(sizing.steps_of_range),
        value_bits=value_bits,
    )
    generator = np.random.default_rng(2)
    sums: dict[str, NDArray[np.int64]] = {
        site: generator.integers(-sizing.largest_value, sizing.largest_value + 1, 1_000)
        for site in ("anna", "berta", "clara", "dora")
    }
    result = run_distributed_sum(
        plan,
        sums,
        largest_value=sizing.largest_value,
        deviation=sizing.deviation,
        honest_sites=4,
        randoms={site: SeededRandom(3, site) for site in sums},
    )
    sent = [
        noised_contribution(
            values,
            largest_value=sizing.largest_value,
            deviation=sizing.deviation,
            random=SeededRandom(3, site),
        )
        for site, values in sums.items()
    ]
    assert result.scale == 1.0
    np.testing.assert_array_equal(result.integers, np.sum(sent, axis=0))
