"""What a network does to the data plane: cuts, silence, restarts. Nothing is lost, nothing is doubled."""

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.wire.channel import (
    ChannelClosed,
    LinkTiming,
)
from coordinator.wire.connect import open_channel
from tests.coordinator.exchange_hosts import (
    Network,
    numbered,
    receive_all,
    send_all,
)
from tests.coordinator.exchange_rig import QUICK, Authority, ServerThread, make_session, write_model

pytest_plugins = ["tests.coordinator.exchange_fixtures"]


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
    time.sleep(1.2)
    network.link.thaw()

    assert receive_all(coordinator, len(up) - 3) == up[3:]
    assert sending.result(timeout=5) is None
    assert network.link.connections >= 2


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_thirty_seconds_without_a_link_cost_only_time(
    network: Network, executor: ThreadPoolExecutor
) -> None:
    coordinator, anna = network.pair(silence_seconds=60.0)
    up = numbered(30, size=200_000)
    send_all(anna, "coordinator", up[:3])

    network.link.freeze()
    sending = executor.submit(send_all, anna, "coordinator", up[3:])
    time.sleep(30)
    network.link.thaw()

    assert receive_all(coordinator, len(up)) == up
    assert sending.result(timeout=5) is None


def test_frozen_site_is_reported_lost_in_time(network: Network) -> None:
    coordinator, _ = network.pair(silence_seconds=2.5)
    frozen_at = time.monotonic()

    network.link.freeze()
    lost = coordinator.receive(timeout_seconds=10)

    assert (lost.sender, lost.kind, lost.payload) == ("exchange", "lost", b"st-anna")
    assert 2.3 <= time.monotonic() - frozen_at <= 6


def test_frozen_site_learns_by_itself_that_it_is_out(network: Network) -> None:
    _, anna = network.pair(silence_seconds=2.5)

    network.link.freeze()

    with pytest.raises(ChannelClosed, match="no link to the exchange"):
        anna.receive(timeout_seconds=10)


def test_site_that_returns_too_late_is_told_so(network: Network) -> None:
    coordinator, anna = network.pair(silence_seconds=2.5)
    network.link.freeze()
    assert coordinator.receive(timeout_seconds=10).kind == "lost"

    network.link.thaw()

    with pytest.raises(ChannelClosed, match=r"'st-anna' was silent|no link to the exchange"):
        anna.receive(timeout_seconds=10)


def test_quiet_link_stays_up(network: Network) -> None:
    coordinator, anna = network.pair()

    time.sleep(2 * QUICK.break_seconds)

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
    assert network.link.connections >= 2


def test_resumed_transfer_does_not_begin_again(network: Network) -> None:
    content = secrets.token_bytes(8_000_000)
    sha256 = write_model(network.models, content)
    _, anna = network.pair(models=(sha256,))
    network.link.cut_after(7_000_000)

    anna.fetch_model(sha256=sha256, size=len(content), into=network.folder / "site")

    assert network.link.bytes_to_client < 7_000_000 + 5_000_000  # 3 MB in buffers may be lost


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
    time.sleep(1.0)
    network.link.thaw()

    assert fetching.result(timeout=20).read_bytes() == content
