"""Supervision of a site: health judged by behaviour, one agent per home, and a real SuperNode kept polling."""

import asyncio
import base64
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from google.protobuf.message import Message as ProtobufMessage
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coordinator.wire.bundle import BUNDLE_SHA256
from participant.config import POLICY_TEMPLATE, SITE_TEMPLATE, load_site
from participant.errors import BudgetError, ConfigError, DataError, IdentityError, SupervisorError
from participant.health import (
    Pulse,
    SiteStatus,
    Traffic,
    is_node_working,
    node_state,
    read_status,
    write_status,
)
from participant.supervisor import SiteAgent, check_data, ensure_budget, is_running, only_agent
from tests.participant.stub_coordinator import Authority, free_port, joined_home, serving

IDLE = Pulse(state="idle", age_seconds=0.5)
BUSY = Pulse(state="busy", age_seconds=0.5)
HEART = Path(__file__).parents[2] / "sims" / "data" / "heart"


@pytest.mark.parametrize(
    ("traffic", "executor", "works"),
    [
        (Traffic(), IDLE, False),
        (Traffic(work=99.0), IDLE, True),
        (Traffic(work=99.0, activated=10.0, heartbeat=90.0), IDLE, True),
        (Traffic(work=99.0, activated=10.0, heartbeat=20.0), IDLE, False),
        (Traffic(work=99.0, activated=98.0, heartbeat=20.0), IDLE, True),
        (Traffic(work=10.0, activated=10.0, heartbeat=99.0), IDLE, False),
        (Traffic(work=10.0, activated=10.0, heartbeat=99.0), BUSY, True),
        (
            Traffic(work=10.0, activated=10.0, heartbeat=99.0),
            Pulse(state="busy", age_seconds=60.0),
            False,
        ),
        (Traffic(work=99.0, activated=10.0, heartbeat=99.0, deactivated=99.0), IDLE, False),
        (Traffic(work=99.0, activated=10.0, heartbeat=99.0, deactivated=50.0), IDLE, True),
    ],
    ids=[
        "silent",
        "asks to be taken in",
        "polls and beats",
        "its heartbeats have ended",
        "was just taken in again",
        "only beats while nobody computes",
        "only beats while the executor computes",
        "only beats and the executor is dead",
        "signed itself off",
        "came back after it signed off",
    ],
)
def test_a_node_works_when_it_is_heard(traffic: Traffic, executor: Pulse, works: bool) -> None:
    assert is_node_working(traffic, executor, now=100.0) is works


@pytest.mark.parametrize(
    ("traffic", "state"),
    [
        (Traffic(), "connecting"),
        (Traffic(work=99.0, refusal="no"), "connecting"),
        (Traffic(answered=99.0, activated=50.0), "online"),
        (Traffic(answered=30.0, activated=20.0), "offline"),
        (Traffic(answered=99.0, activated=50.0, deactivated=98.0), "offline"),
        (Traffic(answered=99.0, activated=50.0, started=90.0), "connecting"),
    ],
)
def test_a_node_is_online_while_the_coordinator_answers(traffic: Traffic, state: str) -> None:
    assert node_state(traffic, now=100.0) == state


def test_two_agents_cannot_hold_one_home(tmp_path: Path) -> None:
    with only_agent(tmp_path):
        assert is_running(tmp_path)
        with pytest.raises(SupervisorError, match="Another agent runs"), only_agent(tmp_path):
            pass

    assert not is_running(tmp_path)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    status = SiteStatus(
        pid=1, site="a", started=2.0, node="online", executor="idle", link=None, starts={"x": 1}
    )

    write_status(tmp_path / "run.json", status)

    assert read_status(tmp_path / "run.json") == status
    assert read_status(tmp_path / "other.json") is None


def test_a_damaged_report_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")

    with pytest.raises(SupervisorError, match="not an agent's report"):
        read_status(tmp_path / "run.json")


def ready_home(folder: Path, authority: Authority, gateway: str) -> Path:
    """A home that has joined, with the heart data in it."""
    home = joined_home(folder, authority).home
    (home / "site.toml").write_text(
        SITE_TEMPLATE.substitute(
            site="st-anna", gateway=gateway, exchange="localhost:1", data_set="st-anna"
        )
    )
    (home / "policy.toml").write_text(POLICY_TEMPLATE.substitute(bundles=f'"{BUNDLE_SHA256}"'))
    (home / "schema.toml").write_bytes((HEART / "schema.toml").read_bytes())
    (home / "patients.csv").write_bytes((HEART / "cleveland.csv").read_bytes())
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return ready_home(tmp_path / "home", Authority(), f"localhost:{free_port()}")


def test_the_table_is_summed_up_without_a_record(home: Path) -> None:
    summary = check_data(load_site(home))

    assert (summary.rows, summary.columns, summary.schema) == (303, 13, "heart v1")
    assert summary.positive_labels == 139


def test_a_table_that_does_not_fit_is_an_error(home: Path) -> None:
    (home / "patients.csv").write_text("age\n40\n")

    with pytest.raises(DataError):
        check_data(load_site(home))


@pytest.mark.parametrize("content", [None, b"not = [toml", b"name = 1"])
def test_a_schema_that_cannot_be_read_is_named(home: Path, content: bytes | None) -> None:
    (home / "schema.toml").unlink()
    if content is not None:
        (home / "schema.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=r"schema\.toml"):
        check_data(load_site(home))


def test_the_budget_is_made_before_the_first_run_only(home: Path) -> None:
    ensure_budget(home, load_site(home))
    assert (home / "budget.db").exists()
    (home / "run.json").write_text("{}")
    (home / "budget.db").unlink()

    with pytest.raises(BudgetError):
        ensure_budget(home, load_site(home))


def test_a_home_without_certificate_has_not_joined(home: Path) -> None:
    (home / "pki" / "site.crt").unlink()

    with pytest.raises(IdentityError, match="has not joined"):
        SiteAgent(home)


def test_a_certificate_of_another_key_is_refused(home: Path, tmp_path: Path) -> None:
    other = joined_home(tmp_path / "other", Authority())
    (home / "pki" / "site.crt").write_bytes(other.tls_certificate.read_bytes())

    with pytest.raises(IdentityError, match="does not fit its key"):
        SiteAgent(home)


@dataclass
class Fleet:
    """A gateway that takes the node in and answers its calls, except as scripted."""

    statuses: dict[str, list[int]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/fleet/{call}", self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        call = request.path_params["call"]
        self.calls.append(call)
        self.keys.add(request.headers["flwr-public-key"])
        if self.statuses.get(call):
            return Response("", status_code=self.statuses[call].pop(0))
        answers: dict[str, ProtobufMessage] = {
            "activate-node": ActivateNodeResponse(node_id=5),
            "pull-messages": PullMessagesResponse(),
            "send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
        }
        body = answers[call].SerializeToString() if call in answers else b""
        return Response(body, media_type="application/x-protobuf")


async def until(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.1)


def with_agent(
    tmp_path: Path, fleet: Fleet, scenario: Callable[[SiteAgent], Awaitable[None]]
) -> list[psutil.Process]:
    """Runs an agent against `fleet` for the length of the scenario; the children it had."""
    authority = Authority()
    children: list[psutil.Process] = []

    async def main() -> None:
        context = authority.issue_server(tmp_path / "server")
        async with serving(fleet.app(), context, client_ca=authority.pem) as port:
            home = ready_home(tmp_path / "home", authority, f"localhost:{port}")
            agent = SiteAgent(home)
            stop = asyncio.Event()
            running = asyncio.create_task(agent.run(stop))
            try:
                await scenario(agent)
                children.extend(psutil.Process().children(recursive=True))
            finally:
                stop.set()
                await asyncio.wait_for(running, 10)

    asyncio.run(main())
    return children


@pytest.mark.processes
@pytest.mark.slow
def test_a_supernode_signs_in_with_the_sites_node_key_polls_and_signs_off(tmp_path: Path) -> None:
    fleet = Fleet()

    async def scenario(agent: SiteAgent) -> None:
        await until(lambda: fleet.calls.count("pull-messages") > 1)
        await until(lambda: agent.status().executor == "idle")
        assert agent.status().node == "online"

    children = with_agent(tmp_path, fleet, scenario)

    assert fleet.calls[0] == "activate-node"
    assert fleet.calls[-1] == "deactivate-node"
    (key,) = fleet.keys
    assert base64.b64decode(key).startswith(b"-----BEGIN PUBLIC KEY-----")
    assert len(children) == 4
    assert [child for child in children if child.is_running()] == []


@pytest.mark.processes
@pytest.mark.slow
def test_a_supernode_survives_server_errors_because_the_tunnel_hides_them(tmp_path: Path) -> None:
    fleet = Fleet(statuses={"pull-messages": [200, 500, 500], "send-node-heartbeat": [500]})

    async def scenario(agent: SiteAgent) -> None:
        await until(lambda: fleet.calls.count("pull-messages") > 5)
        assert agent.status().starts["supernode"] == 1

    with_agent(tmp_path, fleet, scenario)

    assert "deactivate-node" not in fleet.calls[:-1]


@pytest.mark.processes
@pytest.mark.slow
def test_a_supernode_that_ends_itself_is_started_again(tmp_path: Path) -> None:
    fleet = Fleet(statuses={"activate-node": [412], "pull-messages": [401]})

    async def scenario(agent: SiteAgent) -> None:
        await until(lambda: fleet.calls.count("pull-messages") > 2, 90)
        assert agent.status().starts["supernode"] == 3

    with_agent(tmp_path, fleet, scenario)

    assert fleet.calls.count("activate-node") == 3


@pytest.mark.processes
@pytest.mark.slow
def test_a_supernode_that_lives_but_polls_no_more_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("participant.supervisor.WATCH_FAILURES", 2)
    fleet = Fleet(statuses={"pull-messages": [200, 404]})

    async def scenario(agent: SiteAgent) -> None:
        await until(lambda: "deactivate-node" in fleet.calls)
        await until(lambda: fleet.calls.count("activate-node") == 2, 60)
        await until(lambda: fleet.calls.count("pull-messages") > 3)

    with_agent(tmp_path, fleet, scenario)


@pytest.mark.processes
@pytest.mark.slow
def test_a_killed_executor_is_started_again(tmp_path: Path) -> None:
    async def scenario(agent: SiteAgent) -> None:
        await until(lambda: agent.status().executor == "idle")
        executor = next(
            child
            for child in psutil.Process().children(recursive=True)
            if "participant.executor" in child.cmdline() and "leash.py" not in str(child.cmdline())
        )
        executor.send_signal(signal.SIGKILL)
        await until(lambda: agent.status().starts["executor"] == 2)

    with_agent(tmp_path, Fleet(), scenario)
