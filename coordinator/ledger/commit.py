"""What a commit writes, inside the transaction of `RoundTable.commit_round`, and what it refuses to write."""

import math
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from coordinator.errors import LedgerError, QuorumError, TransitionError
from coordinator.ledger.attempts import (
    AttemptKey,
    cohort_of,
    participation_values,
    require_asked,
    state_of,
)
from coordinator.ledger.records import Charge, RoundOutcome
from coordinator.ledger.states import SETTLED_PARTICIPATIONS, ParticipationState, RoundState
from coordinator.ledger.tables import (
    AttemptRow,
    ChargeRow,
    MetricRow,
    ModelVersionRow,
    ParticipationRow,
)


def is_committed_already(connection: Connection, key: AttemptKey, outcome: RoundOutcome) -> bool:
    """Whether this very commit has been made before, e.g. by a caller who never learnt that it succeeded.

    Raises:
        TransitionError: the round was committed, but with another attempt or model.
    """
    model = connection.execute(
        select(ModelVersionRow.sha256).where(
            ModelVersionRow.run_id == key.run_id, ModelVersionRow.round == key.round
        )
    ).scalar_one_or_none()
    if model is None:
        return False
    if model == outcome.model.sha256 and state_of(connection, key) is RoundState.COMMITTED:
        return True
    raise TransitionError(
        f"{key} is {state_of(connection, key)} and cannot become committed: the round is committed with model "
        f"{model}, not {outcome.model.sha256}. Nothing was changed; go on from the committed round."
    )


def require_acceptable(connection: Connection, key: AttemptKey, outcome: RoundOutcome) -> None:
    """The outcome fits the plan: its parent, its cohort, its quorum; every number is finite.

    Raises:
        LedgerError, QuorumError, ValueError: it does not.
    """
    parent = connection.execute(
        select(ModelVersionRow.sha256).where(
            ModelVersionRow.run_id == key.run_id, ModelVersionRow.round == key.round - 1
        )
    ).scalar_one_or_none()
    if parent != outcome.model.parent_sha256:
        raise LedgerError(
            f"{key} cannot be committed: its model says it grew from {outcome.model.parent_sha256}, the last committed "
            f"model is {parent}. Abort the attempt and plan it again."
        )
    cohort = cohort_of(connection, key)
    if sorted(participation.site for participation in outcome.participations) != list(cohort):
        raise LedgerError(
            f"{key} cannot be committed: expected one participation for each of {', '.join(cohort)}."
        )
    states = [participation.state for participation in outcome.participations]
    if not set(states) <= set(SETTLED_PARTICIPATIONS):
        raise ValueError(
            f"Expected every participation of a commit to be counted, lost or refused, got {states}."
        )
    quorum = connection.execute(select(AttemptRow.quorum).where(key.of(AttemptRow))).scalar_one()
    counted = states.count(ParticipationState.COUNTED)
    if counted < quorum:
        raise QuorumError(
            f"{key} cannot be committed: {counted} sites counted, the quorum is {quorum}. Abort it."
        )
    for metric in outcome.metrics:
        if not math.isfinite(metric.value):
            raise ValueError(f"Expected metric {metric.name}={metric.value} to be finite.")


def insert_model(
    connection: Connection, key: AttemptKey, outcome: RoundOutcome, *, now: datetime
) -> None:
    """Names the round's model."""
    model = outcome.model
    connection.execute(
        insert(ModelVersionRow).values(
            run_id=key.run_id,
            round=key.round,
            sha256=model.sha256,
            bytes=model.bytes,
            parent_sha256=model.parent_sha256,
            optimiser_state_sha256=model.optimiser_state_sha256,
            created_at=now,
        )
    )


def insert_findings(
    connection: Connection, key: AttemptKey, outcome: RoundOutcome, *, now: datetime
) -> None:
    """What became of each site, what it was charged, and the metrics."""
    for participation in outcome.participations:
        connection.execute(
            update(ParticipationRow)
            .where(key.of(ParticipationRow), ParticipationRow.site == participation.site)
            .values(**participation_values(participation))
        )
    for charge in outcome.charges:
        insert_charge(connection, key, charge, now=now)
    for metric in outcome.metrics:
        connection.execute(
            insert(MetricRow).values(
                run_id=key.run_id,
                round=key.round,
                name=metric.name,
                value=metric.value,
                released_with=metric.released_with,
            )
        )


def insert_charge(
    connection: Connection, key: AttemptKey, charge: Charge, *, now: datetime
) -> bool:
    """Writes a charge once; the same again changes nothing. Returns whether it was news.

    Raises:
        LedgerError: the site was not asked, or reported something else for this attempt before.
        ValueError: numbers that are no guarantee.
    """
    if not (math.isfinite(charge.epsilon) and charge.epsilon >= 0 and 0 <= charge.delta < 1):
        raise ValueError(
            f"Expected epsilon={charge.epsilon} >= 0 and 0 <= delta={charge.delta} < 1, both finite."
        )
    require_asked(connection, key, charge.site)
    before = connection.execute(
        select(
            ChargeRow.site,
            ChargeRow.epsilon,
            ChargeRow.delta,
            ChargeRow.unit,
            ChargeRow.adjacency,
            ChargeRow.events,
        ).where(key.of(ChargeRow), ChargeRow.site == charge.site)
    ).one_or_none()
    if before is None:
        connection.execute(
            insert(ChargeRow).values(
                run_id=key.run_id,
                round=key.round,
                attempt=key.attempt,
                site=charge.site,
                epsilon=charge.epsilon,
                delta=charge.delta,
                unit=charge.unit,
                adjacency=charge.adjacency,
                events=charge.events,
                recorded_at=now,
            )
        )
        return True
    if Charge(**before._asdict()) != charge:
        raise LedgerError(
            f'{key}: site "{charge.site}" reported epsilon {before.epsilon} before and {charge.epsilon} now. One '
            "attempt is charged once; the first report stands. Ask the site for its budget file."
        )
    return False
