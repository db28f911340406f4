"""A hospital in a network of its own that only dials out, and whose link is cut for half a minute in mid-round."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from coordinator.ledger.records import RunHistory
from coordinator.ledger.states import RoundState
from participant.health import SiteStatus, read_status
from sims.federation import COMMANDS
from tests.end_to_end.federation_rig import PATIENCE_SECONDS, WatchedFederation, counted, tiny_heart

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(900)]

RUN = "cut"
AWAY = "va"
"""The hospital in a network of its own; the others are the coordinator's neighbours."""
NEIGHBOURS = ("cleveland", "hungarian")
CUT_SECONDS = 30.0
CUT_ROUND = 2
COORDINATOR_ADDRESS, AWAY_ADDRESS = "10.209.83.1", "10.209.83.2"
COORDINATOR_END, AWAY_END = "concord-c", "concord-s"
RUN_FILE = """
name = "cut"
schema = "{schema}"
rounds = 2
sites = 3
quorum = 3

[model]
width = 8
layers = 1
heads = 2
kv_heads = 2
experts = 2
top_k = 1
expert_width = 8

[training]
local_steps = 1
sample_rate = 0.2
learning_rate = 0.4
optimizer = "sgd"

[privacy]
mechanism = "dp-sgd"
epsilon = 8.0
delta = 1e-5
clipping_norm = 1.0
count_epsilon = 0.1
metric_epsilon = 0.02

[secure_sum]
scheme = "mask"
update_range = 1.0
weight_cap = 1000

[timing]
join_seconds = {patience}
round_seconds = {patience}
silence_seconds = 60.0
online_seconds = {patience}
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Two network namespaces with one cable between them."""

    coordinator: str
    away: str

    def make(self) -> None:
        for name in (self.coordinator, self.away):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ends = ("netns", self.coordinator, "type", "veth", "peer", "name", AWAY_END)
        ip("link", "add", COORDINATOR_END, *ends, "netns", self.away)
        ip(
            "-n",
            self.coordinator,
            "address",
            "add",
            f"{COORDINATOR_ADDRESS}/30",
            "dev",
            COORDINATOR_END,
        )
        ip("-n", self.away, "address", "add", f"{AWAY_ADDRESS}/30", "dev", AWAY_END)
        ip("-n", self.away, "link", "set", AWAY_END, "up")
        self.mend()

    def cut(self) -> None:
        """Nothing passes any more, in either direction, and nobody is told."""
        ip("-n", self.coordinator, "link", "set", COORDINATOR_END, "down")

    def mend(self) -> None:
        ip("-n", self.coordinator, "link", "set", COORDINATOR_END, "up")

    def remove(self) -> None:
        for name in (self.coordinator, self.away):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("Network namespaces need root and the command `ip` (Debian: iproute2).")
    made = Network(coordinator=f"concord-c-{os.getpid()}", away=f"concord-s-{os.getpid()}")
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"This machine makes no network namespaces: {error.stderr.decode().strip()}")
    yield made
    made.remove()


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened in the run."""

    federation: WatchedFederation
    answer: dict[str, Any]
    """Of `coordinator train --wait`."""
    history: RunHistory
    open_ports: set[str]
    """Addresses other than loopback at which the hospital away listened."""
    before: SiteStatus
    """What the hospital's agent knew of itself before the cut, at its end, and when the run was over."""
    in_the_cut: SiteStatus
    after: SiteStatus


@pytest.fixture(scope="module")
def story(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("network")
    heart = tiny_heart(hospitals=(*NEIGHBOURS, AWAY))
    run_file = folder / "run.toml"
    run_file.write_text(RUN_FILE.format(schema=heart.schema_path, patience=PATIENCE_SECONDS))
    inside = ("ip", "netns", "exec", network.coordinator)
    prefixes = dict.fromkeys(("coordinator", *NEIGHBOURS), inside)
    prefixes[AWAY] = ("ip", "netns", "exec", network.away)
    with WatchedFederation(
        folder, heart, host=COORDINATOR_ADDRESS, prefixes=prefixes
    ) as federation:
        federation.wait_online(*heart.train)
        federation.order(AWAY, "seal", "hold", from_round=CUT_ROUND)
        train = ("train", str(run_file), "--run-id", RUN, "--wait", "--json")
        home = ("--home", str(federation.coordinator_home.folder))
        with subprocess.Popen(
            [*inside, COMMANDS / "coordinator", *train, *home],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as training:
            federation.wait_for_order(AWAY, RUN, "seal", "hold")
            before = status_of(federation)
            network.cut()
            federation.withdraw(AWAY, "seal")
            time.sleep(CUT_SECONDS)
            in_the_cut = status_of(federation)
            network.mend()
            said, _ = training.communicate(timeout=400)
        with federation.ledger() as ledger:
            yield Story(
                federation=federation,
                answer=json.loads(said),
                history=ledger.history(RUN),
                open_ports=open_ports(federation),
                before=before,
                in_the_cut=in_the_cut,
                after=status_of(federation),
            )


def status_of(federation: WatchedFederation) -> SiteStatus:
    status = read_status(federation.folder / AWAY / "run.json")
    assert status is not None
    return status


def open_ports(federation: WatchedFederation) -> set[str]:
    agent = psutil.Process(federation.processes[AWAY].pid)
    return {
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for process in (agent, *federation.descendants(AWAY))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip != "127.0.0.1"
    }


def test_a_cut_in_mid_round_costs_nothing_but_time(story: Story) -> None:
    attempts = [(a.round, a.attempt, a.state) for a in story.history.attempts]

    assert story.answer["state"] == "finished"
    assert attempts == [(1, 1, RoundState.COMMITTED), (2, 1, RoundState.COMMITTED)]
    for number in (1, CUT_ROUND):
        assert set(counted(story.history, number, 1)) == {*NEIGHBOURS, AWAY}


def test_the_round_waited_for_the_cut(story: Story) -> None:
    attempt = story.history.attempts[CUT_ROUND - 1]

    assert attempt.opened_at is not None
    assert attempt.closed_at is not None
    assert (attempt.closed_at - attempt.opened_at).total_seconds() >= CUT_SECONDS


def test_the_site_says_that_the_coordinator_cannot_be_reached(story: Story) -> None:
    assert story.before.link is None
    assert story.in_the_cut.link is not None
    assert f"{COORDINATOR_ADDRESS}:" in story.in_the_cut.link
    assert "Check address and network" in story.in_the_cut.link


def test_a_cut_restarts_nothing_at_the_site(story: Story) -> None:
    assert story.after.starts == story.before.starts


def test_a_site_listens_on_loopback_alone(story: Story) -> None:
    assert story.open_ports == set()
