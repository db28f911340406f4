"""The privacy loss distribution (PLD) of many different releases together, in one Fourier transform.

1. `one_release` asks dp-accounting for the distribution of one release of a mechanism: an upper bound on a grid of
   losses, its mass at infinity included (Doroshenko et al. 2022). It is kept: the next query needs it again.
2. `composed` bounds where the total loss lies (Chernoff, all releases together) and multiplies the transforms of all
   releases on that interval only (Koskela et al. 2020). The mass outside is booked as infinite loss.

dp-accounting's own composition takes one mechanism after the other, 1.5 s for 50 different ones against 0.2 s here;
the tests compare the two. Both directions, a patient added and a patient removed, are kept apart until the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.pld import common, pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft

from privacy.dp.events import (
    DiscreteLaplace,
    Event,
    RandomisedResponse,
    SubsampledGaussian,
    TruncatedSubsampledGaussian,
)

LARGEST_LOSS = 250.0
"""Losses above are not told apart: such an epsilon is reported as infinite. Bounds time and memory of any query."""
LOG_TAIL = math.log(1e-16)
"""Mass that may be cut off at each end of the composed distribution."""
CHERNOFF_STEEPNESS = np.geomspace(0.25, 64.0, 24)
"""Orders of the bound, in units of one over the standard deviation of the total loss."""


@dataclass(frozen=True, eq=False)
class Losses:
    """A distribution of losses on a grid, for one direction."""

    lowest: int
    """Grid number of the first entry."""
    masses: NDArray[np.float64]
    """Mass of each grid point from `lowest` upwards."""
    infinite: float
    """Mass at infinity."""


@dataclass(frozen=True, eq=False)
class LossPair:
    """The losses when a patient is removed and when one is added."""

    removed: Losses
    added: Losses


@lru_cache(maxsize=512)
def one_release(event: Event, interval: float) -> LossPair | None:
    """The losses of one release of the event's mechanism; None if they exceed `LARGEST_LOSS`.

    Args:
        event: the mechanism; its number of steps or releases is not looked at.
        interval: width of the grid of losses, > 0.
    """
    if _exceeds(event):
        return None
    distribution = _distribution(event, interval)
    return LossPair(removed=_losses(distribution._pmf_remove), added=_losses(distribution._pmf_add))


def composed(
    releases: Sequence[tuple[LossPair, int]], interval: float
) -> pld.PrivacyLossDistribution | None:
    """The losses of all releases, each repeated as often as it says; None if they exceed `LARGEST_LOSS`."""
    directions = []
    for parts in (
        [(pair.removed, count) for pair, count in releases],
        [(pair.added, count) for pair, count in releases],
    ):
        total = _composed_direction(parts, interval)
        if total is None:
            return None
        directions.append(
            pld_pmf.DensePLDPmf(interval, total.lowest, total.masses, total.infinite, True)
        )
    return pld.PrivacyLossDistribution(*directions)


def _exceeds(event: Event) -> bool:
    if isinstance(event, DiscreteLaplace | RandomisedResponse):
        return event.epsilon > LARGEST_LOSS
    # dp-accounting cuts the Gaussian off at 10 standard deviations; a full truncated batch moves by two contributions.
    inverse = 2.0 / event.noise_multiplier
    return 10.0 * inverse + inverse**2 / 2.0 > LARGEST_LOSS


def _distribution(event: Event, interval: float) -> pld.PrivacyLossDistribution:
    match event:
        case SubsampledGaussian():
            return pld.from_gaussian_mechanism(
                event.noise_multiplier,
                sampling_prob=event.sample_rate,
                value_discretization_interval=interval,
            )
        case TruncatedSubsampledGaussian():
            return pld.from_truncated_subsampled_gaussian_mechanism(
                dataset_size=event.units,
                sampling_probability=event.sample_rate,
                truncated_batch_size=event.largest_batch,
                noise_multiplier=event.noise_multiplier,
                value_discretization_interval=interval,
            )
        case DiscreteLaplace():
            return pld.from_discrete_laplace_mechanism(
                event.epsilon / event.sensitivity,
                event.sensitivity,
                value_discretization_interval=interval,
            )
        case RandomisedResponse():
            return pld.from_privacy_parameters(
                common.DifferentialPrivacyParameters(event.epsilon, 0.0),
                value_discretization_interval=interval,
            )


def _losses(mass_function: pld_pmf.PLDPmf) -> Losses:
    """A copy of dp-accounting's arrays, for which it has no public reader; ends without mass are left out."""
    dense = mass_function.to_dense_pmf()
    masses = np.asarray(dense._probs, dtype=np.float64)
    filled = np.flatnonzero(masses)
    return Losses(
        lowest=int(dense._lower_loss + filled[0]),
        masses=masses[filled[0] : filled[-1] + 1],
        infinite=float(dense._infinity_mass),
    )


def _composed_direction(parts: Sequence[tuple[Losses, int]], interval: float) -> Losses | None:
    start, end = _bounds(parts)
    if start * interval > LARGEST_LOSS:
        return None
    size = next_fast_len(end - start + 1, real=True)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    offset = 0
    log_finite = 0.0
    for part, count in parts:
        spectrum *= _power(rfft(_wrapped(part.masses, size)), count)
        offset += part.lowest * count
        log_finite += count * math.log1p(-part.infinite)
    # The transform is periodic: entry i stands for every loss offset + i + a multiple of size.
    masses = np.roll(irfft(spectrum, size), -((start - offset) % size))
    # Rounding leaves entries of +-1e-17; negative ones would lower the figure.
    np.maximum(masses, 0.0, out=masses)
    infinite = -math.expm1(log_finite) + 2.0 * math.exp(LOG_TAIL)
    return Losses(lowest=start, masses=masses, infinite=infinite)


def _bounds(parts: Sequence[tuple[Losses, int]]) -> tuple[int, int]:
    """Grid numbers between which the total lies but for a mass of exp(LOG_TAIL) at either end.

    Chernoff: P[S >= u] <= exp(K(t) - t * u) with K the sum of the logarithms of the moment generating functions.
    """
    lowest = sum(part.lowest * count for part, count in parts)
    highest = sum((part.lowest + len(part.masses) - 1) * count for part, count in parts)
    variance = math.fsum(count * _variance(part) for part, count in parts)
    if variance == 0.0:
        return lowest, highest
    orders = CHERNOFF_STEEPNESS / math.sqrt(variance)
    upper, lower = np.zeros_like(orders), np.zeros_like(orders)
    for part, count in parts:
        upper += count * _log_moments(part, orders)
        lower += count * _log_moments(part, -orders)
    return (
        max(lowest, math.floor(((LOG_TAIL - lower) / orders).max())),
        min(highest, math.ceil(((upper - LOG_TAIL) / orders).min())),
    )


def _variance(part: Losses) -> float:
    losses = part.lowest + np.arange(len(part.masses))
    mass = part.masses.sum()
    mean = (losses * part.masses).sum() / mass
    return float((np.square(losses - mean) * part.masses).sum() / mass)


def _log_moments(part: Losses, orders: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of E[exp(order * loss)] over the finite losses, for each order."""
    losses = part.lowest + np.arange(len(part.masses), dtype=np.float64)
    exponents = orders[:, None] * losses
    largest = exponents.max(axis=1, keepdims=True)
    np.exp(np.subtract(exponents, largest, out=exponents), out=exponents)
    return np.asarray(largest[:, 0] + np.log(exponents @ part.masses), dtype=np.float64)


def _wrapped(masses: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The masses modulo `size`, where one release spreads further than the total is kept."""
    if len(masses) <= size:
        return masses if len(masses) == size else np.pad(masses, (0, size - len(masses)))
    rows = -(-len(masses) // size)
    padded = np.pad(masses, (0, rows * size - len(masses)))
    return np.asarray(padded.reshape(rows, size).sum(axis=0), dtype=np.float64)


def _power(spectrum: NDArray[np.complex128], count: int) -> NDArray[np.complex128]:
    """Repeated squaring: exact rules of multiplication, no logarithm of a complex number."""
    result = np.ones_like(spectrum)
    square = spectrum.copy()
    while count:
        if count & 1:
            result *= square
        count >>= 1
        if count:
            np.multiply(square, square, out=square)
    return result
