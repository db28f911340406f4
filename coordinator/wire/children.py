"""Child processes of a supervisor: started from fixed arguments, watched by what they do, never outliving it.

Rules, in order:

1. A child is a fixed argument list and environment, no shell. Secrets travel in files, never in arguments.
2. What it prints goes to its own log file, mode 0600.
3. A child that ends is started again after 1, 2, 4, ... at most 30 seconds; a stable period resets the delay.
4. A child whose `watch` says "not working" several times in a row is restarted, alive or not.
5. `stop` sends SIGTERM to the child's process group, then SIGKILL; nothing of the group survives it.
6. When the supervisor itself is killed, `coordinator.wire.leash` kills the group.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.wire import leash

logger = logging.getLogger(__name__)

Watch = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to run, and how to tell that it works."""

    name: str
    """For logs and reports; unique within one supervisor."""
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """The child's whole environment."""
    log: Path
    """Appended to; created with mode 0600."""
    watch: Watch | None = None
    """Answers whether the child does its work now; must not raise."""
    watch_seconds: float = 5.0
    """Between two questions to `watch`, and the time limit of one."""
    watch_failures: int = 6
    """Answers "no" in a row that lead to a restart."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Seconds between the end of a child and its next start."""

    first_seconds: float = 1.0
    longest_seconds: float = 30.0
    stable_seconds: float = 60.0
    """A child that ran so long starts again after `first_seconds`."""

    def after(self, previous: float | None, *, ran_seconds: float) -> float:
        """The next delay, given the last one and how long the child ran."""
        if previous is None or ran_seconds >= self.stable_seconds:
            return self.first_seconds
        return min(2 * previous, self.longest_seconds)


@dataclass(kw_only=True)
class ChildState:
    """What the supervisor knows of one child."""

    spec: ChildSpec
    starts: int = 0
    process_group: int | None = None
    """Id of the running process group; None between two starts."""
    last_exit: int | None = None
    is_stopping: bool = False
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)


class Children:
    """The children of one supervisor. Use it from one event loop, in the main thread."""

    def __init__(self, *, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._states: dict[str, ChildState] = {}

    def start(self, spec: ChildSpec) -> None:
        """Starts the child and keeps it running until `stop`.

        Raises:
            ValueError: a child of that name exists.
        """
        if spec.name in self._states:
            raise ValueError(f'A child named "{spec.name}" is already supervised.')
        state = ChildState(spec=spec)
        self._states[spec.name] = state
        state.keeper = asyncio.create_task(self._keep(state), name=f"keep {spec.name}")

    def states(self) -> tuple[ChildState, ...]:
        """Every child, in order of start."""
        return tuple(self._states.values())

    def process_group(self, name: str) -> int | None:
        """The running process group of a child; None between two starts, or when there is no such child."""
        state = self._states.get(name)
        return None if state is None else state.process_group

    def restart(self, name: str) -> None:
        """Kills the child's group now; it is started again after the back-off."""
        group = self.process_group(name)
        if group is not None:
            _signal_group(group, signal.SIGKILL)

    async def stop(self, *, grace_seconds: float = 5.0) -> None:
        """Ends all children and everything they started: SIGTERM, then SIGKILL after the grace period."""
        await asyncio.gather(*(self._stop_one(state, grace_seconds) for state in self.states()))
        self._states.clear()

    async def _stop_one(self, state: ChildState, grace_seconds: float) -> None:
        keeper, group = state.keeper, state.process_group
        if keeper is None:
            return
        state.is_stopping = True
        if group is not None:
            _signal_group(group, signal.SIGTERM)
            await _group_gone(state, group, grace_seconds)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    async def _keep(self, state: ChildState) -> None:
        loop = asyncio.get_running_loop()
        delay: float | None = None
        while True:
            started = loop.time()
            await self._run_once(state)
            if state.is_stopping:
                return
            delay = self._backoff.after(delay, ran_seconds=loop.time() - started)
            logger.warning(
                "%s ended with status %s; starting it again in %.1f s. Its log: %s",
                state.spec.name,
                state.last_exit,
                delay,
                state.spec.log,
            )
            await asyncio.sleep(delay)

    async def _run_once(self, state: ChildState) -> None:
        spec = state.spec
        log = os.open(spec.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", leash.__file__, *spec.argv),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(spec.environment),
                start_new_session=True,
            )
        finally:
            os.close(log)
        state.starts += 1
        state.process_group = process.pid
        watcher = asyncio.create_task(_watch(spec, process.pid), name=f"watch {spec.name}")
        try:
            state.last_exit = await process.wait()
        finally:
            watcher.cancel()
            _signal_group(process.pid, signal.SIGKILL)
            state.process_group = None
            await process.wait()


async def _watch(spec: ChildSpec, group: int) -> None:
    if spec.watch is None:
        return
    failures = 0
    while failures < spec.watch_failures:
        await asyncio.sleep(spec.watch_seconds)
        try:
            works = await asyncio.wait_for(spec.watch(), spec.watch_seconds)
        except TimeoutError:
            works = False
        failures = 0 if works else failures + 1
    logger.warning(
        "%s is alive but has not worked for %d checks; restarting it", spec.name, failures
    )
    _signal_group(group, signal.SIGKILL)


async def _group_gone(state: ChildState, group: int, seconds: float) -> None:
    """Returns when the child's group has ended, or after so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while state.process_group == group and loop.time() < deadline:
        await asyncio.sleep(0.05)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
