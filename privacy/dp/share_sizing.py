"""How large one site's share of the noise is, how many bits it takes, and which secure sums may carry it.

1. `size_share` takes what a plan states (target, honest sites, bits of a coordinate) and gives the deviation of a share in
   grid steps and what is left of the range for values.
2. A site's integer is bounded by its encoding, so a sum of all sites never wraps around its modulus. What can happen is
   that a share of the noise is cut off at the end of the range, and with it noise that the other sites count on. The bound
   on that probability, over all coordinates and sites of a sum, is `CLIPPED_NOISE` or less; a plan whose range is
   smaller is refused.
3. `bits_needed` is the least number of bits for which 1 and 2 work out.

The grid is that of the encoding: a range has 2**(value_bits - 1) steps, and a site's noised integers pass through float32
and the encoding as they are. A coarser grid saves bytes; rounding to it moves neighbouring sums apart, which the noise
has to make up for (`ShareSizing.rounding`).
"""

import math
from dataclasses import dataclass

from privacy.secagg.plan import MOST_SITES

LEAST_DEVIATION = 64.0
"""Least deviation of a share, in grid steps; the rounding in `share_deviation` then adds 0.2 % to it at most."""
ROUNDING_VARIANCE = 16.0
"""Variance, in steps, of the randomised rounding that turns a continuous Gaussian into a discrete one."""
CLIPPED_NOISE = 2.0**-100
"""Largest probability that noise of any coordinate of a sum is cut off; 10 000 sums take 1e-26 of delta for it."""
LARGEST_ROUNDING = 0.25
"""Most by which a grid may raise the noise; a coarser one is a mistake, not a saving."""
LEAST_VALUE_BITS = 8
MOST_VALUE_BITS = 25
"""Integers of one site up to 2**24 are exact in float32, in which vectors travel."""
HIDING_SCHEMES = ("mask", "ckks", "ckks-light", "paillier")
"""Secure sums that open the integers as they add up, and nothing of the single ones."""


@dataclass(frozen=True, kw_only=True)
class ShareSizing:
    """One site's share of the noise on the grid of its encoding."""

    value_bits: int
    """Bits of one site's coordinate, its sign included."""
    deviation: float
    """Of the share, in grid steps."""
    largest_value: int
    """Bound of a coordinate before noise, in grid steps."""
    clipped_noise: float
    """Probability, at most, that noise of any coordinate of any site in one sum is cut off."""
    rounding: float
    """Share by which rounding to the grid raises the sensitivity, and the noise with it."""

    @property
    def steps_of_range(self) -> int:
        """Grid steps from 0 to the end of the range."""
        return 1 << (self.value_bits - 1)


def scheme_problem(scheme: str) -> str:
    """Why the noise of a sum cannot be shared among sites under this scheme; empty if it can.

    The scheme must add integers exactly and hide single vectors: what an error adds could depend on them.
    """
    if scheme in HIDING_SCHEMES:
        return ""
    allowed = ", ".join(f'"{name}"' for name in HIDING_SCHEMES)
    return f'secure_sum scheme "{scheme}" shows every site\'s share of the noise; use one of {allowed}'


def share_noise_multiplier(target: float, honest_sites: int) -> float:
    """Noise multiplier of one site's share, so that `honest_sites` of them make `target` or more.

    Raises:
        ValueError: a number out of range.
    """
    if not 0.0 < target < math.inf:
        raise ValueError(f"Expected target={target} > 0 and finite.")
    require_sites("honest_sites", honest_sites, least=1)
    return target / math.sqrt(honest_sites)


def share_deviation(target: float, *, honest_sites: int, sensitivity: float) -> float:
    """Deviation, in grid steps, of the discrete Gaussian that one site adds.

    Args:
        target: noise multiplier of the sum.
        honest_sites: fewest sites in the sum that keep their share to themselves, 1 to 64.
        sensitivity: grid steps by which one patient moves the rounded sum at most, in L2: the clipping norm and what
            rounding adds, at most one step times the root of the number of coordinates.

    Raises:
        ValueError: a number out of range, or a grid too coarse for shares of `LEAST_DEVIATION` steps.
    """
    if not 0.0 < sensitivity < math.inf:
        raise ValueError(f"Expected sensitivity={sensitivity} > 0 and finite.")
    share = share_noise_multiplier(target, honest_sites) * sensitivity
    deviation = math.hypot(share, math.sqrt(ROUNDING_VARIANCE / honest_sites))
    deviation *= 1.0 + 2.0**-40  # rounding of this very line must not fall below the target
    if deviation < LEAST_DEVIATION:
        raise ValueError(
            f"Expected sensitivity={sensitivity} so fine that a share has {LEAST_DEVIATION} steps; it has {deviation}. "
            "Take a finer grid, which is a smaller update_range or more value_bits."
        )
    return deviation


def size_share(
    target: float,
    *,
    honest_sites: int,
    sites: int,
    sensitivity: float,
    coordinates: int,
    value_bits: int,
) -> ShareSizing:
    """One site's share on the grid that `value_bits` give.

    Args:
        target: noise multiplier of the sum.
        honest_sites: as `share_deviation`.
        sites: most sites in the sum.
        sensitivity: L2 bound of one patient's contribution, as a share of the range.
        coordinates: of the vector.
        value_bits: of one site's coordinate, `LEAST_VALUE_BITS` to `MOST_VALUE_BITS`.

    Raises:
        ValueError: a number out of range, a grid too coarse for the noise or for so many coordinates, or a range that noise
            alone may half fill.
    """
    if not LEAST_VALUE_BITS <= value_bits <= MOST_VALUE_BITS:
        raise ValueError(
            f"Expected value_bits={value_bits} in [{LEAST_VALUE_BITS}, {MOST_VALUE_BITS}]: beyond, whole grid steps are not "
            "exact on their way into the sum."
        )
    require_sites("sites", sites, least=1)
    if not 0.0 < sensitivity < math.inf:
        raise ValueError(f"Expected sensitivity={sensitivity} > 0 and finite.")
    range_steps = 1 << (value_bits - 1)
    # Rounding each coordinate of two neighbouring sums can move them apart by a step.
    rounding = math.sqrt(coordinates) / (sensitivity * range_steps)
    if rounding > LARGEST_ROUNDING:
        raise ValueError(
            f"Expected a grid that raises the noise by {LARGEST_ROUNDING:.0%} at most; {value_bits} bits raise it by "
            f"{rounding:.0%}. Take a finer grid, which is a smaller update_range or more value_bits."
        )
    steps = sensitivity * range_steps * (1.0 + rounding)
    deviation = share_deviation(target, honest_sites=honest_sites, sensitivity=steps)
    largest = largest_noise(deviation, sites=sites, coordinates=coordinates)
    if 2 * largest > range_steps:
        raise ValueError(
            f"Expected a range of {2 * largest / range_steps:.3g} times as much: a site's noise alone may fill "
            "half of it. Ask for a larger update_range."
        )
    return ShareSizing(
        value_bits=value_bits,
        deviation=deviation,
        largest_value=range_steps - 1 - largest,  # the encoding ends one step before its range
        clipped_noise=clipping_probability(
            largest, deviation=deviation, sites=sites, coordinates=coordinates
        ),
        rounding=rounding,
    )


def bits_needed(
    target: float, *, honest_sites: int, sites: int, sensitivity: float, coordinates: int
) -> int:
    """Fewest `value_bits` of one site's coordinate with which `size_share` finds room for noise and grid; arguments as there.

    Raises:
        ValueError: as `size_share` with the most bits there are.
    """
    for value_bits in range(LEAST_VALUE_BITS, MOST_VALUE_BITS):
        try:
            size_share(
                target,
                honest_sites=honest_sites,
                sites=sites,
                sensitivity=sensitivity,
                coordinates=coordinates,
                value_bits=value_bits,
            )
        except ValueError:
            continue
        return value_bits
    return size_share(
        target,
        honest_sites=honest_sites,
        sites=sites,
        sensitivity=sensitivity,
        coordinates=coordinates,
        value_bits=MOST_VALUE_BITS,
    ).value_bits


def largest_noise(
    deviation: float, *, sites: int, coordinates: int, failure: float = CLIPPED_NOISE
) -> int:
    """What no site's noise exceeds in absolute value, in grid steps, but with probability `failure` over all.

    A discrete Gaussian exceeds t deviations with probability at most 2 * exp(-t**2 / 2): its moments are not above
    those of the Gaussian (Canonne, Kamath, Steinke 2020).

    Args:
        deviation: of one share, in grid steps.
        sites: in the sum.
        coordinates: of the vector.
        failure: in (0, 1); a share of delta.
    """
    if not 0.0 < failure < 1.0:
        raise ValueError(f"Expected failure={failure} in (0, 1).")
    tail = math.sqrt(2.0 * math.log(2.0 * coordinates * sites / failure))
    return math.ceil(tail * deviation)


def clipping_probability(largest: int, *, deviation: float, sites: int, coordinates: int) -> float:
    """Probability, at most, that any site's noise in any coordinate exceeds `largest` steps; see `largest_noise`."""
    return min(1.0, 2.0 * coordinates * sites * math.exp(-((largest / deviation) ** 2) / 2.0))


def require_sites(name: str, sites: int, *, least: int) -> None:
    """Raise ValueError unless `sites` is a number of sites."""
    if not least <= sites <= MOST_SITES:
        raise ValueError(f"Expected {name}={sites} in [{least}, {MOST_SITES}].")
