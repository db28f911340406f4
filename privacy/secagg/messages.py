"""Bytes of the messages: one strict form for what names sites, one for what is too large for one frame.

A site map is: count (2 bytes), then per site, in strictly rising order of names: length of the name (1), name,
length of the value (4), value. Numbers are big endian. There is one encoding of every map, so a hash of it is a hash
of its meaning; extra bytes, wrong lengths, names out of order or twice are refused.

A message travels in frames: index (4 bytes), number of frames (4), then a part of at most PART_BYTES.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from privacy.secagg.errors import MessageRefused
from privacy.secagg.plan import MOST_MASKED_SITES
from privacy.secagg.protocol import SITE_NAME

PART_BYTES = 480 * 1024
"""With header and signature below 512 KiB, half of what one frame of the exchange may hold."""
FRAME_HEADER = struct.Struct(">II")
MAX_VALUE_BYTES = 256 * 1024
MAX_MAP_BYTES = 64 << 20


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
    try:
        return _parse_sites(bytes(message))
    except (struct.error, ValueError) as error:
        raise MessageRefused(
            site=sender, leg=leg, reason=f"malformed message ({error})."
        ) from error


def _parse_sites(message: bytes) -> dict[str, bytes]:
    (count,) = struct.unpack_from(">H", message)
    if count > MOST_MASKED_SITES:
        raise ValueError(f"{count} sites, at most {MOST_MASKED_SITES}")
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


def split(message: bytes) -> list[bytes]:
    """The parts of a message, at least one, at most PART_BYTES each."""
    return [
        message[start : start + PART_BYTES] for start in range(0, max(1, len(message)), PART_BYTES)
    ]


def frames_of(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Every part with its header."""
    return (FRAME_HEADER.pack(index, len(parts)) + part for index, part in enumerate(parts))


def parse_frame(
    frame: bytes | memoryview, *, expected: int, leg: str, sender: str
) -> tuple[int, memoryview]:
    """Number of frames, and the part, of the frame that must come next.

    Raises:
        MessageRefused: another frame than the expected one, or longer than a frame may be.
    """
    if not FRAME_HEADER.size <= len(frame) <= FRAME_HEADER.size + PART_BYTES:
        raise MessageRefused(site=sender, leg=leg, reason=f"frame of {len(frame)} bytes.")
    index, total = FRAME_HEADER.unpack_from(frame)
    if index != expected:
        what = "came before" if index < expected else "is out of order"
        raise MessageRefused(
            site=sender, leg=leg, reason=f"frame {index} of {total} {what}, expected {expected}."
        )
    is_empty = len(frame) == FRAME_HEADER.size
    if index >= total or (is_empty and total > 1):
        raise MessageRefused(
            site=sender, leg=leg, reason=f"frame {index} of {total}, {len(frame)} bytes."
        )
    return total, memoryview(frame)[FRAME_HEADER.size :]


def read_frames(frames: Iterable[bytes], *, leg: str, sender: str) -> Iterator[memoryview]:
    """The parts of one message, one by one, as its frames arrive; no frame behind the last is taken.

    Raises:
        MessageRefused: frames out of order, of another message, or missing.
    """
    arriving = iter(frames)
    expected, total = 0, 1
    while expected < total:
        frame = next(arriving, None)
        if frame is None:
            raise MessageRefused(
                site=sender, leg=leg, reason=f"{expected} of {total} frames, then no more."
            )
        announced, part = parse_frame(frame, expected=expected, leg=leg, sender=sender)
        if expected and announced != total:
            raise MessageRefused(
                site=sender, leg=leg, reason=f"frame {expected} of {announced}, not {total}."
            )
        total = announced
        expected += 1
        yield part


def read_map(frames: Iterable[bytes], *, leg: str, sender: str) -> dict[str, bytes]:
    """The site map that a whole message holds.

    Raises:
        MessageRefused: larger than MAX_MAP_BYTES, or malformed.
    """
    message = bytearray()
    for part in read_frames(frames, leg=leg, sender=sender):
        message += part
        if len(message) > MAX_MAP_BYTES:
            raise MessageRefused(
                site=sender, leg=leg, reason=f"more than {MAX_MAP_BYTES} bytes of a site map."
            )
    return decode_sites(bytes(message), leg=leg, sender=sender)
