import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.dp.accounting import (
    calibrate_noise,
    epsilon_spent,
    merge_events,
    opacus_epsilon,
)
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian

DELTA = 1e-5


def gaussian(noise_multiplier: float, sample_rate: float, steps: int) -> SubsampledGaussian:
    return SubsampledGaussian(
        sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=steps
    )


TRAINING = gaussian(1.5, 0.0256, 2000)
TABLE = [  # noise multiplier, sample rate, steps, epsilon at 1e-5 by an independent run of dp-accounting at 1e-4
    (1.0, 0.01, 10000, 6.188),
    (1.5, 0.0256, 2000, 3.781),
    (2.0, 0.05, 1000, 3.700),
    (3.0, 0.128, 500, 4.377),
    (4.0, 0.1, 1000, 3.444),
    (5.0, 1.0, 50, 6.573),
    (0.5, 0.05, 10, 8.554),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "epsilon"), TABLE)
def test_epsilon_of_training_agrees_with_published_runs(
    noise: float, rate: float, steps: int, epsilon: float
) -> None:
    assert epsilon_spent([gaussian(noise, rate, steps)], DELTA) == pytest.approx(epsilon, abs=2e-3)


@pytest.mark.parametrize(("noise", "rate", "steps", "epsilon"), TABLE)
def test_two_independent_accountants_agree(
    noise: float, rate: float, steps: int, epsilon: float
) -> None:
    event = gaussian(noise, rate, steps)
    assert opacus_epsilon(event, DELTA) == pytest.approx(epsilon_spent([event], DELTA), abs=0.02)


def test_gaussian_and_laplace_releases_share_one_figure() -> None:
    fine = DiscreteLaplace(epsilon=0.1, sensitivity=1000, count=50)
    assert epsilon_spent([TRAINING, fine], DELTA) == pytest.approx(4.95, abs=0.02)


def test_a_coarse_grid_costs_more_than_a_fine_one() -> None:
    coarse = DiscreteLaplace(epsilon=0.1, sensitivity=1, count=50)
    assert epsilon_spent([TRAINING, coarse], DELTA) == pytest.approx(4.988, abs=2e-3)


@pytest.mark.parametrize("sensitivity", [1, 3, 1000])
def test_one_discrete_laplace_costs_its_pure_epsilon_at_a_tiny_delta(sensitivity: int) -> None:
    event = DiscreteLaplace(epsilon=0.7, sensitivity=sensitivity)
    assert 0.69 < epsilon_spent([event], 1e-9) < 0.7005


def test_randomised_response_is_the_exact_cost_of_a_count() -> None:
    # delta(eps) of a pure mechanism with losses +-epsilon0: (e^epsilon0 - e^eps) / (1 + e^epsilon0)
    delta = (math.exp(1.0) - math.exp(0.6)) / (1.0 + math.exp(1.0))
    assert epsilon_spent([DiscreteLaplace(epsilon=1.0)], delta) == pytest.approx(0.6, abs=1e-3)


def test_nothing_released_costs_nothing() -> None:
    free: list[Event] = [
        gaussian(1.0, 0.0, 100),
        gaussian(1.0, 0.5, 0),
        DiscreteLaplace(epsilon=0.0),
    ]
    assert epsilon_spent([], DELTA) == 0.0
    assert epsilon_spent([*free, DiscreteLaplace(epsilon=1.0, count=0)], DELTA) == 0.0
    assert opacus_epsilon(gaussian(1.0, 0.5, 0), DELTA) == 0.0


def test_equal_mechanisms_are_merged() -> None:
    parts: list[Event] = [
        gaussian(1.5, 0.1, 5),
        DiscreteLaplace(epsilon=0.1),
        gaussian(1.5, 0.1, 7),
    ]
    merged = (gaussian(1.5, 0.1, 12), DiscreteLaplace(epsilon=0.1, count=2))
    assert merge_events([*parts, DiscreteLaplace(epsilon=0.1)]) == merged


def test_the_order_of_events_does_not_matter() -> None:
    events: list[Event] = [
        gaussian(1.5, 0.1, 5),
        gaussian(1.0, 0.2, 3),
        DiscreteLaplace(epsilon=0.2),
    ]
    assert len({epsilon_spent(order, DELTA) for order in permutations(events)}) == 1


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=f"delta={delta}"):
        epsilon_spent([TRAINING], delta)


def test_an_event_that_the_accountant_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="type str is unknown"):
        epsilon_spent([TRAINING, "laplace"], DELTA)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps", "others"),
    [
        (8.0, 1e-4, 0.1, 200, []),
        (1.0, 1e-5, 0.0256, 2000, []),
        (0.1, 1e-6, 0.2, 500, []),
        (50.0, 1e-4, 0.5, 10, []),
        (0.5, 1e-3, 1.0, 1, []),
        (3.0, 1e-5, 0.5, 50, [DiscreteLaplace(epsilon=0.1, count=20)]),
        (3.0, 1e-5, 0.3, 50, [gaussian(4.0, 0.3, 50), DiscreteLaplace(epsilon=0.1)]),
    ],
)
def test_calibrated_noise_hits_the_target_and_never_exceeds_it(
    epsilon: float, delta: float, rate: float, steps: int, others: list[Event]
) -> None:
    noise = calibrate_noise(
        epsilon=epsilon, delta=delta, sample_rate=rate, steps=steps, others=others
    )
    spent = epsilon_spent([gaussian(noise, rate, steps), *others], delta)
    assert 0.995 * epsilon <= spent <= epsilon


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.floats(0.2, 10.0), st.floats(0.05, 0.5), st.integers(10, 400))
def test_calibration_holds_for_any_plan(epsilon: float, rate: float, steps: int) -> None:
    noise = calibrate_noise(epsilon=epsilon, delta=DELTA, sample_rate=rate, steps=steps)
    spent = epsilon_spent([gaussian(noise, rate, steps)], DELTA)
    assert 0.995 * epsilon <= spent <= epsilon


def test_calibration_says_when_other_releases_leave_nothing() -> None:
    with pytest.raises(ValueError, match=r"epsilon=1\.0 above the 1\.0100"):
        calibrate_noise(
            epsilon=1.0,
            delta=DELTA,
            sample_rate=0.1,
            steps=10,
            others=[DiscreteLaplace(epsilon=1.01)],
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [("epsilon", 0.0), ("epsilon", math.inf), ("sample_rate", 0.0), ("steps", 0), ("delta", 1.0)],
)
def test_calibration_refuses_an_argument_out_of_range_by_name(field: str, value: float) -> None:
    arguments = {"epsilon": 1.0, "delta": DELTA, "sample_rate": 0.1, "steps": 10} | {field: value}
    with pytest.raises(ValueError, match=f"{field}={value}"):
        calibrate_noise(**arguments)  # type: ignore[arg-type]
