"""Who may write a run: the holder of its newest epoch, checked in the transaction that writes.

A ServerApp that was paused, or cut off from the supervisor that replaced it, still holds its old lease. Its next write
finds a higher epoch in the ledger and is refused; nothing of it is stored.
"""

from datetime import datetime

from sqlalchemy import Connection, select, update

from coordinator.errors import LedgerError, StaleEpochError, TransitionError
from coordinator.ledger.records import Lease
from coordinator.ledger.states import LIVE_ATTEMPTS, RoundState, RunState
from coordinator.ledger.tables import AttemptRow, RoundRow, RunRow


def require_lease(connection: Connection, lease: Lease) -> int:
    """Locks the run for this transaction and returns its number of rounds.

    Raises:
        StaleEpochError: the run was taken over since.
        TransitionError: the run has ended.
    """
    state, epoch, rounds = lock_run(connection, lease.run_id)
    if epoch != lease.epoch:
        raise StaleEpochError(
            f'Run "{lease.run_id}": this process holds epoch {lease.epoch}, the ledger is at epoch {epoch}: another '
            "process has taken the run over. Nothing was written; stop this process."
        )
    if state is not RunState.RUNNING:
        raise TransitionError(
            f'Run "{lease.run_id}" is {state}, not running: nothing more is written to it.'
        )
    return rounds


def lock_run(connection: Connection, run_id: str) -> tuple[RunState, int, int]:
    """State, epoch and rounds of a run, which no other transaction changes until this one ends."""
    row = connection.execute(
        select(RunRow.state, RunRow.epoch, RunRow.rounds)
        .where(RunRow.run_id == run_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise LedgerError(f'The ledger knows no run "{run_id}". See `coordinator ledger list`.')
    return row.state, row.epoch, row.rounds


def abort_live_attempts(connection: Connection, run_id: str, *, reason: str, now: datetime) -> None:
    """Whatever was under way in the run has produced nothing."""
    live = AttemptRow.state.in_(LIVE_ATTEMPTS)
    connection.execute(
        update(AttemptRow)
        .where(AttemptRow.run_id == run_id, live)
        .values(state=RoundState.ABORTED, closed_at=now, reason=reason)
    )
    connection.execute(
        update(RoundRow)
        .where(RoundRow.run_id == run_id, RoundRow.state.in_(LIVE_ATTEMPTS))
        .values(state=RoundState.ABORTED)
    )
