"""What the ledger says happened, as values, as one JSON object and as tables for a terminal.

An epsilon is the total of one site's data set, over all runs so far, always with its delta, unit and adjacency, and it
is what the site reported: the truth about a site's budget is the site's own file. Where sites share the noise of a sum,
the coordinator knows who stayed in it, and adds what the sums so far cost as released.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import TypeAdapter
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from coordinator.errors import LedgerError
from coordinator.ledger.records import (
    RESERVED_EPSILON,
    SURVIVORS_EPSILON,
    Attempt,
    AttemptCharge,
    Incident,
    ModelVersion,
    Participation,
    Round,
    RoundMetric,
    RunHistory,
)
from coordinator.ledger.states import ParticipationState, RoundState, RunState
from coordinator.ledger.store import LedgerStore

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What a site reported as spent after its last attempt."""

    epsilon: float
    delta: float
    unit: str
    adjacency: str


@dataclass(frozen=True, kw_only=True)
class SharedNoiseGuarantee:
    """What all committed sums of a run with shared noise cost a patient of a site that was in every one of them."""

    epsilon: float
    """As released: from the sites that stayed in each sum."""
    reserved: float
    """As planned for the same sums, before it was known who stays."""
    delta: float
    unit: str
    adjacency: str
    colluding_sites: int
    """Sites in a sum that may have told their share of the noise, or added none; with more, both figures are void."""

    @property
    def words(self) -> str:
        """All of it in one sentence: an epsilon never stands alone."""
        return (
            f"epsilon {self.epsilon:.3f} as released (reserved {self.reserved:.3f}) at delta {self.delta:g}, per {self.unit}, "
            f"{self.adjacency}, if at most {self.colluding_sites} of the sites in a sum tell their share of the noise"
        )


@dataclass(frozen=True, kw_only=True)
class RoundSummary:
    """One round, all its attempts together."""

    run_id: str
    round: int
    state: RoundState
    attempts: int
    cohort: tuple[str, ...]
    """Sites asked in the last attempt."""
    sites_counted: tuple[str, ...]
    """Sites whose contribution is in the model."""
    model_sha256: str | None
    seconds: float | None
    """From the first time that sites were asked to the commit."""
    bytes_sent: int
    """By the sites, in all attempts."""
    bytes_received: int
    """By the sites, in all attempts."""
    started_at: datetime | None
    committed_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run and its rounds."""

    run_id: str
    state: RunState
    rounds_requested: int
    rounds_committed: int
    epoch: int
    created_at: datetime
    finished_at: datetime | None
    reason: str | None
    guarantees: dict[str, Guarantee]
    """By site."""
    shared_noise: SharedNoiseGuarantee | None
    """Of the sums, where sites share their noise."""
    rounds: tuple[RoundSummary, ...]


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """Every run of a ledger."""

    ledger: str
    runs: tuple[RunSummary, ...]


@dataclass(frozen=True, kw_only=True)
class AttemptDetail:
    """One attempt and what each site did in it."""

    attempt: Attempt
    participations: tuple[Participation, ...]
    guarantees: dict[str, Guarantee]
    """By site, after this attempt."""


@dataclass(frozen=True, kw_only=True)
class RunDetail:
    """Everything about a run, or about one of its rounds."""

    ledger: str
    run: RunSummary
    spec: str
    """The request, as it was made."""
    attempts: tuple[AttemptDetail, ...]
    models: tuple[ModelVersion, ...]
    metrics: tuple[RoundMetric, ...]
    incidents: tuple[Incident, ...]


def run_summary(store: LedgerStore) -> LedgerSummary:
    """Every run with every round, oldest first."""
    return LedgerSummary(
        ledger=store.address, runs=tuple(_summary(history) for history in store.histories())
    )


def run_detail(store: LedgerStore, run_id: str, *, round: int | None = None) -> RunDetail:
    """Everything about a run; with `round`, only what belongs to that round.

    Raises:
        LedgerError: no such run or round.
    """
    history = store.history(run_id)
    wanted = {row.number for row in history.rounds}
    if round is not None:
        if round not in wanted:
            raise LedgerError(
                f'Run "{run_id}" has no round {round} in the ledger at {store.address}; '
                f"it has {len(wanted)} of {history.run.rounds}."
            )
        wanted = {round}
    return RunDetail(
        ledger=store.address,
        run=_summary(history, only=round),
        spec=history.run.spec,
        attempts=tuple(_details(history, wanted)),
        models=tuple(m for m in history.models if round is None or m.round == round),
        metrics=tuple(row for row in history.metrics if row.round in wanted),
        incidents=tuple(i for i in history.incidents if round is None or i.round == round),
    )


def to_json(report: LedgerSummary | RunDetail) -> str:
    """One JSON object; times in UTC, ISO 8601."""
    return TypeAdapter(type(report)).dump_json(report, indent=2).decode()


def summary_tables(summary: LedgerSummary) -> RenderableType:
    """One table per run."""
    if not summary.runs:
        return Text(f"{summary.ledger} holds no runs yet.")
    return Group(*(part for run in summary.runs for part in _run_parts(run)))


def detail_tables(detail: RunDetail) -> RenderableType:
    """The run's rounds, then each attempt site by site, the metrics and the incidents."""
    return Group(
        *_run_parts(detail.run),
        *(part for attempt in detail.attempts for part in _attempt_parts(attempt)),
        *(
            Text(
                f"Round {row.round}: {row.metric.name} {row.metric.value:.6g} "
                f"({row.metric.released_with})"
            )
            for row in detail.metrics
        ),
        *(
            Text(f"{_time(incident.at)}  {incident.kind}: {incident.text}")
            for incident in detail.incidents
        ),
    )


def _summary(history: RunHistory, *, only: int | None = None) -> RunSummary:
    run = history.run
    attempts = _grouped(history.attempts, lambda attempt: attempt.round)
    asked = _grouped(history.participations, lambda entry: entry.round)
    return RunSummary(
        run_id=run.run_id,
        state=run.state,
        rounds_requested=run.rounds,
        rounds_committed=sum(row.state is RoundState.COMMITTED for row in history.rounds),
        epoch=run.epoch,
        created_at=run.created_at,
        finished_at=run.finished_at,
        reason=run.reason,
        guarantees=_guarantees(history.charges),
        shared_noise=shared_noise_guarantee(history),
        rounds=tuple(
            _round(row, attempts[row.number], [entry.participation for entry in asked[row.number]])
            for row in history.rounds
            if only is None or row.number == only
        ),
    )


def _round(row: Round, attempts: list[Attempt], asked: list[Participation]) -> RoundSummary:
    opened = [attempt.opened_at for attempt in attempts if attempt.opened_at is not None]
    started_at = min(opened, default=None)
    seconds = None
    if row.committed_at is not None and started_at is not None:
        seconds = (row.committed_at - started_at).total_seconds()
    return RoundSummary(
        run_id=row.run_id,
        round=row.number,
        state=row.state,
        attempts=len(attempts),
        cohort=attempts[-1].cohort,
        sites_counted=tuple(p.site for p in asked if p.state is ParticipationState.COUNTED),
        model_sha256=row.model_sha256,
        seconds=seconds,
        bytes_sent=sum(p.bytes_sent for p in asked),
        bytes_received=sum(p.bytes_received for p in asked),
        started_at=started_at,
        committed_at=row.committed_at,
    )


def _details(history: RunHistory, wanted: set[int]) -> Iterator[AttemptDetail]:
    asked = _grouped(history.participations, lambda entry: (entry.round, entry.attempt))
    charged = _grouped(history.charges, lambda entry: (entry.round, entry.attempt))
    for attempt in history.attempts:
        if attempt.round in wanted:
            key = (attempt.round, attempt.attempt)
            yield AttemptDetail(
                attempt=attempt,
                participations=tuple(entry.participation for entry in asked[key]),
                guarantees=_guarantees(charged[key]),
            )


def _guarantees(charges: Iterable[AttemptCharge]) -> dict[str, Guarantee]:
    """By site; charges come in order, so the last one of a site stays."""
    return {
        entry.charge.site: Guarantee(
            epsilon=entry.charge.epsilon,
            delta=entry.charge.delta,
            unit=entry.charge.unit,
            adjacency=entry.charge.adjacency,
        )
        for entry in charges
    }


def shared_noise_guarantee(history: RunHistory) -> SharedNoiseGuarantee | None:
    """What the newest committed round says of all sums so far; None where sites share no noise, or before any commit."""
    newest = {
        row.metric.name: row.metric.value for row in sorted(history.metrics, key=lambda r: r.round)
    }
    if SURVIVORS_EPSILON not in newest:
        return None
    privacy = json.loads(history.run.spec)["privacy"]
    return SharedNoiseGuarantee(
        epsilon=newest[SURVIVORS_EPSILON],
        reserved=newest[RESERVED_EPSILON],
        delta=privacy["delta"],
        unit=privacy["unit"],
        adjacency=privacy["adjacency"],
        colluding_sites=privacy["colluding_sites"],
    )


def _grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Hashable, list[Row]]:
    """The rows by key, each group in order; a key without rows gives an empty list."""
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _run_parts(run: RunSummary) -> Iterator[RenderableType]:
    headline = (
        f"Run {run.run_id}: {run.state}, {run.rounds_committed} of {run.rounds_requested} rounds "
        f"committed, requested {_time(run.created_at)} UTC"
    )
    yield Text(headline, style="bold")
    if run.reason:
        yield Text(f"  {run.reason}")
    table = _table(
        "round", "state", "tries", "sites", "model", "seconds", "sent", "received", "committed"
    )
    for row in run.rounds:
        table.add_row(
            str(row.round),
            row.state,
            str(row.attempts),
            f"{len(row.sites_counted)}/{len(row.cohort)}",
            (row.model_sha256 or "-")[:8],
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            decimal(row.bytes_sent),
            decimal(row.bytes_received),
            "-" if row.committed_at is None else f"{row.committed_at:%H:%M:%S}",
        )
    if run.rounds:
        yield table
    for site, spent in run.guarantees.items():
        yield Text(f"  {site}: {_spent(spent)}")
    if run.shared_noise is not None:
        yield Text(f"  all sums so far: {run.shared_noise.words}")


def _attempt_parts(detail: AttemptDetail) -> Iterator[RenderableType]:
    attempt = detail.attempt
    yield Text(
        f"Round {attempt.round}, attempt {attempt.attempt}: {attempt.state}, quorum "
        f"{attempt.quorum}, epoch {attempt.epoch}",
        style="bold",
    )
    if attempt.reason:
        yield Text(f"  {attempt.reason}")
    table = _table("site", "state", "sent", "received", "seconds", "epsilon so far")
    for row in detail.participations:
        spent = detail.guarantees.get(row.site)
        table.add_row(
            row.site,
            row.state,
            decimal(row.bytes_sent),
            decimal(row.bytes_received),
            f"{row.seconds:.1f}",
            "-" if spent is None else f"{spent.epsilon:.3f}",
        )
    if detail.participations:
        yield table
    # As Text: a bracket in what a site said is no markup.
    for row in detail.participations:
        if row.detail:
            yield Text(f"  {row.site}: {row.detail}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=True)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _spent(spent: Guarantee) -> str:
    return (
        f"epsilon {spent.epsilon:.3f} at delta {spent.delta:g}, per {spent.unit}, {spent.adjacency}"
    )


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
