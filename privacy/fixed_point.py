"""Real numbers as integers modulo 2**32, so that many of them can be added exactly.

1. A value is clipped to [-value_range, value_range] and multiplied by `scale`.
2. It is rounded to the nearest integer, halves to even. The rule is deterministic: no randomness, no state.
3. The integer is stored in two's complement, so that sums modulo 2**32 are sums of signed integers as long as
   they fit 32 bits. `scale` leaves room for `max_addends` of them: a sum of so many never wraps.

`scale` is a power of two. Multiplying and dividing by it is exact in floating point, so rounding is the only loss
and decoding adds none. Not here: noise. Rounding happens after the noise and is post-processing of it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_SUM = 2**31 - 1
# Conversion works on blocks that stay in the second-level cache.
BLOCK_COORDINATES = 1 << 15


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How real values become integers that `max_addends` parties can add without overflow."""

    value_range: float
    """Largest absolute value of a coordinate; larger ones are clipped."""
    max_addends: int
    """Most vectors that are ever added up."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value_range) and 1e-12 <= self.value_range <= 1e12):
            raise ValueError(f"Expected 1e-12 <= value_range={self.value_range} <= 1e12.")
        if not 1 <= self.max_addends <= 1 << 16:
            raise ValueError(f"Expected 1 <= max_addends={self.max_addends} <= 65536.")

    @property
    def scale(self) -> float:
        """Integer steps per unit: the largest power of two that leaves room for all addends."""
        _, exponent = math.frexp((LARGEST_SUM // self.max_addends) / self.value_range)
        return math.ldexp(1.0, exponent - 1)

    @property
    def limit(self) -> int:
        """Largest absolute integer of one encoded coordinate; `max_addends * limit` fits 32 bits."""
        return min(round(self.value_range * self.scale), LARGEST_SUM // self.max_addends)

    def encode(self, values: NDArray[np.floating]) -> NDArray[np.uint32]:
        """Clipped, scaled and rounded copy of a flat float32 or float64 vector.

        Raises:
            ValueError: not a flat vector of these types, or a coordinate is NaN or infinite.
        """
        if values.ndim != 1 or values.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(
                f"Expected a flat float32 or float64 vector, got shape {values.shape} of {values.dtype}."
            )
        integers = np.empty(len(values), dtype=np.int32)
        block = np.empty(min(len(values), BLOCK_COORDINATES), dtype=np.float64)
        scale = self.scale
        for start in range(0, len(values), BLOCK_COORDINATES):
            part = values[start : start + BLOCK_COORDINATES]
            work = block[: len(part)]
            # In float64 before clipping: a float32 bound could lie above value_range.
            work[:] = part
            is_finite = np.isfinite(work)
            if not is_finite.all():
                position = start + int(np.argmin(is_finite))
                raise ValueError(
                    f"Expected finite values, coordinate {position} is NaN or infinite."
                )
            np.clip(work, -self.value_range, self.value_range, out=work)
            np.multiply(work, scale, out=work)
            np.rint(work, out=work)
            integers[start : start + len(part)] = work
        return integers.view(np.uint32)

    def decode(self, integers: NDArray[np.int32]) -> NDArray[np.float64]:
        """The real values of signed integers, exactly."""
        if integers.dtype != np.dtype(np.int32):
            raise ValueError(f"Expected int32 integers, got {integers.dtype}.")
        return np.multiply(integers, 1.0 / self.scale, dtype=np.float64)
