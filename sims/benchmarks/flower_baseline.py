"""Plain Flower as a baseline: a SuperLink and one SuperNode per site as real processes, or Flower's Ray simulation.

Flower is taken at its best: state in memory, unencrypted loopback, no login, no privacy; otherwise its defaults, with
one new process per message to a site. Telemetry, update check and run-time installation are off, and every process
has a FLWR_HOME inside the benchmark's own folder. Leaving a measurement ends every process that it started.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx

from sims.benchmarks.memory import process_tree
from sims.benchmarks.plain_flower.task import TIMES_FILE, WORKLOAD_VARIABLE

APP = Path(__file__).parent / "plain_flower"
ROOT = Path(__file__).parents[2]
SIMULATION = "sims.benchmarks.plain_flower.simulation"
CONNECTION = "benchmark"
READY_SECONDS = 90.0
COMMAND_SECONDS = 90.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.2
SHOWN_CHARACTERS = 300


class BaselineError(Exception):
    """The baseline did not run; the text says what was found."""


def time_flower_rounds(
    workload: Path, folder: Path, *, sites: int, timeout_seconds: float
) -> list[float]:
    """Seconds of every round after the first, on real processes.

    Args:
        workload: folder as `write_workload` leaves it.
        folder: new; receives Flower's homes and logs.
        sites: SuperNodes to start.
        timeout_seconds: for all rounds together.

    Raises:
        BaselineError: a process did not start, or the run failed.
    """
    folder.mkdir(parents=True)
    port = _free_port()
    address, log = f"127.0.0.1:{port}", folder / "superlink.log"
    with ExitStack() as processes:
        superlink = processes.enter_context(
            _running(
                (
                    _program("flower-superlink"),
                    "--insecure",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ),
                environment=_environment(folder, workload, "superlink"),
                log=log,
            )
        )
        _await_superlink(address, superlink, log)
        for index in range(sites):
            place = f"partition-id={index} num-partitions={sites}"
            serving = ("--port", str(_free_port()), "--node-config", place)
            processes.enter_context(
                _running(
                    (_program("flower-supernode"), "--insecure", "--superlink", address, *serving),
                    environment=_environment(folder, workload, f"node-{index}"),
                    log=folder / f"node-{index}.log",
                )
            )
        _start_run(address, _environment(folder, workload, "cli"))
        _await_times(workload, superlink, log, timeout_seconds)
    return read_rounds(workload)


def time_ray_rounds(
    workload: Path, folder: Path, *, python: Path, sites: int, timeout_seconds: float
) -> list[float]:
    """Seconds of every round after the first, in Flower's Ray simulation.

    Args:
        workload: folder as `write_workload` leaves it.
        folder: new; receives Ray's log.
        python: an interpreter that has `flwr[simulation]`.
        sites: virtual SuperNodes.
        timeout_seconds: for start and rounds together.

    Raises:
        BaselineError: that interpreter has no Ray, or the simulation failed.
    """
    folder.mkdir(parents=True)
    _require_ray(python)
    environment = _environment(folder, workload, "ray") | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    log = folder / "ray.log"
    with _running(
        [str(python), "-m", SIMULATION, str(sites)], environment=environment, log=log
    ) as ray:
        _await_times(workload, ray, log, timeout_seconds)
    return read_rounds(workload)


def read_rounds(workload: Path) -> list[float]:
    """Seconds between the ends of consecutive rounds, as the ServerApp wrote them.

    Raises:
        BaselineError: fewer than two rounds were completed.
    """
    completed = json.loads((workload / TIMES_FILE).read_text(encoding="utf-8"))
    if len(completed) < 2:
        raise BaselineError(f"{len(completed)} rounds were completed; see the logs with --keep")
    return [later - earlier for earlier, later in pairwise(completed)]


def _require_ray(python: Path) -> None:
    try:
        subprocess.run(
            [str(python), "-c", "import ray, flwr"],
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BaselineError(
            f"{python} cannot import ray; install flwr[simulation], or name an interpreter with --ray-python"
        ) from error


def _environment(folder: Path, workload: Path, role: str) -> dict[str, str]:
    home = folder / role
    home.mkdir(mode=0o700)
    # SuperExec looks its programs up by name: those of this environment come first.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {
        **os.environ,
        "PATH": path,
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        WORKLOAD_VARIABLE: str(workload.absolute()),
    }


@contextmanager
def _running(
    argv: Sequence[str], *, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The process and all that it starts, until the context is left."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # Flower detaches its SuperExec into a session of its own, where a signal to the group does not reach it.
        handles = _handles(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        for handle in handles:
            _end(handle)
        process.wait()


def _handles(root: int) -> list[int]:
    """A handle of the process and of each of its descendants; unlike a process id, it never comes to mean another."""
    handles = []
    for process in process_tree(root):
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(process))
    return handles


def _end(handle: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    select.select([handle], [], [], STOP_SECONDS)  # readable when it has ended
    os.close(handle)


def _await_superlink(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://{address}/health", trust_env=False).is_success:
                return
        if process.poll() is not None or time.monotonic() > until:
            raise BaselineError(f"flower-superlink is not ready: {_tail(log)}")
        time.sleep(POLL_SECONDS)


def _start_run(address: str, environment: dict[str, str]) -> None:
    (Path(environment["FLWR_HOME"]) / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        f'[superlink.{CONNECTION}]\naddress = "{address}"\ninsecure = true\n',
        encoding="utf-8",
    )
    try:
        subprocess.run(
            [_program("flwr"), "run", str(APP), CONNECTION],
            capture_output=True,
            env=environment,
            timeout=COMMAND_SECONDS,
            check=True,
        )
    except subprocess.SubprocessError as error:
        raise BaselineError(f"flwr run did not start the baseline: {error}") from error


def _await_times(
    workload: Path, process: subprocess.Popen[bytes], log: Path, timeout_seconds: float
) -> None:
    until = time.monotonic() + timeout_seconds
    while not (workload / TIMES_FILE).exists():
        if process.poll() is not None or time.monotonic() > until:
            raise BaselineError(f"{log.stem} did not finish: {_tail(log)}")
        time.sleep(POLL_SECONDS)


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-SHOWN_CHARACTERS:]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
