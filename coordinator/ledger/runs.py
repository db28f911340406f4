"""Runs: requested by an operator, driven by one process at a time, ended once.

request -> take_over -> record_start_model -> rounds (`coordinator.ledger.rounds`) -> finish | fail | cancel

A process that dies is replaced by another that takes the run over, with a higher epoch, and goes on from
`last_committed`. To end a run that nobody drives, take it over first: that fences whoever may still be alive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from coordinator.errors import LedgerError, TransitionError
from coordinator.ledger.engine import reading, writing
from coordinator.ledger.fencing import abort_live_attempts, lock_run, require_lease
from coordinator.ledger.history import read_runs
from coordinator.ledger.records import Lease, Run
from coordinator.ledger.states import DRIVABLE_RUNS, RunState
from coordinator.ledger.tables import ModelVersionRow, RunRow


@dataclass(frozen=True, kw_only=True)
class LastCommitted:
    """Where a run stands: the model to go on from. Round 0 is the model it started with."""

    round: int
    model_sha256: str
    model_bytes: int
    optimiser_state_sha256: str | None


class RunTable:
    """Runs as the ledger keeps them. Each method is one transaction."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    def request(self, run_id: str, *, spec: str, rounds: int) -> Run:
        """Records what an operator asks for; from then on the run is to be driven.

        Raises:
            LedgerError: the name is taken.
        """
        with writing(self._engine) as connection:
            try:
                connection.execute(
                    insert(RunRow).values(
                        run_id=run_id,
                        spec=spec,
                        state=RunState.REQUESTED,
                        rounds=rounds,
                        epoch=0,
                        created_at=self._clock(),
                    )
                )
            except IntegrityError as error:
                raise LedgerError(
                    f'Run "{run_id}" with {rounds} rounds cannot be requested: the name is taken, or rounds is not '
                    "at least 1. A run is never changed; choose another name."
                ) from error
            return _read(connection, run_id)

    def to_drive(self) -> tuple[Run, ...]:
        """Runs that are requested or running, oldest first."""
        with reading(self._engine) as connection:
            return read_runs(connection, RunRow.state.in_(DRIVABLE_RUNS))

    def all(self) -> tuple[Run, ...]:
        """Every run, oldest first."""
        with reading(self._engine) as connection:
            return read_runs(connection)

    def get(self, run_id: str) -> Run:
        """One run.

        Raises:
            LedgerError: no such run.
        """
        with reading(self._engine) as connection:
            return _read(connection, run_id)

    def take_over(self, run_id: str, *, flower_run_id: int | None = None) -> Lease:
        """Makes the caller the only one who may write the run. What its predecessor had under way is aborted.

        Raises:
            LedgerError: no such run.
            TransitionError: the run has ended.
        """
        with writing(self._engine) as connection:
            state, epoch, _ = lock_run(connection, run_id)
            if state not in DRIVABLE_RUNS:
                raise TransitionError(
                    f'Run "{run_id}" is {state}; only a requested or running one becomes running.'
                )
            lease = Lease(run_id=run_id, epoch=epoch + 1)
            abort_live_attempts(
                connection,
                run_id,
                reason=f"The process of epoch {epoch} was replaced by one of epoch {lease.epoch}.",
                now=self._clock(),
            )
            connection.execute(
                update(RunRow)
                .where(RunRow.run_id == run_id)
                .values(state=RunState.RUNNING, epoch=lease.epoch, flower_run_id=flower_run_id)
            )
        return lease

    def record_start_model(self, lease: Lease, *, sha256: str, size_bytes: int) -> None:
        """Names the model that round 1 starts from (round 0). The same one again changes nothing.

        Raises:
            LedgerError: another model was recorded before.
            StaleEpochError, TransitionError: as for every write of a run.
        """
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            start = connection.execute(
                select(ModelVersionRow.sha256).where(
                    ModelVersionRow.run_id == lease.run_id, ModelVersionRow.round == 0
                )
            ).scalar_one_or_none()
            if start is None:
                connection.execute(
                    insert(ModelVersionRow).values(
                        run_id=lease.run_id,
                        round=0,
                        sha256=sha256,
                        bytes=size_bytes,
                        created_at=self._clock(),
                    )
                )
            elif start != sha256:
                raise LedgerError(
                    f'Run "{lease.run_id}" started from model {start}; it cannot start again from {sha256}. Resume '
                    "from its last committed round."
                )

    def last_committed(self, run_id: str) -> LastCommitted | None:
        """The newest model of the run, which is the truth to resume from; None before any model was recorded."""
        query = (
            select(
                ModelVersionRow.round,
                ModelVersionRow.sha256.label("model_sha256"),
                ModelVersionRow.bytes.label("model_bytes"),
                ModelVersionRow.optimiser_state_sha256,
            )
            .where(ModelVersionRow.run_id == run_id)
            .order_by(ModelVersionRow.round.desc())
            .limit(1)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else LastCommitted(**row._asdict())

    def finish(self, lease: Lease) -> None:
        """Running -> finished, when every round is committed.

        Raises:
            TransitionError: rounds are missing, or the run has ended.
            StaleEpochError: the run was taken over since.
        """
        with writing(self._engine) as connection:
            rounds = require_lease(connection, lease)
            last = connection.execute(
                select(ModelVersionRow.round).where(
                    ModelVersionRow.run_id == lease.run_id, ModelVersionRow.round == rounds
                )
            ).scalar_one_or_none()
            if last is None:
                raise TransitionError(
                    f'Run "{lease.run_id}" is running and cannot become finished: round {rounds}, its last, is not '
                    "committed."
                )
            self._end(connection, lease.run_id, RunState.FINISHED, reason=None)

    def fail(self, lease: Lease, *, reason: str) -> None:
        """Running -> failed. An attempt under way is aborted; the committed rounds stay.

        Raises:
            StaleEpochError, TransitionError: as for every write of a run.
        """
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            abort_live_attempts(connection, lease.run_id, reason=reason, now=self._clock())
            self._end(connection, lease.run_id, RunState.FAILED, reason=reason)

    def cancel(self, run_id: str, *, reason: str) -> None:
        """Requested or running -> cancelled, by an operator; whoever drives it finds out at the next write.

        Raises:
            LedgerError: no such run.
            TransitionError: the run has ended.
        """
        with writing(self._engine) as connection:
            state, _, _ = lock_run(connection, run_id)
            if state not in DRIVABLE_RUNS:
                raise TransitionError(
                    f'Run "{run_id}" is {state}; only a requested or running one becomes cancelled.'
                )
            abort_live_attempts(connection, run_id, reason=reason, now=self._clock())
            self._end(connection, run_id, RunState.CANCELLED, reason=reason)

    def _end(
        self, connection: Connection, run_id: str, state: RunState, *, reason: str | None
    ) -> None:
        connection.execute(
            update(RunRow)
            .where(RunRow.run_id == run_id)
            .values(
                state=state,
                finished_at=self._clock(),
                reason=reason,
            )
        )


def _read(connection: Connection, run_id: str) -> Run:
    for run in read_runs(connection, RunRow.run_id == run_id):
        return run
    raise LedgerError(f'The ledger knows no run "{run_id}". See `coordinator ledger list`.')
