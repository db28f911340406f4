"""The ring keys of `ckks` that serve many sums: what a site keeps of one key epoch.

An epoch is the dealing of one sum: its digest binds that sum's roster and who shared. Every member holds its own key and a
share of every member's. Stored: a line of JSON, then own key and shares, packed, in the order of the names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from privacy.ckks.parameters import MOST_OPENINGS, STANDARD
from privacy.ckks.ring import Residues, ring_of
from privacy.ckks.sharing import MOST_POINT
from privacy.secagg.envelopes import bind
from privacy.secagg.messages import encode_sites
from privacy.secagg.protocol import SITE_NAME
from privacy.secagg.schemes import Roster

RING = ring_of(STANDARD)
FORMAT = "concord-key-epoch/1"
DIGEST_BYTES = 32
MAX_HEADER_BYTES = 16 * 1024
KEY_BYTES = RING.packed_bytes(STANDARD.degree)


@dataclass(frozen=True, kw_only=True)
class KeyEpoch:
    """One site's keys of one epoch. All of it but digest, counter and names is secret."""

    digest: bytes
    """Which epoch; the same at every member."""
    opened: int
    """How often this site has helped to open a sum, or knows that another member has."""
    threshold: int
    points: Mapping[str, int]
    """Where the members' shares lie on the polynomials."""
    key: Residues = field(repr=False)
    """This site's own, in transformed form."""
    shares: Mapping[str, Residues] = field(repr=False)
    """Of every member's key, this site's share."""

    def once_more(self) -> "KeyEpoch":
        """The same, with one more opening counted."""
        return replace(self, opened=self.opened + 1)

    def counted_from(self, opened: int) -> "KeyEpoch":
        """The same, with at least so many openings counted."""
        return replace(self, opened=max(self.opened, opened))

    def to_bytes(self) -> bytes:
        """For a key store."""
        header = {
            "format": FORMAT,
            "digest": self.digest.hex(),
            "opened": self.opened,
            "threshold": self.threshold,
            "points": dict(self.points),
        }
        packed = [RING.pack(self.shares[site]) for site in sorted(self.points)]
        return json.dumps(header).encode() + b"\n" + RING.pack(self.key) + b"".join(packed)


def epoch_digest(roster: Roster, shared: tuple[str, ...]) -> bytes:
    """Name of the epoch that the dealing of a sum begins."""
    return bind("key-epoch", roster.scope, encode_sites(dict.fromkeys(shared, b"")))


def read_epoch(stored: bytes | None, *, member: str) -> KeyEpoch | None:
    """The epoch that the key store of `member` holds; None if nothing of this format, so that new keys are dealt."""
    if stored is None:
        return None
    line, _, body = stored.partition(b"\n")
    try:
        header = json.loads(line[:MAX_HEADER_BYTES])
        points = {str(site): int(point) for site, point in header["points"].items()}
        opened, threshold = int(header["opened"]), int(header["threshold"])
        digest = bytes.fromhex(header["digest"])
        if header["format"] != FORMAT or member not in points or len(digest) != DIGEST_BYTES:
            return None
        if not (0 <= opened <= MOST_OPENINGS and 1 <= threshold <= len(points)):
            return None
        if not _are_points(points) or len(body) != KEY_BYTES * (1 + len(points)):
            return None
        polynomials = [
            RING.unpack(body[start : start + KEY_BYTES], STANDARD.degree)
            for start in range(0, len(body), KEY_BYTES)
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return KeyEpoch(
        digest=digest,
        opened=opened,
        threshold=threshold,
        points=points,
        key=polynomials[0],
        shares=dict(zip(sorted(points), polynomials[1:], strict=True)),
    )


def _are_points(points: Mapping[str, int]) -> bool:
    """Whether every name is a site's and its point its own, from 1 to 64."""
    is_named = all(map(SITE_NAME.fullmatch, points))
    is_placed = all(1 <= point <= MOST_POINT for point in points.values())
    return is_named and is_placed and len(set(points.values())) == len(points)
