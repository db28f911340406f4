"""A vector of integers modulo 2**bits in parts, as `mask` and `plain` seal it, and their running sum."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.packing import ROWS, add_packed, pack, packed_bytes, unpack
from privacy.secagg.errors import MessageRefused

PART_COORDINATES = 120 * 1024
"""480 KiB at 32 bits."""


@dataclass(frozen=True, kw_only=True)
class IntegerParts:
    """How a vector is cut and packed."""

    dimension: int
    bits: int
    """Of every coordinate, 1 to 32: the modulus of the sum."""

    @property
    def count(self) -> int:
        """Parts of a vector; all but the last hold PART_COORDINATES."""
        return -(-self.dimension // PART_COORDINATES)

    def cut(self, vector: NDArray[np.uint32]) -> Iterator[bytes]:
        """The parts of a vector [dimension], of which the lowest `bits` bits count."""
        return (pack(vector[self._range(index)], self.bits) for index in range(self.count))

    def require(self, site: str, index: int, part: memoryview) -> None:
        """Raise MessageRefused unless the part is one that `cut` could have given; any bits of a whole part are."""
        if self._length(index) % ROWS:
            self.read(site, index, part)
            return
        expected = packed_bytes(self._length(index), self.bits)
        if len(part) != expected:
            raise MessageRefused(
                site=site,
                leg="seal",
                reason=f"part {index}: {len(part)} bytes, expected {expected}.",
            )

    def read(self, site: str, index: int, part: memoryview) -> NDArray[np.uint32]:
        """The coordinates of one part.

        Raises:
            MessageRefused: another length, or bits set behind the last coordinate.
        """
        try:
            return unpack(part, self.bits, self._length(index))
        except ValueError as error:
            raise MessageRefused(site=site, leg="seal", reason=f"part {index}: {error}.") from error

    def add(self, total: NDArray[np.uint32], site: str, index: int, part: memoryview) -> None:
        """Add one part to the running sum [dimension], of which the lowest `bits` bits count, in place."""
        block = total[self._range(index)]
        if len(block) % ROWS == 0:
            add_packed(block, part, self.bits)
        else:
            np.add(block, self.read(site, index, part), out=block)

    def _range(self, index: int) -> slice:
        return slice(index * PART_COORDINATES, (index + 1) * PART_COORDINATES)

    def _length(self, index: int) -> int:
        return min(PART_COORDINATES, self.dimension - index * PART_COORDINATES)
