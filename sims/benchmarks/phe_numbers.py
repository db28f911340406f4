"""Paillier as python-paillier (phe) with gmpy2 does it: one number, one ciphertext.

Numbers are floats, as phe's users pass them. One run of each: a number takes milliseconds, and their spread is small.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import phe

from sims.benchmarks.secure_sum_workload import seconds_of


@dataclass(frozen=True, kw_only=True)
class PheTimes:
    """Processor time of phe for one number."""

    encrypt: float
    decrypt: float
    add: float
    """Two ciphertexts of one exponent: phe's fast case."""
    multiply_add: float
    """One term of an inner product with integers of 16 bits."""
    number_bytes: float
    """Of a ciphertext."""


def measure_phe(public: Any, private: Any, *, numbers: int, terms: int) -> PheTimes:
    """Phe's own operations under its own keys.

    Args:
        public: phe's key.
        private: its private part.
        numbers: encrypted and decrypted.
        terms: of an inner product.
    """
    rng = np.random.default_rng(1)
    values = [float(value) for value in rng.uniform(-1.0, 1.0, numbers)]
    encrypted: list[Any] = []
    encrypting = seconds_of(lambda: encrypted.extend(map(public.encrypt, values)))
    decrypting = seconds_of(lambda: [private.decrypt(number) for number in encrypted])
    even = [public.encrypt(value, precision=2.0**-24) for value in values[:2]]
    adding = seconds_of(lambda: [even[0] + even[1] for _ in range(terms)])
    whole = public.encrypt(1)
    weights = [int(weight) for weight in rng.integers(0, 1 << 16, terms)]
    products = seconds_of(lambda: inner_product([whole] * terms, weights))
    return PheTimes(
        encrypt=encrypting / numbers,
        decrypt=decrypting / numbers,
        add=adding / terms,
        multiply_add=products / terms,
        number_bytes=(public.nsquare.bit_length() + 7) // 8,
    )


def inner_product(encrypted: Sequence[Any], weights: Sequence[int]) -> Any:
    """The sum of ciphertexts times integers, with phe's own operators."""
    return functools.reduce(operator.add, map(operator.mul, encrypted, weights))


def new_keys(bits: int) -> tuple[Any, Any]:
    """A key pair of phe's own making."""
    public, private = phe.generate_paillier_keypair(n_length=bits)
    return public, private
