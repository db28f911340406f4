"""Drives the ledger's runs with Flower runs, which are disposable: one that ends early is replaced by another.

For the oldest run that is requested or running, in a loop:

1. start a Flower run of the thin app, which starts a ServerApp that takes the run over and resumes it;
2. watch the ServerApp by its process, and now and then by Flower's word;
3. when it ended and the ledger's run has not, start another after a back-off;
4. after several Flower runs in a row without a newly committed round, the run has failed and says why.

One run at a time: a site works on one message at a time anyway.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import CoordinatorError, SupervisorError
from coordinator.ledger.runs import RunTable
from coordinator.superlink import SUPEREXEC, SuperLink, serverapp_processes
from coordinator.wire.children import Backoff, Children

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
FLOWER_POLL_SECONDS = 60.0
"""A question to Flower costs a second of CPU; the process is looked at meanwhile."""
APPEAR_SECONDS = 30.0
"""Until the ServerApp of a new Flower run must have been seen."""
MAX_FRUITLESS = 5
RETRY_SECONDS = 5.0

NoteIncident = Callable[[str, str, str], None]
"""Writes kind, text and run into the ledger's incidents."""


@dataclass(kw_only=True)
class _FlowerRun:
    """The Flower run that drives a run of the ledger now."""

    flower_run_id: int
    started: float
    asked: float
    process_group: int | None
    """SuperExec's process group at the start; another one means that the ServerApp died with SuperExec."""
    earlier: frozenset[int]
    """ServerApps of other Flower runs that have not quite ended."""
    has_appeared: bool = False


@dataclass(kw_only=True)
class _Effort:
    """What has been tried for one run of the ledger."""

    run_id: str
    committed: int = -1
    """Last committed round when a Flower run was started last; -1 before any model."""
    fruitless: int = 0
    """Flower runs in a row that committed nothing."""
    delay: float | None = None
    not_before: float = 0.0
    last_reason: str = ""
    current: _FlowerRun | None = None


class Launcher:
    """Finds runs to drive and sees to it that something drives them."""

    def __init__(
        self,
        *,
        superlink: SuperLink,
        app: Path,
        runs: RunTable,
        note_incident: NoteIncident,
        children: Children,
        backoff: Backoff | None = None,
    ) -> None:
        """Takes what it works with.

        Args:
            superlink: starts and stops Flower runs.
            app: folder of the thin Flower app.
            runs: the ledger's runs.
            note_incident: writes into the ledger's incidents.
            children: among them SuperExec, in whose process group ServerApps run.
            backoff: delays between two Flower runs of one run.
        """
        self._superlink, self._app, self._runs = superlink, app, runs
        self._note_incident, self._children = note_incident, children
        self._backoff = backoff or Backoff()
        self._effort: _Effort | None = None

    async def watch(self) -> None:
        """Drives runs, for ever."""
        while True:
            try:
                await self._step()
                await asyncio.sleep(POLL_SECONDS)
            except CoordinatorError as error:
                logger.warning("The launcher tries again in %.0f s: %s", RETRY_SECONDS, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def stop_leftovers(self) -> None:
        """Ends the Flower runs of an earlier coordinator process; their ServerApps died with it.

        Called before SuperExec starts, which would otherwise start ServerApps for those still pending.
        """
        if await asyncio.to_thread(self._runs.to_drive):
            for run in await self._superlink.unfinished_runs():
                await self._superlink.stop_run(run.flower_run_id)

    async def _step(self) -> None:
        run_id = await self._to_drive()
        if run_id is None:
            self._effort = None
            return
        if self._effort is None or self._effort.run_id != run_id:
            self._effort = _Effort(run_id=run_id)
        effort = self._effort
        if effort.current is None:
            if asyncio.get_running_loop().time() >= effort.not_before:
                await self._start(effort)
            return
        reason = await self._reason_of_end(effort.current)
        # The ServerApp ends right after it has written the run's end: look again before calling it a failure.
        if reason is not None and await self._to_drive() == run_id:
            await self._give_up_flower_run(effort, effort.current, reason)

    async def _to_drive(self) -> str | None:
        runs = await asyncio.to_thread(self._runs.to_drive)
        return runs[0].run_id if runs else None

    async def _start(self, effort: _Effort) -> None:
        last = await asyncio.to_thread(self._runs.last_committed, effort.run_id)
        committed = -1 if last is None else last.round
        if committed > effort.committed:
            effort.committed, effort.fruitless = committed, 0
        if effort.fruitless >= MAX_FRUITLESS:
            await self._fail(effort)
            return
        now = asyncio.get_running_loop().time()
        group = self._children.process_group(SUPEREXEC)
        if group is None:
            return  # SuperExec is about to start; the next look finds it
        earlier = serverapp_processes(group)
        try:
            flower_run_id = await self._superlink.start_run(self._app, run_id=effort.run_id)
        except SupervisorError as error:
            # Tried again for ever: a SuperLink that is away is no fault of the run. Told once.
            if str(error) != effort.last_reason:
                effort.last_reason = str(error)
                await self._note("flower-run-not-started", str(error), effort)
            raise
        logger.info("Flower run %d drives run %s.", flower_run_id, effort.run_id)
        effort.current = _FlowerRun(
            flower_run_id=flower_run_id,
            started=now,
            asked=now,
            process_group=group,
            earlier=earlier,
        )

    async def _reason_of_end(self, run: _FlowerRun) -> str | None:
        """Why the Flower run drives nothing any more; None while it does."""
        group = self._children.process_group(SUPEREXEC)
        now = asyncio.get_running_loop().time()
        if group is None or group != run.process_group:
            return "SuperExec ended and took the ServerApp with it."
        if serverapp_processes(group) - run.earlier:
            run.has_appeared = True
            if now - run.asked < FLOWER_POLL_SECONDS:
                return None
            run.asked = now
            found = await self._superlink.find_run(run.flower_run_id)
            return f"Flower calls it {found.status}. {found.details}" if found.has_ended else None
        if run.has_appeared:
            found = await self._superlink.find_run(run.flower_run_id)
            told = f" Flower says: {found.details}" if found.has_ended else ""
            return (
                f"The ServerApp ended; logs/serverapp.log in the coordinator's home says why.{told}"
            )
        if now - run.started < APPEAR_SECONDS:
            return None
        self._children.restart(SUPEREXEC)
        return "SuperExec started no ServerApp for it, and was restarted."

    async def _give_up_flower_run(self, effort: _Effort, run: _FlowerRun, reason: str) -> None:
        loop = asyncio.get_running_loop()
        text = f"Flower run {run.flower_run_id} ended before its run: {reason.strip()}"
        logger.warning("Run %s: %s", effort.run_id, text)
        await self._note("flower-run-ended", text, effort)
        effort.current = None
        effort.fruitless += 1
        effort.last_reason = reason.strip()
        effort.delay = self._backoff.after(effort.delay, ran_seconds=loop.time() - run.started)
        effort.not_before = loop.time() + effort.delay
        await self._superlink.stop_run(run.flower_run_id)

    async def _fail(self, effort: _Effort) -> None:
        reason = (
            f"{effort.fruitless} Flower runs in a row committed no round after round {max(effort.committed, 0)}. "
            f"The last one: {effort.last_reason} See logs/serverapp.log in the coordinator's home, mend the cause, and request the run again."
        )
        logger.error("Run %s has failed: %s", effort.run_id, reason)
        await self._note("run-given-up", reason, effort)
        # Taking the run over fences off a ServerApp that may still be alive somewhere.
        lease = await asyncio.to_thread(self._runs.take_over, effort.run_id)
        await asyncio.to_thread(lambda: self._runs.fail(lease, reason=reason))
        self._effort = None

    async def _note(self, kind: str, text: str, effort: _Effort) -> None:
        await asyncio.to_thread(self._note_incident, kind, text, effort.run_id)
