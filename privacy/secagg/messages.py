"""Bytes of the messages: one strict form for what names sites, one for chunks of a sealed vector.

A site map is: count (2 bytes), then per site, in strictly rising order of names: length of the name (1), name,
length of the value (4), value. Numbers are big endian. There is one encoding of every map, so a hash of it is a hash
of its meaning; extra bytes, wrong lengths, names out of order or twice are refused.

A chunk is: index (4 bytes), number of chunks (4), then its coordinates as little-endian 32-bit words. Every chunk but
the last holds CHUNK_COORDINATES.
"""

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.errors import MessageRefused
from privacy.secagg.plan import MOST_SITES
from privacy.secagg.protocol import SITE_NAME

CHUNK_COORDINATES = 120 * 1024
"""480 KiB: with header and signature below 512 KiB, half of what one frame may hold."""
CHUNK_HEADER = struct.Struct(">II")
MAX_VALUE_BYTES = 32 * 1024
MAX_CONTROL_BYTES = 256 * 1024


def encode_sites(values: Mapping[str, bytes]) -> bytes:
    """A map from site names to bytes, in its only encoding."""
    parts = [struct.pack(">H", len(values))]
    for site in sorted(values):
        name = site.encode("ascii")
        parts += [
            struct.pack(">B", len(name)),
            name,
            struct.pack(">I", len(values[site])),
            values[site],
        ]
    return b"".join(parts)


def decode_sites(message: bytes | memoryview, *, leg: str, sender: str) -> dict[str, bytes]:
    """The map that was encoded, names in rising order.

    Raises:
        MessageRefused: naming `sender`, for anything that `encode_sites` would not have written.
    """
    if len(message) > MAX_CONTROL_BYTES:
        raise MessageRefused(
            site=sender,
            leg=leg,
            reason=f"{len(message)} bytes, at most {MAX_CONTROL_BYTES} are read.",
        )
    try:
        return _parse_sites(bytes(message))
    except (struct.error, ValueError) as error:
        raise MessageRefused(
            site=sender, leg=leg, reason=f"malformed message ({error})."
        ) from error


def _parse_sites(message: bytes) -> dict[str, bytes]:
    (count,) = struct.unpack_from(">H", message)
    if count > MOST_SITES:
        raise ValueError(f"{count} sites, at most {MOST_SITES}")
    values: dict[str, bytes] = {}
    position, last = 2, ""
    for _ in range(count):
        (length,) = struct.unpack_from(">B", message, position)
        site = message[position + 1 : position + 1 + length].decode("ascii")
        position += 1 + length
        if not SITE_NAME.fullmatch(site):
            raise ValueError("a name that is not a site's")
        if site <= last:
            raise ValueError("names are not in strictly rising order")
        (length,) = struct.unpack_from(">I", message, position)
        position += 4
        if length > MAX_VALUE_BYTES or position + length > len(message):
            raise ValueError("a value longer than the message or the bound")
        values[site] = message[position : position + length]
        position, last = position + length, site
    if position != len(message):
        raise ValueError(f"{len(message) - position} bytes after the end")
    return values


def chunk_count(dimension: int) -> int:
    """Chunks of a vector."""
    return -(-dimension // CHUNK_COORDINATES)


def encode_chunk(vector: NDArray[np.uint32], index: int) -> tuple[bytes, memoryview]:
    """Header and coordinates of chunk number `index` of a vector, the latter not copied."""
    part = vector[index * CHUNK_COORDINATES : (index + 1) * CHUNK_COORDINATES]
    header = CHUNK_HEADER.pack(index, chunk_count(len(vector)))
    return header, part.astype("<u4", copy=False).data.cast("B")


def decode_chunk(
    body: memoryview, *, expected: int, dimension: int, sender: str
) -> NDArray[np.uint32]:
    """The coordinates of the chunk that must come next, as a view of the message.

    Raises:
        MessageRefused: another chunk than the expected one, or of the wrong length.
    """
    if len(body) < CHUNK_HEADER.size:
        raise MessageRefused(site=sender, leg="seal", reason=f"chunk of {len(body)} bytes.")
    index, total = CHUNK_HEADER.unpack_from(body)
    if total != chunk_count(dimension):
        raise MessageRefused(
            site=sender,
            leg="seal",
            reason=f"chunk {index} of {total}; a vector of {dimension} has {chunk_count(dimension)}.",
        )
    if index != expected:
        what = "came before" if index < expected else "is out of order"
        raise MessageRefused(
            site=sender, leg="seal", reason=f"chunk {index} of {total} {what}, expected {expected}."
        )
    length = min(CHUNK_COORDINATES, dimension - index * CHUNK_COORDINATES)
    found = len(body) - CHUNK_HEADER.size
    if found != 4 * length:
        raise MessageRefused(
            site=sender,
            leg="seal",
            reason=f"chunk {index} of {total} holds {found} bytes, expected {4 * length}.",
        )
    return np.frombuffer(body, dtype="<u4", offset=CHUNK_HEADER.size)
