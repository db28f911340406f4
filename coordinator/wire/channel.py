"""What crosses the data plane, and what an endpoint may do with it: the contract of every `Channel`.

A session joins named endpoints (sites and the coordinator) for one attempt at one round. An endpoint opens
its channel with a ticket, sends frames to other endpoints by name, and receives what was sent to it.

Rules, the same over gRPC and in memory:
1. Frames from one endpoint to another arrive once, complete and in order, also across a cut of the link.
2. `send` returns when the frame has a place in the window towards its receiver; it waits while that is full.
3. Frames to an endpoint that has left or was declared lost are dropped without a word: the coordinator
   is told by a frame of kind "lost" from "exchange", whose payload is the endpoint's name.
4. An endpoint is lost once it has been silent for `silence_seconds` (from the opening of the session if it
   never came), or at once when it closes its channel. That is final: it can not come back to the session.
5. When the coordinator is lost or closes its channel, the session ends. A session also ends by
   `close_session` and by its deadline. Frames accepted before are still delivered to connected endpoints,
   then every call raises `ChannelClosed`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

COORDINATOR: Final = "coordinator"
EXCHANGE: Final = "exchange"
LOST: Final = "lost"
MAX_PAYLOAD_BYTES: Final = 1 << 20
MAX_REASON_CHARACTERS: Final = 500
MAX_ENDPOINTS: Final = 256
MAX_MODELS: Final = 16
MAX_SILENCE_SECONDS: Final = 3600.0
MAX_DEADLINE_SECONDS: Final = 7 * 86400.0

_ENDPOINT = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ChannelError(Exception):
    """A channel cannot do what was asked.

    ChannelError
     ├ ChannelClosed     the session is over for this endpoint; final
     ├ ChannelTimeout    no frame arrived in time; the channel is still good
     ├ FrameTooLarge     the payload is above MAX_PAYLOAD_BYTES; nothing was sent
     ├ UnknownEndpoint   no such endpoint in this session; nothing was sent
     └ TransferError     a model file could not be fetched or is not what was asked for
    """


class ChannelClosed(ChannelError):  # noqa: N818  (the name says the state)
    """The session is over for this endpoint."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ChannelTimeout(ChannelError):  # noqa: N818  (the name says the state)
    """No frame arrived in time."""


class FrameTooLarge(ChannelError):  # noqa: N818  (the name says the state)
    """The payload is above the limit of a frame."""


class UnknownEndpoint(ChannelError):  # noqa: N818  (the name says the state)
    """The session has no other endpoint of this name."""


class TransferError(ChannelError):
    """A model file could not be fetched whole and unaltered."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One message from one endpoint to another."""

    sender: str
    kind: str
    """What the payload is, at most 32 characters, for example "hello" or "seal"."""
    payload: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of one party: the authority it trusts, its own certificate and its key."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class LinkTiming:
    """When a link over the network counts as broken; both ends should use the same values."""

    heartbeat_seconds: float = 2.0
    """How often a quiet link shows a sign of life."""
    break_seconds: float = 8.0
    """Silence that ends a connection; with a heartbeat of 2 s, three were lost."""
    connect_seconds: float = 30.0
    """How long the first connection of a channel may take."""


@dataclass(frozen=True, kw_only=True)
class SessionTicket:
    """The right of one endpoint to join one session."""

    session_id: str
    endpoint: str
    ticket: bytes = field(repr=False)
    """16 to 64 random bytes."""

    def __post_init__(self) -> None:
        require_session_id(self.session_id)
        require_endpoint_name(self.endpoint)
        if not 16 <= len(self.ticket) <= 64:
            raise ValueError(f"Expected a ticket of 16 to 64 bytes, got {len(self.ticket)}.")


@dataclass(frozen=True, kw_only=True)
class SessionSpec:
    """A session as the coordinator opens it. The relay never learns a ticket before it is shown."""

    session_id: str
    tickets: Mapping[str, bytes]
    """Endpoint -> SHA-256 of its ticket."""
    models: tuple[str, ...] = ()
    """SHA-256, in hex, of the model files that the endpoints may fetch."""
    silence_seconds: float
    """How long an endpoint may be absent before it is lost."""
    deadline_seconds: float
    """Life of the session, counted from its opening."""

    def __post_init__(self) -> None:
        require_session_id(self.session_id)
        if not 1 <= len(self.tickets) <= MAX_ENDPOINTS:
            raise ValueError(f"Expected 1 to {MAX_ENDPOINTS} endpoints, got {len(self.tickets)}.")
        for endpoint, digest in self.tickets.items():
            require_endpoint_name(endpoint)
            if len(digest) != 32:
                raise ValueError(f"Expected 32 bytes of SHA-256 for {endpoint!r}.")
        if len(self.models) > MAX_MODELS:
            raise ValueError(f"Expected at most {MAX_MODELS} models, got {len(self.models)}.")
        for model in self.models:
            require_sha256(model)
        if not 0 < self.silence_seconds <= MAX_SILENCE_SECONDS:
            raise ValueError(
                f"Expected 0 < silence_seconds={self.silence_seconds} <= {MAX_SILENCE_SECONDS}."
            )
        if not 0 < self.deadline_seconds <= MAX_DEADLINE_SECONDS:
            raise ValueError(
                f"Expected 0 < deadline_seconds={self.deadline_seconds} <= {MAX_DEADLINE_SECONDS}."
            )


class Channel(Protocol):
    """An endpoint's end of a session. One thread may send while another receives."""

    @property
    def bytes_sent(self) -> int:
        """Payload bytes of the frames sent: no protocol overhead, heartbeat or repetition."""

    @property
    def bytes_received(self) -> int:
        """Payload bytes of the frames received and of the model files fetched."""

    def send(self, *, to: str, kind: str, payload: bytes) -> None:
        """Hand over one frame, in order; waits while the window towards `to` is full.

        Raises:
            FrameTooLarge: payload above MAX_PAYLOAD_BYTES.
            UnknownEndpoint: no other endpoint of that name in the session.
            ChannelClosed: the session is over.
        """

    def receive(self, *, timeout_seconds: float) -> Frame:
        """The next frame for this endpoint.

        Raises:
            ChannelTimeout: none came in time.
            ChannelClosed: the session is over and every frame has been received.
        """

    def fetch_model(self, *, sha256: str, size: int, into: Path) -> Path:
        """The model file with this hash, as `into/<sha256>.safetensors`; resumes what an earlier call began.

        Raises:
            TransferError: the file is not to be had or is not the one asked for.
            ChannelClosed: the session is over.
        """

    def close(self) -> None:
        """Leave the session after all frames sent have reached the relay."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class SessionAdmin(Protocol):
    """Opens and closes sessions; over the network only for the certificate of the coordinator's role."""

    def open_session(self, spec: SessionSpec) -> None:
        """Open a session; opening the same one again changes nothing.

        Raises:
            ChannelError: the exchange refused it or cannot be reached.
        """

    def close_session(self, session_id: str, *, reason: str) -> None:
        """End a session; every endpoint gets `ChannelClosed(reason)`. An unknown session is no error."""

    def close(self) -> None:
        """Release the connection."""


def require_endpoint_name(name: str) -> None:
    """Refuse what cannot name an endpoint; "exchange" is the relay's own name."""
    if not _ENDPOINT.fullmatch(name) or name == EXCHANGE:
        raise ValueError(f"Expected the name of an endpoint ({_ENDPOINT.pattern}), got {name!r}.")


def require_session_id(session_id: str) -> None:
    """Refuse what cannot name a session."""
    if not _SESSION_ID.fullmatch(session_id):
        raise ValueError(f"Expected a session id ({_SESSION_ID.pattern}), got {session_id!r}.")


def require_kind(kind: str) -> None:
    """Refuse what cannot be a frame's kind."""
    if not _KIND.fullmatch(kind):
        raise ValueError(f"Expected a frame kind ({_KIND.pattern}), got {kind!r}.")


def require_sha256(digest: str) -> None:
    """Refuse what is not a SHA-256 in hex. Such a string is safe as a file name."""
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"Expected 64 lower-case hex digits, got {digest!r}.")
