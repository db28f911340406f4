"""Decryption by any t of n: a dealer shares the exponent that decrypts, and nobody needs to restore it.

1. `deal`: d is 0 modulo lcm(p - 1, q - 1) and 1 modulo n, so c**d = (1 + n)**m for every ciphertext, of a subgroup key
   too. Shares are the values at 1, ..., n of an integer polynomial f with f(0) = Delta * d, Delta = n! (Rabin 1998;
   Damgard, Jurik 2001). Nobody but the dealer knows a modulus for exponents, hence integers.
2. `partial_decryptions`: c**(2 * share) modulo n**2, in constant time.
3. `combine`: Lagrange's coefficients for 0 become integers when multiplied by Delta. The product of partial decryptions
   to these powers is c**(2 * Delta**2 * d) = (1 + n)**(2 * Delta**2 * m).

Fewer than t shares tell nothing: for any two d and d' and any t - 1 points there is an integer polynomial that is
Delta * (d' - d) at 0 and 0 at these points; coefficients below 2**(2 * bits) * Delta * (n + 1) are hidden by coefficients
2**128 times as large. Partial decryptions tell no more than the plaintext: c**d and t - 1 shares give all others, as
f(0) is a multiple of Delta.
"""

import math
import secrets
from collections.abc import Mapping, Sequence

import gmpy2
from gmpy2 import mpz

from privacy.paillier.keys import KeyPair, PublicKey
from privacy.paillier.workers import IN_THIS_PROCESS, Workers

MOST_SHARES = 64
HIDING_BITS = 128


def share_bits(*, key_bits: int, count: int) -> int:
    """Most bits of a share, whatever the threshold."""
    return _coefficient_bits(key_bits, count) + count * count.bit_length() + 1


def deal(pair: KeyPair, *, threshold: int, count: int) -> tuple[mpz, ...]:
    """Shares for the points 1 to `count`, of which any `threshold` decrypt. Each is secret; so is the key pair."""
    _require_numbers(threshold, count)
    p, q, n = mpz(pair.private.p), mpz(pair.private.q), pair.public.n
    order = gmpy2.lcm(p - 1, q - 1)
    exponent = order * gmpy2.invert(order, n)
    bits = _coefficient_bits(pair.public.bits, count)
    coefficients = [mpz(secrets.randbits(bits)) for _ in range(threshold - 1)]
    shares = []
    for point in range(1, count + 1):
        value = mpz(0)
        for coefficient in reversed(coefficients):
            value = (value + coefficient) * point
        shares.append(value + math.factorial(count) * exponent)
    return tuple(shares)


def partial_seconds(count: int, public: PublicKey) -> float:
    """About how long so many partial decryptions take in one process; only to judge whether workers pay."""
    return float(0.08 * count * (public.bits / 3072) ** 2.6)


def partial_decryptions(
    ciphertexts: Sequence[mpz], share: mpz, public: PublicKey, workers: Workers = IN_THIS_PROCESS
) -> list[mpz]:
    """This share's part in the decryption of units modulo n**2; see `ciphertexts.require_ciphertexts`."""
    return workers.spread(_secret_powers, ciphertexts, 2 * share, public.square)


def combine(
    partials: Mapping[int, Sequence[mpz]], public: PublicKey, *, threshold: int, count: int
) -> list[mpz]:
    """The plaintexts, from partial decryptions by the shares of exactly `threshold` points.

    Raises:
        ValueError: too few or too many points, points that were not dealt, lists of different lengths, or partial
            decryptions that do not belong together.
    """
    _require_numbers(threshold, count)
    if len(partials) != threshold or not all(1 <= point <= count for point in partials):
        raise ValueError(
            f"Expected partial decryptions by {threshold} points in 1 to {count}, got {sorted(partials)}."
        )
    if len({len(part) for part in partials.values()}) != 1:
        raise ValueError("Expected partial decryptions of the same ciphertexts.")
    n, square = public.n, public.square
    delta = math.factorial(count)
    weights = integer_weights(sorted(partials), count)
    inverse = gmpy2.invert(2 * delta * delta, n)
    plaintexts = []
    for column in zip(*(partials[point] for point in sorted(partials)), strict=True):
        product = mpz(1)
        for partial, weight in zip(column, weights, strict=True):
            product = product * gmpy2.powmod(partial, weight, square) % square
        quotient, remainder = gmpy2.f_divmod(product - 1, n)
        if remainder:
            raise ValueError("Expected partial decryptions by the shares that were dealt.")
        plaintexts.append(quotient * inverse % n)
    return plaintexts


def integer_weights(points: Sequence[int], count: int) -> list[int]:
    """Delta times Lagrange's coefficients for 0, integers of either sign."""
    delta = math.factorial(count)
    weights = []
    for point in points:
        others = [other for other in points if other != point]
        numerator = delta * math.prod(others)
        # Exact: the denominator divides Delta.
        weights.append(numerator // math.prod(other - point for other in others))
    return weights


def _secret_powers(bases: Sequence[mpz], exponent: mpz, modulus: mpz) -> list[mpz]:
    return [gmpy2.powmod_sec(base, exponent, modulus) for base in bases]


def _coefficient_bits(key_bits: int, count: int) -> int:
    hidden = 2 * key_bits + math.factorial(count).bit_length() + (count + 1).bit_length()
    # At most `count` coefficients, each within 2**-HIDING_BITS / count of hiding.
    return hidden + count.bit_length() + HIDING_BITS


def _require_numbers(threshold: int, count: int) -> None:
    if not 1 <= threshold <= count <= MOST_SHARES:
        raise ValueError(f"Expected 1 <= threshold={threshold} <= count={count} <= {MOST_SHARES}.")
