import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import (
    DiscreteLaplace,
    Event,
    RandomisedResponse,
    SubsampledGaussian,
    TruncatedSubsampledGaussian,
)
from privacy.dp.filter import SMALL_EPSILON, RdpFilter, default_order, rdp
from privacy.dp.noise import SAMPLING_REMAINDER

DELTA = 1e-5
ORDERS = [1.25, 2.0, 4.0, 7.5, 16.0, 64.0]
FILTER = RdpFilter(epsilon=3.0, delta=DELTA, order=7.0)


def gaussian(noise_multiplier: float, sample_rate: float, steps: int = 1) -> SubsampledGaussian:
    return SubsampledGaussian(
        sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=steps
    )


def truncated(largest_batch: int, steps: int = 1) -> TruncatedSubsampledGaussian:
    return TruncatedSubsampledGaussian(
        sample_rate=0.0256,
        noise_multiplier=1.5,
        steps=steps,
        units=10_000,
        largest_batch=largest_batch,
    )


gaussians = st.builds(
    SubsampledGaussian,
    sample_rate=st.sampled_from([0.001, 0.02, 0.3, 1.0]),
    noise_multiplier=st.sampled_from([1.0, 2.0, 6.0]),
    steps=st.integers(0, 200),
)
counts = st.builds(
    DiscreteLaplace,
    epsilon=st.sampled_from([0.05, 0.4, 2.0]),
    sensitivity=st.sampled_from([1, 50]),
    count=st.integers(0, 5),
)
labels = st.builds(
    RandomisedResponse,
    epsilon=st.sampled_from([0.3, 1.5]),
    categories=st.sampled_from([2, 10]),
    count=st.integers(0, 2),
)
event_lists = st.lists(gaussians | counts | labels, max_size=5)


@pytest.mark.parametrize("order", ORDERS)
def test_the_divergence_of_the_plain_gaussian_is_linear_in_the_order(order: float) -> None:
    assert rdp(gaussian(3.0, 1.0), order) == pytest.approx(order / 18.0, rel=1e-12)


@pytest.mark.parametrize("order", [2.5, 7.5, 15.25])
@pytest.mark.parametrize(("noise", "rate"), [(1.5, 0.0256), (4.0, 0.1), (2.0, 0.5)])
def test_between_whole_orders_the_divergence_is_bounded_closely(
    noise: float, rate: float, order: float
) -> None:
    accountant = RdpAccountant(orders=[order])
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)))
    exact = float(accountant.rdp[0])
    assert exact <= rdp(gaussian(noise, rate), order) <= 1.1 * exact


def test_a_mechanism_whose_series_does_not_converge_has_a_divergence() -> None:
    event = gaussian(1.012332, 0.5)
    assert 0.0 < rdp(event, 1.5) <= rdp(event, 1.75) <= rdp(event, 2.0) < math.inf


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sensitivity", [1, 2, 30])
@pytest.mark.parametrize("epsilon", [0.002, 0.1, 1.0, 6.0])
def test_the_divergence_of_discrete_laplace_is_the_sum_over_the_integers(
    epsilon: float, sensitivity: int, order: float
) -> None:
    decay = epsilon / sensitivity
    values = np.arange(-math.ceil(60.0 / decay), math.ceil(60.0 / decay) + sensitivity)
    logarithms = math.log(math.tanh(decay / 2.0)) - decay * np.abs([values, values - sensitivity])
    expected = logsumexp(order * logarithms[0] + (1.0 - order) * logarithms[1]) / (order - 1.0)
    event = DiscreteLaplace(epsilon=epsilon, sensitivity=sensitivity, count=3)
    assert rdp(event, order) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("order", ORDERS)
def test_the_divergence_of_a_label_is_that_of_binary_randomised_response(order: float) -> None:
    kept = math.exp(1.2) / (1.0 + math.exp(1.2))
    moment = kept**order * (1.0 - kept) ** (1.0 - order) + (1.0 - kept) ** order * kept ** (
        1.0 - order
    )
    response = RandomisedResponse(epsilon=1.2, categories=7)
    assert rdp(response, order) == pytest.approx(math.log(moment) / (order - 1.0), rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_a_fine_grid_approaches_the_divergence_of_continuous_laplace_noise(order: float) -> None:
    accountant = RdpAccountant(orders=[order])
    accountant.compose(dp_event.LaplaceDpEvent(2.0))
    fine = DiscreteLaplace(epsilon=0.5, sensitivity=100_000)
    assert rdp(fine, order) == pytest.approx(float(accountant.rdp[0]), rel=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_the_bound_for_tiny_epsilon_meets_the_formula_from_above(order: float) -> None:
    below = rdp(DiscreteLaplace(epsilon=SMALL_EPSILON * (1.0 - 1e-12)), order)
    above = rdp(DiscreteLaplace(epsilon=SMALL_EPSILON), order)
    assert above <= below <= above * (1.0 + 1e-6 * order**2)


def test_what_does_not_depend_on_the_data_costs_nothing() -> None:
    free: list[Event] = [
        gaussian(1.0, 0.0, 5),
        gaussian(1.0, 0.5, 0),
        DiscreteLaplace(epsilon=0.0),
        RandomisedResponse(epsilon=0.0, categories=3),
    ]
    assert FILTER.cost(free) == 0.0
    assert FILTER.epsilon_of(free) == 0.0
    assert FILTER.admits(free)
    assert rdp(gaussian(1.0, 0.0), 3.0) == 0.0


def test_a_batch_that_is_never_full_costs_a_plain_step() -> None:
    assert rdp(truncated(9_999), 7.0) == rdp(gaussian(1.5, 0.0256), 7.0)


def test_a_batch_that_is_always_full_costs_the_exchange_of_two_patients() -> None:
    event = TruncatedSubsampledGaussian(
        sample_rate=1.0, noise_multiplier=1.5, steps=1, units=100, largest_batch=50
    )
    assert rdp(event, 4.0) == pytest.approx(2.0 * 4.0 / 1.5**2, rel=1e-12)


def test_fuller_batches_cost_more() -> None:
    costs = [rdp(truncated(batch), 7.0) for batch in (500, 400, 350, 300, 250)]
    assert costs == sorted(costs)
    assert costs[0] < 1.001 * rdp(gaussian(1.5, 0.0256), 7.0) < costs[-1]


def test_the_filter_pays_more_for_full_batches_than_the_fixed_plan() -> None:
    events = [truncated(400, 1000)]
    assert epsilon_spent(events, DELTA) < FILTER.epsilon_of(events) < math.inf


@pytest.mark.parametrize("order", [2.0, 7.0, 33.0])
def test_the_conversion_is_that_of_the_library(order: float) -> None:
    accountant = RdpAccountant(orders=[order])
    accountant.compose(dp_event.PoissonSampledDpEvent(0.0256, dp_event.GaussianDpEvent(1.5)), 2000)
    expected = accountant.get_epsilon(DELTA - SAMPLING_REMAINDER)
    wide = RdpFilter(epsilon=100.0, delta=DELTA, order=order)
    assert wide.epsilon_of([gaussian(1.5, 0.0256, 2000)]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("epsilon", "noise", "rate"),
    [
        (1.0, 1.5, 0.0256),
        (1.0, 4.0, 0.1),
        (3.0, 1.5, 0.0256),
        (3.0, 4.0, 0.1),
        (3.0, 1.0, 0.01),
        (8.0, 1.5, 0.0256),
        (8.0, 4.0, 0.1),
        (8.0, 1.0, 0.01),
    ],
)
def test_the_filter_admits_three_quarters_to_nine_tenths_of_a_fixed_plan(
    epsilon: float, noise: float, rate: float
) -> None:
    order = default_order(epsilon, DELTA)
    filter_ = RdpFilter(epsilon=epsilon, delta=DELTA, order=order)
    steps = math.floor(filter_.limit / rdp(gaussian(noise, rate), order))
    assert filter_.admits([gaussian(noise, rate, steps)])
    assert not filter_.admits([gaussian(noise, rate, steps + 1)])
    assert epsilon_spent([gaussian(noise, rate, math.floor(steps / 0.9))], DELTA) <= epsilon
    assert epsilon_spent([gaussian(noise, rate, math.ceil(steps / 0.74))], DELTA) > epsilon


def test_little_noise_under_a_small_epsilon_is_work_for_a_fixed_plan_only() -> None:
    assert not RdpFilter(epsilon=1.0, delta=DELTA, order=14.0).admits([gaussian(1.0, 0.01)])
    assert epsilon_spent([gaussian(1.0, 0.01, 250)], DELTA) < 1.0


@pytest.mark.parametrize(
    ("epsilon", "lowest", "highest"), [(0.5, 15, 40), (1.0, 10, 17), (3.0, 6, 8), (8.0, 3, 5)]
)
def test_the_default_order_falls_as_epsilon_grows(
    epsilon: float, lowest: float, highest: float
) -> None:
    assert lowest <= default_order(epsilon, DELTA) <= highest


def test_no_candidate_order_admits_more_of_the_reference() -> None:
    steps = [
        RdpFilter(epsilon=3.0, delta=DELTA, order=order).limit / rdp(gaussian(1.5, 0.0256), order)
        for order in (default_order(3.0, DELTA), 6.0, 8.0, 6.5, 7.5)
    ]
    assert steps[0] > 0.99 * max(steps)
    assert steps[0] > max(steps[1:3])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(event_lists, event_lists)
def test_costs_add_up(first: list[Event], second: list[Event]) -> None:
    together = FILTER.cost([*first, *second])
    assert together == pytest.approx(FILTER.cost(first) + FILTER.cost(second), rel=1e-12, abs=0.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(event_lists.flatmap(lambda events: st.tuples(st.just(events), st.permutations(events))))
def test_neither_the_order_of_events_nor_their_splitting_matters(
    pair: tuple[list[Event], list[Event]],
) -> None:
    events, permuted = pair
    assert FILTER.cost(permuted) == FILTER.cost(events)
    assert FILTER.cost([*permuted, gaussian(1.5, 0.1, 3), gaussian(1.5, 0.1, 4)]) == FILTER.cost(
        [gaussian(1.5, 0.1, 7), *events]
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(event_lists, st.sampled_from([(0.5, 20.0), (3.0, 7.0), (8.0, 4.0)]))
def test_what_is_admitted_costs_no_more_than_epsilon_and_what_is_refused_no_less(
    events: list[Event], contract: tuple[float, float]
) -> None:
    epsilon, order = contract
    filter_ = RdpFilter(epsilon=epsilon, delta=DELTA, order=order)
    excess = filter_.epsilon_of(events) - epsilon
    assert excess * (1.0 if filter_.admits(events) else -1.0) <= 1e-12 * epsilon


@settings(max_examples=20, deadline=None, derandomize=True)
@given(event_lists, st.sampled_from([4.0, 7.0, 14.0]))
def test_the_filter_never_claims_less_than_the_fixed_plan(
    events: list[Event], order: float
) -> None:
    filter_ = RdpFilter(epsilon=100.0, delta=DELTA, order=order)
    assert epsilon_spent(events, DELTA) <= filter_.epsilon_of(events)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(gaussians | counts, min_size=1, max_size=30))
def test_a_stream_of_requests_stops_before_the_total_is_exceeded(requests: list[Event]) -> None:
    admitted: tuple[Event, ...] = ()
    for event in requests:
        admitted += (event,) if FILTER.admits((*admitted, event)) else ()
    assert FILTER.cost(admitted) <= FILTER.limit
    assert FILTER.epsilon_of(admitted) <= FILTER.epsilon * (1.0 + 1e-12)


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(ValueError, match="type str is unknown"):
        FILTER.admits([gaussian(1.0, 0.1), "laplace"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="type str is unknown"):
        rdp("laplace", 7.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1.0, 0.5, -2.0, math.inf, math.nan, 1e6])
def test_an_order_out_of_range_is_refused(order: float) -> None:
    with pytest.raises(ValueError, match=f"order={order}"):
        RdpFilter(epsilon=1.0, delta=DELTA, order=order)
    with pytest.raises(ValueError, match=f"order={order}"):
        rdp(gaussian(1.0, 0.1), order)


@pytest.mark.parametrize(
    ("epsilon", "delta", "complaint"),
    [
        (0.0, DELTA, "epsilon=0.0"),
        (math.inf, DELTA, "epsilon=inf"),
        (math.nan, DELTA, "epsilon=nan"),
        (1.0, 0.0, "delta=0.0"),
        (1.0, 1.0, "delta=1.0"),
        (1.0, SAMPLING_REMAINDER, "delta=1e-12"),
    ],
)
def test_a_contract_out_of_range_is_refused(epsilon: float, delta: float, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RdpFilter(epsilon=epsilon, delta=delta, order=7.0)
    with pytest.raises(ValueError, match=complaint):
        default_order(epsilon, delta)


def test_an_order_at_which_the_contract_allows_nothing_is_refused_with_one_that_does() -> None:
    with pytest.raises(ValueError, match=r"order=2\.0.*the default order is 14\.0"):
        RdpFilter(epsilon=1.0, delta=DELTA, order=2.0)


def test_a_contract_too_small_for_any_order_is_refused() -> None:
    with pytest.raises(ValueError, match="no order allows anything"):
        default_order(1e-3, DELTA)
