"""Mask streams: AES-128-CTR key streams added to or taken from a vector modulo 2**32.

The words of a stream are its bytes in groups of four, little endian, from counter 0. Every key is used for one stream
only, so the fixed counter is safe. All streams pass over one block of the vector before the next block is touched, so
the vector is read and written once, however many streams there are.
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 16
# 256 KiB: block, stream buffer and zeros stay in the second-level cache; smaller blocks pay per call.
BLOCK_COORDINATES = 1 << 16
ZEROS = memoryview(bytes(4 * BLOCK_COORDINATES))


def apply_streams(
    vector: NDArray[np.uint32], *, plus: Sequence[bytes], minus: Sequence[bytes]
) -> None:
    """Add the streams of the keys in `plus` to the vector, in place, and take away those in `minus`."""
    streams = [(_stream(key), np.add) for key in plus] + [
        (_stream(key), np.subtract) for key in minus
    ]
    # The cipher demands room for one more block than it writes.
    buffer = bytearray(4 * BLOCK_COORDINATES + 16)
    words = np.frombuffer(buffer, dtype="<u4")
    for start in range(0, len(vector), BLOCK_COORDINATES):
        block = vector[start : start + BLOCK_COORDINATES]
        zeros = ZEROS[: 4 * len(block)]
        for encryptor, combine in streams:
            encryptor.update_into(zeros, buffer)
            combine(block, words[: len(block)], out=block)


def _stream(key: bytes) -> CipherContext:
    if len(key) != KEY_BYTES:
        raise ValueError(f"Expected a mask key of {KEY_BYTES} bytes, got {len(key)}.")
    return Cipher(algorithms.AES128(key), modes.CTR(bytes(16))).encryptor()
