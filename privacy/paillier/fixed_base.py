"""Powers of one fixed base, many of them, with a comb (Lim, Lee 1994).

The bits of an exponent are written into `teeth` rows. A column of bits says which of the powers base**(2**place) of its
rows to multiply, and the table holds all products of them: one multiplication for each column. Columns are cut into
`blocks` with a table each, and the blocks share their squarings.

A table costs as many multiplications as it has entries, so the comb is chosen by the number of powers; for a few powers
there is none. Look-ups depend on the exponent: a process that shares this processor's caches could learn of it. Not for
exponents that are used twice.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import gmpy2
import numpy as np
from gmpy2 import mpz

MOST_TABLE_BYTES = 64 << 20
MOST_TEETH = 13
MOST_BLOCKS = 16
# Squarings and multiplications of gmpy2.powmod for each bit of the exponent, in multiplications of ours.
PLAIN_COST = 1.1


@dataclass(frozen=True, kw_only=True)
class Comb:
    """The shape of a table."""

    exponent_bits: int
    teeth: int
    blocks: int

    @property
    def columns(self) -> int:
        """Columns of an exponent."""
        return -(-self.exponent_bits // self.teeth)

    @property
    def height(self) -> int:
        """Columns of a block."""
        return -(-self.columns // self.blocks)

    @property
    def entries(self) -> int:
        """Numbers in the table."""
        return self.blocks << self.teeth

    @property
    def power_cost(self) -> int:
        """Multiplications and squarings of one power."""
        return self.columns + self.height - 1


class PowerTable:
    """Powers of one base modulo one number."""

    def __init__(self, base: mpz, modulus: mpz, comb: Comb) -> None:
        self._modulus = modulus
        self._comb = comb
        doublings = [base]
        for _ in range(comb.teeth * comb.columns):
            doublings.append(doublings[-1] * doublings[-1] % modulus)
        self._tables = []
        for block in range(comb.blocks):
            table = [mpz(1)]
            for tooth in range(comb.teeth):
                # A block may lie behind the last column; its entries are never used then.
                place = min(block * comb.height, comb.columns) + tooth * comb.columns
                table += [entry * doublings[place] % modulus for entry in table]
            self._tables.append(table)

    def powers(self, exponents: Sequence[bytes]) -> list[mpz]:
        """The base to each exponent; exponents are little endian and all of one length."""
        comb, modulus = self._comb, self._modulus
        steps = [
            [
                (table, block * comb.height + step)
                for block, table in enumerate(self._tables)
                if block * comb.height + step < comb.columns
            ]
            for step in reversed(range(comb.height))
        ]
        found = []
        for columns in self._columns(exponents):
            power = mpz(1)
            for step in steps:
                power = power * power % modulus
                for table, column in step:
                    power = power * table[columns[column]] % modulus
            found.append(power)
        return found

    def _columns(self, exponents: Sequence[bytes]) -> list[list[int]]:
        """[exponent][column]: which teeth are set."""
        comb = self._comb
        octets = np.frombuffer(b"".join(exponents), dtype=np.uint8).reshape(len(exponents), -1)
        bits = np.unpackbits(octets, axis=1, bitorder="little")
        width = comb.teeth * comb.columns
        padded = np.zeros((len(exponents), max(width, bits.shape[1])), dtype=np.uint8)
        padded[:, : bits.shape[1]] = bits
        if padded[:, width:].any():
            raise ValueError("Expected exponents that fit the table.")
        rows = padded[:, :width].reshape(len(exponents), comb.teeth, comb.columns)
        columns: list[list[int]] = np.tensordot(rows, 1 << np.arange(comb.teeth), (1, 0)).tolist()
        return columns


def best_comb(count: int, *, exponent_bits: int, modulus_bits: int) -> Comb | None:
    """The comb for which so many powers take the fewest multiplications; none if powers without a table do."""
    # An mpz takes 40 bytes besides its digits, a place in a list 8.
    most_entries = MOST_TABLE_BYTES // (modulus_bits // 8 + 48)
    combs = [
        Comb(exponent_bits=exponent_bits, teeth=teeth, blocks=blocks)
        for teeth in range(1, MOST_TEETH + 1)
        for blocks in range(1, MOST_BLOCKS + 1)
        if blocks << teeth <= most_entries
    ]
    best = min(combs, key=lambda comb: total_cost(comb, count))
    return best if total_cost(best, count) < count * exponent_bits * PLAIN_COST else None


def total_cost(comb: Comb, count: int) -> int:
    """Multiplications of so many powers, the table included."""
    return count * comb.power_cost + comb.entries + comb.exponent_bits


def fixed_powers(
    exponents: Sequence[bytes], base: mpz, modulus: mpz, comb: Comb | None
) -> list[mpz]:
    """The base to each exponent; without a comb in a time that tells little of it."""
    if not exponents:
        return []
    if comb:
        return _table(base, modulus, comb).powers(exponents)
    numbers = [mpz.from_bytes(exponent, "little") for exponent in exponents]
    # powmod_sec takes no exponent of zero.
    return [gmpy2.powmod_sec(base, number, modulus) if number else mpz(1) for number in numbers]


@functools.lru_cache(maxsize=2)
def _table(base: mpz, modulus: mpz, comb: Comb) -> PowerTable:
    """Two are kept: a key holder needs one for each factor."""
    return PowerTable(base, modulus, comb)
