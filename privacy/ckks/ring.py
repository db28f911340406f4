"""The ring R_q = Z_q[X] / (X^n + 1) of CKKS, with q a product of primes: residues as arrays of uint64 [primes, n].

A polynomial is in coefficient form or in transformed form (the number-theoretic transform, where products are
coordinate by coordinate). SEAL transforms; numpy adds and multiplies residues.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from privacy.ckks.seal import Layout, context, primes
from privacy.packing import pack, packed_bytes, unpack

Residues = NDArray[np.uint64]
SMALL_BITS = 30
"""Integers that are transformed are smaller in absolute value than 2**SMALL_BITS."""
PRIME_BITS = 50
LOW_BITS = 32


@dataclass(frozen=True, kw_only=True)
class RingShape:
    """Which ring."""

    degree: int
    """n, a power of two."""
    primes: int
    """How many, each of PRIME_BITS bits."""


class Words(Protocol):
    """Where uniform polynomials come from: a source of randomness, or a key stream."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` uniform 64-bit words, in an array of the caller's own."""


class Ring:
    """Arithmetic in one ring. SEAL's security check covers a modulus that is one prime longer than ours."""

    def __init__(self, shape: RingShape) -> None:
        self.shape = shape
        moduli = primes(shape.degree, [PRIME_BITS] * (shape.primes + 1))
        self.primes = tuple(int(prime.value()) for prime in moduli[: shape.primes])
        self.modulus = int(np.prod(np.array(self.primes, dtype=object)))
        self._column = np.array(self.primes, dtype=np.uint64)[:, None]
        self._inverse = 1.0 / self._column
        self._ckks = context(seal.SCHEME_TYPE.CKKS, shape.degree, moduli)
        self._bfv = context(seal.SCHEME_TYPE.BFV, shape.degree, moduli, SMALL_BITS + 1)
        self._from_ntt = seal.Evaluator(self._ckks)
        self._to_ntt = seal.Evaluator(self._bfv)
        self._words = shape.primes * shape.degree
        small = seal.Plaintext(shape.degree)
        self._small = Layout(small, words=shape.degree)
        self._to_ntt.transform_to_ntt_inplace(small, self._bfv.first_parms_id())
        self._transformed = Layout(small, words=self._words)
        self._pair = Layout(self._example_pair(), words=2 * self._words)

    def _example_pair(self) -> "seal.Ciphertext":
        """Two polynomials in transformed form, as SEAL writes them."""
        key = seal.KeyGenerator(self._ckks).secret_key()
        pair = seal.Ciphertext(self._ckks)
        seal.Encryptor(self._ckks, key).encrypt_zero_symmetric(pair)
        return pair

    def public_polynomial(self, seed: bytes) -> Residues:
        """A uniform polynomial in transformed form that everybody derives from a public seed.

        SHAKE-128 of seed and prime number, 8 bytes a candidate, its lowest bits; a candidate above the prime is left out.
        """
        return np.stack([self._expand(seed, index) for index in range(self.shape.primes)])

    def _expand(self, seed: bytes, index: int) -> Residues:
        mask = np.uint64((1 << PRIME_BITS) - 1)
        prime = np.uint64(self.primes[index])
        # The primes lie within 2**-20 of a power of two; 1 % to spare fails with probability below 2**-1000.
        candidates = self.shape.degree + self.shape.degree // 100
        stream = hashlib.shake_128(seed + bytes([index])).digest(8 * candidates)
        words = np.frombuffer(stream, dtype="<u8") & mask
        kept: Residues = words[words < prime][: self.shape.degree]
        if len(kept) < self.shape.degree:
            raise ValueError("The seed does not give enough residues.")
        return kept

    def uniform(self, source: Words, length: int | None = None) -> Residues:
        """Independent uniform residues [primes, length], length n by default: the lowest bits of the source's words.

        A candidate that is not below its prime is replaced by the next word, in order: a stream gives one polynomial.
        """
        mask = np.uint64((1 << PRIME_BITS) - 1)
        shape = (self.shape.primes, length or self.shape.degree)
        residues = source.words(shape[0] * shape[1]).reshape(shape) & mask
        while (wrong := residues >= self._column).any():
            residues[wrong] = source.words(int(wrong.sum())) & mask
        return residues

    def residues(self, integers: NDArray[np.int64]) -> Residues:
        """Coefficients [n] modulo every prime."""
        return np.mod(integers, self._column.astype(np.int64)).view(np.uint64)

    def transform(self, integers: NDArray[np.int64]) -> Residues:
        """The transformed form of a polynomial with small coefficients [n], |coefficient| < 2**30."""
        if np.abs(integers).max() >= 1 << SMALL_BITS:
            raise ValueError(f"Expected coefficients below 2**{SMALL_BITS} in absolute value.")
        polynomial = seal.Plaintext()
        self._small.fill(polynomial, self._bfv, np.mod(integers, 2 << SMALL_BITS).view(np.uint64))
        self._to_ntt.transform_to_ntt_inplace(polynomial, self._bfv.first_parms_id())
        return self._transformed.read(polynomial).reshape(self.shape.primes, -1)

    def coefficients(self, first: Residues, second: Residues) -> tuple[Residues, Residues]:
        """The coefficient forms of two polynomials in transformed form; SEAL takes two at a time."""
        pair = seal.Ciphertext(self._ckks)
        self._pair.fill(pair, self._ckks, np.concatenate([first.ravel(), second.ravel()]))
        self._from_ntt.transform_from_ntt_inplace(pair)
        numbers = self._pair.read(pair).reshape(2, self.shape.primes, -1)
        return numbers[0], numbers[1]

    def add(self, one: Residues, other: Residues) -> Residues:
        """Sum, in either form."""
        return self._once_reduced(one + other)

    def accumulate(self, total: Residues, other: Residues) -> None:
        """Add to a running sum, in place."""
        np.add(total, other, out=total)
        np.minimum(total, total - self._column, out=total)

    def subtract(self, one: Residues, other: Residues) -> Residues:
        """Difference, in either form."""
        return self._once_reduced(one + (self._column - other))

    def _once_reduced(self, sums: Residues) -> Residues:
        """Numbers below two primes, modulo the prime: what would fall below zero wraps around and is the larger one."""
        reduced: Residues = np.minimum(sums, sums - self._column)
        return reduced

    def multiply(self, one: Residues, other: Residues) -> Residues:
        """Product of polynomials in transformed form, or of residues by coordinate.

        The quotient is taken in floating point. For primes below 2**50 its error is below 5 * 2**-53 * 2**50 < 1, so it is
        off by one at most; the remainder is exact modulo 2**64.
        """
        quotient = (one.astype(np.float64) * other.astype(np.float64) * self._inverse).astype(
            np.uint64
        )
        remainder = (one * other - quotient * self._column).view(np.int64)
        prime = self._column.view(np.int64)
        remainder += (remainder < 0) * prime
        remainder -= (remainder >= prime) * prime
        return remainder.view(np.uint64)

    def scaled(self, residues: Residues, factor: int) -> Residues:
        """Product with an integer, in either form."""
        column = np.array([factor % prime for prime in self.primes], dtype=np.uint64)[:, None]
        return self.multiply(residues, np.broadcast_to(column, residues.shape))

    def lifted(self, residues: Residues) -> NDArray[np.float64]:
        """Coefficients [n] as real numbers in (-q/2, q/2), within 2**-51 of q; exact for one prime.

        Within a prime of -q/2 and q/2 the sign may be the other one: no sum reaches so far.

        Chinese remainders by Garner: x = r_0 + p_0 * ((r_1 - r_0) / p_0 modulo p_1).
        """
        if self.shape.primes == 1:
            first: NDArray[np.float64] = residues[0].astype(np.float64)
            first -= (first > self.primes[0] // 2) * float(self.primes[0])
            return first
        p_0, p_1 = self.primes
        difference = (residues[1] + np.uint64(p_1) - residues[0] % np.uint64(p_1)) % np.uint64(p_1)
        inverse = np.full_like(difference, pow(p_0, -1, p_1))
        digit = self.multiply(np.stack([difference] * 2), np.stack([inverse] * 2))[1]
        centred: NDArray[np.float64] = digit.astype(np.float64)
        # x > q/2 exactly where the upper digit is above p_1 / 2, but for the one digit in the middle.
        centred -= (centred > p_1 // 2) * float(p_1)
        centred *= float(p_0)
        centred += residues[0]
        return centred

    def packed_bytes(self, count: int) -> int:
        """Bytes of `count` packed coefficients."""
        return self.shape.primes * (4 * count + packed_bytes(count, PRIME_BITS - LOW_BITS))

    def pack(self, residues: Residues) -> bytes:
        """Coefficients [primes, count] at PRIME_BITS a residue: the lower halves, then the rest, prime by prime."""
        pieces = []
        for row in residues:
            low = (row & np.uint64((1 << LOW_BITS) - 1)).astype("<u4")
            high = (row >> np.uint64(LOW_BITS)).astype(np.uint32)
            pieces += [low.tobytes(), pack(high, PRIME_BITS - LOW_BITS)]
        return b"".join(pieces)

    def unpack(self, packed: bytes | memoryview, count: int) -> Residues:
        """The coefficients that were packed, [primes, count].

        Raises:
            ValueError: another length, or a residue that is not below its prime.
        """
        if len(packed) != self.packed_bytes(count):
            raise ValueError(
                f"{len(packed)} bytes of a polynomial, expected {self.packed_bytes(count)}"
            )
        step = len(packed) // self.shape.primes
        rows = []
        for start in range(0, len(packed), step):
            low = np.frombuffer(packed, dtype="<u4", offset=start, count=count)
            high = unpack(
                memoryview(packed)[start + 4 * count : start + step], PRIME_BITS - LOW_BITS, count
            )
            rows.append(low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(LOW_BITS))
        residues: Residues = np.stack(rows)
        if (residues >= self._column).any():
            raise ValueError("a residue is not below its prime")
        return residues


@functools.cache
def ring_of(shape: RingShape) -> Ring:
    """The ring of this shape; made once in a process, which takes SEAL some milliseconds."""
    return Ring(shape)
