"""A federation of real processes on this machine, started by the very commands that people type.

`coordinator serve` and one `participant run` per site, each with its own home folder, talking over loopback with
mutual TLS. Whatever happens, leaving the context ends every process that was started.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from coordinator.config import CoordinatorHome, load_config
from coordinator.ledger.records import Run, RunHistory
from coordinator.ledger.states import DRIVABLE_RUNS, RunState
from coordinator.ledger.store import LedgerStore, open_ledger
from coordinator.run_spec import RunSpec
from coordinator.wire.bundle import BUNDLE_SHA256
from sims.scenario import Scenario
from sims.site_home import LAX_POLICY, needs_lax_policy, put_data, set_contract, trust_key_holder

COMMANDS = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"
COMMAND_SECONDS = 120.0
READY_SECONDS = 90.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.1


class FederationError(Exception):
    """A process of the federation did not do what it must; the text names its log."""


class RealFederation:
    """A coordinator and one agent per site of a scenario, as processes."""

    def __init__(
        self,
        folder: Path,
        scenario: Scenario,
        *,
        host: str = LOOPBACK,
        prefixes: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Prepares; nothing is started before the context is entered.

        Args:
            folder: new or empty; receives `coordinator`, one folder per site, and `logs`.
            scenario: sites, tables and the run to request.
            host: address under which sites dial the coordinator; any but loopback makes it listen everywhere.
            prefixes: for "coordinator" or a site, words to put before its commands, such as `ip netns exec NAME`.
        """
        self.folder = folder
        self.scenario = scenario
        self._host = host
        self._prefixes = dict(prefixes or {})
        self.coordinator_home = CoordinatorHome(folder=folder / "coordinator")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = folder / "logs"

    def __enter__(self) -> Self:
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        bind = LOOPBACK if self._host == LOOPBACK else "0.0.0.0"  # noqa: S104 - as the README says
        try:
            self._command(
                "coordinator",
                *("coordinator", "init", "--home", str(self.coordinator_home.folder)),
                *("--host", self._host, "--bind", bind, *FREE_PORTS),
            )
            self.start_coordinator()
            with ThreadPoolExecutor() as together:
                list(together.map(self._bring_in, self.scenario.train))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process: politely, then not."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_coordinator(self) -> None:
        """Starts `coordinator serve` and waits until it is ready.

        Raises:
            FederationError: it ended, or is not ready in time.
        """
        self._spawn(
            "coordinator", "coordinator", "serve", "--home", str(self.coordinator_home.folder)
        )
        until = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            self._require_alive("coordinator", until)
            time.sleep(POLL_SECONDS)

    def start_site(self, site: str) -> None:
        """Starts `participant run` of a site that has joined."""
        self._spawn(site, "participant", "run", "--home", str(self.folder / site))

    def kill(self, name: str) -> None:
        """SIGKILL to the site's agent or, with "coordinator", to the coordinator."""
        self.processes[name].kill()
        self.processes[name].wait()

    @contextmanager
    def ledger(self) -> Iterator[LedgerStore]:
        """The coordinator's ledger."""
        config = load_config(self.coordinator_home)
        with open_ledger(self.coordinator_home.ledger_url(config), create=False) as ledger:
            yield ledger

    def request(self, run_id: str | None = None, *, spec: RunSpec | None = None) -> str:
        """Requests the scenario's run, or another one of the same sites; returns its name in the ledger."""
        spec = spec or self.scenario.spec
        with self.ledger() as ledger:
            return ledger.runs.request(
                run_id or spec.name, spec=spec.to_json(), rounds=spec.rounds
            ).run_id

    def wait(
        self,
        run_id: str,
        *,
        timeout_seconds: float,
        on_poll: Callable[[Run, int], None] | None = None,
    ) -> RunHistory:
        """Waits until the run has ended and returns what the ledger says.

        Raises:
            FederationError: the run failed, or has not ended in time.
        """
        until = time.monotonic() + timeout_seconds
        with self.ledger() as ledger:
            while (run := ledger.runs.get(run_id)).state in DRIVABLE_RUNS:
                last = ledger.runs.last_committed(run_id)
                if on_poll is not None:
                    on_poll(run, last.round if last else 0)
                if time.monotonic() > until:
                    raise FederationError(
                        f"Run {run_id} has not ended after {timeout_seconds:.0f} s; see {self._logs}."
                    )
                time.sleep(POLL_SECONDS)
            if run.state != RunState.FINISHED:
                raise FederationError(f"Run {run_id} {run.state}: {run.reason}. See {self._logs}.")
            return ledger.history(run_id)

    def _bring_in(self, site: str) -> None:
        self._join(site)
        self.start_site(site)

    def _join(self, site: str) -> None:
        invitation, home = self.folder / f"{site}.invite", self.folder / site
        self._command(
            "coordinator",
            *("coordinator", "invite", site, "--out", str(invitation)),
            *("--home", str(self.coordinator_home.folder)),
        )
        self._command(site, "participant", "join", str(invitation), "--home", str(home))
        put_data(home, table=self.scenario.train[site], schema=self.scenario.schema_path)
        set_contract(home, self.scenario.spec.privacy)
        if needs_lax_policy(self.scenario.spec):
            (home / "policy.toml").write_text(
                LAX_POLICY.format(bundle=BUNDLE_SHA256), encoding="utf-8"
            )
        trust_key_holder(home, self.scenario.spec.secure_sum.key_holder)

    def _argv(self, name: str, program: str, *arguments: str) -> list[str]:
        return [*self._prefixes.get(name, ()), str(COMMANDS / program), *arguments]

    def _command(self, name: str, *argv: str) -> dict[str, Any]:
        """Runs a command of ours to its end, as the coordinator or a site, and returns its JSON answer."""
        done = subprocess.run(
            [*self._argv(name, *argv), "--json"],
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise FederationError(
                f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.decode().strip()}"
            )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        with self._log(name) as log:
            self.processes[name] = subprocess.Popen(
                self._argv(name, program, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _log(self, name: str) -> IO[bytes]:
        return os.fdopen(
            os.open(self._logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab"
        )

    def _is_ready(self) -> bool:
        """Whether the coordinator that runs now has said so; one that was killed leaves its own word behind."""
        try:
            said = json.loads(self.coordinator_home.serve_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # not there, or half written
            return False
        return bool(said["pid"] == self.processes["coordinator"].pid)

    def _require_alive(self, name: str, until: float) -> None:
        if self.processes[name].poll() is not None or time.monotonic() > until:
            raise FederationError(f"{name} is not ready; see {self._logs / f'{name}.log'}.")


FREE_PORTS = ("--gateway-port", "0", "--exchange-port", "0", "--enrolment-port", "0")
