"""Strangers, impostors and malformed messages at the exchange's public port."""

import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.wire import exchange_pb2 as pb
from coordinator.wire import exchange_pb2_grpc as stubs
from coordinator.wire.channel import (
    ChannelClosed,
    ChannelError,
    LinkTiming,
)
from coordinator.wire.codec import MAX_MESSAGE_BYTES, attach_to_proto
from coordinator.wire.connect import open_admin
from coordinator.wire.grpc_channel import read_credentials
from coordinator.wire.messages import Attach
from tests.coordinator.exchange_hosts import Network
from tests.coordinator.exchange_rig import Authority, make_session, write_model

pytest_plugins = ["tests.coordinator.exchange_fixtures"]

IMPATIENT = LinkTiming(heartbeat_seconds=0.15, break_seconds=0.8, connect_seconds=0.8)


def refusal_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        list(call)
    code: grpc.StatusCode = refused.value.code()
    return code


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

    with pytest.raises(ChannelClosed, match="Tls handshake failed"):
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
    ticket = pb.Ticket(session_id=shown.session_id, endpoint=shown.endpoint, ticket=shown.ticket)

    call = stubs.ExchangeStub(channel).FetchModel(pb.FetchRequest(ticket=ticket, sha256=sha256))

    assert refusal_of(call) is grpc.StatusCode.UNAUTHENTICATED
    channel.close()


def test_site_can_neither_open_nor_close_sessions(network: Network) -> None:
    session = network.open("coordinator", "st-anna")
    admin = open_admin(network.server.address, credentials=network.authority.site("st-anna"))

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
