"""Fixtures of the data plane's tests; test modules name this file in `pytest_plugins`."""

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from coordinator.wire.channel import (
    Frame,
)
from coordinator.wire.memory_channel import start_relay
from tests.coordinator.exchange_hosts import LIMITS, Exchange, Network
from tests.coordinator.exchange_rig import (
    QUICK,
    Authority,
    ServerThread,
)


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
