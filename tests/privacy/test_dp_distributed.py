import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy.dp.accounting import epsilon_spent
from privacy.dp.distributed import (
    log_sum_slack,
    noised_contribution,
    run_distributed_sum,
    survivors_event,
    survivors_noise_multiplier,
)
from privacy.dp.events import MAX_COUNT, SubsampledGaussian
from privacy.dp.noise import SAMPLING_REMAINDER
from privacy.dp.share_sizing import (
    LEAST_DEVIATION,
    ROUNDING_VARIANCE,
    share_deviation,
    share_noise_multiplier,
)
from privacy.randomness import SeededRandom
from privacy.secagg.errors import QuorumLost
from privacy.secagg.plan import SumPlan

DELTA = 1e-5
# Noise multiplier that costs 3.000 over 200 steps at rate 0.05.
PLANNED = SubsampledGaussian(sample_rate=0.05, noise_multiplier=1.2868, steps=200)
SITES = tuple(f"site-{number}" for number in range(7))
DIMENSION = 20_000


@pytest.mark.parametrize(
    ("sites", "missing", "epsilon"),
    [(4, 0, 3.00), (4, 1, 3.87), (4, 2, 5.79), (20, 1, 3.13), (20, 2, 3.28)],
)
def test_a_plan_that_counts_on_every_site_costs_more_when_some_are_missing(
    sites: int, missing: int, epsilon: float
) -> None:
    share = share_noise_multiplier(PLANNED.noise_multiplier, sites)
    left = survivors_noise_multiplier(share, sites, missing, honest_sites=sites - missing)
    event = SubsampledGaussian(sample_rate=0.05, noise_multiplier=left, steps=200)
    assert epsilon_spent([event], DELTA) == pytest.approx(epsilon, abs=0.01)


@pytest.mark.parametrize(("survivors", "colluding"), [(4, 0), (4, 1), (3, 0), (7, 4)])
def test_a_plan_that_counts_on_fewer_sites_keeps_its_epsilon(
    survivors: int, colluding: int
) -> None:
    event = survivors_event(PLANNED, survivors, colluding, honest_sites=3)
    assert epsilon_spent([event], DELTA) <= epsilon_spent([PLANNED], DELTA)


@pytest.mark.parametrize(("survivors", "colluding"), [(2, 0), (4, 2), (3, 3), (64, 62)])
def test_fewer_honest_survivors_than_planned_are_refused(survivors: int, colluding: int) -> None:
    with pytest.raises(ValueError, match="must not be opened"):
        survivors_event(PLANNED, survivors, colluding, honest_sites=3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0.3, 100.0), st.integers(1, 64), st.integers(0, 63), st.integers(0, 63))
def test_survivors_never_have_less_noise_than_planned(
    target: float, honest: int, more: int, colluding: int
) -> None:
    planned = SubsampledGaussian(sample_rate=0.1, noise_multiplier=target, steps=1)
    survivors = min(64, honest + colluding + more)
    honest = min(honest, survivors - min(colluding, survivors - 1))
    event = survivors_event(planned, survivors, min(colluding, survivors - 1), honest_sites=honest)
    left = survivors - min(colluding, survivors - 1)
    assert event.noise_multiplier >= target
    assert event.noise_multiplier == pytest.approx(target * math.sqrt(left / honest), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"survivors": 0}, "survivors=0"),
        ({"survivors": 65}, "survivors=65"),
        ({"colluding": -1}, "colluding=-1"),
        ({"honest_sites": 0}, "honest_sites=0"),
    ],
)
def test_survivors_out_of_range_are_refused(arguments: dict[str, float], complaint: str) -> None:
    good = {"share": 1.0, "survivors": 4, "colluding": 0, "honest_sites": 3}
    with pytest.raises(ValueError, match=complaint):
        survivors_noise_multiplier(**(good | arguments))  # type: ignore[arg-type]


def discrete_gaussian(variance: float, reach: int) -> NDArray[np.float64]:
    weights = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2.0 * variance))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize(("deviation", "sites"), [(0.5, 2), (0.5, 4), (0.6, 3), (0.8, 5)])
def test_a_sum_of_coarse_discrete_gaussians_is_within_the_bound_of_one(
    deviation: float, sites: int
) -> None:
    reach = 12
    share = discrete_gaussian(deviation**2, reach)
    total = share
    for _ in range(sites - 1):
        total = np.convolve(total, share)
    single = discrete_gaussian(sites * deviation**2, sites * reach)
    middle = slice(sites * reach - 4, sites * reach + 5)
    worst = float(np.abs(np.log(total[middle] / single[middle])).max())
    bound = math.exp(log_sum_slack(deviation, sites=sites, coordinates=1)) / 2.0
    assert 0.01 * bound < worst <= bound


def test_randomised_rounding_of_a_gaussian_is_a_discrete_gaussian() -> None:
    variance = 60.0
    places = np.arange(-90.0, 90.0, 1.0 / 64.0)
    density = np.exp(-np.square(places) / (2.0 * (variance - ROUNDING_VARIANCE)))
    integers = np.arange(-130, 131)
    rounded = np.exp(-np.square(integers[:, None] - places) / (2.0 * ROUNDING_VARIANCE))
    result = (rounded / rounded.sum(axis=0)) @ density
    expected = discrete_gaussian(variance, 130)
    middle = slice(90, 171)
    np.testing.assert_allclose(result[middle] / result.sum(), expected[middle], rtol=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_the_gaussian_figure_bounds_the_exact_one_of_a_discrete_gaussian(epsilon: float) -> None:
    deviation, sensitivity = 64.0, 40
    exact = pld.from_discrete_gaussian_mechanism(
        deviation, sensitivity, value_discretization_interval=1e-4
    )
    bound = pld.from_gaussian_mechanism(
        math.sqrt(deviation**2 - ROUNDING_VARIANCE) / sensitivity,
        value_discretization_interval=1e-4,
        pessimistic_estimate=False,
        use_connect_dots=False,
    )
    assert exact.get_delta_for_epsilon(epsilon) <= bound.get_delta_for_epsilon(epsilon) + 1e-5


def test_no_number_of_steps_and_coordinates_makes_the_slack_matter() -> None:
    slack = log_sum_slack(LEAST_DEVIATION, sites=64, coordinates=1 << 40) + math.log(MAX_COUNT)
    assert slack < math.log(SAMPLING_REMAINDER) - 200.0


def test_a_coordinate_is_bounded_before_the_noise_and_not_after() -> None:
    values = np.full(20_000, 10**9, dtype=np.int64)
    sent = noised_contribution(
        values, largest_value=500, deviation=100.0, random=SeededRandom(1, "bound")
    )
    assert sent.max() > 700
    assert abs(float(sent.mean()) - 500.0) < 5.0


def make_plan(**changes: float) -> SumPlan:
    facts = {
        "scheme": "mask",
        "dimension": DIMENSION,
        "max_sites": 7,
        "quorum": 5,
        "threshold": 5,
        "value_range": float(1 << 15),
    }
    return SumPlan(**(facts | changes))  # type: ignore[arg-type]


def contributions() -> dict[str, NDArray[np.int64]]:
    generator = np.random.default_rng(3)
    return {site: generator.integers(-900, 901, DIMENSION) for site in SITES}


def randoms(label: str) -> dict[str, SeededRandom]:
    return {site: SeededRandom(11, label, site) for site in SITES}


@pytest.mark.statistical
@pytest.mark.parametrize(
    "drop",
    [{}, {"site-1": "seal"}, {"site-1": "seal", "site-4": "hello"}, {"site-2": "release"}],
    ids=["all stay", "one drops", "two drop", "one drops after sealing"],
)
def test_a_sum_carries_the_noise_of_exactly_its_survivors(drop: dict[str, str]) -> None:
    """Seeded; mean and variance of 20 000 coordinates within 5 of their standard errors: 1e-6 each."""
    honest = 5
    deviation = share_deviation(0.8, honest_sites=honest, sensitivity=1000.0)
    sums = contributions()
    result = run_distributed_sum(
        make_plan(),
        sums,
        largest_value=1000,
        deviation=deviation,
        honest_sites=honest,
        randoms=randoms("noise"),
        drop=drop,
    )
    noise = result.values - np.sum([sums[site] for site in result.sites], axis=0)
    variance = len(result.sites) * deviation**2
    assert len(result.sites) == 7 - len([leg for leg in drop.values() if leg != "release"])
    assert np.array_equal(noise, np.rint(noise))
    assert abs(noise.mean()) < 5.0 * math.sqrt(variance / DIMENSION)
    assert abs(noise.var() / variance - 1.0) < 5.0 * math.sqrt(2.0 / DIMENSION)
    assert noise.var() > (0.8 * 1000.0) ** 2 * (1.0 - 5.0 * math.sqrt(2.0 / DIMENSION))


def test_a_sum_with_too_few_survivors_gives_nothing() -> None:
    with pytest.raises(QuorumLost):
        run_distributed_sum(
            make_plan(),
            contributions(),
            largest_value=1000,
            deviation=400.0,
            honest_sites=5,
            randoms=randoms("none"),
            drop=dict.fromkeys(SITES[:3], "seal"),
        )


@pytest.mark.parametrize(("honest", "colluding"), [(6, 0), (5, 1), (1, 5)])
def test_a_quorum_that_could_leave_too_little_noise_is_refused_before_anything_is_summed(
    honest: int, colluding: int
) -> None:
    with pytest.raises(ValueError, match=f"honest_sites={honest} and colluding_sites={colluding}"):
        run_distributed_sum(
            make_plan(),
            contributions(),
            largest_value=1000,
            deviation=400.0,
            honest_sites=honest,
            colluding_sites=colluding,
            randoms=randoms("few"),
        )


def test_a_sum_that_hides_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='secure_sum scheme "plain"'):
        run_distributed_sum(
            replace(make_plan(), scheme="plain"),
            contributions(),
            largest_value=1000,
            deviation=400.0,
            honest_sites=5,
            randoms=randoms("scheme"),
        )


@pytest.mark.parametrize("value_range", [4096.0, float(1 << 29)])
def test_an_encoding_that_cuts_noise_off_or_rounds_steps_is_refused(value_range: float) -> None:
    with pytest.raises(ValueError, match=f"value_range={value_range}"):
        run_distributed_sum(
            make_plan(value_range=value_range),
            contributions(),
            largest_value=1000,
            deviation=400.0,
            honest_sites=5,
            randoms=randoms("encoding"),
        )
