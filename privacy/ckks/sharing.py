"""Shamir's secret sharing of ring elements, residue by residue (Shamir 1979): linear, so shares of keys add up to shares of
the sum of keys.

Points are site numbers, 1 to 64, so a step of Horner's rule stays below 2**57 and numpy's integers suffice.
"""

from collections.abc import Sequence

import numpy as np

from privacy.ckks.ring import Residues, Ring
from privacy.randomness import Random

MOST_POINT = 64


def split(
    ring: Ring, secret: Residues, *, threshold: int, points: Sequence[int], random: Random
) -> list[Residues]:
    """A share of the secret [primes, n] for every point, of which any `threshold` restore it.

    Raises:
        ValueError: points that are no distinct numbers from 1 to 64, or fewer than the threshold.
    """
    _require_points(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"Expected 1 <= threshold={threshold} <= {len(points)} points.")
    coefficients = [secret, *(ring.uniform(random) for _ in range(threshold - 1))]
    column = np.array(ring.primes, dtype=np.uint64)[:, None]
    shares = []
    for point in points:
        value = coefficients[-1]
        for coefficient in coefficients[-2::-1]:
            value = (value * np.uint64(point) + coefficient) % column
        shares.append(value)
    return shares


def weighted(ring: Ring, share: Residues, *, point: int, points: Sequence[int]) -> Residues:
    """The share times its Lagrange coefficient at 0: over exactly these points the results add up to the secret.

    Raises:
        ValueError: points that are not distinct or do not hold `point`.
    """
    _require_points(points)
    if point not in points:
        raise ValueError(f"Expected point={point} among {list(points)}.")
    factors = [_lagrange(prime, point, points) for prime in ring.primes]
    column = np.array(factors, dtype=np.uint64)[:, None]
    return ring.multiply(share, np.broadcast_to(column, share.shape))


def _lagrange(prime: int, point: int, points: Sequence[int]) -> int:
    numerator, denominator = 1, 1
    for other in points:
        if other != point:
            numerator = numerator * other % prime
            denominator = denominator * (other - point) % prime
    return numerator * pow(denominator, -1, prime) % prime


def _require_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or not all(1 <= point <= MOST_POINT for point in points):
        raise ValueError(f"Expected distinct points from 1 to {MOST_POINT}, got {list(points)}.")
