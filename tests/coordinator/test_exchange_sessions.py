"""The contract of a session, the same over gRPC and in memory: who may join, who is lost, how it ends."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from coordinator.wire.channel import (
    ChannelClosed,
    ChannelError,
    ChannelTimeout,
    Frame,
)
from tests.coordinator.exchange_hosts import (
    Exchange,
    numbered,
    send_all,
    until,
)
from tests.coordinator.exchange_rig import make_session

pytest_plugins = ["tests.coordinator.exchange_fixtures"]


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


def test_absent_endpoint_is_reported_lost_and_frees_its_senders(exchange: Exchange) -> None:
    session = exchange.open("coordinator", "st-anna", "st-mark", silence_seconds=1.5)
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
    session = exchange.open("coordinator", "st-anna", silence_seconds=1.2)
    coordinator = exchange.join(session.tickets["coordinator"])
    assert coordinator.receive(timeout_seconds=5).kind == "lost"

    with pytest.raises(ChannelClosed, match=r"'st-anna' was silent for 1\.2 s"):
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
    session = exchange.open("coordinator", "st-anna", deadline_seconds=1.2)
    anna = exchange.join(session.tickets["st-anna"])

    with pytest.raises(ChannelClosed, match=r"deadline of 1\.2 s has passed"):
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
