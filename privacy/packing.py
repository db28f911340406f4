"""Words of a few bits, side by side, and back.

The layout is made for whole vectors at a time: coordinates stand in 32 rows of equal length, the last ones zero, and row
number i takes the bits from i * bits on of `bits` rows of 32-bit words, little endian, lowest bits first. Rows are packed
and unpacked as a whole, so all memory is read and written in order.
"""

import numpy as np
from numpy.typing import NDArray

ROWS = 32
# As arrays: numpy turns a scalar into one at every call, which takes a third of the time of a shift.
_SHIFTS = [np.array(bits, dtype=np.uint32) for bits in range(33)]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` words of `bits` bits take: count rounded up to a multiple of 32, times bits / 8."""
    return 4 * bits * -(-count // ROWS)


def pack(words: NDArray[np.uint32], bits: int) -> bytes:
    """The lowest `bits` bits of every word, 1 to 32."""
    _require_bits(bits)
    length = -(-len(words) // ROWS)
    rows = np.zeros((ROWS, length), dtype=np.uint32)
    rows.reshape(-1)[: len(words)] = words
    if bits < 32:
        rows &= np.uint32((1 << bits) - 1)
    packed = np.zeros((bits, length), dtype="<u4")
    for row in range(ROWS):
        target, shift = divmod(row * bits, 32)
        packed[target] |= rows[row] << _SHIFTS[shift]
        if shift + bits > 32:
            packed[target + 1] |= rows[row] >> _SHIFTS[32 - shift]
    return packed.tobytes()


def unpack(
    packed: bytes | memoryview,
    bits: int,
    count: int,
) -> NDArray[np.uint32]:
    """The words that `pack` was given, modulo 2**bits.

    Raises:
        ValueError: of another length than `count` words take, or with other than zeros behind the last word.
    """
    _require_bits(bits)
    if len(packed) != packed_bytes(count, bits):
        raise ValueError(
            f"{len(packed)} bytes, expected {packed_bytes(count, bits)} for {count} words of {bits} bits"
        )
    length = -(-count // ROWS)
    source = np.frombuffer(packed, dtype="<u4").reshape(bits, length)
    rows = np.empty((ROWS, length), dtype=np.uint32)
    for row in range(ROWS):
        origin, shift = divmod(row * bits, 32)
        np.right_shift(source[origin], _SHIFTS[shift], out=rows[row])
        if shift + bits > 32:
            rows[row] |= source[origin + 1] << _SHIFTS[32 - shift]
    if bits < 32:
        rows &= np.uint32((1 << bits) - 1)
    words = rows.reshape(-1)
    if words[count:].any():
        raise ValueError("bits are set behind the last word")
    return words[:count]


def add_packed(total: NDArray[np.uint32], packed: bytes | memoryview, bits: int) -> None:
    """Add packed words to a running sum modulo 2**bits, in place, without unpacking them first.

    Only the lowest `bits` bits of the sum mean anything: the others are not cleared.

    Args:
        total: whole words, their number a multiple of 32.
        packed: as many words of `bits` bits.
        bits: 1 to 32.

    Raises:
        ValueError: another length.
    """
    _require_bits(bits)
    if len(total) % ROWS or len(packed) != packed_bytes(len(total), bits):
        raise ValueError(f"{len(packed)} bytes for {len(total)} words of {bits} bits")
    rows = total.reshape(ROWS, -1)
    source = np.frombuffer(packed, dtype="<u4").reshape(bits, -1)
    piece = np.empty_like(rows[0])
    for row, sums in enumerate(rows):
        origin, shift = divmod(row * bits, 32)
        np.right_shift(source[origin], _SHIFTS[shift], out=piece)
        np.add(sums, piece, out=sums)
        if shift + bits > 32:
            np.left_shift(source[origin + 1], _SHIFTS[32 - shift], out=piece)
            np.add(sums, piece, out=sums)


def _require_bits(bits: int) -> None:
    if not 1 <= bits <= 32:
        raise ValueError(f"Expected 1 <= bits={bits} <= 32.")
