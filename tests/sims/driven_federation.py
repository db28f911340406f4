"""A small federation whose runs a test drives itself: real homes, ledger, relay and apps; a driver for every attempt."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import UserConfig

from coordinator.config import CoordinatorConfig, CoordinatorHome
from coordinator.enrolment.authority import load_signing_key
from coordinator.initialise import initialise
from coordinator.ledger.records import Lease, RunHistory
from coordinator.ledger.store import open_ledger
from coordinator.registry.checkpoints import CheckpointStore
from coordinator.training_run import TrainingRun
from coordinator.wire.channel import Frame
from coordinator.wire.connect import open_channel
from coordinator.wire.memory_channel import start_relay
from participant.budget import SiteBudget
from participant.client_app import HOME_KEY
from participant.client_app import app as client_app
from participant.config import load_site
from sims.grid import InProcessGrid
from sims.scenario import Scenario
from sims.site_home import make_site_home, put_data
from tests.sims.small_federation import SITES, small_scenario

RUN_ID = "small"
_names = itertools.count(1)


class DrivenFederation:
    """The sites of a scenario and their coordinator, before anybody drives the run; by default the four small sites."""

    def __init__(
        self,
        folder: Path,
        *,
        sites: tuple[str, ...] = SITES,
        scenario: Scenario | None = None,
        **changes: Any,
    ) -> None:
        self.scenario = scenario or small_scenario(folder / "scenario", sites=sites, **changes)
        self.folder = folder
        self.home = CoordinatorHome(folder=folder / "coordinator")
        config = CoordinatorConfig(gateway_port=1, exchange_port=1, enrolment_port=1)
        initialise(self.home, config, hosts=("127.0.0.1",))
        self.frames: list[tuple[str, Frame]] = []
        name = f"driven-{next(_names)}"
        self.address = f"memory:{name}"
        self.relay = start_relay(name, models=self.home.models, observer=self._record)
        self.ledger = open_ledger(self.home.ledger_url(config))
        self.checkpoints = CheckpointStore(self.home.models)
        self.key = load_signing_key(self.home.signing_key)
        self.ledger.runs.request(
            RUN_ID, spec=self.scenario.spec.to_json(), rounds=self.scenario.spec.rounds
        )
        self.nodes = {site: number for number, site in enumerate(self.scenario.train, start=2)}
        for site, node_id in self.nodes.items():
            make_site_home(
                self.site_home(site),
                site=site,
                exchange=self.address,
                coordinator_key=self.key.public_key().public_bytes_raw(),
                ledger=self.ledger,
                node_id=node_id,
                spec=self.scenario.spec,
            )
            put_data(
                self.site_home(site),
                table=self.scenario.train[site],
                schema=self.scenario.schema_path,
            )
        self.grid = InProcessGrid(client_app, self.node_configs())

    def _record(self, receiver: str, frame: Frame) -> None:
        self.frames.append((receiver, frame))

    def site_home(self, site: str) -> Path:
        return self.folder / site

    def node_configs(self) -> dict[int, UserConfig]:
        """What every site's node would be started with."""
        return {node: {HOME_KEY: str(self.site_home(site))} for site, node in self.nodes.items()}

    def take_over(self) -> Lease:
        return self.ledger.runs.take_over(RUN_ID)

    def run(self, lease: Lease | None = None, **changes: Any) -> TrainingRun:
        """A new driver, as a new ServerApp makes it."""
        parts: dict[str, Any] = {
            "spec": self.scenario.spec,
            "lease": lease or self.take_over(),
            "ledger": self.ledger,
            "checkpoints": self.checkpoints,
            "grid": self.grid,
            "sessions": self.relay,
            "connect": lambda ticket: open_channel(self.address, session=ticket, credentials=None),
            "signing_key": self.key,
        }
        return TrainingRun(**(parts | changes))

    def history(self) -> RunHistory:
        return self.ledger.history(RUN_ID)

    def model_hashes(self) -> list[str]:
        """Of every committed round, round 0 included."""
        return [model.sha256 for model in self.history().models]

    def charges(self, site: str) -> tuple[str, ...]:
        """Intents charged to the site's budget, in order."""
        path = self.site_home(site)
        budget = SiteBudget(path / "budget.db", load_site(path).budget)
        return tuple(charge.intent for charge in budget.charges())

    def states(self, round_number: int, attempt: int) -> dict[str, str]:
        """What the ledger says of every site in an attempt."""
        return {
            row.participation.site: str(row.participation.state)
            for row in self.history().participations
            if (row.round, row.attempt) == (round_number, attempt)
        }

    def received(self) -> Iterator[Frame]:
        """Frames that reached the coordinator, in order."""
        return (frame for receiver, frame in self.frames if receiver == "coordinator")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.grid.close()
        self.relay.close()
        self.ledger.close()
