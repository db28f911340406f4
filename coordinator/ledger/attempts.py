"""Steps of one attempt inside a transaction that somebody else opened: where it stands, whom it asked, how it moves."""

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from coordinator.errors import LedgerError, QuorumError, TransitionError
from coordinator.ledger.records import Participation, PlannedAttempt
from coordinator.ledger.states import (
    ATTEMPT_MAY_COME_FROM,
    LIVE_ATTEMPTS,
    ParticipationState,
    RoundState,
)
from coordinator.ledger.tables import (
    AttemptRow,
    ChargeRow,
    ModelVersionRow,
    ParticipationRow,
    RoundRow,
    SiteRow,
)


@dataclass(frozen=True, kw_only=True)
class AttemptKey:
    """Names one attempt."""

    run_id: str
    round: int
    attempt: int

    def __str__(self) -> str:
        return f'Run "{self.run_id}", round {self.round}, attempt {self.attempt}'

    def of(self, table: type[AttemptRow | ParticipationRow | ChargeRow]) -> ColumnElement[bool]:
        """The rows of a table that belong to this attempt."""
        return (
            (table.run_id == self.run_id)
            & (table.round == self.round)
            & (table.attempt == self.attempt)
        )


def state_of(connection: Connection, key: AttemptKey) -> RoundState:
    """Where the attempt stands."""
    state = connection.execute(
        select(AttemptRow.state).where(key.of(AttemptRow))
    ).scalar_one_or_none()
    if state is None:
        raise LedgerError(f"{key} was never planned: the ledger does not know it.")
    return state


def cohort_of(connection: Connection, key: AttemptKey) -> tuple[str, ...]:
    """The sites of the attempt's plan."""
    return tuple(
        json.loads(
            connection.execute(select(AttemptRow.cohort).where(key.of(AttemptRow))).scalar_one()
        )
    )


def move(
    connection: Connection,
    key: AttemptKey,
    target: RoundState,
    *,
    now: datetime,
    reason: str | None = None,
    model_sha256: str | None = None,
) -> None:
    """Takes the attempt, and its round with it, to `target`.

    Raises:
        TransitionError: not allowed from where the attempt stands.
    """
    allowed = ATTEMPT_MAY_COME_FROM[target]
    times = {"opened_at": now} if target is RoundState.OPEN else {}
    if target not in LIVE_ATTEMPTS:
        times = {"closed_at": now}
    moved = connection.execute(
        update(AttemptRow)
        .where(key.of(AttemptRow), AttemptRow.state.in_(allowed))
        .values(state=target, reason=reason, **times)
    )
    if moved.rowcount != 1:
        raise TransitionError(
            f"{key} is {state_of(connection, key)}; only {' or '.join(allowed)} may become {target}. "
            "Nothing was changed."
        )
    committed_at = now if target is RoundState.COMMITTED else None
    connection.execute(
        update(RoundRow)
        .where(RoundRow.run_id == key.run_id, RoundRow.number == key.round)
        .values(state=target, model_sha256=model_sha256, committed_at=committed_at)
    )


def insert_planned(
    connection: Connection, key: AttemptKey, plan: PlannedAttempt, *, epoch: int, sha256: str
) -> None:
    """Writes the plan; the round's state becomes planned."""
    if plan.attempt == 1:
        connection.execute(
            insert(RoundRow).values(run_id=key.run_id, number=key.round, state=RoundState.PLANNED)
        )
    else:
        connection.execute(
            update(RoundRow)
            .where(RoundRow.run_id == key.run_id, RoundRow.number == key.round)
            .values(state=RoundState.PLANNED)
        )
    connection.execute(
        insert(AttemptRow).values(
            run_id=key.run_id,
            round=key.round,
            attempt=key.attempt,
            state=RoundState.PLANNED,
            epoch=epoch,
            plan=plan.plan,
            plan_signature=plan.plan_signature,
            plan_sha256=sha256,
            cohort=json.dumps(plan.cohort),
            quorum=plan.quorum,
            deadline=plan.deadline,
        )
    )


def ask_cohort(connection: Connection, key: AttemptKey) -> None:
    """Writes `asked` for each site of the cohort."""
    for site in cohort_of(connection, key):
        asked = participation_values(Participation(site=site, state=ParticipationState.ASKED))
        connection.execute(
            insert(ParticipationRow).values(
                run_id=key.run_id, round=key.round, attempt=key.attempt, site=site, **asked
            )
        )


def participation_values(participation: Participation) -> dict[str, object]:
    """What a participation writes over the one before it."""
    return {
        "state": participation.state,
        "detail": participation.detail,
        "bytes_sent": participation.bytes_sent,
        "bytes_received": participation.bytes_received,
        "seconds": participation.seconds,
    }


def require_next(connection: Connection, key: AttemptKey, *, rounds: int) -> None:
    """The attempt is the one to make next: at the first round that is not committed, with nothing else under way."""
    committed = connection.execute(
        select(func.max(ModelVersionRow.round)).where(ModelVersionRow.run_id == key.run_id)
    ).scalar_one()
    if committed is None:
        raise TransitionError(f"{key} cannot be planned: the run has no start model yet.")
    if key.round != committed + 1 or key.round > rounds:
        raise TransitionError(
            f"{key} cannot be planned: {committed} of {rounds} rounds are committed. Plan the next one, or finish."
        )
    live = connection.execute(
        select(AttemptRow.round, AttemptRow.attempt, AttemptRow.state).where(
            AttemptRow.run_id == key.run_id, AttemptRow.state.in_(LIVE_ATTEMPTS)
        )
    ).first()
    if live is not None:
        raise TransitionError(
            f"{key} cannot be planned: round {live.round}, attempt {live.attempt} is {live.state}. Abort it first."
        )
    last = connection.execute(
        select(func.max(AttemptRow.attempt)).where(
            AttemptRow.run_id == key.run_id, AttemptRow.round == key.round
        )
    ).scalar_one()
    if key.attempt != (last or 0) + 1:
        raise TransitionError(
            f"{key} cannot be planned: the next attempt at this round is {(last or 0) + 1}."
        )


def require_cohort(connection: Connection, key: AttemptKey, plan: PlannedAttempt) -> None:
    """The cohort is sorted, without doubles, all members, and no smaller than the quorum."""
    if list(plan.cohort) != sorted(set(plan.cohort)):
        raise ValueError(f"Expected cohort={plan.cohort!r} to be sorted, each site once.")
    if not 1 <= plan.quorum <= len(plan.cohort):
        raise QuorumError(
            f"{key} cannot be planned: quorum {plan.quorum} with a cohort of {len(plan.cohort)}."
        )
    members = set(
        connection.execute(
            select(SiteRow.name).where(SiteRow.name.in_(plan.cohort), SiteRow.revoked_at.is_(None))
        ).scalars()
    )
    strangers = sorted(set(plan.cohort) - members)
    if strangers:
        raise LedgerError(
            f"{key} cannot be planned: {', '.join(strangers)} not enrolled or revoked. Plan it without them."
        )


def require_asked(connection: Connection, key: AttemptKey, site: str) -> None:
    """The site was asked in this attempt."""
    found = connection.execute(
        select(ParticipationRow.site).where(key.of(ParticipationRow), ParticipationRow.site == site)
    ).scalar_one_or_none()
    if found is None:
        raise LedgerError(f'{key}: site "{site}" was not asked, so nothing is recorded of it.')
