"""Reads what is known of a run, table by table, inside a transaction that somebody else opened."""

import json
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from coordinator.ledger.records import (
    Attempt,
    AttemptCharge,
    AttemptParticipation,
    Charge,
    Incident,
    Metric,
    ModelVersion,
    Participation,
    Round,
    RoundMetric,
    Run,
    RunHistory,
)
from coordinator.ledger.tables import (
    AttemptRow,
    ChargeRow,
    IncidentRow,
    MetricRow,
    ModelVersionRow,
    ParticipationRow,
    RoundRow,
    RunRow,
    Table,
)

BY_ATTEMPT = ("round", "attempt")
BY_SITE = (*BY_ATTEMPT, "site")


def read_runs(connection: Connection, *conditions: ColumnElement[bool]) -> tuple[Run, ...]:
    """The runs that meet all conditions, oldest first."""
    return tuple(
        Run(**row)
        for row in _rows(connection, RunRow, Run, *conditions, order=("created_at", "run_id"))
    )


def read_incidents(
    connection: Connection, *conditions: ColumnElement[bool]
) -> tuple[Incident, ...]:
    """The incidents that meet all conditions, in the order in which they were recorded."""
    return tuple(
        Incident(**row)
        for row in _rows(connection, IncidentRow, Incident, *conditions, order=("id",))
    )


def read_attempts(connection: Connection, run_id: str) -> tuple[Attempt, ...]:
    """The attempts of a run in the order in which they were made, without their plans."""
    rows = _rows(connection, AttemptRow, Attempt, AttemptRow.run_id == run_id, order=BY_ATTEMPT)
    return tuple(Attempt(**{**row, "cohort": tuple(json.loads(row["cohort"]))}) for row in rows)


def read_history(connection: Connection, run: Run) -> RunHistory:
    """Everything about one run."""

    def rows(table: Any, record: type, *keys: str, order: tuple[str, ...]) -> list[dict[str, Any]]:
        return _rows(connection, table, record, table.run_id == run.run_id, keys=keys, order=order)

    return RunHistory(
        run=run,
        rounds=tuple(Round(**row) for row in rows(RoundRow, Round, order=("number",))),
        attempts=read_attempts(connection, run.run_id),
        participations=tuple(
            AttemptParticipation(
                round=row.pop("round"),
                attempt=row.pop("attempt"),
                participation=Participation(**row),
            )
            for row in rows(ParticipationRow, Participation, *BY_ATTEMPT, order=BY_SITE)
        ),
        models=tuple(
            ModelVersion(**row) for row in rows(ModelVersionRow, ModelVersion, order=("round",))
        ),
        charges=tuple(
            AttemptCharge(
                round=row.pop("round"),
                attempt=row.pop("attempt"),
                recorded_at=row.pop("recorded_at"),
                charge=Charge(**row),
            )
            for row in rows(ChargeRow, Charge, *BY_ATTEMPT, "recorded_at", order=BY_SITE)
        ),
        metrics=tuple(
            RoundMetric(round=row.pop("round"), metric=Metric(**row))
            for row in rows(MetricRow, Metric, "round", order=("round", "name"))
        ),
        incidents=read_incidents(connection, IncidentRow.run_id == run.run_id),
    )


def _rows(
    connection: Connection,
    table: type[Table],
    record: type,
    *conditions: ColumnElement[bool],
    keys: tuple[str, ...] = (),
    order: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Of each row the columns that `record` has as fields, and those named by `keys`."""
    names = [*keys, *(field.name for field in fields(record))]
    query = select(*(getattr(table, name) for name in names)).where(*conditions)
    rows = connection.execute(query.order_by(*(getattr(table, name) for name in order)))
    return [row._asdict() for row in rows]
