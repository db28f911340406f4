"""Opens one site's ciphertexts from a guess at its ring key, and takes a helper's flooded release apart.

Of block 0 only: an attack that opens one block opens all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.ckks import sharing
from privacy.ckks.parameters import STANDARD, SumSizes, standard_sizes
from privacy.ckks.ring import Residues, Ring, ring_of
from privacy.ckks.vectors import Blocks, decoded, opening
from privacy.secagg.ckks_light import light_blocks, light_sizes_of
from privacy.secagg.messages import PART_BYTES
from privacy.secagg.plan import SumPlan
from privacy.secagg.ring_sum import polynomial_seed
from privacy.secagg.schemes import Roster

Whole = NDArray[np.object_]
"""Python integers, one a coefficient."""


@dataclass(frozen=True, kw_only=True)
class RingOpening:
    """What the attacker computes with: all of it public."""

    blocks: Blocks
    sizes: SumSizes

    @property
    def ring(self) -> Ring:
        """The ring of the scheme."""
        return self.blocks.ring

    def polynomial(self, parts: Sequence[bytes]) -> Residues:
        """Block 0 of what a site sealed or released."""
        _, polynomial = next(iter(self.blocks.unpack(0, parts[0])))
        return polynomial

    def product(self, key: Residues, roster: Roster) -> Residues:
        """The public polynomial of block 0 times a key, in coefficient form."""
        return next(
            opening(self.blocks, self.sizes, key=key, seed=polynomial_seed(roster), random=None)
        )

    def key_of(self, shares: dict[int, Residues]) -> Residues:
        """What these shares, by point, interpolate to: the key, if they are enough."""
        points = list(shares)
        weighted = [
            sharing.weighted(self.ring, share, point=point, points=points)
            for point, share in shares.items()
        ]
        total = weighted[0]
        for share in weighted[1:]:
            total = self.ring.add(total, share)
        return total

    def decrypted(
        self, sealed: Residues, key: Residues, roster: Roster
    ) -> NDArray[np.int32] | None:
        """The integers of a ciphertext under a guess at its key; None if no integers come out."""
        opened = self.ring.add(sealed, self.product(key, roster))
        try:
            return decoded(self.ring, self.sizes, opened)
        except ValueError:
            return None

    def whole(self, residues: Residues) -> Whole:
        """Coefficients as integers from 0 to q - 1."""
        first, second = (row.astype(object) for row in residues)
        p_0, p_1 = self.ring.primes
        return np.asarray(first + p_0 * ((second - first) * pow(p_0, -1, p_1) % p_1))

    def quotient(self, product: Whole, roster: Roster) -> Residues:
        """The key, in transformed form, whose product with the public polynomial of a whole block 0 this is."""
        public = self.ring.public_polynomial(polynomial_seed(roster) + bytes(4))
        rows = []
        for index, prime in enumerate(self.ring.primes):
            residues = (product % prime).astype(np.int64)
            low, high = residues & ((1 << 25) - 1), residues >> 25
            # Small pieces: more than SEAL transforms of a plain polynomial at a time.
            parts = [self.ring.transform(piece)[index].astype(object) for piece in (low, high)]
            inverse = np.array(
                [pow(int(value), -1, prime) for value in public[index]], dtype=object
            )
            rows.append(((parts[0] + (parts[1] << 25)) * inverse % prime).astype(np.uint64))
        return np.stack(rows)


def lagrange(point: int, points: Sequence[int], at: int = 0) -> Fraction:
    """Weight of the value at `point` when a polynomial is interpolated from `points`."""
    weight = Fraction(1)
    for other in points:
        if other != point:
            weight *= Fraction(at - other, point - other)
    return weight


def modulo(fraction: Fraction, modulus: int) -> int:
    """A fraction as an integer modulo q."""
    return fraction.numerator * pow(fraction.denominator, -1, modulus) % modulus


def centred(values: Whole, modulus: int) -> Whole:
    """Representatives around 0."""
    reduced = values % modulus
    nearest: Whole = np.where(reduced > modulus // 2, reduced - modulus, reduced)
    return nearest


def standard_opening(plan: SumPlan) -> RingOpening:
    """For `ckks`."""
    return RingOpening(
        blocks=Blocks(ring=ring_of(STANDARD), dimension=plan.dimension, largest_part=PART_BYTES),
        sizes=standard_sizes(modulus_bits=plan.encoding.modulus_bits, sites=plan.max_sites),
    )


def light_opening(plan: SumPlan) -> RingOpening:
    """For `ckks-light`."""
    return RingOpening(blocks=light_blocks(plan), sizes=light_sizes_of(plan))
