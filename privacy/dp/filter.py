"""Admits or refuses work that is chosen by what was released before, under one total (epsilon, delta).

A budget that only reports what was spent does not bound what an analyst can do who looks at each answer before asking
for the next one: composition theorems for privacy loss distributions assume parameters that were fixed in advance.
A Renyi filter bounds that too (Feldman and Zrnic 2020), also when the mechanisms run
interleaved (Haney et al. 2023):

1. One order is fixed before the first release (`default_order`).
2. Every event costs its Renyi divergence of that order, whatever was released before. Costs are added.
3. An event is admitted only if the sum stays within `limit`, which is what (epsilon, delta) allows at that order.

It admits 0.75 to 0.9 of the steps that a fixed plan may take under the same epsilon. A set of events is refused or
admitted as a whole; what is refused costs nothing. Neighbouring tables differ by one patient, added or removed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from scipy.stats import binom

from privacy.dp.accounting import exact_delta, merge_events, one_use, repetitions
from privacy.dp.events import (
    DiscreteLaplace,
    Event,
    RandomisedResponse,
    SubsampledGaussian,
    TruncatedSubsampledGaussian,
)

SMALLEST_ORDER, LARGEST_ORDER = 1.125, 1024.0
"""Below, the conversion is useless and unstable; above, one step of a subsampled Gaussian takes a second."""
CANDIDATE_ORDERS = (*(float(order) for order in range(2, 65)), 96.0, 128.0)
REFERENCE = SubsampledGaussian(sample_rate=0.0256, noise_multiplier=1.5, steps=1)
"""What a budget is usually spent on; the best order differs little among mechanisms like it."""
SMALL_EPSILON = 1e-3
"""Below, the closed formulas of pure epsilon-DP lose their digits and a bound replaces them, 1e-6 above."""


@dataclass(frozen=True)
class RdpFilter:
    """What one data set may spend, however its use is chosen.

    Raises:
        ValueError: a number out of range, or an order at which (epsilon, delta) allow nothing.
    """

    epsilon: float
    """Total epsilon, > 0."""
    delta: float
    """Total delta, in (0, 1)."""
    order: float
    """Order of the Renyi divergence that is added up, in [SMALLEST_ORDER, LARGEST_ORDER]; fixed for good."""

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < math.inf:
            raise ValueError(f"Expected epsilon={self.epsilon} > 0 and finite.")
        if self.limit <= 0.0:
            raise ValueError(
                f"Expected order={self.order} at which epsilon={self.epsilon}, delta={self.delta} allow something; "
                f"the default order is {default_order(self.epsilon, self.delta)}."
            )

    @cached_property
    def limit(self) -> float:
        """Renyi divergence that may be spent in total.

        Canonne, Kamath, Steinke 2020, Proposition 12 (Asoodeh et al. 2020), solved for the divergence.
        """
        return self.epsilon - _conversion(self.order, exact_delta(self.delta))

    def cost(self, events: Sequence[Event]) -> float:
        """Renyi divergence of all events together, >= 0; the order and the splitting of the events do not matter.

        Raises:
            ValueError: an event that the filter does not know.
        """
        return math.fsum(
            repetitions(event) * rdp(event, self.order) for event in merge_events(events)
        )

    def admits(self, events: Sequence[Event]) -> bool:
        """Whether everything that was ever reserved, `events`, is within the limit."""
        return self.cost(events) <= self.limit

    def epsilon_of(self, events: Sequence[Event]) -> float:
        """The epsilon at `delta` that the events cost at this order; 0 for events that cost nothing.

        Not above `epsilon` if and only if the events are admitted, but for the last digit.
        """
        cost = self.cost(events)
        if cost == 0.0:
            return 0.0
        return max(0.0, cost + _conversion(self.order, exact_delta(self.delta)))


def rdp(event: Event, order: float) -> float:
    """Renyi divergence, of this order, of one use of the event's mechanism; infinite where none can be computed.

    Args:
        event: the mechanism; its number of steps or releases is not looked at.
        order: in [SMALLEST_ORDER, LARGEST_ORDER].

    Raises:
        ValueError: an order out of range, or an event that is not known.
    """
    _require_order(order)
    return _rdp(one_use(event), float(order))


def default_order(epsilon: float, delta: float) -> float:
    """The order at which (epsilon, delta) allow the most steps of `REFERENCE`; a plain function of its arguments.

    Raises:
        ValueError: a number out of range, or no order at which these allow anything.
    """
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"Expected epsilon={epsilon} > 0 and finite.")
    remaining = exact_delta(delta)
    steps = {
        order: (epsilon - _conversion(order, remaining)) / rdp(REFERENCE, order)
        for order in CANDIDATE_ORDERS
    }
    best = max(steps, key=lambda order: steps[order])
    if steps[best] <= 0.0:
        raise ValueError(
            f"Expected epsilon={epsilon} large enough for a filter at delta={delta}; no order allows anything. "
            "Raise epsilon or delta."
        )
    return best


def _conversion(order: float, delta: float) -> float:
    """What is added to a Renyi divergence to give epsilon. Proposition 12 of Canonne, Kamath, Steinke 2020."""
    _require_order(order)
    return math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0)


def _require_order(order: float) -> None:
    if not SMALLEST_ORDER <= order <= LARGEST_ORDER:
        raise ValueError(f"Expected order={order} in [{SMALLEST_ORDER}, {LARGEST_ORDER}].")


@lru_cache(maxsize=1 << 16)
def _rdp(event: Event, order: float) -> float:
    match event:
        case SubsampledGaussian():
            return _subsampled_gaussian(event.sample_rate, event.noise_multiplier, order)
        case TruncatedSubsampledGaussian():
            return _truncated(event, order)
        case DiscreteLaplace():
            return _discrete_laplace(event.epsilon, event.sensitivity, order)
        case RandomisedResponse():
            return _discrete_laplace(event.epsilon, 1, order)


def _subsampled_gaussian(sample_rate: float, noise_multiplier: float, order: float) -> float:
    """Mironov, Talwar, Zhang 2019, section 3.3, by dp-accounting at whole orders.

    Between them (order - 1) * divergence, the logarithm of a moment, is convex and 0 at order 1: its chord is a bound.
    dp-accounting's own series for fractions does not converge for every mechanism.
    """
    if sample_rate == 1.0:
        return order / (2.0 * noise_multiplier**2)
    below = math.floor(order)
    share = order - below
    moment = (1.0 - share) * _log_moment(sample_rate, noise_multiplier, below)
    if share > 0.0:
        moment += share * _log_moment(sample_rate, noise_multiplier, below + 1)
    return moment / (order - 1.0)


def _log_moment(sample_rate: float, noise_multiplier: float, order: int) -> float:
    if sample_rate == 0.0 or order == 1:
        return 0.0
    accountant = RdpAccountant(orders=[order])
    gaussian = dp_event.GaussianDpEvent(noise_multiplier)
    accountant.compose(dp_event.PoissonSampledDpEvent(sample_rate, gaussian))
    moment = (order - 1.0) * float(accountant.rdp[0])
    # Rounding can leave -1e-17 of a moment near 0; what is not a number must not pass as free.
    return math.inf if math.isnan(moment) else max(0.0, moment)


def _truncated(event: TruncatedSubsampledGaussian, order: float) -> float:
    """A bound, from the two cases of dp-accounting's own distribution of this mechanism.

    Either fewer than `largest_batch` of the other patients are drawn, and it is a subsampled Gaussian; or a patient
    takes another one's place, and the sums differ by two contributions at most. Telling the cases apart only helps an
    attacker, so exp((order - 1) * divergence) is the mean of those of the two cases. The second is so expensive that
    a filter has use only for plans in which a full batch is improbable over all steps.
    """
    if event.sample_rate == 0.0:
        return 0.0
    is_full = float(binom.sf(event.largest_batch - 1, event.units - 1, event.sample_rate))
    usual = _subsampled_gaussian(event.sample_rate, event.noise_multiplier, order)
    if is_full == 0.0:
        return usual
    replaced = 2.0 * order / event.noise_multiplier**2
    exponents = (order - 1.0) * np.array([usual, replaced])
    with np.errstate(divide="ignore"):  # log(1 - is_full) where every batch is full
        weights = np.log([1.0 - is_full, is_full])
    return float(np.logaddexp.reduce(exponents + weights)) / (order - 1.0)


def _discrete_laplace(epsilon: float, sensitivity: int, order: float) -> float:
    """Exact divergence of discrete Laplace noise from its copy `sensitivity` steps away.

    The sum over the integers of P(x)**order * P(x - sensitivity)**(1 - order) is three geometric series: left of both
    centres, right of both, and between. With sensitivity 1 the last is empty and the divergence is that of binary
    randomised response, the largest that any epsilon-DP mechanism has (Bun and Steinke 2016, Proposition 3.3).
    """
    if epsilon < SMALL_EPSILON:
        return (
            order * epsilon**2 / 2.0
        )  # epsilon-DP is epsilon**2 / 2 concentrated DP (ibid., Proposition 1.4)
    decay = epsilon / sensitivity
    ratio = math.exp(-(2.0 * order - 1.0) * decay)
    outside = (1.0 + math.exp(-(2.0 * order - 1.0) * epsilon)) / (1.0 + math.exp(-decay))
    between = ratio * math.expm1(-(2.0 * order - 1.0) * decay * (sensitivity - 1))
    between /= math.expm1(-(2.0 * order - 1.0) * decay)
    return epsilon + math.log(outside + math.tanh(decay / 2.0) * between) / (order - 1.0)
