"""Primes for Paillier keys: ordinary ones, and ones whose group has a small subgroup of known prime order.

Both kinds are 3 modulo 4, so that -1 is no square, and have their two highest bits set, so that the product of two has
exactly twice their length. Candidates come from the operating system's generator.

A subgroup prime is p = 2 * a * t + 1 with primes a (`order_bits` long) and t: p - 1 has no other small factors. Both t
and p must be prime at once, about one candidate in a million, so candidates go through a sieve first.
"""

import secrets
from collections.abc import Callable, Iterator

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

Progress = Callable[[str], None]
ROUNDS = 40
"""Of Miller-Rabin: a composite passes with probability 4**-40."""
# Sieving further costs more than the tests that it saves, at 1536 bits.
SIEVE_LIMIT = 1 << 17
SIEVE_WINDOW = 1 << 17


def blum_prime(bits: int) -> mpz:
    """A random prime of exactly `bits` bits, 3 modulo 4, the two highest bits set."""
    while True:
        candidate = mpz(secrets.randbits(bits - 2)) | (mpz(3) << (bits - 2)) | 3
        if gmpy2.is_prime(candidate, ROUNDS):
            return candidate


def subgroup_prime(bits: int, *, order_bits: int, progress: Progress) -> tuple[mpz, mpz]:
    """A prime p = 2 * a * t + 1 of exactly `bits` bits, the two highest set, and the prime a of `order_bits` bits."""
    order = blum_prime(order_bits)
    lowest = (mpz(3) << (bits - 2)) // (2 * order) + 1
    highest = (mpz(1) << bits) // (2 * order) - 2 * SIEVE_WINDOW
    tested = 0
    while True:
        start = (lowest + secrets.randbelow(int(highest - lowest))) | 1
        for cofactor in _candidates(start, order):
            tested += 1
            if tested % 500 == 0:
                progress(f"{tested} candidates for a prime of {bits} bits tested")
            prime = 2 * order * cofactor + 1
            # One cheap test each before the thorough ones: nearly all candidates end here.
            if (
                _passes(cofactor)
                and _passes(prime)
                and all(gmpy2.is_prime(number, ROUNDS) for number in (cofactor, prime))
            ):
                return prime, order


def _candidates(start: mpz, order: mpz) -> Iterator[mpz]:
    """Odd numbers t from `start` on such that neither t nor 2 * order * t + 1 has a factor below SIEVE_LIMIT."""
    is_open = np.ones(SIEVE_WINDOW, dtype=bool)
    for prime in map(int, SMALL_PRIMES):
        first, twice_order = int(start % prime), int(2 * order % prime)
        half = (prime + 1) // 2
        # t = start + 2 * j is 0 modulo the prime at j = -start / 2, ...
        is_open[-first * half % prime :: prime] = False
        # ... and 2 * order * t is -1 there.
        if twice_order:
            root = -pow(twice_order, -1, prime)
            is_open[(root - first) * half % prime :: prime] = False
    return (start + 2 * int(offset) for offset in np.flatnonzero(is_open))


def _passes(candidate: mpz) -> bool:
    return bool(gmpy2.powmod(2, candidate - 1, candidate) == 1)


def _odd_primes_below(limit: int) -> NDArray[np.int64]:
    """Sieve of Eratosthenes, without 2."""
    is_prime = np.ones(limit, dtype=bool)
    is_prime[:3] = False
    is_prime[4::2] = False
    for number in range(3, int(limit**0.5) + 1, 2):
        if is_prime[number]:
            is_prime[number * number :: number] = False
    return np.flatnonzero(is_prime)


SMALL_PRIMES = _odd_primes_below(SIEVE_LIMIT)
