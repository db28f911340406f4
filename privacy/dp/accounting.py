"""How much privacy a list of events has cost, and how much noise a budget asks for.

The reported figure is the privacy loss distribution (PLD) of all events composed into one object, Gaussian and
discrete Laplace together, by Google's dp-accounting: an upper bound at every discretisation. Neighbouring tables
differ by one patient, added or removed. The order of the events does not matter, so equal mechanisms are merged
before they are composed.

The figure holds for parameters that were fixed before the first release. Choosing later parameters by earlier
releases needs a filter (Feldman and Zrnic 2020), which is not offered here.

Opacus' PRV accountant gives an independent second figure for DP-SGD (`opacus_epsilon`), for tests and reports. Its
Gaussian accountant (GDP) is below the true value and is not used.
"""

import math
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian

LOSS_INTERVAL = 5e-4
"""Width of the privacy loss grid. Against 1e-4: 5 times faster, epsilon higher by less than 0.002."""
COARSE_LOSS_INTERVAL = 1e-3
"""The same where a noise multiplier below 1 spreads the losses; epsilon is then large and the difference below 0.001."""
CALIBRATION_SLACK = 0.005
"""A calibrated total lies between (1 - slack) * epsilon and epsilon."""
LARGEST_NOISE = 2.0**20
CALIBRATION_TRIALS = 60


_accounting = threading.Lock()


def epsilon_spent(events: Sequence[Event], delta: float) -> float:
    """Total epsilon of all `events` together at `delta`; 0 without events.

    Raises:
        ValueError: `delta` outside (0, 1), or an event that the accountant does not know.
    """
    _require_delta(delta)
    return _epsilon_of(merge_events(events), delta)


def merge_events(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same cost in fewer events: equal mechanisms as one event, free ones left out, in a canonical order."""
    gaussian_steps: Counter[tuple[float, float]] = Counter()
    laplace_counts: Counter[tuple[float, int]] = Counter()
    for event in events:
        if isinstance(event, SubsampledGaussian):
            if event.sample_rate > 0.0:
                gaussian_steps[event.sample_rate, event.noise_multiplier] += event.steps
        elif isinstance(event, DiscreteLaplace):
            if event.epsilon > 0.0:
                laplace_counts[event.epsilon, event.sensitivity] += event.count
        else:
            raise ValueError(f"Event of type {type(event).__name__} is unknown to the accountant.")
    return (
        *(
            SubsampledGaussian(sample_rate=rate, noise_multiplier=noise, steps=steps)
            for (rate, noise), steps in sorted(gaussian_steps.items())
            if steps > 0
        ),
        *(
            DiscreteLaplace(epsilon=epsilon, sensitivity=sensitivity, count=count)
            for (epsilon, sensitivity), count in sorted(laplace_counts.items())
            if count > 0
        ),
    )


def opacus_epsilon(event: SubsampledGaussian, delta: float) -> float:
    """Epsilon of one DP-SGD run by Opacus' PRV accountant (Gopi et al. 2021); within 0.02 of `epsilon_spent`."""
    # Imported here: Opacus takes seconds, and every process that keeps a budget imports this file.
    from opacus.accountants import PRVAccountant

    _require_delta(delta)
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
    _require_delta(delta)
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
        above, below = math.log(total(too_little)) - aim, math.log(total(enough)) - aim
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


def _require_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"Expected delta={delta} in (0, 1).")


def _epsilon_of(events: tuple[Event, ...], delta: float) -> float:
    """One computation at a time: sites that rehearse in one process ask for the same figure at the same moment."""
    with _accounting:
        return _compute_epsilon(events, delta)


@lru_cache(maxsize=4096)
def _compute_epsilon(events: tuple[Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    has_little_noise = any(
        isinstance(event, SubsampledGaussian) and event.noise_multiplier < 1.0 for event in events
    )
    accountant = PLDAccountant(
        value_discretization_interval=COARSE_LOSS_INTERVAL if has_little_noise else LOSS_INTERVAL
    )
    for event in events:
        accountant.compose(*_dp_event(event))
    return float(accountant.get_epsilon(delta))


def _dp_event(event: Event) -> tuple[dp_event.DpEvent, int]:
    """The event in dp-accounting's terms, and how often it happened."""
    if isinstance(event, SubsampledGaussian):
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        if event.sample_rate == 1.0:
            return gaussian, event.steps
        return dp_event.PoissonSampledDpEvent(event.sample_rate, gaussian), event.steps
    laplace = dp_event.DiscreteLaplaceDpEvent(event.epsilon / event.sensitivity, event.sensitivity)
    return laplace, event.count
