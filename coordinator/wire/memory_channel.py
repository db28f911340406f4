"""The data plane inside one process: the same relay and the same link, without a network or threads.

`start_relay("rehearsal", models=...)` registers a relay; endpoints then open channels to "memory:rehearsal". One lock
guards the relay and all its links, and messages move whenever somebody sends or waits. There are no
certificates: who knows a ticket is believed.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.wire.channel import ChannelClosed, ChannelError, SessionSpec, SessionTicket
from coordinator.wire.link import Link
from coordinator.wire.messages import ProtocolError
from coordinator.wire.relay import Relay
from coordinator.wire.session import Connection, Observer, RefusedError, RelayLimits
from coordinator.wire.transfer import Chunk, open_model, read_chunk

_relays: dict[str, "MemoryRelay"] = {}


class MemoryRelay:
    """A relay in this process, and the right to open sessions on it. Implements `SessionAdmin`."""

    def __init__(
        self,
        name: str,
        *,
        models: Path,
        limits: RelayLimits | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.relay = Relay(models=models, limits=limits or RelayLimits(), observer=observer)

    @property
    def held_bytes(self) -> int:
        """Cost of all frames held."""
        with self.lock:
            return self.relay.held_bytes

    def open_session(self, spec: SessionSpec) -> None:
        """Open a session. See `SessionAdmin`."""
        with self.lock:
            try:
                self.relay.open_session(spec)
            except RefusedError as refusal:
                raise ChannelError(str(refusal)) from refusal

    def close_session(self, session_id: str, *, reason: str) -> None:
        """End a session. See `SessionAdmin`."""
        with self.lock:
            self.relay.close_session(session_id, reason)

    def close(self) -> None:
        """End every session and forget the relay's name."""
        with self.lock:
            self.relay.close_all("the exchange has stopped")
            if _relays.get(self.name) is self:
                del _relays[self.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class MemoryTransport:
    """Moves messages between one link and the relay in the caller's thread. Implements `Transport`."""

    def __init__(self, memory: MemoryRelay, ticket: SessionTicket) -> None:
        self.lock = memory.lock
        self.last_break = "no link"
        self._relay = memory.relay
        self._ticket = ticket
        self._link: Link | None = None
        self._connection: Connection | None = None

    def start(self, link: Link) -> None:
        """Take the seat."""
        with self.lock:
            self._link = link
            try:
                self._connection = self._relay.connect(link.attach_request(), link.wake)
            except RefusedError as refusal:
                link.fail(str(refusal))

    def pump(self) -> float | None:
        """Move all messages of this endpoint. The caller holds the lock."""
        link, connection = self._link, self._connection
        pause = self._relay.tick()
        if link is None or connection is None:
            return pause
        now = self._relay.now()
        try:
            while not connection.is_over:
                incoming = connection.take(now=now)
                if incoming is not None:
                    link.handle(incoming)
                outgoing = link.next_outgoing()
                if outgoing is not None:
                    connection.accept(outgoing, now=now)
                if incoming is None and outgoing is None:
                    break
        except ProtocolError as violation:
            connection.expel(violation, now=now)
            link.fail(f"protocol broken: {violation}")
        return pause

    def chunks(self, sha256: str, offset: int) -> Iterator[Chunk]:
        """Read the relay's own file."""
        try:
            with self.lock:
                path = self._relay.require_model(self._ticket, sha256)
            with open_model(path) as file:
                while (chunk := read_chunk(file, offset)) is not None:
                    offset += len(chunk.payload)
                    yield chunk
        except RefusedError as refusal:
            raise ChannelClosed(str(refusal)) from refusal

    def stop(self) -> None:
        """Give up the connection."""
        with self.lock:
            if self._connection is not None:
                self._connection.detach(silent_since=self._relay.now())


def start_relay(
    name: str,
    *,
    models: Path,
    limits: RelayLimits | None = None,
    observer: Observer | None = None,
) -> MemoryRelay:
    """Register a relay under "memory:NAME" until it is closed."""
    if name in _relays:
        raise ValueError(f"Expected a free name, but memory:{name} is running.")
    _relays[name] = MemoryRelay(name, models=models, limits=limits, observer=observer)
    return _relays[name]


def find_relay(name: str) -> MemoryRelay:
    """The relay registered under this name.

    Raises:
        ChannelError: there is none.
    """
    try:
        return _relays[name]
    except KeyError:
        raise ChannelError(
            f"No relay memory:{name} runs in this process. Start it first."
        ) from None
