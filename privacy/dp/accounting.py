"""How much privacy a list of events has cost, and how much noise a budget asks for.

The reported figure is the privacy loss distribution (PLD) of all events composed into one object, Gaussian and
Laplace releases together: one-release distributions by Google's dp-accounting, an upper bound at every
discretisation (`privacy.dp.privacy_loss`). Neighbouring tables differ by one patient, added or removed; figures for
a patient replaced by another, about twice as large, are not offered. The order of the events does not matter, so
equal mechanisms are merged before they are composed. Every figure is taken at delta less `SAMPLING_REMAINDER`.

The figure holds for parameters that were fixed before the first release. Choosing later parameters by earlier
releases needs a filter: `privacy.dp.filter`.

Opacus' PRV accountant gives an independent second figure for DP-SGD (`opacus_epsilon`), for tests and reports. Its
Gaussian accountant (GDP) is below the true value and is not used.
"""

import math
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import lru_cache

import numpy as np

from privacy.dp.events import (
    KINDS,
    DiscreteLaplace,
    Event,
    RandomisedResponse,
    SubsampledGaussian,
    TruncatedSubsampledGaussian,
)
from privacy.dp.noise import SAMPLING_REMAINDER
from privacy.dp.privacy_loss import composed, one_release

LOSS_INTERVAL = 5e-4
"""Width of the privacy loss grid. Against 1e-4: 5 times faster, epsilon higher by less than 0.004."""
COARSER = ((1.0, 2), (0.5, 4))
"""Noise multipliers below which the grid is so many times coarser: little noise spreads the losses and takes time, and
epsilon is then so large that nothing shows (4.618 against 4.619, 13.760 against 13.760)."""
MANY_MECHANISMS = 24
"""Different mechanisms above which the grid is twice as coarse: 50 take 0.7 s instead of 1.1 s, 0.01 more at epsilon 6."""
CALIBRATION_SLACK = 0.005
"""A calibrated total lies between (1 - slack) * epsilon and epsilon."""
LARGEST_NOISE = 2.0**20
CALIBRATION_TRIALS = 60


_accounting = threading.Lock()


def epsilon_spent(events: Sequence[Event], delta: float) -> float:
    """Total epsilon of all `events` together at `delta`; 0 without events, infinite above `LARGEST_LOSS`.

    Raises:
        ValueError: `delta` outside (SAMPLING_REMAINDER, 1), or an event that the accountant does not know.
    """
    return _epsilon_of(merge_events(events), exact_delta(delta))


def exact_delta(delta: float) -> float:
    """What is left of `delta` for mechanisms with exact noise, once the samplers' remainder is taken off.

    Raises:
        ValueError: nothing is left, or `delta` is no probability below 1.
    """
    if not SAMPLING_REMAINDER < delta < 1.0:
        raise ValueError(f"Expected delta={delta} in ({SAMPLING_REMAINDER}, 1).")
    return delta - SAMPLING_REMAINDER


def joint_noise_multiplier(*noise_multipliers: float) -> float:
    """Noise multiplier of one Gaussian release whose coordinates fall into groups with a clip and noise of their own.

    A patient moves group i by at most 1 in units of its clip, and its noise has deviation sigma_i in these units.
    Dividing every group by its deviation, a patient moves the whole by sqrt(sum sigma_i**-2) under noise of deviation
    1 (Andrew et al. 2021, Theorem 1; McMahan et al. 2018): the release costs what one of this noise multiplier costs.

    Raises:
        ValueError: no group, or a noise multiplier that is not positive and finite.
    """
    if not noise_multipliers or not all(0.0 < sigma < math.inf for sigma in noise_multipliers):
        raise ValueError(f"Expected noise_multipliers={noise_multipliers} > 0 and finite.")
    return 1.0 / math.hypot(*(1.0 / sigma for sigma in noise_multipliers))


def merge_events(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same cost in fewer events: equal mechanisms as one event, free ones left out, in a canonical order.

    Raises:
        ValueError: an event that the accountant does not know.
    """
    counts: Counter[Event] = Counter()
    for event in events:
        if not _is_free(event):
            counts[one_use(event)] += repetitions(event)
    return tuple(_repeated(event, counts[event]) for event in sorted(counts, key=_canonical_order))


def repetitions(event: Event) -> int:
    """How often the event's mechanism was used."""
    match event:
        case SubsampledGaussian() | TruncatedSubsampledGaussian():
            return event.steps
        case DiscreteLaplace() | RandomisedResponse():
            return event.count
    raise ValueError(f"Event of type {type(event).__name__} is unknown to the accountant.")


def one_use(event: Event) -> Event:
    """The event's mechanism, used once."""
    return _repeated(event, 1)


def opacus_epsilon(event: SubsampledGaussian, delta: float) -> float:
    """Epsilon of one DP-SGD run by Opacus' PRV accountant (Gopi et al. 2021); within 0.02 of `epsilon_spent`."""
    # Imported here: Opacus takes seconds, and every process that keeps a budget imports this file.
    from opacus.accountants import PRVAccountant

    exact_delta(delta)
    if event.steps == 0 or event.sample_rate == 0.0:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps)]
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # log(1 - sample_rate) at rate 1
        # Concerns the first guess at the size of its grid, not the figure.
        warnings.filterwarnings("ignore", message="Optimal order is the largest alpha")
        return float(accountant.get_epsilon(delta=delta))


def calibrate_noise(
    *, epsilon: float, delta: float, sample_rate: float, steps: int, others: Sequence[Event] = ()
) -> float:
    """Noise multiplier with which `steps` DP-SGD steps and `others` together cost at most `epsilon` at `delta`.

    The total is never above `epsilon` and at least 0.995 of it, unless no noise multiplier below 2**20 costs as much.

    Raises:
        ValueError: an argument out of range, or `others` alone leave nothing for the training.
    """
    exact_delta(delta)
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"Expected epsilon={epsilon} > 0 and finite.")
    if not 0.0 < sample_rate <= 1.0:
        raise ValueError(f"Expected sample_rate={sample_rate} in (0, 1].")
    if steps < 1:
        raise ValueError(f"Expected steps={steps} >= 1.")

    def total(noise_multiplier: float) -> float:
        training = SubsampledGaussian(
            sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=steps
        )
        return epsilon_spent((training, *others), delta)

    too_little, enough = 1.0, 1.0
    while total(enough) > epsilon:
        too_little, enough = enough, 2.0 * enough
        if enough > LARGEST_NOISE:
            raise ValueError(
                f"Expected epsilon={epsilon} above the {epsilon_spent(others, delta):.4f} that the other releases "
                f"cost at delta={delta}: nothing is left for training. Release fewer metrics or raise epsilon."
            )
    while total(too_little) <= epsilon:
        too_little, enough = too_little / 2.0, too_little
    return _narrow(total, epsilon, too_little, enough)


def _narrow(
    total: Callable[[float], float], target: float, too_little: float, enough: float
) -> float:
    """A noise multiplier in (too_little, enough] whose total is in ((1 - slack) * target, target].

    Epsilon falls nearly as a power of the noise, so each trial is taken on the chord of the logarithms, aimed at
    the middle of the accepted band; a trial too near to an end falls back to the middle of the bracket.
    """
    aim = math.log(target * (1.0 - CALIBRATION_SLACK / 2.0))
    for _ in range(CALIBRATION_TRIALS):
        if total(enough) >= target * (1.0 - CALIBRATION_SLACK):
            return enough
        low, high = math.log(too_little), math.log(enough)
        above, below = _log(total(too_little)) - aim, _log(total(enough)) - aim
        share = above / (above - below)
        trial = math.exp(low + (high - low) * (share if 0.02 < share < 0.98 else 0.5))
        if total(trial) <= target:
            enough = trial
        else:
            too_little = trial
    raise ValueError(
        f"Expected a noise multiplier for epsilon={target}; none was found in {CALIBRATION_TRIALS} trials between "
        f"{too_little} and {enough}. Ask for a larger epsilon or fewer steps."
    )


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf


def _is_free(event: Event) -> bool:
    if repetitions(event) == 0:
        return True
    if isinstance(event, SubsampledGaussian | TruncatedSubsampledGaussian):
        return event.sample_rate == 0.0
    return event.epsilon == 0.0


def _repeated(event: Event, times: int) -> Event:
    match event:
        case SubsampledGaussian() | TruncatedSubsampledGaussian():
            return replace(event, steps=times)
        case DiscreteLaplace() | RandomisedResponse():
            return replace(event, count=times)
    raise ValueError(f"Event of type {type(event).__name__} is unknown to the accountant.")


def _canonical_order(event: Event) -> tuple[int, tuple[float, ...]]:
    return list(KINDS.values()).index(type(event)), astuple(event)


def _epsilon_of(events: tuple[Event, ...], delta: float) -> float:
    """One computation at a time: sites that rehearse in one process ask for the same figure at the same moment."""
    with _accounting:
        return _compute_epsilon(events, delta)


@lru_cache(maxsize=4096)
def _compute_epsilon(events: tuple[Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    interval = _loss_interval(events)
    releases = []
    for event in events:
        losses = one_release(one_use(event), interval)
        if losses is None:
            return math.inf
        releases.append((losses, repetitions(event)))
    total = composed(releases, interval)
    return math.inf if total is None else float(total.get_epsilon_for_delta(delta))


def _loss_interval(events: tuple[Event, ...]) -> float:
    """A power of two times `LOSS_INTERVAL`, so that no further event makes the grid finer or the figure smaller."""
    least_noise = min(
        (
            event.noise_multiplier
            for event in events
            if isinstance(event, SubsampledGaussian | TruncatedSubsampledGaussian)
        ),
        default=math.inf,
    )
    factors = [factor for bound, factor in COARSER if least_noise < bound]
    if len(events) > MANY_MECHANISMS:
        factors.append(2)
    return LOSS_INTERVAL * max(factors, default=1)
