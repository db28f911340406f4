"""The contract of a channel, the same over gRPC and in memory: frames, windows, model files."""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.wire.channel import (
    MAX_PAYLOAD_BYTES,
    ChannelTimeout,
    Frame,
    FrameTooLarge,
    TransferError,
    UnknownEndpoint,
)
from tests.coordinator.exchange_hosts import (
    LIMITS,
    Exchange,
    numbered,
    receive_all,
    send_all,
    until,
)
from tests.coordinator.exchange_rig import make_session, write_model

pytest_plugins = ["tests.coordinator.exchange_fixtures"]

MODEL = secrets.token_bytes(3_000_001)


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
