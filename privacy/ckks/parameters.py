"""Sizes of a sum: where the integers stand in a coefficient, and how much noise covers what must not be seen.

A coefficient of an opened sum is  D * (sum of integers) + (errors of the sites) + (flooding of those who helped),  with D a
power of two. The integers are exact if the rest stays below D / 2 in absolute value. From the ring's modulus q and the bits
of the sum follows D, from D the largest flooding; it must cover the errors by `NEEDED_FLOODING_BITS`.
"""

import math
from dataclasses import dataclass

from privacy.ckks.ring import PRIME_BITS, RingShape

ERROR_DEVIATION = 4.6
"""Of a discrete Gaussian, in keys and errors. Of two of them, the sum known, each still varies with 4.6 / sqrt(2) = 3.25; the
usual 3.19 of the homomorphic encryption standard (Albrecht et al. 2018) stays covered."""
LARGEST_ERROR = 63
"""An error exceeds it with probability below 2 * exp(-63**2 / (2 * 4.6**2)) < 2**-134."""
LEAST_FLOODING_BITS = 40
MOST_OPENINGS = 1024
"""Sums that are opened under the keys of one epoch."""
NEEDED_FLOODING_BITS = LEAST_FLOODING_BITS + 0.5 * math.log2(12 * MOST_OPENINGS)
"""With OpenFHE's factor sqrt(12 * openings) for statistical security over all of them (CKKS_NOISE_FLOODING.md): 46.8."""
MOST_FLOODING_EXPONENT = 62
"""Flooding is drawn as 64-bit integers."""
STANDARD = RingShape(degree=8192, primes=2)
LIGHT = RingShape(degree=4096, primes=1)


@dataclass(frozen=True, kw_only=True)
class SumSizes:
    """Where things stand in a coefficient of one sum."""

    delta_exponent: int
    """D = 2**delta_exponent: what the integer 1 becomes."""
    flooding_exponent: int
    """Flooding is uniform in [-2**flooding_exponent, 2**flooding_exponent); 0: there is none."""
    flooding_bits: float
    """Bits by which the flooding of one site exceeds the largest sum of errors: it hides them but for 2**-flooding_bits in
    every coefficient (statistical distance). Over a whole epoch the distance is at most openings * coefficients * E|errors|
    / 2**(flooding_exponent + 1): for 1024 openings of 1e7 coefficients by 64 sites that use 32 bits, 2**-21."""


def standard_sizes(*, modulus_bits: int, sites: int) -> SumSizes:
    """Sizes in the ring STANDARD, with flooding. With every plan's 32 bits and 64 sites the flooding is large enough.

    Args:
        modulus_bits: of the sum's integers, sign included.
        sites: most that add or help, 1 to 64.

    Raises:
        ValueError: the flooding would cover the errors by less than NEEDED_FLOODING_BITS.
    """
    delta = _delta_exponent(STANDARD, modulus_bits)
    errors = sites * LARGEST_ERROR
    carry = math.ceil(math.log2(sites))
    # All floodings and errors together: sites * 2**f + errors <= 2**(f + carry) + 2**(f + carry) = D / 2 at most.
    flooding = min(MOST_FLOODING_EXPONENT, delta - 2 - carry)
    bits = flooding - math.log2(errors)
    if bits < NEEDED_FLOODING_BITS:
        raise ValueError(
            f"Expected a sum of fewer bits than modulus_bits={modulus_bits} with {sites} sites: the flooding would cover the "
            f"errors by {bits:.1f} bits, and {NEEDED_FLOODING_BITS:.1f} are needed."
        )
    return SumSizes(delta_exponent=delta, flooding_exponent=flooding, flooding_bits=bits)


def light_sizes(*, modulus_bits: int, sites: int) -> SumSizes:
    """Sizes in the ring LIGHT, where the sum of keys is opened and nothing is left to be hidden.

    Raises:
        ValueError: the errors could reach half a step.
    """
    delta = _delta_exponent(LIGHT, modulus_bits)
    if sites * LARGEST_ERROR >= 1 << (delta - 1):
        raise ValueError(
            f"Expected a sum of fewer bits than modulus_bits={modulus_bits} with {sites} sites: errors could reach half a step."
        )
    return SumSizes(delta_exponent=delta, flooding_exponent=0, flooding_bits=0.0)


def _delta_exponent(shape: RingShape, modulus_bits: int) -> int:
    # The primes are a little below 2**PRIME_BITS, so a bit is left; with the sign in modulus_bits, |D * sum| < q / 4.
    return shape.primes * PRIME_BITS - modulus_bits - 1
