"""Messages of a link to protobuf and back, strictly: what is out of bounds is a `ProtocolError`.

A payload above `PART_BYTES` travels as its frame with the first part, followed by `Part`s. The other end
so hears something at least every part, also on a slow link, and the network limit of one message is small.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from coordinator.wire import exchange_pb2 as pb
from coordinator.wire.channel import (
    EXCHANGE,
    MAX_ENDPOINTS,
    MAX_PAYLOAD_BYTES,
    MAX_REASON_CHARACTERS,
    SessionSpec,
    SessionTicket,
    require_endpoint_name,
    require_kind,
    require_sha256,
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
)
from coordinator.wire.transfer import CHUNK_BYTES, Chunk

PART_BYTES: Final = 256 << 10
MAX_MESSAGE_BYTES: Final = PART_BYTES + (64 << 10)
"""Largest protobuf message: one part or chunk, or the names of all endpoints of a session."""


def ticket_to_proto(ticket: SessionTicket) -> pb.Ticket:
    """A ticket, for the wire."""
    return pb.Ticket(session_id=ticket.session_id, endpoint=ticket.endpoint, ticket=ticket.ticket)


def ticket_from_proto(message: pb.Ticket) -> SessionTicket:
    """A ticket, if it is well formed."""
    try:
        return SessionTicket(
            session_id=message.session_id, endpoint=message.endpoint, ticket=message.ticket
        )
    except ValueError as error:
        raise ProtocolError(str(error)) from error


def spec_to_proto(spec: SessionSpec) -> pb.OpenSessionRequest:
    """A session to open, for the wire."""
    return pb.OpenSessionRequest(
        session_id=spec.session_id,
        tickets=dict(spec.tickets),
        models=spec.models,
        silence_seconds=spec.silence_seconds,
        deadline_seconds=spec.deadline_seconds,
    )


def spec_from_proto(message: pb.OpenSessionRequest) -> SessionSpec:
    """A session to open, if it is well formed."""
    try:
        return SessionSpec(
            session_id=message.session_id,
            tickets=dict(message.tickets),
            models=tuple(message.models),
            silence_seconds=message.silence_seconds,
            deadline_seconds=message.deadline_seconds,
        )
    except ValueError as error:
        raise ProtocolError(str(error)) from error


def fetch_from_proto(message: pb.FetchRequest) -> tuple[SessionTicket, str, int]:
    """Ticket, hash and offset of a fetch, if they are well formed."""
    try:
        require_sha256(message.sha256)
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    if message.offset >= 1 << 62:
        raise ProtocolError(f"offset {message.offset}")
    return ticket_from_proto(message.ticket), message.sha256, message.offset


def chunk_to_proto(chunk: Chunk) -> pb.Chunk:
    """A piece of a file, for the wire."""
    return pb.Chunk(offset=chunk.offset, payload=chunk.payload, sha256=chunk.sha256)


def chunk_from_proto(message: pb.Chunk) -> Chunk:
    """A piece of a file. The hash is checked by whoever writes it."""
    if len(message.payload) > CHUNK_BYTES:
        raise ProtocolError(f"a chunk of {len(message.payload)} bytes")
    return Chunk(offset=message.offset, payload=message.payload, sha256=message.sha256)


def attach_to_proto(attach: Attach) -> pb.ToRelay:
    """The first message of a link, for the wire."""
    ticket = ticket_to_proto(attach.ticket)
    return pb.ToRelay(
        attach=pb.Attach(ticket=ticket, incarnation=attach.incarnation, received=attach.received)
    )


def attach_from_proto(message: pb.ToRelay) -> Attach:
    """The first message of a link; nothing else may come first."""
    if message.WhichOneof("message") != "attach":
        raise ProtocolError("a link begins with Attach")
    attach = message.attach
    if len(attach.incarnation) != 16:
        raise ProtocolError(f"an incarnation of {len(attach.incarnation)} bytes, expected 16")
    ticket = ticket_from_proto(attach.ticket)
    return Attach(ticket=ticket, incarnation=attach.incarnation, received=attach.received)


def to_relay_to_proto(message: ToRelay) -> Iterator[pb.ToRelay]:
    """A message for the relay, in as many pieces as it takes."""
    match message:
        case Send(number=number, to=to, kind=kind, payload=payload):
            first, missing = payload[:PART_BYTES], max(len(payload) - PART_BYTES, 0)
            yield pb.ToRelay(
                send=pb.Send(number=number, to=to, kind=kind, payload=first, missing=missing)
            )
            for start in range(PART_BYTES, len(payload), PART_BYTES):
                yield pb.ToRelay(part=pb.Part(payload=payload[start : start + PART_BYTES]))
        case Consumed(number=number):
            yield pb.ToRelay(consumed=pb.Consumed(number=number))
        case Ping():
            yield pb.ToRelay(ping=pb.Ping())
        case Leave():
            yield pb.ToRelay(leave=pb.Leave())


def from_relay_to_proto(message: FromRelay) -> Iterator[pb.FromRelay]:
    """A message for the client, in as many pieces as it takes."""
    match message:
        case Deliver(number=number, sender=sender, kind=kind, payload=payload):
            first, missing = payload[:PART_BYTES], max(len(payload) - PART_BYTES, 0)
            yield pb.FromRelay(
                deliver=pb.Deliver(
                    number=number, sender=sender, kind=kind, payload=first, missing=missing
                )
            )
            for start in range(PART_BYTES, len(payload), PART_BYTES):
                yield pb.FromRelay(part=pb.Part(payload=payload[start : start + PART_BYTES]))
        case Attached():
            yield pb.FromRelay(
                attached=pb.Attached(
                    received=message.received,
                    endpoints=message.endpoints,
                    credits=_credits_to_proto(message.credits),
                    pair_window_bytes=message.pair_window_bytes,
                    endpoint_window_bytes=message.endpoint_window_bytes,
                    silence_seconds=message.silence_seconds,
                )
            )
        case Progress(received=received, credits=credits):
            yield pb.FromRelay(
                progress=pb.Progress(received=received, credits=_credits_to_proto(credits))
            )
        case Ping():
            yield pb.FromRelay(ping=pb.Ping())
        case Closed(reason=reason):
            yield pb.FromRelay(closed=pb.Closed(reason=reason))


class ToRelayDecoder:
    """Puts the pieces that one client sends together again."""

    def __init__(self) -> None:
        self._parts = _Parts()
        self._head: Send | None = None

    def add(self, message: pb.ToRelay) -> ToRelay | None:
        """The message that this piece completes, None while parts are missing."""
        which = message.WhichOneof("message")
        if self._head is not None:
            payload = self._parts.add(message.part.payload if which == "part" else None)
            if payload is None:
                return None
            head, self._head = self._head, None
            return replace(head, payload=payload)
        match which:
            case "send":
                send = message.send
                _require_names(send.to, send.kind)
                head = Send(number=send.number, to=send.to, kind=send.kind, payload=send.payload)
                if not self._parts.begin(send.payload, send.missing):
                    return head
                self._head = head
                return None
            case "consumed":
                return Consumed(number=message.consumed.number)
            case "ping":
                return Ping()
            case "leave":
                return Leave()
            case _:
                raise ProtocolError(f"{which or 'an unknown message'} out of place")


class FromRelayDecoder:
    """Puts the pieces that the relay sends together again."""

    def __init__(self) -> None:
        self._parts = _Parts()
        self._head: Deliver | None = None

    def add(self, message: pb.FromRelay) -> FromRelay | None:
        """The message that this piece completes, None while parts are missing."""
        which = message.WhichOneof("message")
        if self._head is not None:
            payload = self._parts.add(message.part.payload if which == "part" else None)
            if payload is None:
                return None
            head, self._head = self._head, None
            return replace(head, payload=payload)
        if which == "deliver":
            frame = message.deliver
            _require_names(frame.sender, frame.kind)
            head = Deliver(
                number=frame.number, sender=frame.sender, kind=frame.kind, payload=frame.payload
            )
            if not self._parts.begin(frame.payload, frame.missing):
                return head
            self._head = head
            return None
        return _control_from_proto(message, which)


class _Parts:
    """A payload that arrives in parts; its announced size is bounded before anything is kept."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._missing = 0

    def begin(self, first: bytes, missing: int) -> bool:
        """Whether parts are missing."""
        if len(first) > PART_BYTES or len(first) + missing > MAX_PAYLOAD_BYTES:
            raise ProtocolError(f"a frame of {len(first)} and {missing} more bytes")
        self._parts, self._missing = [first], missing
        return missing > 0

    def add(self, part: bytes | None) -> bytes | None:
        """The whole payload, if this part completes it."""
        if part is None:
            raise ProtocolError(f"a frame was interrupted with {self._missing} bytes missing")
        if not 0 < len(part) <= min(PART_BYTES, self._missing):
            raise ProtocolError(f"a part of {len(part)} bytes, {self._missing} are missing")
        self._parts.append(part)
        self._missing -= len(part)
        if self._missing > 0:
            return None
        payload, self._parts = b"".join(self._parts), []
        return payload


def _control_from_proto(message: pb.FromRelay, which: str | None) -> FromRelay:
    match which:
        case "attached":
            attached = message.attached
            if len(attached.endpoints) > MAX_ENDPOINTS:
                raise ProtocolError(f"{len(attached.endpoints)} endpoints")
            return Attached(
                received=attached.received,
                endpoints=tuple(attached.endpoints),
                credits=_credits_from_proto(attached.credits),
                pair_window_bytes=attached.pair_window_bytes,
                endpoint_window_bytes=attached.endpoint_window_bytes,
                silence_seconds=attached.silence_seconds,
            )
        case "progress":
            credits = _credits_from_proto(message.progress.credits)
            return Progress(received=message.progress.received, credits=credits)
        case "ping":
            return Ping()
        case "closed":
            return Closed(reason=message.closed.reason[:MAX_REASON_CHARACTERS])
        case _:
            raise ProtocolError(f"{which or 'an unknown message'} out of place")


def _credits_to_proto(credits: Mapping[str, int]) -> list[pb.Credit]:
    return [pb.Credit(to=to, total=total) for to, total in credits.items()]


def _credits_from_proto(credits: Iterable[pb.Credit]) -> dict[str, int]:
    decoded = {credit.to: credit.total for credit in credits}
    if len(decoded) > MAX_ENDPOINTS:
        raise ProtocolError(f"{len(decoded)} credits")
    return decoded


def _require_names(endpoint: str, kind: str) -> None:
    try:
        if endpoint != EXCHANGE:
            require_endpoint_name(endpoint)
        require_kind(kind)
    except ValueError as error:
        raise ProtocolError(str(error)) from error
