"""Many small signed integers in one plaintext, so that adding ciphertexts adds all of them.

- A slot has the bits of a sum (`FixedPoint.modulus_bits`), so `max_addends` values never carry into the next slot.
- Slots hold value + `limit`, which is never negative; a sum of k vectors carries k * `limit`, with the k that are in it.
- Value i is in slot i // count of ciphertext i % count: rows of slots are packed at once. Slots behind the last value
  are zero and stay so; what a sum shows there, above the last slot or beyond its reach is a sign of a dishonest addend.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from privacy.fixed_point import FixedPoint


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How a vector of `dimension` integers is laid out in plaintexts."""

    dimension: int
    encoding: FixedPoint
    key_bits: int
    """Of n. Plaintexts stay below 2**(key_bits - 1), and so below n."""

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ValueError(f"Expected dimension={self.dimension} >= 1.")
        if self.key_bits <= self.encoding.modulus_bits:
            raise ValueError(f"Expected a key with room for a slot, got key_bits={self.key_bits}.")

    @property
    def in_plaintext(self) -> int:
        """Slots of one plaintext."""
        return (self.key_bits - 1) // self.encoding.modulus_bits

    @property
    def count(self) -> int:
        """Plaintexts of a vector."""
        return -(-self.dimension // self.in_plaintext)

    @property
    def _words(self) -> int:
        """32-bit words of a packed plaintext."""
        return -(-self.in_plaintext * self.encoding.modulus_bits // 32)

    def pack(self, integers: NDArray[np.int32]) -> list[mpz]:
        """Plaintexts of a vector [dimension] with |integer| <= `limit`.

        Raises:
            ValueError: another shape or type, or an integer beyond the limit.
        """
        limit, bits = self.encoding.limit, self.encoding.modulus_bits
        if integers.shape != (self.dimension,) or integers.dtype != np.dtype(np.int32):
            raise ValueError(
                f"Expected int32 integers of shape ({self.dimension},), got {integers.dtype} {integers.shape}."
            )
        if integers.max() > limit or integers.min() < -limit:
            raise ValueError(f"Expected integers from {-limit} to {limit}.")
        values = np.zeros(self.in_plaintext * self.count, dtype=np.uint32)
        values[: self.dimension] = integers + np.int32(limit)
        rows = values.reshape(self.in_plaintext, self.count)
        packed = np.zeros((self._words, self.count), dtype="<u4")
        for slot, row in enumerate(rows):
            word, shift = divmod(slot * bits, 32)
            packed[word] |= row << np.uint32(shift)
            if shift + bits > 32:
                packed[word + 1] |= row >> np.uint32(32 - shift)
        octets = np.ascontiguousarray(packed.T).view(np.uint8)
        return [mpz.from_bytes(row.tobytes(), "little") for row in octets]

    def unpack(self, plaintexts: Sequence[mpz], *, addends: int) -> NDArray[np.int32]:
        """The sum of so many vectors [dimension].

        Raises:
            ValueError: what so many vectors within the limit cannot add up to.
        """
        limit, bits = self.encoding.limit, self.encoding.modulus_bits
        if len(plaintexts) != self.count or not 1 <= addends <= self.encoding.max_addends:
            raise ValueError(
                f"Expected {self.count} plaintexts of 1 to {self.encoding.max_addends} addends, "
                f"got {len(plaintexts)} of {addends}."
            )
        if any(plaintext >> (self.in_plaintext * bits) for plaintext in plaintexts):
            raise ValueError("Expected sums that fit their slots.")
        octets = b"".join(plaintext.to_bytes(4 * self._words, "little") for plaintext in plaintexts)
        packed = np.frombuffer(octets, dtype="<u4").reshape(self.count, self._words)
        packed = np.ascontiguousarray(packed.T)
        rows = np.empty((self.in_plaintext, self.count), dtype=np.uint32)
        for slot, row in enumerate(rows):
            word, shift = divmod(slot * bits, 32)
            np.right_shift(packed[word], np.uint32(shift), out=row)
            if shift + bits > 32:
                np.bitwise_or(row, packed[word + 1] << np.uint32(32 - shift), out=row)
        if bits < 32:
            rows &= np.uint32((1 << bits) - 1)
        values = rows.reshape(-1)
        offset = addends * limit
        if values[self.dimension :].any() or values.max() > 2 * offset:
            raise ValueError("Expected sums that so many vectors within the limit can reach.")
        # Modulo 2**32, which two's complement undoes.
        return (values[: self.dimension] - np.uint32(offset)).view(np.int32)
