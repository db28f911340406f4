"""`participant run`: keeps a site's processes working, and stops all of them together.

    participant run
     ├ tunnel            in this process: loopback -> mutual TLS -> gateway
     ├ flower-supernode  Flower's agent: polls the coordinator, loopback only
     └ executor          runs the installed ClientApp for the SuperNode's tasks

At the start, in this order: one agent per home (a lock), the site's table against the schema, the privacy budget.
Only then is the coordinator contacted.

Health is judged by behaviour, for a SuperNode can be alive and poll no more: it must be heard at the tunnel, and the
executor must keep its pulse file fresh. What does not is restarted with back-off, for ever: a site that is not yet
registered, or whose coordinator is away, simply waits. SIGTERM ends everything within `STOP_SECONDS`.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from coordinator.wire.children import Backoff, Children, ChildSpec
from model.schema import TableSchema, load_schema
from participant.budget import SiteBudget
from participant.config import SiteConfig, load_site, require_delta_fits
from participant.data import SiteData, load_table
from participant.durable import write_durably
from participant.errors import ConfigError, DiskFullError, IdentityError, SupervisorError
from participant.health import SiteStatus, is_node_working, node_state, read_pulse, write_status
from participant.identity import IdentityFiles, load_node_key, load_signing_key, open_home
from participant.policy import load_policy
from participant.tunnel import LOOPBACK, Tunnel, free_port

logger = logging.getLogger(__name__)

LOCK_TRIES = 5
WATCH_FAILURES = 12
"""Times 5 s: on a loaded machine a process needs half a minute until it is heard."""
REPORT_SECONDS = 0.5
CHILD_GRACE_SECONDS = 6.5
"""A SuperNode gives itself 5 s."""
STOP_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 10.0
PASSED_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
FLOWER_VARIABLES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, kw_only=True)
class TableSummary:
    """What a site's table looks like from afar. Shown to the site's own administrator, sent to nobody."""

    schema: str
    rows: int
    patients: int
    columns: int
    ignored_columns: int
    missing_values: int
    positive_labels: int


def check_data(config: SiteConfig) -> TableSummary:
    """Loads the site's table and checks it against the schema and the budget's contract.

    Raises:
        ConfigError: the schema cannot be read.
        DataError: the table does not fit.
        ContractError: the contract's delta is too large for so many patients.
    """
    try:
        schema: TableSchema = load_schema(config.schema)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}. Put the consortium's published schema there."
        raise ConfigError(path=config.schema, problem=problem) from error
    except ValueError as error:
        raise ConfigError(path=config.schema, problem=f"is not a schema: {error}") from error
    data: SiteData = load_table(config.data, schema)
    require_delta_fits(config.budget, data.patients)
    rows, columns = data.values_NF.shape
    return TableSummary(
        schema=f"{schema.name} v{schema.version}",
        rows=rows,
        patients=data.patients,
        columns=columns,
        ignored_columns=len(data.ignored_columns),
        missing_values=int(np.isnan(data.values_NF).sum()),
        positive_labels=int(data.labels_N.sum()),
    )


class SiteAgent:
    """The processes of one site."""

    def __init__(self, home: Path, *, app: str | None = None) -> None:
        """Reads and checks everything that can be checked without the coordinator.

        Args:
            home: the site folder.
            app: import path of another ClientApp than the installed one, for tests.

        Raises:
            ParticipantError: configuration, policy, keys or certificate cannot be used.
        """
        self.home = home.absolute()
        if "'" in str(self.home):
            raise SupervisorError(f'The path "{self.home}" must not hold a single quote.')
        self._app = app
        self._files = open_home(self.home)
        self._config = load_site(self.home)
        load_policy(self.home)
        load_signing_key(self._files)
        load_node_key(self._files)
        self._flower = private_folder(self.home / "flower")
        self._logs = private_folder(self.home / "logs")
        self._tunnel = _tunnel(self._config, self._files, self._flower)
        self._runtime = f"{LOOPBACK}:{free_port()}"
        self._children = Children(backoff=Backoff(longest_seconds=LONGEST_WAIT_SECONDS))
        self._started = time.time()

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps the site going until `stop` is set; then nothing of it is left."""
        self._make_secret()
        await self._tunnel.start()
        self._children.start(self._supernode())
        self._children.start(self._executor())
        logger.info('Site "%s" runs; coordinator %s.', self._config.site, self._config.gateway)
        try:
            await self._report_until(stop)
        finally:
            logger.info("Stopping.")
            self._tunnel.release_held()
            await self._children.stop(grace_seconds=CHILD_GRACE_SECONDS)
            await self._tunnel.stop()

    def status(self) -> SiteStatus:
        """What the agent knows of itself now."""
        traffic = self._tunnel.traffic
        return SiteStatus(
            pid=os.getpid(),
            site=self._config.site,
            started=self._started,
            node=node_state(traffic, time.monotonic()),
            executor=read_pulse(self._pulse).state,
            link=traffic.refusal,
            starts={state.spec.name: state.starts for state in self._children.states()},
        )

    async def _report_until(self, stop: asyncio.Event) -> None:
        reported: SiteStatus | None = None
        known_starts = 0
        while not stop.is_set():
            status = self.status()
            starts = status.starts["supernode"]
            if (
                starts > known_starts
            ):  # a SuperNode needs longer than a turn of this loop to be heard
                known_starts, self._tunnel.traffic.started = starts, time.monotonic()
                status = self.status()
            if reported is None or status.node != reported.node:
                logger.info("Node %s.", status.node)
            if status != reported:
                reported = status
                try:
                    write_status(self.home / "run.json", status)
                except DiskFullError as error:
                    logger.warning("%s", error.local_message)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), REPORT_SECONDS)

    async def _node_works(self) -> bool:
        return is_node_working(self._tunnel.traffic, read_pulse(self._pulse), time.monotonic())

    async def _executor_works(self) -> bool:
        return read_pulse(self._pulse).is_fresh

    def _supernode(self) -> ChildSpec:
        host, _, port = self._runtime.rpartition(":")
        arguments = (
            *("--superlink", self._tunnel.address),
            *("--root-certificates", str(self._tunnel.certificate)),
            *("--auth-supernode-private-key", str(self._files.node_key)),
            *("--host", host, "--port", port, "--isolation", "process"),
            *("--superexec-auth-secret-file", str(self._secret)),
            *("--node-config", f"site-home='{self.home}'"),
        )
        return ChildSpec(
            name="supernode",
            argv=(str(Path(sys.executable).with_name("flower-supernode")), *arguments),
            environment=self._environment(PASSED_VARIABLES),
            log=self._logs / "supernode.log",
            watch=self._node_works,
            watch_failures=WATCH_FAILURES,
        )

    def _executor(self) -> ChildSpec:
        arguments = ("--home", str(self.home), "--runtime", self._runtime)
        app = () if self._app is None else ("--app", self._app)
        return ChildSpec(
            name="executor",
            # -P: a file in the current folder must not stand in for an installed module
            argv=(sys.executable, "-P", "-m", "participant.executor", *arguments, *app),
            # the whole environment: database drivers and accelerators are configured there
            environment=self._environment(tuple(os.environ)),
            log=self._logs / "executor.log",
            watch=self._executor_works,
            watch_failures=WATCH_FAILURES,
        )

    def _environment(self, passed: tuple[str, ...]) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in passed if name in os.environ}
        return kept | FLOWER_VARIABLES | {"FLWR_HOME": str(self._flower)}

    @property
    def _pulse(self) -> Path:
        return self._flower / "executor.json"

    @property
    def _secret(self) -> Path:
        return self.home / "superexec.secret"

    def _make_secret(self) -> None:
        """A new one for each run: it is shared by two processes of this run only."""
        write_durably(self._secret, [secrets.token_bytes(32)], replace=True)


def run_site(home: Path, *, announce: Callable[[TableSummary], None]) -> SiteStatus:
    """Runs the site at that home until SIGTERM or SIGINT; its last status.

    Args:
        home: the site folder.
        announce: shown the summary of the site's table before the coordinator is contacted.

    Raises:
        ParticipantError: another agent runs there, or configuration, keys, table or budget cannot be used.
    """
    open_home(home)
    with only_agent(home):
        agent = SiteAgent(home)
        config = load_site(home)
        announce(check_data(config))
        ensure_budget(home, config)

        async def run() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            await agent.run(stop)

        # What the libraries made at import lives as long as the process. Looking through it once more at the end
        # took 1.6 to 3 s of the 10 s that a stop may take; without, 0.4 s.
        gc.freeze()
        asyncio.run(run())
        return agent.status()


@contextlib.contextmanager
def only_agent(home: Path) -> Iterator[None]:
    """Holds the home's lock; a second agent on the same home is refused.

    Raises:
        SupervisorError: another agent runs there.
    """
    with _lock_file(home) as file:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)  # "participant status" holds the lock for a moment
        else:
            raise SupervisorError(
                f'Another agent runs on "{home}". Stop it first, or name another --home.'
            )
        yield


def is_running(home: Path) -> bool:
    """Whether an agent holds the home's lock now."""
    with _lock_file(home) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def ensure_budget(home: Path, config: SiteConfig) -> None:
    """Makes the privacy budget before the first run of a home; later a missing one is an error, never a fresh one."""
    path = home / "budget.db"
    is_first_run = not (home / "run.json").exists()
    if is_first_run and not path.exists():
        SiteBudget.create(path, config.budget)
    SiteBudget(path, config.budget)


def private_folder(path: Path) -> Path:
    """The folder, made 0700 where it is missing."""
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _tunnel(config: SiteConfig, files: IdentityFiles, folder: Path) -> Tunnel:
    try:
        return Tunnel(gateway=config.gateway, files=files, folder=folder)
    except FileNotFoundError as error:
        raise IdentityError(
            f'"{error.filename}" is missing: the site has not joined. Run "participant join INVITATION".'
        ) from error
    except ssl.SSLError as error:
        raise IdentityError(
            f'The certificate in "{files.tls_certificate.parent}" does not fit its key ({error.reason}). '
            "Restore the folder from backup or join again."
        ) from error


def _lock_file(home: Path) -> BinaryIO:
    return os.fdopen(os.open(home / "run.lock", os.O_RDWR | os.O_CREAT, 0o600), "rb+")
