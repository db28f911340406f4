"""Real numbers as integers of a few bits, so that many of them can be added exactly.

1. A value is clipped to [-value_range, value_range] and multiplied by `scale`, a power of two.
2. It is rounded up with the probability of its fraction, else down (stochastic rounding): the expected integer is the
   value itself, so the errors of many sites and rounds cancel. A whole number stays what it is.
3. Sums are taken modulo 2**`modulus_bits`, in two's complement. `max_addends` integers of at most `limit` never wrap.

Multiplying and dividing by `scale` is exact in floating point, so rounding is the only loss and decoding adds none.
Not here: noise. Rounding happens after the noise and is post-processing of it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.randomness import Random

MODULUS_BITS = 32
"""Most bits of a sum."""
# Conversion works on blocks that stay in the second-level cache.
BLOCK_COORDINATES = 1 << 15


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How real values become integers that `max_addends` parties can add without overflow."""

    value_range: float
    """Largest absolute value of a coordinate; larger ones are clipped."""
    max_addends: int
    """Most vectors that are ever added up."""
    value_bits: int
    """Bits of one party's integer, its sign included."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value_range) and 1e-12 <= self.value_range <= 1e12):
            raise ValueError(f"Expected 1e-12 <= value_range={self.value_range} <= 1e12.")
        if not 1 <= self.max_addends <= 1 << 16:
            raise ValueError(f"Expected 1 <= max_addends={self.max_addends} <= 65536.")
        if self.value_bits < 2:
            raise ValueError(f"Expected value_bits={self.value_bits} >= 2.")
        if self.modulus_bits > MODULUS_BITS:
            raise ValueError(
                f"Expected value_bits={self.value_bits} of at most {MODULUS_BITS - self._carry_bits}: the sum of "
                f"{self.max_addends} sites would wrap around at {MODULUS_BITS} bits. Ask for fewer bits or fewer sites."
            )

    @property
    def _carry_bits(self) -> int:
        """Bits that adding `max_addends` integers can add."""
        return (self.max_addends - 1).bit_length()

    @property
    def modulus_bits(self) -> int:
        """Bits of a sum: ceil(log2(max_addends)) more than of an addend."""
        return self.value_bits + self._carry_bits

    @property
    def scale(self) -> float:
        """Integer steps per unit: the largest power of two that keeps values in `value_bits`."""
        fraction, exponent = math.frexp(self.value_range)
        if fraction == 0.5:
            exponent -= 1
        return math.ldexp(1.0, self.value_bits - 1 - exponent)

    @property
    def limit(self) -> int:
        """Largest absolute integer of one encoded coordinate; the end of the range loses one step where it is a power of two."""
        return min(math.ceil(self.value_range * self.scale), (1 << (self.value_bits - 1)) - 1)

    def encode(self, values: NDArray[np.floating], random: Random) -> NDArray[np.int32]:
        """Clipped, scaled and rounded copy of a flat float32 or float64 vector, |integer| <= `limit`.

        Args:
            values: [dimension].
            random: decides which way a fraction is rounded; 32 bits of it a coordinate.

        Raises:
            ValueError: not a flat vector of these types, or a coordinate is NaN or infinite.
        """
        if values.ndim != 1 or values.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(
                f"Expected a flat float32 or float64 vector, got shape {values.shape} of {values.dtype}."
            )
        integers = np.empty(len(values), dtype=np.int32)
        largest = min(self.value_range, self.limit / self.scale)
        buffers = np.empty((2, min(len(values), BLOCK_COORDINATES)), dtype=np.float64)
        for start in range(0, len(values), BLOCK_COORDINATES):
            part = values[start : start + BLOCK_COORDINATES]
            work, floor = buffers[:, : len(part)]
            _require_finite(part, start)
            # In float64: a float32 bound could lie above value_range. Before scaling, which could overflow.
            np.clip(part, -largest, largest, out=work, dtype=np.float64)
            work *= self.scale
            np.floor(work, out=floor)
            work -= floor
            work *= 2.0**32
            coins = random.words(-(-len(part) // 2)).view(np.uint32)[: len(part)]
            floor += coins < work
            integers[start : start + len(part)] = floor
        return integers

    def decode(self, integers: NDArray[np.int32]) -> NDArray[np.float64]:
        """The real values of signed integers, exactly."""
        if integers.dtype != np.dtype(np.int32):
            raise ValueError(f"Expected int32 integers, got {integers.dtype}.")
        return np.multiply(integers, 1.0 / self.scale, dtype=np.float64)

    def signed(self, words: NDArray[np.uint32]) -> NDArray[np.int32]:
        """The signed sums behind words of which the lowest `modulus_bits` count; the same memory, overwritten."""
        unused = np.uint32(MODULUS_BITS - self.modulus_bits)
        np.left_shift(words, unused, out=words)
        integers = words.view(np.int32)
        np.right_shift(integers, np.int32(unused), out=integers)
        return integers


def _require_finite(part: NDArray[np.floating], start: int) -> None:
    is_finite = np.isfinite(part)
    if not is_finite.all():
        position = start + int(np.argmin(is_finite))
        raise ValueError(f"Expected finite values, coordinate {position} is NaN or infinite.")
