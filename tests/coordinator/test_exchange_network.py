"""What only a network can do to the data plane: cuts, silence, strangers, malformed messages, restarts."""

import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.wire import exchange_pb2 as pb
from coordinator.wire import exchange_pb2_grpc as stubs
from coordinator.wire.channel import (
    Channel,
    ChannelClosed,
    ChannelError,
    LinkTiming,
    SessionTicket,
    TlsFiles,
)
from coordinator.wire.codec import MAX_MESSAGE_BYTES, attach_to_proto
from coordinator.wire.connect import open_admin, open_channel
from coordinator.wire.grpc_channel import read_credentials
from coordinator.wire.messages import Attach
from tests.coordinator.exchange_rig import (
    QUICK,
    Authority,
    FaultyLink,
    ServerThread,
    Tickets,
    make_session,
    write_model,
)

IMPATIENT = LinkTiming(heartbeat_seconds=0.2, break_seconds=1.0, connect_seconds=1.5)


class Network:
    """A server, a faulty link to it, and everybody's certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.authority = Authority(folder / "pki")
        self.server = ServerThread(
            models=self.models, tls=self.authority.server(), timing=QUICK
        )
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


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    running = Network(tmp_path)
    yield running
    running.link.thaw()
    closing = [threading.Thread(target=channel.close) for channel in running.channels]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()
    running.link.close()
    running.server.stop()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def send_all(channel: Channel, to: str, payloads: list[bytes]) -> None:
    for payload in payloads:
        channel.send(to=to, kind="data", payload=payload)


def receive_all(channel: Channel, count: int) -> list[bytes]:
    return [channel.receive(timeout_seconds=30).payload for _ in range(count)]


def numbered(count: int, *, size: int) -> list[bytes]:
    return [index.to_bytes(4, "big") + bytes(size) for index in range(count)]


def refusal_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        list(call)
    code: grpc.StatusCode = refused.value.code()
    return code


@pytest.mark.parametrize("cuts", [1, 5])
def test_cut_connections_lose_and_double_nothing(
    network: Network, executor: ThreadPoolExecutor, cuts: int
) -> None:
    coordinator, anna = network.pair()
    up, down = numbered(120, size=90_000), numbered(120, size=70_000)
    work = [
        executor.submit(send_all, anna, "coordinator", up),
        executor.submit(send_all, coordinator, "st-anna", down),
    ]
    received = [
        executor.submit(receive_all, coordinator, len(up)),
        executor.submit(receive_all, anna, len(down)),
    ]

    for _ in range(cuts):
        time.sleep(0.15)
        network.link.cut()

    assert received[0].result(timeout=30) == up
    assert received[1].result(timeout=30) == down
    assert [each.result(timeout=5) for each in work] == [None, None]


@pytest.mark.parametrize("cut_after", [1, 700, 60_001, 300_123, 1_000_003])
def test_cut_at_any_byte_loses_and_doubles_nothing(
    network: Network, executor: ThreadPoolExecutor, cut_after: int
) -> None:
    coordinator, anna = network.pair()
    down = numbered(12, size=300_000)
    network.link.cut_after(cut_after)

    sending = executor.submit(send_all, coordinator, "st-anna", down)

    assert receive_all(anna, len(down)) == down
    assert sending.result(timeout=5) is None
    assert network.link.connections >= 2


def test_frozen_link_is_noticed_and_resumed(network: Network, executor: ThreadPoolExecutor) -> None:
    coordinator, anna = network.pair()
    up = numbered(30, size=200_000)
    send_all(anna, "coordinator", up[:3])
    assert receive_all(coordinator, 3) == up[:3]

    network.link.freeze()
    sending = executor.submit(send_all, anna, "coordinator", up[3:])
    time.sleep(2.5)
    network.link.thaw()

    assert receive_all(coordinator, len(up) - 3) == up[3:]
    assert sending.result(timeout=5) is None
    assert network.link.connections >= 2


def test_frozen_site_is_reported_lost_in_time(network: Network) -> None:
    coordinator, _ = network.pair(silence_seconds=1.5)
    frozen_at = time.monotonic()

    network.link.freeze()
    lost = coordinator.receive(timeout_seconds=10)

    assert (lost.sender, lost.kind, lost.payload) == ("exchange", "lost", b"st-anna")
    assert 1.2 <= time.monotonic() - frozen_at <= 4


def test_frozen_site_learns_by_itself_that_it_is_out(network: Network) -> None:
    _, anna = network.pair(silence_seconds=1.5)

    network.link.freeze()

    with pytest.raises(ChannelClosed, match="no link to the exchange"):
        anna.receive(timeout_seconds=10)


def test_site_that_returns_too_late_is_told_so(network: Network) -> None:
    coordinator, anna = network.pair(silence_seconds=1.2)
    network.link.freeze()
    assert coordinator.receive(timeout_seconds=10).kind == "lost"

    network.link.thaw()

    with pytest.raises(ChannelClosed, match="'st-anna' was silent|no link to the exchange"):
        anna.receive(timeout_seconds=10)


def test_quiet_link_stays_up(network: Network) -> None:
    coordinator, anna = network.pair()

    time.sleep(3 * QUICK.break_seconds)

    anna.send(to="coordinator", kind="hello", payload=b"still here")
    assert coordinator.receive(timeout_seconds=5).payload == b"still here"
    assert network.link.connections == 1


def test_default_heartbeat_notices_silence_within_ten_seconds() -> None:
    timing = LinkTiming()

    assert timing.heartbeat_seconds * 3 < timing.break_seconds < 10


def test_restarted_exchange_frees_the_sites_promptly(
    network: Network, executor: ThreadPoolExecutor
) -> None:
    _, anna = network.pair()
    blocked = executor.submit(anna.receive, timeout_seconds=30)

    network.link.cut()
    network.server.server.relay._sessions.clear()  # what a new process knows: nothing
    begun = time.monotonic()

    with pytest.raises(ChannelClosed, match="unknown session"):
        blocked.result(timeout=10)
    assert time.monotonic() - begun < 5


def test_stopping_the_exchange_tells_every_endpoint(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    server = ServerThread(models=tmp_path, tls=authority.server(), timing=QUICK)
    session = make_session("st-anna")
    server.server.relay.open_session(session.spec)
    anna = open_channel(
        server.address,
        session=session.tickets["st-anna"],
        credentials=authority.site("st-anna"),
        timing=QUICK,
    )

    server.stop()

    with pytest.raises(ChannelClosed, match="the exchange has stopped"):
        anna.receive(timeout_seconds=5)
    anna.close()


@pytest.mark.parametrize("cut_after", [1, 5_000, 400_001, 2_500_000])
def test_model_transfer_resumes_after_a_cut_at_any_byte(network: Network, cut_after: int) -> None:
    content = secrets.token_bytes(4_000_000)
    sha256 = write_model(network.models, content)
    _, anna = network.pair(models=(sha256,))
    network.link.cut_after(cut_after)

    path = anna.fetch_model(sha256=sha256, size=len(content), into=network.folder / "site")

    assert path.read_bytes() == content
    assert network.link.bytes_to_client < 1.3 * len(content) + 100_000


def test_model_transfer_over_a_frozen_link_resumes(
    network: Network, executor: ThreadPoolExecutor
) -> None:
    content = secrets.token_bytes(4_000_000)
    sha256 = write_model(network.models, content)
    _, anna = network.pair(models=(sha256,))
    network.link.freeze()
    fetching = executor.submit(
        anna.fetch_model, sha256=sha256, size=len(content), into=network.folder / "site"
    )
    time.sleep(1.5)
    network.link.thaw()

    assert fetching.result(timeout=20).read_bytes() == content


def test_stranger_with_only_the_authority_file_is_refused(network: Network) -> None:
    session = network.open("coordinator", "st-anna")
    credentials = grpc.ssl_channel_credentials((network.folder / "pki" / "ca.crt").read_bytes())
    channel = grpc.secure_channel(network.server.address, credentials)
    attach = Attach(ticket=session.tickets["st-anna"], incarnation=bytes(16), received=0)

    call = stubs.ExchangeStub(channel).Link(iter([attach_to_proto(attach)]), timeout=3)

    assert refusal_of(call) is grpc.StatusCode.UNAVAILABLE
    channel.close()


def test_certificate_of_a_foreign_authority_is_refused(network: Network, tmp_path: Path) -> None:
    session = network.open("coordinator", "st-anna")
    foreign = Authority(tmp_path / "foreign").site("st-anna")
    trusting = replace(foreign, ca=tmp_path / "pki" / "ca.crt")

    with pytest.raises(ChannelClosed, match="exchange"):
        network.join(session.tickets["st-anna"], tls=trusting, timing=IMPATIENT)


def test_expired_certificate_is_refused(network: Network) -> None:
    session = network.open("coordinator", "st-anna")
    expired = network.authority.site("st-anna", days=-1)

    with pytest.raises(ChannelClosed, match="exchange"):
        network.join(session.tickets["st-anna"], tls=expired, timing=IMPATIENT)


def test_server_of_a_foreign_authority_is_not_believed(network: Network, tmp_path: Path) -> None:
    session = network.open("coordinator", "st-anna")
    other = Authority(tmp_path / "foreign").site("st-anna")

    with pytest.raises(ChannelClosed, match="CERTIFICATE_VERIFY_FAILED"):
        network.join(session.tickets["st-anna"], tls=other, timing=IMPATIENT)


def test_site_cannot_pose_as_another_site_with_its_ticket(network: Network) -> None:
    session = network.open("coordinator", "st-anna", "st-mark")

    with pytest.raises(ChannelClosed, match="does not carry the role concord:site:st-anna"):
        network.join(session.tickets["st-anna"], tls=network.authority.site("st-mark"))


def test_site_cannot_pose_as_the_coordinator(network: Network) -> None:
    session = network.open("coordinator", "st-anna")
    named_so = network.authority.site("coordinator")

    with pytest.raises(ChannelClosed, match="does not carry the role concord:role:coordinator"):
        network.join(session.tickets["coordinator"], tls=named_so)


def test_site_cannot_fetch_with_the_ticket_of_another(network: Network) -> None:
    sha256 = write_model(network.models, b"model")
    session = network.open("coordinator", "st-anna", models=(sha256,))
    channel = grpc.secure_channel(
        network.server.address, read_credentials(network.authority.site("st-mark"))
    )
    shown = session.tickets["st-anna"]
    ticket = pb.Ticket(
        session_id=shown.session_id, endpoint=shown.endpoint, ticket=shown.ticket
    )

    call = stubs.ExchangeStub(channel).FetchModel(pb.FetchRequest(ticket=ticket, sha256=sha256))

    assert refusal_of(call) is grpc.StatusCode.UNAUTHENTICATED
    channel.close()


def test_site_can_neither_open_nor_close_sessions(network: Network) -> None:
    session = network.open("coordinator", "st-anna")
    admin = open_admin(
        network.server.address, credentials=network.authority.site("st-anna")
    )

    with pytest.raises(ChannelError, match="UNAUTHENTICATED"):
        admin.open_session(make_session("st-anna").spec)
    with pytest.raises(ChannelError, match="UNAUTHENTICATED"):
        admin.close_session(session.spec.session_id, reason="mine now")

    admin.close()


def test_link_speaks_nothing_older_than_tls_1_3(network: Network) -> None:
    files = network.authority.site("st-anna")
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", network.server.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.version() == "TLSv1.3"


ATTACH = pb.Ticket(session_id="run/1/1", endpoint="st-anna", ticket=bytes(32))
MALFORMED_FIRST_MESSAGES = {
    "empty": pb.ToRelay(),
    "frame before attach": pb.ToRelay(send=pb.Send(number=1, to="coordinator", kind="x")),
    "no incarnation": pb.ToRelay(attach=pb.Attach(ticket=ATTACH)),
    "bad session id": pb.ToRelay(
        attach=pb.Attach(
            ticket=pb.Ticket(session_id="../x y", endpoint="st-anna", ticket=bytes(32)),
            incarnation=bytes(16),
        )
    ),
    "bad endpoint": pb.ToRelay(
        attach=pb.Attach(
            ticket=pb.Ticket(session_id="run/1/1", endpoint="exchange", ticket=bytes(32)),
            incarnation=bytes(16),
        )
    ),
    "long ticket": pb.ToRelay(
        attach=pb.Attach(
            ticket=pb.Ticket(session_id="run/1/1", endpoint="st-anna", ticket=bytes(1000)),
            incarnation=bytes(16),
        )
    ),
}


@pytest.mark.parametrize("name", MALFORMED_FIRST_MESSAGES)
def test_malformed_first_message_is_refused(network: Network, name: str) -> None:
    channel = grpc.secure_channel(
        network.server.address, read_credentials(network.authority.site("st-anna"))
    )

    call = stubs.ExchangeStub(channel).Link(iter([MALFORMED_FIRST_MESSAGES[name]]), timeout=5)

    assert refusal_of(call) is grpc.StatusCode.INVALID_ARGUMENT
    channel.close()


def frame(number: int, **changes: Any) -> pb.ToRelay:
    fields: dict[str, Any] = {"to": "coordinator", "kind": "seal", "payload": b"x", **changes}
    return pb.ToRelay(send=pb.Send(number=number, **fields))


BROKEN_FRAMES = {
    "number skipped": [frame(2)],
    "own address": [frame(1, to="st-anna")],
    "stranger's address": [frame(1, to="st-mark")],
    "bad address": [frame(1, to="*")],
    "bad kind": [frame(1, kind="k" * 33)],
    "announces too much": [frame(1, missing=1 << 20)],
    "part without frame": [pb.ToRelay(part=pb.Part(payload=b"x"))],
    "part too long": [frame(1, missing=3), pb.ToRelay(part=pb.Part(payload=b"xxxx"))],
    "empty part": [frame(1, missing=3), pb.ToRelay(part=pb.Part())],
    "interrupted frame": [frame(1, missing=3), pb.ToRelay(ping=pb.Ping())],
    "consumed before delivered": [pb.ToRelay(consumed=pb.Consumed(number=1))],
    "second attach": [pb.ToRelay(attach=pb.Attach(ticket=ATTACH, incarnation=bytes(16)))],
    "nothing": [pb.ToRelay()],
}


@pytest.mark.parametrize("name", BROKEN_FRAMES)
def test_endpoint_that_breaks_the_protocol_is_refused(network: Network, name: str) -> None:
    session = network.open("coordinator", "st-anna")
    coordinator = network.join(session.tickets["coordinator"])
    attach = Attach(ticket=session.tickets["st-anna"], incarnation=bytes(16), received=0)
    channel = grpc.secure_channel(
        network.server.address, read_credentials(network.authority.site("st-anna"))
    )

    call = stubs.ExchangeStub(channel).Link(
        iter([attach_to_proto(attach), *BROKEN_FRAMES[name]]), timeout=5
    )

    assert refusal_of(call) is grpc.StatusCode.INVALID_ARGUMENT
    assert coordinator.receive(timeout_seconds=5).payload == b"st-anna"
    channel.close()


def test_message_above_the_network_limit_is_refused(network: Network) -> None:
    session = network.open("coordinator", "st-anna")
    attach = Attach(ticket=session.tickets["st-anna"], incarnation=bytes(16), received=0)
    channel = grpc.secure_channel(
        network.server.address,
        read_credentials(network.authority.site("st-anna")),
        options=[("grpc.max_send_message_length", -1)],
    )
    oversized = frame(1, payload=bytes(MAX_MESSAGE_BYTES))

    call = stubs.ExchangeStub(channel).Link(iter([attach_to_proto(attach), oversized]), timeout=5)

    assert refusal_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    channel.close()
