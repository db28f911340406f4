"""The launcher and the node registry against a real SuperLink, and the lock that keeps a home to one process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator import launcher as launcher_module
from coordinator.config import CoordinatorConfig, CoordinatorHome, free_port
from coordinator.errors import ConfigError
from coordinator.initialise import initialise
from coordinator.launcher import Launcher
from coordinator.ledger.states import RunState
from coordinator.ledger.store import LedgerStore, open_ledger
from coordinator.nodes import NodeRegistry
from coordinator.superlink import LOOPBACK, SuperLink, serverapp_processes
from coordinator.supervisor import locked
from coordinator.wire.children import Backoff, Children

MANIFEST = """
[project]
name = "crashing"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "crashing:app"
clientapp = "crashing:client"
[tool.flwr.app.config]
run-id = ""
"""
SERVER_APP = """
import os
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from coordinator.ledger.store import open_ledger

app = ServerApp()
client = ClientApp()

@app.main()
def main(grid, context):
    home = Path(os.environ["CONCORD_COORDINATOR_HOME"])
    with (home / "starts").open("a") as starts:
        starts.write("x")
    if context.run_config["run-id"] == "doomed":
        raise RuntimeError("always the same trouble")
    if (home / "starts").stat().st_size < 2:
        os._exit(1)
    with open_ledger(f"sqlite:///{home / 'ledger.db'}") as ledger:
        ledger.runs.take_over("flaky", flower_run_id=context.run_id)
        ledger.runs.cancel("flaky", reason="driven to its end")
"""


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    place = CoordinatorHome(folder=tmp_path / "home")
    config = CoordinatorConfig(gateway_port=1, exchange_port=2, enrolment_port=3)
    initialise(place, config, hosts=(LOOPBACK,))
    return place


@pytest.fixture
def ledger(home: CoordinatorHome) -> Iterator[LedgerStore]:
    with open_ledger(f"sqlite:///{home.folder / 'ledger.db'}") as store:
        yield store


@dataclass(kw_only=True)
class Flower:
    """A running SuperLink and SuperExec."""

    superlink: SuperLink
    children: Children


@contextlib.asynccontextmanager
async def flower(home: CoordinatorHome) -> AsyncIterator[Flower]:
    superlink = SuperLink(home=home, port=free_port(LOOPBACK))
    superlink.prepare()
    children = Children()
    try:
        children.start(superlink.superlink_child())
        await until_true(superlink.answers)
        children.start(superlink.superexec_child(exchange="127.0.0.1:2"))
        yield Flower(superlink=superlink, children=children)
    finally:
        await superlink.close()
        await children.stop()


async def until_true(question: Callable[[], Awaitable[bool]], seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not await question():
            await asyncio.sleep(0.1)


def node_line() -> str:
    return (
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


def enrol(ledger: LedgerStore, name: str, node_key: str) -> None:
    number = f"{len(ledger.sites.members()):064x}"
    ledger.sites.enrol(name=name, signing_key=number, node_key=node_key, certificate_sha256=number)


def test_a_home_is_served_by_one_process(home: CoordinatorHome) -> None:
    with locked(home), pytest.raises(ConfigError, match="being served"), locked(home):
        pass

    with locked(home):
        assert home.lock_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.processes
def test_a_flower_run_that_dies_is_replaced_until_the_run_ends_or_is_given_up(
    home: CoordinatorHome, ledger: LedgerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_module, "MAX_FRUITLESS", 2)
    app = tmp_path / "crashing"
    app.mkdir()
    (app / "pyproject.toml").write_text(MANIFEST)
    (app / "crashing.py").write_text(SERVER_APP)
    ledger.runs.request("flaky", spec="{}", rounds=1)
    ledger.runs.request("doomed", spec="{}", rounds=1)

    async def main() -> None:
        async with flower(home) as running:
            launcher = Launcher(
                superlink=running.superlink,
                app=app,
                runs=ledger.runs,
                note_incident=lambda kind, text, run: ledger.record_incident(
                    kind, text, run_id=run
                ),
                children=running.children,
                backoff=Backoff(first_seconds=0.1, longest_seconds=0.1),
            )
            await launcher.stop_leftovers()
            watching = asyncio.create_task(launcher.watch())

            async def all_ended() -> bool:
                return ledger.runs.to_drive() == ()

            await until_true(all_ended)
            watching.cancel()
            group = running.children.process_group("superexec")
            assert group is not None
            assert serverapp_processes(group) == frozenset()

    asyncio.run(main())

    flaky, doomed = ledger.runs.get("flaky"), ledger.runs.get("doomed")
    assert (flaky.state, flaky.reason) == (RunState.CANCELLED, "driven to its end")
    assert flaky.flower_run_id is not None
    assert doomed.state is RunState.FAILED
    assert "always the same trouble" in str(doomed.reason)
    assert (home.folder / "starts").read_text() == "xxxx"
    assert [(i.kind, i.run_id) for i in ledger.incidents()] == [
        ("flower-run-ended", "flaky"),
        ("flower-run-ended", "doomed"),
        ("flower-run-ended", "doomed"),
        ("run-given-up", "doomed"),
    ]


@pytest.mark.processes
def test_nodes_follow_the_ledger_through_interruption_return_and_loss(
    home: CoordinatorHome, ledger: LedgerStore
) -> None:
    numbers = home.flower / "nodes.json"
    keys = {name: node_line() for name in ("first", "second")}
    enrol(ledger, "first", keys["first"])

    async def reconciled(superlink: SuperLink) -> dict[str, int | None]:
        registry = NodeRegistry(superlink=superlink, sites=ledger.sites, numbers=numbers)
        await registry.reconcile()
        members = ledger.sites.members()
        assert all(registry.knows(site) for site in members)
        assert {site.flower_node_id for site in members} <= {
            node.node_id for node in await superlink.nodes()
        }
        return {site.name: site.flower_node_id for site in members}

    async def main() -> None:
        async with flower(home) as running:
            superlink = running.superlink
            # A registration whose number was never noted, as after a crash in between.
            orphan = await superlink.register_node(keys["first"], site="first")
            assert await reconciled(superlink) == {"first": orphan}
            enrol(ledger, "second", keys["second"])
            both = await reconciled(superlink)
            assert both["first"] == orphan
            # A revoked site that comes back with the same node key gets its number back.
            ledger.sites.revoke("second")
            enrol(ledger, "second", keys["second"])
            assert await reconciled(superlink) == both
        for file in home.flower.glob("state.db*"):
            file.unlink()
        async with flower(home) as running:
            anew = await reconciled(running.superlink)
            assert set(anew) == set(both)
            assert not set(anew.values()) & set(both.values())

    asyncio.run(main())
