"""The coordinator's ServerApp: where the parts of a run are joined.

Flower starts this for every attempt to drive a run. It finds its coordinator home in the environment, takes the run
over in the ledger (which fences off whoever drove it before), and drives it to its end.
"""

import logging
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.config import CoordinatorHome, load_config
from coordinator.errors import ConfigError
from coordinator.ledger.store import open_ledger
from coordinator.registry.checkpoints import CheckpointStore
from coordinator.run_spec import parse_run_spec
from coordinator.training_run import TrainingRun
from coordinator.wire.channel import Channel, SessionTicket, TlsFiles
from coordinator.wire.connect import open_admin, open_channel

HOME_VARIABLE = "CONCORD_COORDINATOR_HOME"
EXCHANGE_VARIABLE = "CONCORD_EXCHANGE"
"""Address of the exchange; set by rehearsals, otherwise the port in coordinator.toml on loopback."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Drives the run that the run configuration names."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    home = CoordinatorHome(folder=_home())
    config = load_config(home)
    exchange = os.environ.get(EXCHANGE_VARIABLE, f"127.0.0.1:{config.exchange_port}")
    tls = TlsFiles(
        ca=home.pki / "ca.crt",
        certificate=home.pki / "coordinator.crt",
        key=home.pki / "coordinator.key",
    )
    ledger = open_ledger(home.ledger_url(config))
    run_id = str(context.run_config["run-id"])
    lease = ledger.runs.take_over(run_id, flower_run_id=context.run_id)

    def connect(ticket: SessionTicket) -> Channel:
        return open_channel(exchange, session=ticket, credentials=tls)

    sessions = open_admin(exchange, credentials=tls)
    try:
        TrainingRun(
            spec=parse_run_spec(ledger.runs.get(run_id).spec),
            lease=lease,
            ledger=ledger,
            checkpoints=CheckpointStore(home.models),
            grid=grid,
            sessions=sessions,
            connect=connect,
            signing_key=_signing_key(home),
        ).drive()
    finally:
        sessions.close()


def _home() -> Path:
    folder = os.environ.get(HOME_VARIABLE)
    if not folder:
        raise ConfigError(
            f'{HOME_VARIABLE} is not set. The ServerApp is started by "coordinator serve", not by hand.'
        )
    return Path(folder)


def _signing_key(home: CoordinatorHome) -> Ed25519PrivateKey:
    key = load_pem_private_key(home.signing_key.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{home.signing_key} is not an Ed25519 key. Restore it from a backup.")
    return key
