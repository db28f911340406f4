"""An exchange of either kind, and one over a network that can be cut, with all that tests do to them."""

import time
from pathlib import Path
from typing import Any

from coordinator.wire.channel import (
    Channel,
    Frame,
    LinkTiming,
    SessionAdmin,
    SessionTicket,
    TlsFiles,
)
from coordinator.wire.connect import open_admin, open_channel
from coordinator.wire.session import RelayLimits
from tests.coordinator.exchange_rig import (
    QUICK,
    Authority,
    FaultyLink,
    ServerThread,
    Tickets,
    make_session,
)

LIMITS = RelayLimits(
    pair_window_bytes=2 << 20, endpoint_window_bytes=4 << 20, delivery_window_bytes=2 << 20
)


class Exchange:
    """A running exchange, whatever it is made of, and the channels that a test has opened."""

    def __init__(self, address: str, host: Any, authority: Authority, models: Path) -> None:
        self.address = address
        self.host = host
        self.models = models
        self.seen: list[tuple[str, Frame]] = []
        self._authority = authority
        self._channels: list[Channel] = []
        self.admin: SessionAdmin = open_admin(address, credentials=authority.coordinator())

    def open(self, *endpoints: str, **arguments: Any) -> Tickets:
        session = make_session(*endpoints, **arguments)
        self.admin.open_session(session.spec)
        return session

    def join(self, ticket: SessionTicket) -> Channel:
        channel = open_channel(
            self.address,
            session=ticket,
            credentials=self._authority.endpoint(ticket.endpoint),
            timing=QUICK,
        )
        self._channels.append(channel)
        return channel

    def join_all(self, *endpoints: str, **arguments: Any) -> list[Channel]:
        session = self.open(*endpoints, **arguments)
        return [self.join(session.tickets[name]) for name in endpoints]

    def leave_all(self) -> None:
        for channel in self._channels:
            channel.close()
        self.admin.close()


class Network:
    """A server, a faulty link to it, and everybody's certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.authority = Authority(folder / "pki")
        self.server = ServerThread(models=self.models, tls=self.authority.server(), timing=QUICK)
        self.link = FaultyLink(self.server.port)
        self.channels: list[Channel] = []

    def open(self, *endpoints: str, **arguments: Any) -> Tickets:
        session = make_session(*endpoints, **arguments)
        admin = open_admin(self.server.address, credentials=self.authority.coordinator())
        admin.open_session(session.spec)
        admin.close()
        return session

    def join(
        self,
        ticket: SessionTicket,
        *,
        through: str = "",
        tls: TlsFiles | None = None,
        timing: LinkTiming = QUICK,
    ) -> Channel:
        channel = open_channel(
            through or self.server.address,
            session=ticket,
            credentials=tls or self.authority.endpoint(ticket.endpoint),
            timing=timing,
        )
        self.channels.append(channel)
        return channel

    def pair(self, **arguments: Any) -> tuple[Channel, Channel]:
        """The coordinator on a good link, a site on the faulty one."""
        session = self.open("coordinator", "st-anna", **arguments)
        coordinator = self.join(session.tickets["coordinator"])
        return coordinator, self.join(session.tickets["st-anna"], through=self.link.address)


def numbered(count: int, *, size: int) -> list[bytes]:
    return [index.to_bytes(4, "big") + bytes(size) for index in range(count)]


def send_all(channel: Channel, to: str, payloads: list[bytes]) -> None:
    for payload in payloads:
        channel.send(to=to, kind="data", payload=payload)


def receive_all(channel: Channel, count: int) -> list[bytes]:
    return [channel.receive(timeout_seconds=10).payload for _ in range(count)]


def until(condition: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())
