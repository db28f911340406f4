"""Shamir's secret sharing over the prime field of 2**255 - 19 (Shamir 1979).

1. `split` hides the secret as the value at 0 of a random polynomial of degree threshold - 1 and hands out its values
   at 1, 2, ..., count.
2. `weights_at_zero` are the Lagrange coefficients of a set of points; they depend on who answered, not on the secret,
   and serve every secret of the same set.
3. `combine` is the weighted sum. Any `threshold` shares give the secret, fewer are uniformly random.

A wrong share gives a wrong secret and no error: the caller compares the secret with a commitment. Python's integers do
not take constant time; shares are formed and combined once per round, and no peer can measure them alone.
"""

import math
import secrets
from collections.abc import Sequence
from itertools import accumulate

PRIME = 2**255 - 19


def split(secret: int, *, threshold: int, count: int) -> tuple[int, ...]:
    """Shares number 1 to `count` of a secret, of which any `threshold` restore it."""
    if not 1 <= threshold <= count:
        raise ValueError(f"Expected 1 <= threshold={threshold} <= count={count}.")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return evaluate(secret, coefficients, count=count)


def evaluate(secret: int, coefficients: Sequence[int], *, count: int) -> tuple[int, ...]:
    """Values at 1 to `count` of the polynomial with this constant term and these higher coefficients, lowest first."""
    if not 0 <= secret < PRIME:
        raise ValueError("Expected 0 <= secret < 2**255 - 19.")
    shares = []
    for point in range(1, count + 1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares.append((value * point + secret) % PRIME)
    return tuple(shares)


def weights_at_zero(points: Sequence[int]) -> tuple[int, ...]:
    """Lagrange coefficients that take the polynomial's values at these points to its value at 0."""
    if len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise ValueError(f"Expected distinct points in 1 to 2**255 - 20, got {list(points)}.")
    product = math.prod(points)
    # Exact products of small numbers are cheaper than reducing them on the way.
    differences = [
        math.prod(other - point for other in points if other != point) for point in points
    ]
    return tuple(
        product // point * inverse % PRIME
        for point, inverse in zip(points, _inverses(differences), strict=True)
    )


def _inverses(values: Sequence[int]) -> list[int]:
    """Of all values at the price of one: an inversion costs as much as a hundred products (Montgomery 1987)."""
    products = list(accumulate(values, lambda left, right: left * right % PRIME, initial=1))
    inverse = pow(products.pop(), -1, PRIME)
    inverses = []
    for value, before in zip(reversed(values), reversed(products), strict=True):
        inverses.append(inverse * before % PRIME)
        inverse = inverse * value % PRIME
    return inverses[::-1]


def combine(shares: Sequence[int], weights: Sequence[int]) -> int:
    """The secret, from shares in the order of the points that the weights were made for."""
    if not all(0 <= share < PRIME for share in shares):
        raise ValueError("Expected 0 <= share < 2**255 - 19 for every share.")
    return sum(share * weight for share, weight in zip(shares, weights, strict=True)) % PRIME
