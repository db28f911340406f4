"""The relay and the link without any transport: a clock that is set by hand, cuts between any two messages."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import RLock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.wire.channel import Frame, SessionSpec
from coordinator.wire.link import Link
from coordinator.wire.messages import (
    FRAME_OVERHEAD_BYTES,
    Attach,
    Attached,
    Closed,
    Consumed,
    Deliver,
    FromRelay,
    Leave,
    Progress,
    ProtocolError,
    Send,
)
from coordinator.wire.relay import MAX_CLOSED_REMEMBERED, Relay
from coordinator.wire.session import LINGER_SECONDS, Connection, RefusedError, RelayLimits
from coordinator.wire.transfer import Chunk
from tests.coordinator.exchange_rig import Tickets, make_session

LIMITS = RelayLimits(
    pair_window_bytes=2 << 20,
    endpoint_window_bytes=3 << 20,
    delivery_window_bytes=(1 << 20) + FRAME_OVERHEAD_BYTES,
    max_sessions=2,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A relay on a clock of its own, with one session open."""

    def __init__(self, *endpoints: str) -> None:
        self.clock = Clock()
        self.relay = Relay(models=Path("models"), limits=LIMITS, clock=self.clock)
        self.session: Tickets = make_session(*endpoints, silence_seconds=60, deadline_seconds=600)
        self.relay.open_session(self.session.spec)

    def connect(
        self,
        endpoint: str,
        *,
        received: int = 0,
        incarnation: bytes = bytes(16),
        wake: Callable[[], None] = lambda: None,
    ) -> Connection:
        ticket = self.session.tickets[endpoint]
        attach = Attach(ticket=ticket, incarnation=incarnation, received=received)
        return self.relay.connect(attach, wake)

    def hear(self, connection: Connection) -> list[FromRelay]:
        heard = []
        while (message := connection.take(now=self.clock.now)) is not None:
            heard.append(message)
        return heard

    def send(self, connection: Connection, number: int, to: str, payload: bytes = b"") -> None:
        connection.accept(
            Send(number=number, to=to, kind="seal", payload=payload), now=self.clock.now
        )


@pytest.fixture
def bench() -> Bench:
    return Bench("coordinator", "st-anna", "st-mark")


def numbers(messages: list[FromRelay]) -> list[int]:
    return [message.number for message in messages if isinstance(message, Deliver)]


def test_first_message_says_where_both_stand(bench: Bench) -> None:
    heard = bench.hear(bench.connect("st-anna"))

    assert heard == [
        Attached(
            received=0,
            endpoints=("coordinator", "st-anna", "st-mark"),
            credits={},
            pair_window_bytes=LIMITS.pair_window_bytes,
            endpoint_window_bytes=LIMITS.endpoint_window_bytes,
            silence_seconds=60,
        )
    ]


def test_credit_comes_when_the_receiver_has_consumed(bench: Bench) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")
    bench.send(anna, 1, "coordinator", b"12345")
    assert len(bench.hear(anna)) == 1
    assert numbers(bench.hear(coordinator)) == [1]
    assert bench.hear(anna) == []

    coordinator.accept(Consumed(number=1), now=0)

    cost = 5 + FRAME_OVERHEAD_BYTES
    assert bench.hear(anna) == [Progress(received=1, credits={"coordinator": cost})]
    assert bench.relay.held_bytes == 0


def test_frame_sent_twice_is_delivered_once(bench: Bench) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")

    bench.send(anna, 1, "coordinator")
    bench.send(anna, 1, "coordinator")

    assert numbers(bench.hear(coordinator)) == [1]


def test_reconnect_delivers_again_what_did_not_arrive(bench: Bench) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")
    for number in range(1, 6):
        bench.send(anna, number, "coordinator")
    bench.hear(coordinator)
    coordinator.accept(Consumed(number=2), now=0)
    coordinator.detach(silent_since=bench.clock.now)

    again = bench.connect("coordinator", received=3)

    assert numbers(bench.hear(again)) == [4, 5]


@pytest.mark.parametrize("received", [1, 6])
def test_reconnect_with_an_impossible_number_is_refused(bench: Bench, received: int) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")
    for number in range(1, 6):
        bench.send(anna, number, "coordinator")
    bench.hear(coordinator)
    coordinator.accept(Consumed(number=2), now=0)

    with pytest.raises(ProtocolError, match="cannot have received"):
        bench.connect("coordinator", received=received)


def test_newest_connection_counts_and_the_old_one_is_over(bench: Bench) -> None:
    woken: list[str] = []
    old = bench.connect("st-anna", wake=lambda: woken.append("old"))
    new = bench.connect("st-anna")

    bench.send(old, 1, "coordinator")
    old.detach(silent_since=bench.clock.now)

    assert old.is_over
    assert not new.is_over
    assert "old" in woken
    assert bench.relay.held_bytes == 0


def test_window_towards_one_endpoint_cannot_be_exceeded(bench: Bench) -> None:
    anna = bench.connect("st-anna")
    bench.send(anna, 1, "coordinator", bytes(1 << 20))

    with pytest.raises(ProtocolError, match="exceeds the window"):
        bench.send(anna, 2, "coordinator", bytes(1 << 20))


def test_window_of_an_endpoint_cannot_be_exceeded_over_several_receivers(bench: Bench) -> None:
    anna = bench.connect("st-anna")
    bench.send(anna, 1, "coordinator", bytes(1 << 20))
    bench.send(anna, 2, "st-mark", bytes(1 << 20))

    with pytest.raises(ProtocolError, match="exceeds the window"):
        bench.send(anna, 3, "st-mark", bytes((1 << 20) - 2 * FRAME_OVERHEAD_BYTES))


def test_flood_of_empty_frames_is_bounded(bench: Bench) -> None:
    anna = bench.connect("st-anna")
    most = LIMITS.pair_window_bytes // FRAME_OVERHEAD_BYTES
    for number in range(1, most + 1):
        bench.send(anna, number, "coordinator")

    with pytest.raises(ProtocolError, match="exceeds the window"):
        bench.send(anna, most + 1, "coordinator")


def test_receiver_is_given_no_more_than_its_process_must_hold(bench: Bench) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")
    bench.send(anna, 1, "coordinator", bytes(900_000))
    bench.send(anna, 2, "coordinator", bytes(900_000))

    assert numbers(bench.hear(coordinator)) == [1]
    coordinator.accept(Consumed(number=1), now=0)
    assert numbers(bench.hear(coordinator)) == [2]


def test_frames_to_a_lost_endpoint_are_dropped_and_credited(bench: Bench) -> None:
    coordinator, mark = bench.connect("coordinator"), bench.connect("st-mark")
    bench.send(coordinator, 1, "st-anna", b"before")
    bench.hear(coordinator)
    bench.clock.now += 61
    bench.relay.tick()
    bench.send(coordinator, 2, "st-anna", b"after it")

    heard = bench.hear(coordinator)

    assert heard == [
        Progress(received=2, credits={"st-anna": 14 + 2 * FRAME_OVERHEAD_BYTES}),
        Deliver(number=1, sender="exchange", kind="lost", payload=b"st-anna"),
    ]
    assert bench.relay.held_bytes == 0
    assert not mark.is_over


def test_silence_counts_from_what_was_last_heard(bench: Bench) -> None:
    coordinator, anna, mark = (
        bench.connect(name) for name in ("coordinator", "st-anna", "st-mark")
    )
    bench.clock.now += 100
    anna.detach(silent_since=bench.clock.now - 8)
    bench.clock.now += 51
    bench.relay.tick()
    assert numbers(bench.hear(coordinator)) == []

    bench.clock.now += 1.5
    bench.relay.tick()

    assert numbers(bench.hear(coordinator)) == [1]
    assert not mark.is_over


def test_session_closes_when_the_coordinator_is_silent(bench: Bench) -> None:
    anna, mark = bench.connect("st-anna"), bench.connect("st-mark")
    bench.clock.now += 61

    bench.relay.tick()

    expected = Closed(reason="'coordinator' was silent for 60 s")
    assert bench.hear(anna)[-1] == expected
    assert bench.hear(mark)[-1] == expected


def test_closing_waits_for_a_full_receiver_but_not_for_ever(bench: Bench) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")
    bench.send(anna, 1, "coordinator", bytes(900_000))
    bench.send(anna, 2, "coordinator", bytes(900_000))
    bench.relay.close_session(bench.session.spec.session_id, "done")
    assert numbers(bench.hear(coordinator)) == [1]
    assert not coordinator.is_over

    bench.clock.now += LINGER_SECONDS
    bench.relay.tick()

    assert bench.hear(coordinator) == [Closed(reason="done")]
    assert bench.relay.held_bytes == 0


def test_tick_says_when_the_next_thing_is_due(bench: Bench) -> None:
    assert bench.relay.tick() == pytest.approx(60)
    bench.clock.now += 59
    assert bench.relay.tick() == pytest.approx(1)


def test_sessions_are_bounded_in_number(bench: Bench) -> None:
    bench.relay.open_session(make_session("st-anna").spec)

    with pytest.raises(RefusedError, match="2 sessions are open"):
        bench.relay.open_session(make_session("st-anna").spec)


def test_reasons_of_closed_sessions_are_remembered_in_bounded_number(bench: Bench) -> None:
    names = [f"run/{index}" for index in range(MAX_CLOSED_REMEMBERED + 5)]
    for name in names:
        spec = SessionSpec(
            session_id=name,
            tickets={"st-anna": bytes(32)},
            silence_seconds=1,
            deadline_seconds=1,
        )
        bench.relay.open_session(spec)
        bench.relay.close_session(name, "done")

    assert len(bench.relay._closed) == MAX_CLOSED_REMEMBERED


def test_broken_protocol_ends_the_endpoint_and_tells_the_coordinator(bench: Bench) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")

    anna.expel(ProtocolError("nonsense"), now=bench.clock.now)

    assert bench.hear(anna)[-1] == Closed(reason="'st-anna' broke the protocol: nonsense")
    assert numbers(bench.hear(coordinator)) == [1]
    with pytest.raises(RefusedError, match="broke the protocol"):
        bench.connect("st-anna")


def test_leaving_twice_is_one_loss(bench: Bench) -> None:
    anna, coordinator = bench.connect("st-anna"), bench.connect("coordinator")

    anna.accept(Leave(), now=0)
    anna.accept(Leave(), now=0)

    assert numbers(bench.hear(coordinator)) == [1]


class HandTransport:
    """Moves one message at a time, and is cut on request; what was moved but not handled is lost."""

    def __init__(self, bench: Bench, endpoint: str) -> None:
        self.lock = RLock()
        self.last_break = ""
        self._bench = bench
        self.link = Link(bench.session.tickets[endpoint], self)
        self.reconnect()

    def start(self, link: Link) -> None: ...

    def stop(self) -> None: ...

    def pump(self) -> float | None:
        return None

    def chunks(self, sha256: str, offset: int) -> Iterator[Chunk]:
        raise NotImplementedError

    def reconnect(self) -> None:
        self._connection = self._bench.relay.connect(self.link.attach_request(), lambda: None)

    def carry(self, *, loses: bool = False) -> bool:
        outgoing = self.link.next_outgoing()
        incoming = self._connection.take(now=self._bench.clock.now)
        if loses:
            self.reconnect()
            return True
        if outgoing is not None:
            self._connection.accept(outgoing, now=self._bench.clock.now)
        if incoming is not None:
            self.link.handle(incoming)
        return outgoing is not None or incoming is not None


ACTIONS = st.lists(
    st.sampled_from(["send", "carry A", "carry B", "cut A", "cut B", "receive"]), max_size=120
)


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS)
def test_cuts_between_any_two_messages_lose_and_double_nothing(actions: list[str]) -> None:
    bench = Bench("coordinator", "st-anna")
    anna, coordinator = HandTransport(bench, "st-anna"), HandTransport(bench, "coordinator")
    anna.carry()
    coordinator.carry()
    sent: list[bytes] = []
    received: list[Frame] = []

    def send() -> None:
        sent.append(len(sent).to_bytes(2, "big"))
        anna.link.send(to="coordinator", kind="seal", payload=sent[-1])

    def receive() -> None:
        if coordinator.link._inbox:
            received.append(coordinator.link.receive(timeout_seconds=0))

    steps: dict[str, Callable[[], object]] = {
        "send": send,
        "receive": receive,
        "carry A": anna.carry,
        "carry B": coordinator.carry,
        "cut A": lambda: anna.carry(loses=True),
        "cut B": lambda: coordinator.carry(loses=True),
    }
    for action in actions:
        steps[action]()
    while anna.carry() | coordinator.carry() or coordinator.link._inbox:
        receive()

    assert [frame.payload for frame in received] == sent
    assert bench.relay.held_bytes == 0
