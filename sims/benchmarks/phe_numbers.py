"""Paillier as python-paillier (phe) with gmpy2 does it: one number, one ciphertext; integers and floats as its users pass them."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims.benchmarks.secure_sum_workload import seconds_of

PRECISION = 2.0**-24
"""Numbers of one exponent: phe adds them without a multiplication."""


@dataclass(frozen=True, kw_only=True)
class PheTimes:
    """Processor time of phe for one number."""

    encrypt: float
    decrypt: float
    add: float
    number_bytes: float
    """Of a ciphertext."""


def measure_phe(public: Any, private: Any, *, numbers: int) -> PheTimes:
    """How long phe takes under these keys of its own form, each operation on `numbers` numbers."""
    rng = np.random.default_rng(1)
    values = [float(value) for value in rng.uniform(-1.0, 1.0, numbers)]
    encrypted: list[Any] = []
    encrypting = seconds_of(
        lambda: encrypted.extend(public.encrypt(value, precision=PRECISION) for value in values)
    )
    decrypting = seconds_of(lambda: [private.decrypt(number) for number in encrypted])
    adding = seconds_of(lambda: [number + encrypted[0] for number in encrypted])
    return PheTimes(
        encrypt=encrypting / numbers,
        decrypt=decrypting / numbers,
        add=adding / numbers,
        number_bytes=(public.nsquare.bit_length() + 7) // 8,
    )


def inner_products(rows: NDArray[np.int64], encrypted: Sequence[Any]) -> list[int]:
    """Ciphertexts of every row's inner product, with phe's operators; obfuscated, as phe does with what it gives away."""
    products = (
        functools.reduce(operator.add, map(operator.mul, encrypted, row)) for row in rows.tolist()
    )
    return [int(product.ciphertext()) for product in products]
