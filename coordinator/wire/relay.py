"""The relay: all open sessions, who may join them, and when they end. Shared by the gRPC server and memory.

It relays frames it cannot read and serves model files by hash; it stores only the SHA-256 of a ticket.
Like `session`, it does no input or output and takes no locks: its owner calls it from one thread at a time
and calls `tick` at least as often as its answer says.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coordinator.wire.channel import SessionSpec, SessionTicket, TransferError
from coordinator.wire.messages import Attach
from coordinator.wire.session import Connection, Observer, RefusedError, RelayLimits, Session
from coordinator.wire.transfer import MODEL_SUFFIX

MAX_CLOSED_REMEMBERED: Final = 1024
"""Closed sessions whose reason is still told to latecomers."""


class Relay:
    """Open sessions by name."""

    def __init__(
        self,
        *,
        models: Path,
        limits: RelayLimits,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._closing: list[Session] = []
        self._closed: dict[str, str] = {}

    @property
    def held_bytes(self) -> int:
        """Cost of all frames held."""
        return sum(session.held_bytes for session in (*self._sessions.values(), *self._closing))

    def now(self) -> float:
        """The relay's clock, in seconds."""
        return self._clock()

    def open_session(self, spec: SessionSpec) -> None:
        """Open a session; the same one again changes nothing.

        Raises:
            RefusedError: the name was used for another session, or too many are open.
        """
        self.tick()
        name = spec.session_id
        if name in self._sessions and self._sessions[name].spec == spec:
            return
        if name in self._sessions or name in self._closed:
            raise RefusedError(
                f"session {name!r} exists already; open the next attempt under a new id"
            )
        if len(self._sessions) >= self._limits.max_sessions:
            raise RefusedError(
                f"{len(self._sessions)} sessions are open, the most allowed; close one first"
            )
        self._sessions[name] = Session(
            spec, limits=self._limits, observer=self._observer, now=self.now()
        )

    def close_session(self, session_id: str, reason: str) -> None:
        """End a session for everybody in it; no session of that name is no error."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        session.close(reason, self.now())
        self._bury(session)

    def close_all(self, reason: str) -> None:
        """End every session."""
        for session_id in list(self._sessions):
            self.close_session(session_id, reason)

    def connect(self, attach: Attach, wake: Callable[[], None]) -> Connection:
        """Seat a connection in its session.

        Raises:
            RefusedError: unknown or closed session, wrong ticket, endpoint gone or already taken.
            ProtocolError: the client claims to have received what was never sent.
        """
        self.tick()
        return self._require_session(attach.ticket.session_id).connect(attach, wake)

    def require_model(self, ticket: SessionTicket, sha256: str) -> Path:
        """Where the model file is that this endpoint may fetch.

        Raises:
            RefusedError: the session is over or the ticket is wrong.
            TransferError: the file does not belong to the session.
        """
        self.tick()
        session = self._require_session(ticket.session_id)
        session.require_ticket(ticket.endpoint, ticket.ticket)
        if sha256 not in session.spec.models:
            raise TransferError(f"Model {sha256} is not part of session {ticket.session_id!r}.")
        return self._models / f"{sha256}{MODEL_SUFFIX}"

    def tick(self) -> float | None:
        """End what has lasted too long; returns the seconds until there is something to end again."""
        now = self.now()
        moments: list[float] = []
        for session in list(self._sessions.values()):
            moments += self._end_overdue(session, now)
            if session.closed is not None:
                del self._sessions[session.spec.session_id]
                self._bury(session)
        for session in list(self._closing):
            if now >= session.linger_until:
                self._closing.remove(session)
                for endpoint in session.endpoints.values():
                    endpoint.wake()
            else:
                moments.append(session.linger_until)
        return max(min(moments) - now, 0.0) if moments else None

    def _end_overdue(self, session: Session, now: float) -> list[float]:
        if now >= session.deadline_at:
            session.close(f"deadline of {session.spec.deadline_seconds:g} s has passed", now)
            return []
        silence_seconds = session.spec.silence_seconds
        moments = [session.deadline_at]
        for endpoint in session.endpoints.values():
            if endpoint.silent_since is None or endpoint.gone is not None:
                continue
            if now >= endpoint.silent_since + silence_seconds:
                reason = f"{endpoint.name!r} was silent for {silence_seconds:g} s"
                session.end_endpoint(endpoint, reason, now)
            else:
                moments.append(endpoint.silent_since + silence_seconds)
        return moments

    def _require_session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise RefusedError(self._closed.get(session_id, f"unknown session {session_id!r}"))
        if session.closed is not None:
            raise RefusedError(session.closed)
        return session

    def _bury(self, session: Session) -> None:
        self._closing.append(session)
        self._closed[session.spec.session_id] = session.closed or ""
        while len(self._closed) > MAX_CLOSED_REMEMBERED:
            del self._closed[next(iter(self._closed))]
