"""A federation on one machine: the same ServerApp, ClientApp, ledger, budgets and secure sums, in one process.

What is replaced is the transport alone: Flower's processes by `sims.grid.InProcessGrid`, the gRPC exchange by its
in-memory twin. Certificates are not needed in one process; every other key is real.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig

from coordinator.config import (
    EXCHANGE_VARIABLE,
    HOME_VARIABLE,
    CoordinatorConfig,
    CoordinatorHome,
    load_config,
)
from coordinator.enrolment.authority import load_signing_key
from coordinator.initialise import initialise
from coordinator.ledger.records import RunHistory
from coordinator.ledger.store import open_ledger
from coordinator.server_app import app as server_app
from coordinator.wire.channel import Frame
from coordinator.wire.memory_channel import start_relay
from participant.client_app import HOME_KEY
from participant.client_app import app as client_app
from sims.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid
from sims.scenario import Scenario
from sims.site_home import make_site_home, put_data

FIRST_NODE_ID = 2
UNUSED_PORT = 1

Observer = Callable[[str, Frame], None]

_names = itertools.count(1)


def rehearse(scenario: Scenario, folder: Path, *, observer: Observer | None = None) -> RunHistory:
    """Runs the scenario's federation from its first round to its last, in this process.

    Args:
        scenario: what to run.
        folder: new or empty; receives the coordinator's and the sites' homes, as a real federation leaves them.
        observer: shown every frame that the exchange relays and every Flower message, with its receiver, for tests of
            what the coordinator could see.

    Returns:
        What the ledger says afterwards; models lie in `folder/coordinator/models`.

    Raises:
        RoundError: the run failed; the ledger in `folder` says why.
    """
    relay_name = f"rehearsal-{next(_names)}"
    home = CoordinatorHome(folder=folder / "coordinator")
    initialise(
        home,
        CoordinatorConfig(
            gateway_port=UNUSED_PORT, exchange_port=UNUSED_PORT, enrolment_port=UNUSED_PORT
        ),
        hosts=("127.0.0.1",),
    )
    run_id = scenario.spec.name
    with open_ledger(home.ledger_url(load_config(home))) as ledger:
        ledger.runs.request(run_id, spec=scenario.spec.to_json(), rounds=scenario.spec.rounds)
        key = load_signing_key(home.signing_key).public_key().public_bytes_raw()
        nodes: dict[int, UserConfig] = {}
        for node_id, (site, table) in enumerate(scenario.train.items(), start=FIRST_NODE_ID):
            site_home = folder / site
            make_site_home(
                site_home,
                site=site,
                exchange=f"memory:{relay_name}",
                coordinator_key=key,
                ledger=ledger,
                node_id=node_id,
                spec=scenario.spec,
            )
            put_data(site_home, table=table, schema=scenario.schema_path)
            nodes[node_id] = {HOME_KEY: str(site_home)}
    context = Context(
        run_id=RUN_ID,
        node_id=SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config={"run-id": run_id},
    )
    environment = {HOME_VARIABLE: str(home.folder), EXCHANGE_VARIABLE: f"memory:{relay_name}"}
    with start_relay(relay_name, models=home.models, observer=observer), _environment(environment):
        grid = InProcessGrid(client_app, nodes, observer=observer)
        try:
            server_app(grid=grid, context=context)
        finally:
            grid.close()
    with open_ledger(home.ledger_url(load_config(home)), create=False) as ledger:
        return ledger.history(run_id)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """The environment in which `coordinator serve` would start a ServerApp."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
