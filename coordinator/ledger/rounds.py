"""Rounds: every step of an attempt, fenced by the run's lease and refused out of order.

plan_attempt -> open_attempt -> (record_participation, record_charge) -> mark_aggregating -> commit_round
                at any step before the commit -> abort_attempt

The commit is one transaction: the model, what each site did, what it was charged, the metrics, and the state. Killed
before its end, the previous round is still the truth; repeated, it changes nothing.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine, select, update

from coordinator.errors import LedgerError
from coordinator.ledger.attempts import (
    AttemptKey,
    ask_cohort,
    insert_planned,
    move,
    participation_values,
    require_asked,
    require_cohort,
    require_next,
    state_of,
)
from coordinator.ledger.commit import (
    insert_charge,
    insert_findings,
    insert_model,
    is_committed_already,
    require_acceptable,
)
from coordinator.ledger.engine import reading, writing
from coordinator.ledger.fencing import require_lease
from coordinator.ledger.history import read_attempts
from coordinator.ledger.records import (
    Attempt,
    Charge,
    Lease,
    Participation,
    PlannedAttempt,
    RoundOutcome,
)
from coordinator.ledger.states import PARTICIPATION_MAY_COME_FROM, ParticipationState, RoundState
from coordinator.ledger.tables import AttemptRow, ParticipationRow

_ENDINGS = (ParticipationState.LOST, ParticipationState.REFUSED)


class RoundTable:
    """Rounds and attempts as the ledger keeps them. Each method is one transaction.

    All that write raise StaleEpochError when the run was taken over, TransitionError when it has ended or the step is
    not allowed from where the attempt stands, and LedgerError when the attempt was never planned.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    def plan_attempt(self, lease: Lease, plan: PlannedAttempt) -> None:
        """Records a plan before anybody is asked.

        Raises:
            TransitionError: not the next round of the run or the next attempt at it, or another is under way.
            QuorumError: the cohort is smaller than the quorum.
            LedgerError: the cohort names somebody who is no member.
        """
        key = AttemptKey(run_id=lease.run_id, round=plan.round, attempt=plan.attempt)
        digest = hashlib.sha256(plan.plan).hexdigest()
        with writing(self._engine) as connection:
            rounds = require_lease(connection, lease)
            require_next(connection, key, rounds=rounds)
            require_cohort(connection, key, plan)
            insert_planned(connection, key, plan, epoch=lease.epoch, sha256=digest)

    def open_attempt(self, lease: Lease, *, round: int, attempt: int) -> None:
        """Planned -> open: the cohort is being asked."""
        key = AttemptKey(run_id=lease.run_id, round=round, attempt=attempt)
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            move(connection, key, RoundState.OPEN, now=self._clock())
            ask_cohort(connection, key)

    def record_participation(
        self, lease: Lease, news: Participation, *, round: int, attempt: int
    ) -> bool:
        """How far a site has come. Returns whether that was news: late or duplicate word changes nothing.

        While the attempt is open a site may join, seal, refuse or be lost; once it aggregates, only refuse or be lost.

        Raises:
            LedgerError: the site was not asked in this attempt.
            ValueError: `asked` and `counted`, which only opening and committing write.
        """
        if news.state not in PARTICIPATION_MAY_COME_FROM:
            raise ValueError(
                f"Expected state={news.state!s} to be joined, sealed, lost or refused."
            )
        accepting = [RoundState.OPEN, *([RoundState.AGGREGATING] if news.state in _ENDINGS else [])]
        key = AttemptKey(run_id=lease.run_id, round=round, attempt=attempt)
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            require_asked(connection, key, news.site)
            if state_of(connection, key) not in accepting:
                return False
            changed = connection.execute(
                update(ParticipationRow)
                .where(
                    key.of(ParticipationRow),
                    ParticipationRow.site == news.site,
                    ParticipationRow.state.in_(PARTICIPATION_MAY_COME_FROM[news.state]),
                )
                .values(**participation_values(news))
            )
            return changed.rowcount == 1

    def record_charge(self, lease: Lease, charge: Charge, *, round: int, attempt: int) -> bool:
        """What an attempt cost a site's budget; also of an attempt that is over, since a charge is never refunded.

        Returns whether it was news.

        Raises:
            LedgerError: the site was not asked, or reported something else before.
        """
        key = AttemptKey(run_id=lease.run_id, round=round, attempt=attempt)
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            return insert_charge(connection, key, charge, now=self._clock())

    def mark_aggregating(self, lease: Lease, *, round: int, attempt: int) -> None:
        """Open -> aggregating: every contribution that will count is in."""
        key = AttemptKey(run_id=lease.run_id, round=round, attempt=attempt)
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            move(connection, key, RoundState.AGGREGATING, now=self._clock())

    def commit_round(
        self, lease: Lease, outcome: RoundOutcome, *, round: int, attempt: int
    ) -> bool:
        """Aggregating -> committed, with all that the round brought, in one transaction.

        The model file must be durable before. Returns False when this attempt had committed this very model already.

        Raises:
            TransitionError: the attempt is not aggregating, or the round is committed with another attempt or model.
            QuorumError: fewer sites counted than the plan demands.
            LedgerError: the outcome does not fit the plan: another parent model, or other sites than the cohort.
        """
        key = AttemptKey(run_id=lease.run_id, round=round, attempt=attempt)
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            if is_committed_already(connection, key, outcome):
                return False
            require_acceptable(connection, key, outcome)
            now = self._clock()
            insert_model(connection, key, outcome, now=now)
            move(connection, key, RoundState.COMMITTED, now=now, model_sha256=outcome.model.sha256)
            insert_findings(connection, key, outcome, now=now)
        return True

    def abort_attempt(self, lease: Lease, *, round: int, attempt: int, reason: str) -> None:
        """Planned, open or aggregating -> aborted: nothing of this attempt counts, the previous round is the truth."""
        key = AttemptKey(run_id=lease.run_id, round=round, attempt=attempt)
        with writing(self._engine) as connection:
            require_lease(connection, lease)
            move(connection, key, RoundState.ABORTED, now=self._clock(), reason=reason)

    def attempts(self, run_id: str) -> tuple[Attempt, ...]:
        """All attempts of a run so far, whatever came of them, in order."""
        with reading(self._engine) as connection:
            return read_attempts(connection, run_id)

    def signed_plan(self, run_id: str, *, round: int, attempt: int) -> tuple[bytes, bytes]:
        """Plan bytes and signature, exactly as the sites received them.

        Raises:
            LedgerError: no such attempt.
        """
        key = AttemptKey(run_id=run_id, round=round, attempt=attempt)
        with reading(self._engine) as connection:
            row = connection.execute(
                select(AttemptRow.plan, AttemptRow.plan_signature).where(key.of(AttemptRow))
            ).one_or_none()
        if row is None:
            raise LedgerError(f"{key} was never planned: the ledger does not know it.")
        return row.plan, row.plan_signature
