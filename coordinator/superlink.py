"""Flower's processes and command line, as the coordinator uses them: loopback only, TLS, no login but our own walls.

SuperLink and SuperExec are started with fixed arguments; runs and nodes are managed through Flower's command line, the
most stable surface that it has. Each call starts a Python process (about a second of CPU), so calls are few.
Flower's own tables are never read.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from coordinator.config import EXCHANGE_VARIABLE, HOME_VARIABLE, CoordinatorHome
from coordinator.enrolment.tls import loopback_context
from coordinator.errors import SupervisorError
from coordinator.wire.children import ChildSpec

LOOPBACK = "127.0.0.1"
CONNECTION = "concord"
SUPERLINK = "superlink"
SUPEREXEC = "superexec"
CALL_SECONDS = 30.0
TASK_POLL_SECONDS = "0.1"
PASSED_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "PGPASSFILE", "OMP_NUM_THREADS")
SHOWN_ERROR_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class FlowerNode:
    """A SuperNode as the SuperLink knows it."""

    node_id: int
    is_online: bool


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A Flower run: one attempt at driving a run of the ledger."""

    flower_run_id: int
    has_ended: bool
    status: str
    details: str


class SuperLink:
    """The SuperLink of one home on one loopback port."""

    def __init__(self, *, home: CoordinatorHome, port: int) -> None:
        self._home = home
        self.address = f"{LOOPBACK}:{port}"
        self.url = f"https://{self.address}"
        self._port = port
        self._client = httpx.AsyncClient(
            verify=loopback_context(home.pki),
            timeout=2.0,
            # The SuperLink would wait for an idle connection before it ends.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    def prepare(self) -> None:
        """Makes Flower's folders (0700) and the settings of its command line."""
        for folder in (self._flower_home("superlink"), self._flower_home("cli"), self._home.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._flower_home("cli") / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{self.address}"\nroot-certificates = {json.dumps(str(self._ca))}\n',
            encoding="utf-8",
        )

    def superlink_child(self) -> ChildSpec:
        """The SuperLink: TLS and signed nodes even on loopback, tasks only for the holder of our secret."""
        pki = self._home.pki
        arguments = (
            *("--host", LOOPBACK, "--port", str(self._port)),
            *("--ssl-ca-certfile", str(self._ca)),
            *("--ssl-certfile", str(pki / "server.crt"), "--ssl-keyfile", str(pki / "server.key")),
            *("--enable-supernode-auth", "--isolation", "process"),
            *("--superexec-auth-secret-file", str(self._home.superexec_secret)),
            *("--database", str(self._home.flower / "state.db")),
            "--disable-runtime-dependency-installation",
        )
        return ChildSpec(
            name=SUPERLINK,
            argv=(_program("flower-superlink"), *arguments),
            environment=self._environment("superlink"),
            log=self._home.logs / "superlink.log",
            watch=self.answers,
        )

    def superexec_child(self, *, exchange: str) -> ChildSpec:
        """The SuperExec, which starts a ServerApp for each run; `exchange` is the host:port that it will join."""
        arguments = (
            *("--runtime-api-address", self.address, "--root-certificates", str(self._ca)),
            *("--superexec-auth-secret-file", str(self._home.superexec_secret)),
        )
        return ChildSpec(
            name=SUPEREXEC,
            argv=(_program("flower-superexec"), *arguments),
            environment={
                **self._environment("superlink"),
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": TASK_POLL_SECONDS,
                HOME_VARIABLE: str(self._home.folder.absolute()),
                EXCHANGE_VARIABLE: exchange,
            },
            log=self._home.logs / "superexec.log",
        )

    async def answers(self) -> bool:
        """Whether the SuperLink serves requests now."""
        try:
            return (await self._client.get(f"{self.url}/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def register_node(self, node_key: str, *, site: str) -> int | None:
        """Flower's number for the node with this public key; None when the key is registered already.

        Raises:
            SupervisorError: the SuperLink refused, or cannot be reached.
        """
        key_file = self._flower_home("cli") / f"{site}.pub"
        key_file.write_text(node_key, encoding="utf-8")
        answer = await self._call(
            "supernode", "register", str(key_file), CONNECTION, "--name", site
        )
        if answer.get("success") is True:
            return int(answer["node-id"])
        if "already in use" in str(answer.get("error-message")):
            return None
        raise _refused(f'register the node of site "{site}"', answer)

    async def nodes(self) -> tuple[FlowerNode, ...]:
        """Every registered node.

        Raises:
            SupervisorError: the SuperLink refused, or cannot be reached.
        """
        answer = await self._call("supernode", "list", CONNECTION)
        if answer.get("success") is not True:
            raise _refused("list nodes", answer)
        return tuple(
            FlowerNode(node_id=int(node["node-id"]), is_online=node["status"] == "online")
            for node in answer["nodes"]
            if node["status"] != "unregistered"
        )

    async def start_run(self, app: Path, *, run_id: str) -> int:
        """Starts a Flower run of the app that drives this run of the ledger; Flower's number for it.

        Raises:
            SupervisorError: the SuperLink refused, or cannot be reached.
        """
        if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", run_id) is None:
            raise ValueError(f"Expected run_id={run_id!r} of letters, digits, dots and hyphens.")
        setting = f'run-id="{run_id}"'
        answer = await self._call("run", str(app), CONNECTION, "--run-config", setting)
        if answer.get("success") is not True:
            raise _refused(f"start a Flower run for run {run_id}", answer)
        return int(answer["run-id"])

    async def find_run(self, flower_run_id: int) -> FlowerRun:
        """What became of a Flower run.

        Raises:
            SupervisorError: the SuperLink does not know it, or cannot be reached.
        """
        answer = await self._call("list", CONNECTION, "--run-id", str(flower_run_id))
        if answer.get("success") is not True:
            raise _refused(f"look up Flower run {flower_run_id}", answer)
        return _flower_run(answer["runs"][0])

    async def unfinished_runs(self) -> tuple[FlowerRun, ...]:
        """Flower runs that the SuperLink believes to be alive, of the newest hundred.

        Raises:
            SupervisorError: the SuperLink refused, or cannot be reached.
        """
        answer = await self._call("list", CONNECTION, "--limit", "100")
        if answer.get("success") is not True:
            raise _refused("list runs", answer)
        runs = tuple(_flower_run(run) for run in answer["runs"])
        return tuple(run for run in runs if not run.has_ended)

    async def stop_run(self, flower_run_id: int) -> None:
        """Ends a Flower run; one that has ended stays as it is.

        Raises:
            SupervisorError: the SuperLink refused, or cannot be reached.
        """
        answer = await self._call("stop", str(flower_run_id), CONNECTION)
        if answer.get("success") is not True and "finished" not in str(answer.get("error-message")):
            raise _refused(f"stop Flower run {flower_run_id}", answer)

    async def close(self) -> None:
        """Closes the connection of the health check."""
        await self._client.aclose()

    @property
    def _ca(self) -> Path:
        return (self._home.pki / "ca.crt").absolute()

    def _flower_home(self, role: str) -> Path:
        return self._home.flower / role

    def _environment(self, role: str) -> Mapping[str, str]:
        passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
        return {
            **passed,
            # SuperExec looks its programs up by name: those of this environment come first.
            "PATH": os.pathsep.join(
                (str(Path(sys.executable).parent), passed.get("PATH", os.defpath))
            ),
            "HOME": str(self._flower_home(role).absolute()),
            "FLWR_HOME": str(self._flower_home(role).absolute()),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PYTHONUNBUFFERED": "1",
        }

    async def _call(self, *arguments: str) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *(_program("flwr"), *arguments, "--format", "json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(self._environment("cli")),
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), CALL_SECONDS)
        except TimeoutError as error:
            raise SupervisorError(
                f'"flwr {arguments[0]}" gave no answer within {CALL_SECONDS:.0f} s. See {self._home.logs}.'
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            answer = json.loads(output)
        except ValueError as error:
            text = (errors or output).decode(errors="replace")[-SHOWN_ERROR_CHARACTERS:]
            raise SupervisorError(
                f'"flwr {arguments[0]}" ended with status {process.returncode} and no JSON: {text}'
            ) from error
        if not isinstance(answer, dict):
            raise SupervisorError(
                f'"flwr {arguments[0]}" answered with something else than an object.'
            )
        return answer


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def serverapp_processes(process_group: int) -> frozenset[int]:
    """Process ids of the ServerApps that run in SuperExec's process group; ended ones do not count."""
    return frozenset(
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _is_serverapp(folder, process_group)
    )


def _is_serverapp(folder: Path, process_group: int) -> bool:
    try:
        # After the program's name, which ends at the last bracket: state, parent, process group (proc(5)).
        state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        return (
            int(group) == process_group
            and state != "Z"
            and b"flwr-serverapp\0" in (folder / "cmdline").read_bytes()
        )
    except (OSError, ValueError):  # it ended while it was looked at
        return False


def _flower_run(run: Mapping[str, Any]) -> FlowerRun:
    return FlowerRun(
        flower_run_id=int(run["run-id"]),
        has_ended=str(run["status"]).startswith("finished"),
        status=str(run["status"]),
        details=str(run.get("status-details", ""))[:SHOWN_ERROR_CHARACTERS],
    )


def _refused(what: str, answer: Mapping[str, Any]) -> SupervisorError:
    reason = str(answer.get("error-message", "no reason given"))[-SHOWN_ERROR_CHARACTERS:]
    return SupervisorError(f"The SuperLink did not {what}: {reason}")
