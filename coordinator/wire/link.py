"""The client's half of the data plane: a `Channel` over any `Transport`.

1. `send` numbers a frame, charges it to the window towards its receiver and keeps it until the relay has it.
2. The transport carries messages both ways. When it breaks it attaches again: the relay says up to which number
   it has received, and everything after that goes out again. What arrives twice is recognised by its number.
3. `receive` hands over frames in order and tells the relay that they were consumed, which gives the sender
   its window back.

Two transports exist: `grpc_channel` (a background thread) and `memory_channel` (no thread: `pump` moves the
messages whenever a caller sends or waits).
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from coordinator.wire.channel import (
    MAX_PAYLOAD_BYTES,
    ChannelClosed,
    ChannelTimeout,
    Frame,
    FrameTooLarge,
    SessionTicket,
    UnknownEndpoint,
    require_kind,
)
from coordinator.wire.messages import (
    Attach,
    Attached,
    Closed,
    Consumed,
    Deliver,
    FromRelay,
    Leave,
    Ping,
    Progress,
    ProtocolError,
    Send,
    ToRelay,
    frame_cost,
)
from coordinator.wire.transfer import Chunk, fetch_model

MAX_INBOX_BYTES = 64 << 20
"""A relay that delivers more than this before it is consumed breaks the protocol."""


class Transport(Protocol):
    """Carries messages between a `Link` and the relay."""

    lock: threading.RLock
    """Guards the link; the in-memory relay shares one lock among all its links."""

    last_break: str
    """Why the last connection ended."""

    def start(self, link: "Link") -> None:
        """Begin to attach."""

    def pump(self) -> float | None:
        """Move what can be moved now; seconds until the relay has something to do, None if it has a thread."""

    def chunks(self, sha256: str, offset: int) -> Iterator[Chunk]:
        """The chunks of a model file from `offset` on. Raises LinkBrokenError when the link is cut."""

    def stop(self) -> None:
        """End the transport for good."""


class Link:
    """One endpoint's channel to its session. Implements `Channel`."""

    def __init__(self, ticket: SessionTicket, transport: Transport) -> None:
        self.ticket = ticket
        self._transport = transport
        self.lock = transport.lock
        self._readable = threading.Condition(self.lock)
        self._writable = threading.Condition(self.lock)
        self._outgoing = threading.Condition(self.lock)
        self._incarnation = secrets.token_bytes(16)
        self._is_attached = False
        self._is_leaving = False
        self._has_left = False
        self._closed: str | None = None
        self._welcome: Attached | None = None
        # What goes out: frames to transmit, and those transmitted that the relay may not have.
        self._unsent: deque[Send] = deque()
        self._unconfirmed: deque[Send] = deque()
        self._numbered = 0
        self._charged: dict[str, int] = {}
        self._credited: dict[str, int] = {}
        # What came in.
        self._inbox: deque[Deliver] = deque()
        self._inbox_bytes = 0
        self._received = 0
        self._consumed = 0
        self._consumed_told = 0
        self._bytes_sent = 0
        self._bytes_received = 0

    # The application's side.

    @property
    def bytes_sent(self) -> int:
        """Payload bytes of the frames sent."""
        return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        """Payload bytes of the frames received and of the model files fetched."""
        return self._bytes_received

    @property
    def closed_reason(self) -> str | None:
        """Why the session is over, None while it is not."""
        return self._closed

    def open(self, *, timeout_seconds: float) -> None:
        """Start the transport and wait until the relay has accepted this endpoint.

        Raises:
            ChannelClosed: it was refused, or could not be reached in time.
        """
        self._transport.start(self)
        with self.lock:
            self._wait(
                self._writable,
                lambda: self._welcome is not None or self._closed is not None,
                timeout_seconds,
            )
            if self._welcome is None and self._closed is None:
                self._closed = (
                    f"no answer from the exchange within {timeout_seconds:g} s "
                    f"({self._transport.last_break}). Is it running, does it know this certificate?"
                )
        if self._closed is not None and not self._inbox:
            self._transport.stop()
            raise ChannelClosed(self._closed)

    def send(self, *, to: str, kind: str, payload: bytes) -> None:
        """Hand over one frame; waits while the window towards its receiver is full. See `Channel`."""
        require_kind(kind)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise FrameTooLarge(
                f"Frame {kind!r} to {to!r} has {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES} are "
                "allowed. Split it."
            )
        cost = frame_cost(payload)
        with self.lock:
            if self._welcome is None or to == self.ticket.endpoint or to not in self._peers:
                raise UnknownEndpoint(
                    f"Session {self.ticket.session_id!r} has no other endpoint {to!r}."
                )
            self._wait(
                self._writable, lambda: self._closed is not None or self._has_room(to, cost), None
            )
            if self._closed is not None or self._is_leaving:
                raise ChannelClosed(self._closed or "this channel was closed")
            self._numbered += 1
            self._charged[to] = self._charged.get(to, 0) + cost
            self._unsent.append(
                Send(number=self._numbered, to=to, kind=kind, payload=bytes(payload))
            )
            self._bytes_sent += len(payload)
            self._outgoing.notify()
            self._transport.pump()

    def receive(self, *, timeout_seconds: float) -> Frame:
        """The next frame for this endpoint. See `Channel`."""
        with self.lock:
            self._wait(
                self._readable,
                lambda: bool(self._inbox) or self._closed is not None,
                timeout_seconds,
            )
            if self._inbox:
                frame = self._inbox.popleft()
                self._inbox_bytes -= frame_cost(frame.payload)
                self._consumed = frame.number
                self._bytes_received += len(frame.payload)
                self._outgoing.notify()
                self._transport.pump()
                return Frame(sender=frame.sender, kind=frame.kind, payload=frame.payload)
            if self._closed is not None:
                raise ChannelClosed(self._closed)
        raise ChannelTimeout(
            f"{self.ticket.endpoint!r} received no frame in session {self.ticket.session_id!r} "
            f"within {timeout_seconds:g} s."
        )

    def fetch_model(self, *, sha256: str, size: int, into: Path) -> Path:
        """The model file with this hash. See `Channel`."""

        def chunks(offset: int) -> Iterator[Chunk]:
            for chunk in self._transport.chunks(sha256, offset):
                yield chunk
                self._bytes_received += len(chunk.payload)

        def give_up() -> None:
            if self._closed is not None:
                raise ChannelClosed(self._closed)

        return fetch_model(chunks, sha256=sha256, size=size, into=into, before_retry=give_up)

    def close(self, *, timeout_seconds: float = 5.0) -> None:
        """Leave the session after all frames sent have reached the relay, if it answers in time."""
        with self.lock:
            self._is_leaving = True
            self._outgoing.notify()
            self._wait(self._writable, lambda: self._closed is not None, timeout_seconds)
            if self._closed is None:
                self._closed = "this channel was closed without a link to the exchange"
            self.wake()
        self._transport.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The transport's side; the caller holds the lock where the docstring says so.

    def attach_request(self) -> Attach:
        """What to say first on a new connection."""
        with self.lock:
            self._is_attached = False
            return Attach(
                ticket=self.ticket, incarnation=self._incarnation, received=self._received
            )

    def handle(self, message: FromRelay) -> None:
        """Take in what the relay said.

        Raises:
            ProtocolError: it may not say this; the connection must be given up.
        """
        with self.lock:
            match message:
                case Attached():
                    self._resume(message)
                case Deliver():
                    self._store(message)
                case Progress(received=received, credits=credits):
                    self._confirm(received)
                    self._credited.update(credits)
                    self._writable.notify_all()
                case Closed(reason=reason):
                    self.fail(reason)
                case Ping():
                    pass

    def next_outgoing(self) -> ToRelay | None:
        """The next message for the relay, None if there is none now. The caller holds the lock."""
        if not self._is_attached:
            return None
        if self._consumed > self._consumed_told:
            self._consumed_told = self._consumed
            return Consumed(number=self._consumed)
        if self._unsent:
            frame = self._unsent.popleft()
            self._unconfirmed.append(frame)
            return frame
        if self._is_leaving and not self._has_left:
            self._has_left = True
            return Leave()
        return None

    def wait_outgoing(self, seconds: float) -> bool:
        """Wait until there may be something to send, False after `seconds`. The caller holds the lock."""
        return self._outgoing.wait(seconds)

    def fail(self, reason: str) -> None:
        """The session is over for this endpoint; the first reason counts."""
        with self.lock:
            if self._closed is None:
                self._closed = reason
            self.wake()

    def wake(self) -> None:
        """Let every waiting thread look again."""
        with self.lock:
            self._readable.notify_all()
            self._writable.notify_all()
            self._outgoing.notify_all()

    @property
    def silence_seconds(self) -> float | None:
        """After how long an absence the relay gives this endpoint up; None before the first answer."""
        return self._welcome.silence_seconds if self._welcome is not None else None

    @property
    def _peers(self) -> tuple[str, ...]:
        return self._welcome.endpoints if self._welcome is not None else ()

    def _wait(
        self,
        condition: threading.Condition,
        is_ready: Callable[[], bool],
        timeout_seconds: float | None,
    ) -> None:
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            pause = self._transport.pump()
            if is_ready():
                return
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    return
                pause = left if pause is None else min(pause, left)
            condition.wait(pause)

    def _has_room(self, to: str, cost: int) -> bool:
        if self._welcome is None:
            return False
        pair = self._charged.get(to, 0) - self._credited.get(to, 0)
        total = sum(self._charged.values()) - sum(self._credited.values())
        return (
            pair + cost <= self._welcome.pair_window_bytes
            and total + cost <= self._welcome.endpoint_window_bytes
        )

    def _resume(self, welcome: Attached) -> None:
        if welcome.received > self._numbered:
            raise ProtocolError(f"the relay confirms frame {welcome.received}, never sent")
        self._confirm(welcome.received)
        while self._unconfirmed:
            self._unsent.appendleft(self._unconfirmed.pop())
        self._credited.update(welcome.credits)
        self._consumed_told = 0
        self._has_left = False
        self._welcome = welcome
        self._is_attached = True
        self.wake()

    def _confirm(self, received: int) -> None:
        while self._unconfirmed and self._unconfirmed[0].number <= received:
            self._unconfirmed.popleft()

    def _store(self, frame: Deliver) -> None:
        if frame.number <= self._received:
            return
        if frame.number != self._received + 1:
            raise ProtocolError(f"frame {frame.number} follows frame {self._received}")
        self._inbox_bytes += frame_cost(frame.payload)
        if self._inbox_bytes > MAX_INBOX_BYTES:
            raise ProtocolError(f"{self._inbox_bytes} bytes delivered but not consumed")
        self._received = frame.number
        self._inbox.append(frame)
        self._readable.notify()
