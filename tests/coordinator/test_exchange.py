"""The contract of a channel, the same over gRPC and in memory."""

import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.wire.channel import (
    MAX_PAYLOAD_BYTES,
    Channel,
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
    Frame,
    FrameTooLarge,
    SessionAdmin,
    SessionTicket,
    TransferError,
    UnknownEndpoint,
)
from coordinator.wire.connect import open_admin, open_channel
from coordinator.wire.memory_channel import start_relay
from coordinator.wire.session import RelayLimits
from tests.coordinator.exchange_rig import (
    QUICK,
    Authority,
    ServerThread,
    Tickets,
    make_session,
    write_model,
)

LIMITS = RelayLimits(
    pair_window_bytes=2 << 20, endpoint_window_bytes=4 << 20, delivery_window_bytes=2 << 20
)
MODEL = secrets.token_bytes(3_000_001)


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


@pytest.fixture(params=["memory", "grpc"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Exchange]:
    authority = Authority(tmp_path / "pki")
    models = tmp_path / "models"
    seen: list[tuple[str, Frame]] = []
    arguments: dict[str, Any] = {
        "models": models,
        "limits": LIMITS,
        "observer": lambda to, frame: seen.append((to, frame)),
    }
    if request.param == "memory":
        name = f"test-{secrets.token_hex(4)}"
        host: Any = start_relay(name, **arguments)
        address = f"memory:{name}"
    else:
        host = ServerThread(tls=authority.server(), timing=QUICK, **arguments)
        address = host.address
    running = Exchange(address, host, authority, models)
    running.seen = seen
    yield running
    running.leave_all()
    (host.close if request.param == "memory" else host.stop)()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


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


def test_frames_arrive_once_in_order_with_sender_and_kind(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")

    anna.send(to="coordinator", kind="hello", payload=b"one")
    anna.send(to="coordinator", kind="seal", payload=b"")

    first = coordinator.receive(timeout_seconds=5)
    second = coordinator.receive(timeout_seconds=5)
    assert first == Frame(sender="st-anna", kind="hello", payload=b"one")
    assert second == Frame(sender="st-anna", kind="seal", payload=b"")


def test_frames_of_every_size_arrive_unaltered(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")
    sizes = (0, 1, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 700_000, MAX_PAYLOAD_BYTES)
    payloads = [secrets.token_bytes(size) for size in sizes]

    sender = threading.Thread(target=send_all, args=(anna, "coordinator", payloads))
    sender.start()

    assert receive_all(coordinator, len(sizes)) == payloads
    sender.join()


def test_sites_can_address_each_other(exchange: Exchange) -> None:
    _, anna, mark = exchange.join_all("coordinator", "st-anna", "st-mark")

    anna.send(to="st-mark", kind="share", payload=b"for mark")

    assert mark.receive(timeout_seconds=5).sender == "st-anna"


def test_both_directions_at_full_load_lose_nothing(
    exchange: Exchange, executor: ThreadPoolExecutor
) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")
    payloads = numbered(150, size=100_000)

    sent = [
        executor.submit(send_all, anna, "coordinator", payloads),
        executor.submit(send_all, coordinator, "st-anna", payloads),
    ]
    received = [
        executor.submit(receive_all, coordinator, len(payloads)),
        executor.submit(receive_all, anna, len(payloads)),
    ]

    assert [each.result(20) for each in received] == [payloads, payloads]
    assert [each.result(20) for each in sent] == [None, None]


def test_frames_sent_before_the_receiver_joins_wait_for_it(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna")
    coordinator = exchange.join(session.tickets["coordinator"])

    coordinator.send(to="st-anna", kind="roster", payload=b"early")

    assert exchange.join(session.tickets["st-anna"]).receive(timeout_seconds=5).payload == b"early"


def test_oversized_frame_is_refused_before_it_is_sent(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")

    with pytest.raises(FrameTooLarge, match="1048577 bytes"):
        anna.send(to="coordinator", kind="seal", payload=bytes(MAX_PAYLOAD_BYTES + 1))

    anna.send(to="coordinator", kind="seal", payload=b"next")
    assert coordinator.receive(timeout_seconds=5).payload == b"next"


@pytest.mark.parametrize("to", ["st-mark", "st-anna", "exchange", ""])
def test_unknown_endpoint_is_refused(exchange: Exchange, to: str) -> None:
    _, anna = exchange.join_all("coordinator", "st-anna")

    with pytest.raises(UnknownEndpoint):
        anna.send(to=to, kind="hello", payload=b"")


@pytest.mark.parametrize("kind", ["", "k" * 33, "with space", "-first", "naïve"])
def test_malformed_kind_is_refused(exchange: Exchange, kind: str) -> None:
    _, anna = exchange.join_all("coordinator", "st-anna")

    with pytest.raises(ValueError, match="frame kind"):
        anna.send(to="coordinator", kind=kind, payload=b"")


def test_silence_is_a_timeout_and_the_channel_stays_good(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")

    with pytest.raises(ChannelTimeout):
        anna.receive(timeout_seconds=0.05)

    coordinator.send(to="st-anna", kind="hello", payload=b"later")
    assert anna.receive(timeout_seconds=5).payload == b"later"


def test_wrong_ticket_is_refused(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna")
    forged = replace(session.tickets["st-anna"], ticket=bytes(32))

    with pytest.raises(ChannelClosed, match="ticket refused"):
        exchange.join(forged)


def test_ticket_of_another_session_is_refused(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna")
    other = exchange.open("coordinator", "st-anna")
    foreign = replace(session.tickets["st-anna"], session_id=other.spec.session_id)

    with pytest.raises(ChannelClosed, match="ticket refused"):
        exchange.join(foreign)


def test_endpoint_outside_the_session_is_refused_like_a_wrong_ticket(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna")
    stranger = replace(session.tickets["st-anna"], endpoint="st-mark")

    with pytest.raises(ChannelClosed, match="ticket refused"):
        exchange.join(stranger)


def test_unknown_session_is_refused_at_once(exchange: Exchange) -> None:
    never_opened = make_session("coordinator", "st-anna")
    begun = time.monotonic()

    with pytest.raises(ChannelClosed, match="unknown session"):
        exchange.join(never_opened.tickets["st-anna"])

    assert time.monotonic() - begun < 2


def test_second_channel_for_an_endpoint_is_refused_and_the_first_goes_on(
    exchange: Exchange,
) -> None:
    session = exchange.open("coordinator", "st-anna")
    anna = exchange.join(session.tickets["st-anna"])
    coordinator = exchange.join(session.tickets["coordinator"])

    with pytest.raises(ChannelClosed, match="already has a channel"):
        exchange.join(session.tickets["st-anna"])

    anna.send(to="coordinator", kind="hello", payload=b"")
    assert coordinator.receive(timeout_seconds=5).kind == "hello"


def test_slow_receiver_stops_its_sender_and_memory_stays_bounded(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")
    payloads = numbered(40, size=500_000)
    sender = threading.Thread(target=send_all, args=(anna, "coordinator", payloads))
    sender.start()
    highest = 0

    assert until(lambda: exchange.host.held_bytes > 1_000_000)
    highest = exchange.host.held_bytes
    sender.join(timeout=0.3)
    is_stopped = sender.is_alive()
    highest = max(highest, exchange.host.held_bytes)

    assert is_stopped
    assert highest <= LIMITS.pair_window_bytes
    assert receive_all(coordinator, 40) == payloads
    sender.join(timeout=5)
    assert not sender.is_alive()
    anna.close()
    assert until(lambda: exchange.host.held_bytes == 0)


def test_stalled_endpoint_does_not_stall_the_others(
    executor: ThreadPoolExecutor, exchange: Exchange
) -> None:
    session = exchange.open("coordinator", "st-anna", "st-mark")
    coordinator = exchange.join(session.tickets["coordinator"])
    mark = exchange.join(session.tickets["st-mark"])
    filling = executor.submit(send_all, coordinator, "st-anna", numbered(4, size=600_000))
    assert until(lambda: exchange.host.held_bytes > 1_800_000)
    assert not filling.done()  # st-anna never came; its window is full

    coordinator.send(to="st-mark", kind="hello", payload=b"on time")

    assert mark.receive(timeout_seconds=5).payload == b"on time"
    mark.send(to="coordinator", kind="hello", payload=b"answer")
    assert coordinator.receive(timeout_seconds=5).payload == b"answer"


def test_absent_endpoint_is_reported_lost_and_frees_its_senders(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna", "st-mark", silence_seconds=0.6)
    coordinator = exchange.join(session.tickets["coordinator"])
    exchange.join(session.tickets["st-mark"])
    filling = threading.Thread(
        target=send_all, args=(coordinator, "st-anna", numbered(20, size=600_000))
    )
    filling.start()

    lost = coordinator.receive(timeout_seconds=5)

    assert lost == Frame(sender="exchange", kind="lost", payload=b"st-anna")
    filling.join(timeout=5)
    assert not filling.is_alive()


def test_lost_endpoint_cannot_come_back(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna", silence_seconds=0.3)
    coordinator = exchange.join(session.tickets["coordinator"])
    assert coordinator.receive(timeout_seconds=5).kind == "lost"

    with pytest.raises(ChannelClosed, match="'st-anna' was silent for 0.3 s"):
        exchange.join(session.tickets["st-anna"])


def test_leaving_endpoint_is_reported_after_its_last_frame(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")

    anna.send(to="coordinator", kind="receipt", payload=b"done")
    anna.close()

    kinds = [coordinator.receive(timeout_seconds=5).kind for _ in range(2)]
    assert kinds == ["receipt", "lost"]
    with pytest.raises(ChannelClosed):
        anna.send(to="coordinator", kind="more", payload=b"")


def test_session_ends_when_the_coordinator_leaves_and_its_last_words_arrive(
    exchange: Exchange,
) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")

    coordinator.send(to="st-anna", kind="result", payload=b"last words")
    coordinator.close()

    assert anna.receive(timeout_seconds=5).payload == b"last words"
    with pytest.raises(ChannelClosed, match="'coordinator' has left"):
        anna.receive(timeout_seconds=5)


def test_closing_a_session_reaches_a_blocked_receive(
    exchange: Exchange, executor: ThreadPoolExecutor
) -> None:
    session = exchange.open("coordinator", "st-anna")
    anna = exchange.join(session.tickets["st-anna"])
    blocked = executor.submit(anna.receive, timeout_seconds=30)

    exchange.admin.close_session(session.spec.session_id, reason="round aborted: quorum lost")

    with pytest.raises(ChannelClosed, match="round aborted: quorum lost"):
        blocked.result(timeout=5)


def test_closing_a_session_reaches_a_blocked_send(
    exchange: Exchange, executor: ThreadPoolExecutor
) -> None:
    session = exchange.open("coordinator", "st-anna")
    anna = exchange.join(session.tickets["st-anna"])
    blocked = executor.submit(send_all, anna, "coordinator", numbered(20, size=600_000))
    assert until(lambda: exchange.host.held_bytes > 1_000_000)

    exchange.admin.close_session(session.spec.session_id, reason="aborted")

    with pytest.raises(ChannelClosed, match="aborted"):
        blocked.result(timeout=5)


def test_latecomer_hears_why_the_session_was_closed(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna")
    exchange.admin.close_session(session.spec.session_id, reason="committed")

    with pytest.raises(ChannelClosed, match="committed"):
        exchange.join(session.tickets["st-anna"])


def test_deadline_ends_the_session(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna", deadline_seconds=0.5)
    anna = exchange.join(session.tickets["st-anna"])

    with pytest.raises(ChannelClosed, match=r"deadline of 0\.5 s has passed"):
        anna.receive(timeout_seconds=5)


def test_opening_the_same_session_again_changes_nothing(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna")
    anna = exchange.join(session.tickets["st-anna"])

    exchange.admin.open_session(session.spec)

    with pytest.raises(ChannelTimeout):
        anna.receive(timeout_seconds=0.05)


def test_session_id_cannot_be_used_for_another_session(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna")
    other = replace(session.spec, silence_seconds=1.0)

    with pytest.raises(ChannelError, match="exists already"):
        exchange.admin.open_session(other)


def test_model_arrives_equal_and_is_counted(exchange: Exchange, tmp_path: Path) -> None:
    sha256 = write_model(exchange.models, MODEL)
    session = exchange.open("coordinator", "st-anna", models=(sha256,))
    anna = exchange.join(session.tickets["st-anna"])

    path = anna.fetch_model(sha256=sha256, size=len(MODEL), into=tmp_path / "site")

    assert path == tmp_path / "site" / f"{sha256}.safetensors"
    assert path.read_bytes() == MODEL
    assert anna.bytes_received == len(MODEL)
    assert list(path.parent.iterdir()) == [path]


def test_model_outside_the_session_is_refused(exchange: Exchange, tmp_path: Path) -> None:
    sha256 = write_model(exchange.models, MODEL)
    session = exchange.open("coordinator", "st-anna")
    anna = exchange.join(session.tickets["st-anna"])

    with pytest.raises(TransferError, match="not part of session"):
        anna.fetch_model(sha256=sha256, size=len(MODEL), into=tmp_path / "site")


def test_model_lost_by_the_coordinator_is_a_clear_error(exchange: Exchange, tmp_path: Path) -> None:
    sha256 = "ab" * 32
    session = exchange.open("coordinator", "st-anna", models=(sha256,))
    anna = exchange.join(session.tickets["st-anna"])

    with pytest.raises(TransferError, match="lost this file"):
        anna.fetch_model(sha256=sha256, size=10, into=tmp_path / "site")


def test_observer_sees_every_frame_with_its_receiver(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")

    anna.send(to="coordinator", kind="seal", payload=b"x" * 400_000)
    coordinator.receive(timeout_seconds=5)

    expected = Frame(sender="st-anna", kind="seal", payload=b"x" * 400_000)
    assert exchange.seen == [("coordinator", expected)]


def test_bytes_are_counted_at_both_ends(exchange: Exchange) -> None:
    coordinator, anna = exchange.join_all("coordinator", "st-anna")

    anna.send(to="coordinator", kind="seal", payload=bytes(1234))
    coordinator.receive(timeout_seconds=5)

    assert (anna.bytes_sent, anna.bytes_received) == (1234, 0)
    assert (coordinator.bytes_sent, coordinator.bytes_received) == (0, 1234)


def test_tickets_and_payloads_stay_out_of_repr() -> None:
    session = make_session("st-anna")
    frame = Frame(sender="st-anna", kind="seal", payload=b"secret")

    assert "ticket=" not in repr(session.tickets["st-anna"])
    assert "secret" not in repr(frame)


def test_no_endpoint_may_be_called_exchange() -> None:
    with pytest.raises(ValueError, match="name of an endpoint"):
        make_session("coordinator", "exchange")


@pytest.mark.parametrize("silence_seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_session_without_a_sound_silence_is_refused(silence_seconds: float) -> None:
    with pytest.raises(ValueError, match="silence_seconds"):
        make_session("coordinator", silence_seconds=silence_seconds)
