"""Microsoft SEAL through TenSEAL: contexts, and polynomials in and out as numpy arrays.

SEAL's Python objects give their numbers one at a time or as files. The files here live in memory (`memfd_create`): key
material never touches a disk. A file is a header of 16 bytes and a body, compressed with Zstandard where SEAL wrote it.
"""

import os
import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

HEADER = struct.Struct("<HBBBBHQ")
"""Magic number, size of the header, version, compression, reserved, size of the file."""
UNCOMPRESSED = 0


class _Storable(Protocol):
    """What SEAL can write and read."""

    def save(self, path: str) -> None: ...

    def load(self, context: object, path: str) -> None: ...


class Layout:
    """How SEAL writes one kind of object: what stands before its numbers, learnt from an example."""

    def __init__(self, example: _Storable, *, words: int) -> None:
        written = _written(example)
        magic, header_bytes, major, minor, _, _, _ = HEADER.unpack_from(written)
        self._version = (magic, header_bytes, major, minor)
        self._before = _body(written)[: -8 * words]
        self._words = words

    def read(self, stored: _Storable) -> NDArray[np.uint64]:
        """The numbers of an object, the last ones of its body."""
        return np.frombuffer(_body(_written(stored))[-8 * self._words :], dtype="<u8")

    def fill(self, empty: _Storable, context: object, numbers: NDArray[np.uint64]) -> None:
        """Give an empty object these numbers."""
        body = self._before + np.ascontiguousarray(numbers, dtype="<u8").tobytes()
        header = HEADER.pack(*self._version, UNCOMPRESSED, 0, HEADER.size + len(body))
        descriptor = os.memfd_create("polynomial")
        try:
            os.write(descriptor, header + body)
            empty.load(context, _path(descriptor))
        finally:
            os.close(descriptor)


def primes(degree: int, bits: Sequence[int]) -> list["seal.Modulus"]:
    """Distinct primes of so many bits, = 1 modulo 2 * degree."""
    return list(seal.CoeffModulus.Create(degree, list(bits)))


def context(
    scheme: "seal.SCHEME_TYPE", degree: int, moduli: Sequence["seal.Modulus"], plain_bits: int = 0
) -> "seal.SEALContext":
    """A context with SEAL's own check that it has 128 bits of security.

    Args:
        scheme: CKKS or BFV.
        degree: of the ring.
        moduli: the last one is SEAL's key-switching prime.
        plain_bits: BFV: the plaintext modulus is 2**plain_bits.

    Raises:
        ValueError: SEAL refuses the parameters.
    """
    parameters = seal.EncryptionParameters(scheme)
    parameters.set_poly_modulus_degree(degree)
    parameters.set_coeff_modulus(list(moduli))
    if plain_bits:
        parameters.set_plain_modulus(seal.Modulus(1 << plain_bits))
    made = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    if not made.parameters_set():
        raise ValueError(
            f"SEAL refuses a ring of degree={degree}: {made.parameters_error_message()}."
        )
    return made


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _written(stored: _Storable) -> bytes:
    descriptor = os.memfd_create("polynomial")
    try:
        stored.save(_path(descriptor))
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _body(written: bytes) -> bytes:
    body = written[HEADER.size :]
    if HEADER.unpack_from(written)[4] == UNCOMPRESSED:
        return body
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)
