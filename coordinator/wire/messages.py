"""What the two ends of a link say to each other, as plain values; the codec turns them into protobuf.

Client to relay: Attach, then Send | Consumed | Ping | Leave. Relay to client: Attached, then Deliver |
Progress | Ping | Closed. Numbers count frames from 1 in each direction and go on over a reconnect.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from coordinator.wire.channel import SessionTicket

FRAME_OVERHEAD_BYTES: Final = 512
"""Charged to every frame besides its payload, so that a flood of empty frames is bounded too."""


def frame_cost(payload: bytes) -> int:
    """Bytes that a frame takes of a window."""
    return len(payload) + FRAME_OVERHEAD_BYTES


class ProtocolError(Exception):
    """The other end said what it may not say; the link to it is given up."""


@dataclass(frozen=True, kw_only=True)
class Attach:
    """The client joins, or comes back."""

    ticket: SessionTicket
    incarnation: bytes
    """16 random bytes, the same over all reconnects of one channel."""
    received: int
    """Highest number that this client has received from the relay."""


@dataclass(frozen=True, kw_only=True)
class Send:
    """A frame on its way to the relay."""

    number: int
    to: str
    kind: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Consumed:
    """The client's application has taken every frame up to this number."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Ping:
    """A sign of life, both ways."""


@dataclass(frozen=True, kw_only=True)
class Leave:
    """The client has sent its last frame and goes for good."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """The relay accepts the client and says where both stand."""

    received: int
    """Highest number that the relay has received from this client."""
    endpoints: tuple[str, ...]
    """All endpoints of the session."""
    credits: Mapping[str, int]
    """Receiver -> cost of all frames to it that it has consumed, since the first."""
    pair_window_bytes: int
    """Cost of the frames that one endpoint may have under way to one other."""
    endpoint_window_bytes: int
    """Cost of the frames that one endpoint may have under way in all."""
    silence_seconds: float


@dataclass(frozen=True, kw_only=True)
class Deliver:
    """A frame on its way to its receiver."""

    number: int
    sender: str
    kind: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What became of the frames that this client sent."""

    received: int
    credits: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Closed:
    """The session is over for this client."""

    reason: str


ToRelay = Send | Consumed | Ping | Leave
FromRelay = Attached | Deliver | Progress | Ping | Closed
