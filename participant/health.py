"""Whether a running site works, told by what its parts do, not by whether their processes live.

- The SuperNode is judged by the requests that the tunnel sees (`Traffic`).
- The executor keeps a pulse file: its age says that the executor moves, its content what it does.
- The agent writes what it knows of both into `run.json`, which `participant status` shows.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from participant.durable import write_durably
from participant.errors import SupervisorError

QUIET_SECONDS = 45.0
"""A SuperNode sends a heartbeat at least every 23 s, and while the link is down tries again at least every 25 s."""
ONLINE_SECONDS = 60.0
"""The coordinator takes a node for offline 60 s after its last heartbeat."""
PULSE_SECONDS = 1.0
PULSE_LOST_SECONDS = 15.0


@dataclass(kw_only=True)
class Traffic:
    """What the tunnel saw of the SuperNode and of the link. Times are `time.monotonic`, None before the first."""

    started: float = float("-inf")
    """When the present SuperNode process was started."""
    heartbeat: float | None = None
    """Last heartbeat request of the SuperNode."""
    work: float | None = None
    """Last other request of the SuperNode."""
    activated: float | None = None
    """Last time that the coordinator took the node in."""
    deactivated: float | None = None
    """Last time that the SuperNode signed itself off; it then polls no more."""
    answered: float | None = None
    """Last time that the coordinator answered with success."""
    refusal: str | None = None
    """The latest reason why a request failed; None after a success."""

    @property
    def is_taken_in(self) -> bool:
        """Whether the coordinator took the present SuperNode process in."""
        return self.activated is not None and self.activated > self.started


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What the executor said last."""

    state: str
    """idle, busy, waiting (for the SuperNode), or starting before it said anything."""
    age_seconds: float

    @property
    def is_fresh(self) -> bool:
        """Whether the executor moves."""
        return self.age_seconds < PULSE_LOST_SECONDS


@dataclass(frozen=True, kw_only=True)
class SiteStatus:
    """What an agent reports of itself."""

    pid: int
    site: str
    started: float
    """Seconds since 1970."""
    node: str
    """online, connecting or offline."""
    executor: str
    """As in `Pulse.state`."""
    link: str | None
    """Why the coordinator does not answer; None while it does."""
    starts: dict[str, int]
    """How often each process was started."""


def is_node_working(traffic: Traffic, executor: Pulse, now: float) -> bool:
    """Whether the SuperNode behind this traffic does its work, or is a process that merely lives.

    It does not when it is silent; when it has signed itself off, as after an error that it takes for final; when its
    heartbeats have ended although it was taken in; or when it only sends heartbeats while nobody computes.
    """

    def is_recent(moment: float | None) -> bool:
        return moment is not None and now - moment < QUIET_SECONDS

    if traffic.work is None or traffic.deactivated == traffic.work:
        return False
    if traffic.is_taken_in and not (is_recent(traffic.heartbeat) or is_recent(traffic.activated)):
        return False
    return is_recent(traffic.work) or (executor.is_fresh and executor.state == "busy")


def node_state(traffic: Traffic, now: float) -> str:
    """online, connecting or offline: how the coordinator sees this site, as far as the tunnel can tell."""
    if not traffic.is_taken_in or traffic.activated is None or traffic.answered is None:
        return "connecting"
    is_signed_off = traffic.deactivated is not None and traffic.deactivated > traffic.activated
    is_heard = now - traffic.answered < ONLINE_SECONDS
    return "online" if is_heard and not is_signed_off else "offline"


class PulseFile:
    """The executor's side of its pulse. While a task runs a thread keeps it fresh; otherwise the polling loop must."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = ""
        self._written = float("-inf")

    def beat(self, state: str) -> None:
        """Says `state`, at most once per `PULSE_SECONDS` unless it changed.

        Raises:
            DiskFullError: no room for another state.
        """
        now = time.monotonic()
        if state != self._state:
            text = json.dumps({"state": state})
            write_durably(self._path, [text.encode("utf-8")], replace=True)
            self._state, self._written = state, now
        elif now - self._written >= PULSE_SECONDS:
            self._path.touch()
            self._written = now

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Says "busy" from a thread until the block ends."""
        is_done = threading.Event()
        self.beat("busy")

        def keep_beating() -> None:
            while not is_done.wait(PULSE_SECONDS):
                self.beat("busy")

        thread = threading.Thread(target=keep_beating, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_done.set()
            thread.join()


def read_pulse(path: Path) -> Pulse:
    """The supervisor's side of the pulse."""
    try:
        age = time.time() - path.stat().st_mtime
        return Pulse(state=str(json.loads(path.read_text("utf-8"))["state"]), age_seconds=age)
    except FileNotFoundError:
        return Pulse(state="starting", age_seconds=float("inf"))


def write_status(path: Path, status: SiteStatus) -> None:
    """Writes the report.

    Raises:
        DiskFullError: no room; the last report stands.
    """
    write_durably(path, [json.dumps(asdict(status)).encode("utf-8")], replace=True)


def read_status(path: Path) -> SiteStatus | None:
    """What the latest agent reported last; None before the first run.

    Raises:
        SupervisorError: the report cannot be read.
    """
    try:
        return SiteStatus(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise SupervisorError(
            f'"{path}" is not an agent\'s report. Start the agent anew.'
        ) from error
