"""Vectors of integers under ring keys: CKKS ciphertexts in coefficient form, a block of n integers a polynomial.

Party i with key s_i sends, for every block,  c_i = D * m_i + e_i - a * s_i  modulo q, where a is a public polynomial of this
sum and block. The sum of c_i over some parties, plus a times the sum of their keys, is D * (sum of m_i) + errors.

An integer stands in a coefficient, not in a slot of the canonical embedding: sums need no products, so a polynomial holds
twice as many values, and no floating-point encoder leaves rounding errors in it that depend on the data.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.ckks.parameters import ERROR_DEVIATION, SumSizes
from privacy.ckks.ring import Residues, Ring, Words
from privacy.dp.noise import DiscreteGaussian
from privacy.randomness import Random

BLOCKS_OF_ERRORS = 64
"""Errors are drawn for so many polynomials at a time: the sampler likes long draws."""
SMALL = DiscreteGaussian(deviation=ERROR_DEVIATION)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How a vector is cut into polynomials, and those into parts of a message."""

    ring: Ring
    dimension: int
    largest_part: int
    """Bytes."""

    @property
    def count(self) -> int:
        """Polynomials."""
        return -(-self.dimension // self.ring.shape.degree)

    def length(self, block: int) -> int:
        """Coefficients of a block that are used and sent."""
        degree = self.ring.shape.degree
        return min(degree, self.dimension - block * degree)

    @property
    def _per_part(self) -> int:
        return self.largest_part // self.ring.packed_bytes(self.ring.shape.degree)

    @property
    def parts(self) -> int:
        """Parts of a message."""
        return -(-self.count // self._per_part)

    def pack(self, polynomials: Iterable[Residues]) -> Iterator[bytes]:
        """The parts of a vector of polynomials [primes, length]."""
        packed = map(self.ring.pack, polynomials)
        while part := b"".join(itertools.islice(packed, self._per_part)):
            yield part

    def unpack(self, index: int, part: bytes | memoryview) -> Iterator[tuple[int, Residues]]:
        """Number and coefficients of every block in a part.

        Raises:
            ValueError: another length, or a residue that is not below its prime.
        """
        first = index * self._per_part
        blocks = range(first, min(first + self._per_part, self.count))
        sizes = [self.ring.packed_bytes(self.length(block)) for block in blocks]
        if sum(sizes) != len(part):
            raise ValueError(f"{len(part)} bytes, expected {sum(sizes)}")
        ends = itertools.accumulate(sizes)
        for block, size, end in zip(blocks, sizes, ends, strict=True):
            packed = memoryview(part)[end - size : end]
            yield block, self.ring.unpack(packed, self.length(block))


def new_key(ring: Ring, random: Random) -> Residues:
    """A secret key in transformed form: small coefficients, discrete Gaussian."""
    return ring.transform(SMALL.draw(ring.shape.degree, random))


def encrypted(
    blocks: Blocks,
    sizes: SumSizes,
    integers: NDArray[np.int32],
    *,
    key: Residues,
    seed: bytes,
    random: Random,
) -> Iterator[Residues]:
    """The polynomials c of a vector [dimension] under this party's key.

    Args:
        blocks: how it is cut.
        sizes: of the sum.
        integers: the vector.
        key: in transformed form.
        seed: public, of this sum; never used with two vectors under one key.
        random: of the errors.
    """
    ring, degree = blocks.ring, blocks.ring.shape.degree
    for block, product in _products(blocks, key, seed):
        if block % BLOCKS_OF_ERRORS == 0:
            left = len(integers) - block * degree
            errors = SMALL.draw(min(left, BLOCKS_OF_ERRORS * degree), random)
        length = blocks.length(block)
        start = block * degree
        values = integers[start : start + length].astype(np.int64)
        message = ring.scaled(ring.residues(values), 1 << sizes.delta_exponent)
        start = block % BLOCKS_OF_ERRORS * degree
        error = ring.residues(errors[start : start + length])
        yield ring.subtract(ring.add(message, error), product)


def opening(
    blocks: Blocks, sizes: SumSizes, *, key: Residues, seed: bytes, random: Words | None
) -> Iterator[Residues]:
    """The polynomials a * key, flooded where the sizes say so.

    Args:
        blocks: how the vector is cut.
        sizes: of the sum.
        key: a share of the sum of keys, weighted, or the sum of keys itself; in transformed form.
        seed: public, of this sum.
        random: of the flooding; None where there is none.
    """
    ring = blocks.ring
    for block, product in _products(blocks, key, seed):
        if random is None:
            yield product
        else:
            flooding = _uniform(blocks.length(block), sizes.flooding_exponent, random)
            yield ring.add(product, ring.residues(flooding))


def decoded(ring: Ring, sizes: SumSizes, total: Residues) -> NDArray[np.int32]:
    """The integers [length] behind a sum of which all keys were taken off.

    Raises:
        ValueError: a coefficient that no sum of integers of 32 bits gives.
    """
    steps = np.rint(np.ldexp(ring.lifted(total), -sizes.delta_exponent))
    if np.abs(steps).max() >= 1 << 31:
        raise ValueError("a coefficient outside the range of sums")
    return steps.astype(np.int32)


def _products(blocks: Blocks, key: Residues, seed: bytes) -> Iterator[tuple[int, Residues]]:
    """Every block's number and a * key in coefficient form, as far as it is used."""
    ring = blocks.ring
    for block in range(0, blocks.count, 2):
        pair = [
            ring.multiply(ring.public_polynomial(seed + number.to_bytes(4, "big")), key)
            for number in (block, block + 1)
            if number < blocks.count
        ]
        for number, product in zip(
            range(block, block + len(pair)), ring.coefficients(pair[0], pair[-1]), strict=False
        ):
            yield number, product[:, : blocks.length(number)]


def _uniform(count: int, exponent: int, random: Words) -> NDArray[np.int64]:
    """Integers uniform in [-2**exponent, 2**exponent), exponent <= 62."""
    words = random.words(count) >> np.uint64(63 - exponent)
    return words.view(np.int64) - (1 << exponent)
