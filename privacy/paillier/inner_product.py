"""Inner products of integer rows with an encrypted vector: what one party computes on another's secret values.

Sum over j of row_j * m_j is the product of c_j**row_j. All rows share one table of small powers of every c_j, and all
terms of a row share its squarings (Straus 1964). Rows are made non-negative by one offset, which is taken out again
with a single power of the product of all c_j.
Results are obfuscated anew: else whoever knows the rows' bounds could search for them.

Look-ups depend on the rows: a process that shares this processor's caches could learn of them.
"""

from collections.abc import Sequence

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from privacy.paillier.encrypt import refresh
from privacy.paillier.keys import PublicKey
from privacy.paillier.workers import IN_THIS_PROCESS, Workers

MOST_TABLE_BYTES = 64 << 20
LARGEST_WINDOW = 8


def inner_products(
    rows: NDArray[np.integer],
    encrypted: Sequence[mpz],
    public: PublicKey,
    workers: Workers = IN_THIS_PROCESS,
) -> list[mpz]:
    """Ciphertexts of every row's inner product with the encrypted vector, modulo n (`ciphertexts.signed`).

    Args:
        rows: [outputs, terms] of signed integers of at most 32 bits.
        encrypted: [terms].
        public: whose ciphertexts they are.
        workers: rows are spread over them.

    Raises:
        ValueError: shapes that do not fit, no terms, or larger integers.
    """
    if rows.ndim != 2 or rows.shape[1] != len(encrypted) or not rows.size:
        raise ValueError(
            f"Expected rows of {len(encrypted)} terms, got an array of shape {rows.shape}."
        )
    if rows.dtype.kind not in "iu" or rows.max() >= 1 << 31 or rows.min() < -(1 << 31):
        raise ValueError("Expected integers of at most 32 bits.")
    offset = min(0, int(rows.min()))
    shifted = rows.astype(np.int64) - offset
    bits = max(1, int(shifted.max()).bit_length())
    square = public.square
    products = workers.spread(_straus, list(shifted), list(encrypted), square, bits)
    if offset:
        whole = mpz(1)
        for ciphertext in encrypted:
            whole = whole * ciphertext % square
        correction = gmpy2.powmod(gmpy2.invert(whole, square), -offset, square)
        products = [product * correction % square for product in products]
    return refresh(products, public, workers)


def _straus(
    rows: Sequence[NDArray[np.int64]], encrypted: Sequence[mpz], square: mpz, bits: int
) -> list[mpz]:
    """The product over j of encrypted_j**row_j for every row of non-negative integers of at most `bits` bits."""
    window = _window(len(rows), bits)
    places = -(-bits // window)
    shifts = window * np.arange(places - 1, -1, -1)
    # [row, place, term], highest place first.
    digits = np.array(rows)[:, None, :] >> shifts[None, :, None] & (1 << window) - 1
    # Tables of some terms at a time; at least 16, so that squarings stay a small part.
    most = max(16, MOST_TABLE_BYTES // ((1 << window) * (square.bit_length() // 8 + 48)))
    products = [mpz(1)] * len(rows)
    for start in range(0, len(encrypted), most):
        tables = [_small_powers(c, square, window) for c in encrypted[start : start + most]]
        part = digits[:, :, start : start + most].tolist()
        for row, row_digits in enumerate(part):
            products[row] = products[row] * _power(row_digits, tables, square, window) % square
    return products


def _power(
    digits: Sequence[Sequence[int]], tables: Sequence[Sequence[mpz]], square: mpz, window: int
) -> mpz:
    power = mpz(1)
    for place, place_digits in enumerate(digits):
        if place:
            for _ in range(window):
                power = power * power % square
        for table, digit in zip(tables, place_digits, strict=True):
            if digit:
                power = power * table[digit] % square
    return power


def _small_powers(base: mpz, square: mpz, window: int) -> list[mpz]:
    powers = [mpz(1), base]
    for _ in range((1 << window) - 2):
        powers.append(powers[-1] * base % square)
    return powers


def _window(rows: int, bits: int) -> int:
    """Bits of a digit for which table and rows take the fewest multiplications."""
    costs = {
        window: rows * -(-bits // window) + (1 << window) for window in range(1, LARGEST_WINDOW + 1)
    }
    return min(costs, key=costs.__getitem__)
