"""The coordinator's ServerApp: where the parts of a run are joined.

Flower starts this for every attempt to drive a run. It finds its coordinator home in the environment, takes the run
over in the ledger (which fences off whoever drove it before), and drives it to its end.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.config import (
    EXCHANGE_VARIABLE,
    HOME_VARIABLE,
    CoordinatorHome,
    load_config,
)
from coordinator.enrolment.authority import load_signing_key
from coordinator.errors import ConfigError
from coordinator.ledger.store import open_ledger
from coordinator.registry.checkpoints import CheckpointStore
from coordinator.run_spec import parse_run_spec
from coordinator.training_run import TrainingRun
from coordinator.wire.channel import Channel, SessionTicket, TlsFiles
from coordinator.wire.connect import open_admin, open_channel

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Drives the run that the run configuration names."""
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it would log every block of every mean
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
        with _log_file(home.logs / "serverapp.log"):
            TrainingRun(
                spec=parse_run_spec(ledger.runs.get(run_id).spec),
                lease=lease,
                ledger=ledger,
                checkpoints=CheckpointStore(home.models),
                grid=grid,
                sessions=sessions,
                connect=connect,
                signing_key=load_signing_key(home.signing_key),
            ).drive()
    finally:
        sessions.close()
        ledger.close()


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Writes what the coordinator logs to a file: Flower throws a ServerApp's output away."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("coordinator")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except Exception:
        log.exception("The run stops here; a new ServerApp resumes at the last committed round.")
        raise
    finally:
        log.removeHandler(handler)
        log.propagate = True
        handler.close()


def _home() -> Path:
    folder = os.environ.get(HOME_VARIABLE)
    if not folder:
        raise ConfigError(
            f'{HOME_VARIABLE} is not set. The ServerApp is started by "coordinator serve", not by hand.'
        )
    return Path(folder)
