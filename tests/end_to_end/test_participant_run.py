"""A real agent beside a real coordinator: joining, a cut link, a killed process, a clean end."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.participant.stub_coordinator import CuttableProxy

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
HEART = Path(__file__).parents[2] / "sims" / "data" / "heart"
ENVIRONMENT = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": "/nonexistent"}


def command(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    program, *rest = (str(argument) for argument in arguments)
    return subprocess.run(
        [str(BIN / program), *rest],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=check,
        timeout=120,
    )


@contextlib.contextmanager
def background(log: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    program, *rest = (str(argument) for argument in arguments)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / program), *rest], env=ENVIRONMENT, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def wait_for(what: str, is_true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(1.0)


class Link:
    """The network between the site and the gateway, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(target)))
        self._thread.start()
        self._started.wait(10)

    async def _serve(self, target: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with CuttableProxy(target) as self.proxy:
            self._started.set()
            await self._over.wait()

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self.proxy.cut)

    def mend(self) -> None:
        self._loop.call_soon_threadsafe(self.proxy.mend)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@dataclass
class Rig:
    """A coordinator, a site that has joined it, and the network between them."""

    coordinator: Path
    site: Path
    link: Link
    agent: subprocess.Popen[bytes]

    def status(self) -> dict[str, Any]:
        """The agent's own view, empty before it has one."""
        try:
            found: dict[str, Any] = json.loads((self.site / "run.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def is_online_at_coordinator(self) -> bool:
        answer = command("coordinator", "status", "--home", self.coordinator, "--json")
        sites = json.loads(answer.stdout)["sites"]
        return [site["name"] for site in sites if site["online"] is True] == ["st-anna"]

    def processes(self) -> list[psutil.Process]:
        return list(psutil.Process(self.agent.pid).children(recursive=True))

    def supernode(self) -> psutil.Process:
        (found,) = (p for p in self.processes() if "flower-supernode" in p.cmdline()[1])
        return found


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("participant-run")
    coordinator, site, invitation = folder / "c", folder / "s", folder / "invitation.json"
    ports = ("--gateway-port", "0", "--exchange-port", "0", "--enrolment-port", "0")
    command("coordinator", "init", "--home", coordinator, "--host", "localhost", *ports)
    with background(folder / "serve.log", "coordinator", "serve", "--home", coordinator):
        wait_for("coordinator", lambda: "Ready" in (folder / "serve.log").read_text(), 60)
        command("coordinator", "invite", "st-anna", "--home", coordinator, "--out", invitation)
        joined = json.loads(
            command("participant", "join", invitation, "--home", site, "--json").stdout
        )
        link = Link(int(joined["gateway"].rpartition(":")[2]))
        settings = (site / "site.toml").read_text()
        (site / "site.toml").write_text(
            settings.replace(joined["gateway"], f"localhost:{link.proxy.port}")
        )
        shutil.copy(HEART / "schema.toml", site / "schema.toml")
        shutil.copy(HEART / "cleveland.csv", site / "patients.csv")
        with background(folder / "run.log", "participant", "run", "--home", site) as agent:
            yield Rig(coordinator, site, link, agent)
        link.close()


def test_a_site_that_joined_comes_online(rig: Rig) -> None:
    wait_for("online", lambda: rig.status().get("node") == "online", 90)

    assert rig.is_online_at_coordinator()
    shown = json.loads(command("participant", "status", "--home", rig.site, "--json").stdout)
    assert shown["running"]
    assert shown["agent"]["link"] is None


def test_a_second_agent_on_the_same_home_is_refused(rig: Rig) -> None:
    second = command("participant", "run", "--home", rig.site, check=False)

    assert second.returncode == 1
    assert "Another agent runs" in second.stderr


def test_a_cut_of_40_seconds_costs_nothing_but_time(rig: Rig) -> None:
    before = rig.status()["starts"]

    rig.link.cut()
    time.sleep(40)
    during = rig.status()
    rig.link.mend()
    wait_for("link", lambda: rig.status()["link"] is None, 30)
    time.sleep(5)

    assert during["link"] is not None
    assert rig.status()["starts"] == before == {"supernode": 1, "executor": 1}
    assert rig.status()["node"] == "online"
    assert rig.is_online_at_coordinator()


def test_a_killed_supernode_is_started_again_and_comes_online(rig: Rig) -> None:
    rig.supernode().kill()

    wait_for("a new process", lambda: rig.status()["node"] == "connecting", 30)
    # The SuperLink takes a killed node for online until 60 s after its last heartbeat, and refuses it until then.
    wait_for("the node", lambda: rig.status()["node"] == "online", 120)

    assert rig.is_online_at_coordinator()
    assert rig.status()["starts"]["supernode"] > 1


def test_a_stop_signs_off_and_ends_every_process_within_10_seconds(rig: Rig) -> None:
    processes = [psutil.Process(rig.agent.pid), *rig.processes()]

    started = time.monotonic()
    rig.agent.send_signal(signal.SIGTERM)
    status = rig.agent.wait(30)

    assert time.monotonic() - started < 10
    assert status == 0
    assert [process for process in processes[1:] if process.is_running()] == []
    assert not rig.is_online_at_coordinator()
