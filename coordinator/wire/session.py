"""One session inside the relay: who sits in it, what is under way, what each connection should hear next.

No input or output, no clock of its own, no locks: the gRPC server calls it from one event loop, the
in-memory relay under one lock. Rules:
1. A frame belongs to its sender's window from the moment it is accepted until its receiver has consumed it.
   A receiver that is slow or gone therefore stops only those who send to it, and what the relay holds is at
   most `endpoint_window_bytes` for each endpoint, however the receivers behave.
2. Frames stay here until they are consumed, so that a receiver that reconnects misses none; frames that come
   a second time are recognised by their number.
3. An endpoint is taken by the first channel that shows its ticket. The same channel may reconnect, and its
   newest connection counts; another channel is refused.
4. An endpoint that is gone gives back the windows of everybody who sent to it, and the coordinator is told.
   When the coordinator itself is gone, the session closes.
5. A session that closes first lets connected endpoints have the frames already accepted for them, for at
   most `LINGER_SECONDS`.
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coordinator.wire.channel import (
    COORDINATOR,
    EXCHANGE,
    LOST,
    MAX_PAYLOAD_BYTES,
    MAX_REASON_CHARACTERS,
    Frame,
    SessionSpec,
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

LINGER_SECONDS: Final = 5.0
Observer = Callable[[str, Frame], None]
"""Sees every frame that the relay accepts, with the name of its receiver."""


class RefusedError(Exception):
    """The relay does not let this party do this; the text may be shown to it."""


@dataclass(frozen=True, kw_only=True)
class RelayLimits:
    """What the relay is willing to hold, in bytes and in numbers."""

    pair_window_bytes: int = 4 << 20
    """Cost of the frames that one endpoint may have under way to one other."""
    endpoint_window_bytes: int = 32 << 20
    """Cost of the frames that one endpoint may have under way in all: what it can make the relay hold."""
    delivery_window_bytes: int = 8 << 20
    """Cost of the frames given to a connection but not consumed: what its process must hold."""
    max_sessions: int = 64

    def __post_init__(self) -> None:
        smallest = min(
            self.pair_window_bytes, self.endpoint_window_bytes, self.delivery_window_bytes
        )
        if smallest < frame_cost(bytes(MAX_PAYLOAD_BYTES)):
            raise ValueError(f"Expected every window >= one frame, got {smallest} bytes.")


class Endpoint:
    """A seat in the session and the two queues that belong to it."""

    def __init__(self, name: str, ticket_sha256: bytes, now: float) -> None:
        self.name = name
        self.ticket_sha256 = ticket_sha256
        self.connection: Connection | None = None
        self.incarnation: bytes | None = None
        self.silent_since: float | None = now
        self.gone: str | None = None
        # What it sends.
        self.received = 0
        self.held: dict[str, int] = {}
        self.released: dict[str, int] = {}
        self.fresh_credits: set[str] = set()
        # What it gets: frames not yet given to its connection, and those given but not consumed.
        self.unsent: deque[Deliver] = deque()
        self.unconsumed: deque[Deliver] = deque()
        self.in_flight_bytes = 0
        self.numbered = 0

    def wake(self) -> None:
        """Let the connection, if there is one, ask for what is new."""
        if self.connection is not None:
            self.connection.wake()

    def enqueue(self, *, sender: str, kind: str, payload: bytes) -> None:
        """Give the next number to a frame for this endpoint."""
        self.numbered += 1
        self.unsent.append(Deliver(number=self.numbered, sender=sender, kind=kind, payload=payload))
        self.wake()

    def release(self, to: str, cost: int) -> None:
        """Give back what a frame of this endpoint took of its window."""
        self.released[to] = self.released.get(to, 0) + cost
        self.fresh_credits.add(to)
        self.wake()

    def resume_after(self, number: int) -> None:
        """Deliver again what the connection before this one did not bring home."""
        consumed = self.numbered - len(self.unsent) - len(self.unconsumed)
        if not consumed <= number <= self.numbered - len(self.unsent):
            raise ProtocolError(f"resumes after frame {number}, which it cannot have received")
        while self.unconsumed and self.unconsumed[-1].number > number:
            self.unsent.appendleft(self.unconsumed.pop())
        self.in_flight_bytes = sum(frame_cost(frame.payload) for frame in self.unconsumed)


class Session:
    """The seats of one session and the frames between them."""

    def __init__(
        self, spec: SessionSpec, *, limits: RelayLimits, observer: Observer | None, now: float
    ) -> None:
        self.spec = spec
        self.limits = limits
        self.deadline_at = now + spec.deadline_seconds
        self.endpoints = {
            name: Endpoint(name, digest, now) for name, digest in spec.tickets.items()
        }
        self.closed: str | None = None
        self.linger_until = 0.0
        self._observer = observer

    @property
    def held_bytes(self) -> int:
        """Cost of all frames that the relay holds for this session."""
        return sum(sum(endpoint.held.values()) for endpoint in self.endpoints.values())

    def require_ticket(self, endpoint: str, ticket: bytes) -> Endpoint:
        """The seat that this ticket opens; every other answer is the same, whatever was wrong."""
        seat = self.endpoints.get(endpoint)
        expected = seat.ticket_sha256 if seat is not None else bytes(32)
        shown = hashlib.sha256(ticket).digest()
        if not hmac.compare_digest(expected, shown) or seat is None:
            raise RefusedError(
                f"ticket refused for {endpoint!r} in session {self.spec.session_id!r}"
            )
        if seat.gone is not None:
            raise RefusedError(seat.gone)
        return seat

    def connect(self, attach: Attach, wake: Callable[[], None]) -> "Connection":
        """Seat a connection; `wake` is called whenever it has something to take."""
        endpoint = self.require_ticket(attach.ticket.endpoint, attach.ticket.ticket)
        if endpoint.incarnation not in (None, attach.incarnation):
            raise RefusedError(f"{endpoint.name!r} already has a channel in this session")
        endpoint.resume_after(attach.received)
        endpoint.incarnation = attach.incarnation
        endpoint.silent_since = None
        previous = endpoint.connection
        endpoint.connection = Connection(self, endpoint, wake)
        if previous is not None:
            previous.wake()
        return endpoint.connection

    def accept(self, sender: Endpoint, frame: Send) -> None:
        """Take a frame from an endpoint and queue it for its receiver."""
        if frame.number <= sender.received:
            return  # sent again after a reconnect
        if frame.number != sender.received + 1:
            raise ProtocolError(f"frame {frame.number} follows frame {sender.received}")
        receiver = self.endpoints.get(frame.to)
        if receiver is None or receiver is sender:
            raise ProtocolError(f"frame {frame.number} is for {frame.to!r}, not in the session")
        if len(frame.payload) > MAX_PAYLOAD_BYTES:
            raise ProtocolError(f"frame {frame.number} is of {len(frame.payload)} bytes")
        cost = frame_cost(frame.payload)
        held = sender.held.get(frame.to, 0) + cost
        total = sum(sender.held.values()) + cost
        limits = self.limits
        if held > limits.pair_window_bytes or total > limits.endpoint_window_bytes:
            raise ProtocolError(f"frame {frame.number} to {frame.to!r} exceeds the window")
        sender.received = frame.number
        if self.closed is not None:
            return
        if self._observer is not None:
            kept = Frame(sender=sender.name, kind=frame.kind, payload=frame.payload)
            self._observer(frame.to, kept)
        if receiver.gone is not None:
            sender.release(frame.to, cost)
            return
        sender.held[frame.to] = held
        receiver.enqueue(sender=sender.name, kind=frame.kind, payload=frame.payload)

    def consume(self, receiver: Endpoint, number: int) -> None:
        """Forget the frames that a receiver has consumed; their senders get their window back."""
        if number > receiver.numbered - len(receiver.unsent):
            raise ProtocolError(f"consumed frame {number} before it was delivered")
        while receiver.unconsumed and receiver.unconsumed[0].number <= number:
            frame = receiver.unconsumed.popleft()
            receiver.in_flight_bytes -= frame_cost(frame.payload)
            self._give_back(receiver, frame)
        receiver.wake()

    def end_endpoint(self, endpoint: Endpoint, reason: str, now: float) -> None:
        """An endpoint is gone for good: drop what was for it, tell the coordinator."""
        if endpoint.gone is not None:
            return
        endpoint.gone = reason[:MAX_REASON_CHARACTERS]
        for frame in (*endpoint.unconsumed, *endpoint.unsent):
            self._give_back(endpoint, frame)
        endpoint.unconsumed.clear()
        endpoint.unsent.clear()
        endpoint.wake()
        if self.closed is not None:
            return
        if endpoint.name == COORDINATOR:
            self.close(reason, now)
        elif COORDINATOR in self.endpoints:
            name = endpoint.name.encode()
            self.endpoints[COORDINATOR].enqueue(sender=EXCHANGE, kind=LOST, payload=name)

    def close(self, reason: str, now: float) -> None:
        """End the session; the first reason counts."""
        if self.closed is not None:
            return
        self.closed = reason[:MAX_REASON_CHARACTERS]
        self.linger_until = now + LINGER_SECONDS
        for endpoint in self.endpoints.values():
            endpoint.wake()

    def _give_back(self, receiver: Endpoint, frame: Deliver) -> None:
        sender = self.endpoints.get(frame.sender)
        if sender is not None:
            cost = frame_cost(frame.payload)
            sender.held[receiver.name] -= cost
            sender.release(receiver.name, cost)


class Connection:
    """One live link of an endpoint, as the transport drives it."""

    def __init__(self, session: Session, endpoint: Endpoint, wake: Callable[[], None]) -> None:
        self.session = session
        self.endpoint = endpoint
        self.wake = wake
        self._welcomed = False
        self._farewell_said = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: the farewell is said, or a newer connection took over."""
        return self._farewell_said or self.endpoint.connection is not self

    def accept(self, message: ToRelay, *, now: float) -> None:
        """Do what the client asks.

        Raises:
            ProtocolError: it may not ask this; `expel` it.
        """
        if self.is_over or self.endpoint.gone is not None:
            return
        match message:
            case Send():
                self.session.accept(self.endpoint, message)
            case Consumed(number=number):
                self.session.consume(self.endpoint, number)
            case Leave():
                reason = f"{self.endpoint.name!r} has left the session"
                self.session.end_endpoint(self.endpoint, reason, now)
            case Ping():
                pass

    def expel(self, violation: ProtocolError, *, now: float) -> None:
        """The client broke the protocol: its endpoint is gone, unless a newer connection has it."""
        if not self.is_over:
            reason = f"{self.endpoint.name!r} broke the protocol: {violation}"
            self.session.end_endpoint(self.endpoint, reason, now)

    def take(self, *, now: float) -> FromRelay | None:
        """The next message for the client, or None when there is nothing to say now."""
        if self.is_over:
            return None
        if not self._welcomed:
            self._welcomed = True
            return self._welcome()
        endpoint = self.endpoint
        if endpoint.fresh_credits:
            fresh = {to: endpoint.released[to] for to in endpoint.fresh_credits}
            endpoint.fresh_credits.clear()
            return Progress(received=endpoint.received, credits=fresh)
        session = self.session
        if endpoint.unsent and not (session.closed is not None and now >= session.linger_until):
            return self._next_delivery()
        reason = endpoint.gone or session.closed
        if reason is None:
            return None
        self._farewell_said = True
        return Closed(reason=reason)

    def detach(self, *, silent_since: float) -> None:
        """The link is down; the endpoint may come back until its silence has lasted too long."""
        if self.endpoint.connection is self:
            self.endpoint.connection = None
            self.endpoint.silent_since = silent_since

    def _welcome(self) -> Attached:
        self.endpoint.fresh_credits.clear()
        return Attached(
            received=self.endpoint.received,
            endpoints=tuple(self.session.endpoints),
            credits=dict(self.endpoint.released),
            pair_window_bytes=self.session.limits.pair_window_bytes,
            endpoint_window_bytes=self.session.limits.endpoint_window_bytes,
            silence_seconds=self.session.spec.silence_seconds,
        )

    def _next_delivery(self) -> Deliver | None:
        endpoint = self.endpoint
        cost = frame_cost(endpoint.unsent[0].payload)
        if endpoint.in_flight_bytes + cost > self.session.limits.delivery_window_bytes:
            return None
        frame = endpoint.unsent.popleft()
        endpoint.unconsumed.append(frame)
        endpoint.in_flight_bytes += cost
        return frame
