"""A budget for people: the statement, the runs that spent it, and a plot of how it was used up."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from participant.budget import SiteBudget
from participant.budget_admission import contract_filter, dedicated_to
from participant.budget_entries import Charge, History
from participant.budget_spending import Spending, spending
from participant.config import BudgetContract
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import Event

PLOTTED_POINTS = 16
"""Charges after which the plot asks the accountant; a figure takes it up to a second."""
NAMED_RUNS = 12
"""Runs that the plot names at most."""
COLUMNS = 110


@dataclass(frozen=True, kw_only=True)
class RunSpending:
    """What one run has spent."""

    run: str
    charges: int
    releases: int
    epsilon: float
    """Of this run alone, at the contract's delta; the figures of runs do not add up to the total."""
    is_declared: bool
    """The run was declared whole before its first release."""
    last: str
    """Time of its latest charge."""


@dataclass(frozen=True, kw_only=True)
class BudgetReport:
    """All that `participant budget show` says."""

    spending: Spending
    runs: tuple[RunSpending, ...]
    last_release: str | None
    """Time of the latest release."""
    entries: int
    head: str
    """The newest hash of the file's chain: note it down elsewhere to recognise the file later."""

    def to_fields(self) -> dict[str, Any]:
        """The report as one JSON object: the statement's fields, then the rest."""
        return asdict(self.spending) | {
            "runs": [asdict(run) for run in self.runs],
            "last_release": self.last_release,
            "entries": self.entries,
            "head": self.head,
        }


def read_report(budget: SiteBudget) -> tuple[BudgetReport, History]:
    """The report, and the history that it is of.

    Raises:
        BudgetError: the file cannot be trusted.
    """
    history = budget.history()
    runs = dict.fromkeys(charge.run for charge in history.charges)
    report = BudgetReport(
        spending=spending(history, budget.contract),
        runs=tuple(_run_spending(history, budget.contract, run) for run in runs),
        last_release=history.releases[-1].at.isoformat() if history.releases else None,
        entries=len(history.rows),
        head=history.head.hex(),
    )
    return report, history


def format_report(report: BudgetReport) -> str:
    """The report as text of at most `COLUMNS` columns."""
    console = Console(file=io.StringIO(), width=COLUMNS, highlight=False)
    console.print(_statement_table(report.spending))
    if report.runs:
        console.print(_run_table(report))
    for warning in report.spending.warnings:
        console.print(f"Warning: {warning}")
    console.print(f"Chain: {report.entries} entries, head {report.head}")
    text = console.file
    assert isinstance(text, io.StringIO)  # noqa: S101 - given above
    return text.getvalue().rstrip()


def draw_budget(history: History, contract: BudgetContract, path: Path) -> None:
    """Writes a plot of the total over the charges, with the contract's epsilon, in the format of the file's name.

    Raises:
        OSError: the file cannot be written.
        ValueError: the name's ending is no format of a picture.
    """
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    filter_ = contract_filter(contract, history.identity.rdp_order)
    charges = history.charges
    counted = _cumulative(charges)
    dedicated = dedicated_to(history, filter_)
    if dedicated is None:
        axes.step(
            range(len(charges) + 1),
            [filter_.epsilon_of(events) for events in counted],
            where="post",
            color="tab:orange",
            label=f"charged, by the filter of order {filter_.order:g}",
        )
    elif dedicated.epsilon is not None:
        declared = f"declared by {dedicated.programme.name}, which has the data set for itself"
        axes.axhline(dedicated.epsilon, color="tab:orange", linestyle=":", label=declared)
    points = _spread(len(charges))
    axes.plot(
        points,
        [epsilon_spent(counted[point], contract.delta) for point in points],
        "o-",
        color="tab:blue",
        label="charged, by privacy loss distributions",
    )
    axes.axhline(contract.epsilon, color="tab:red", linestyle="--", label="contract")
    _mark_runs(axes, charges)
    axes.set_xlim(0, 1.02 * max(len(charges), 1))
    axes.set_ylim(0, None)
    axes.set_xlabel("charges")
    axes.set_ylabel("total epsilon")
    axes.set_title(
        f"{contract.data_set}: epsilon at delta {contract.delta:g}, unit {contract.unit}, {contract.adjacency}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def _run_spending(history: History, contract: BudgetContract, run: str) -> RunSpending:
    charges = [charge for charge in history.charges if charge.run == run]
    intents = {charge.intent for charge in charges}
    events = tuple(event for charge in charges for event in charge.events)
    return RunSpending(
        run=run,
        charges=len(charges),
        releases=sum(release.intent in intents for release in history.releases),
        epsilon=epsilon_spent(events, contract.delta),
        is_declared=charges[-1].programme is not None,
        last=charges[-1].at.isoformat(),
    )


def _statement_table(spent: Spending) -> Table:
    table = Table(title=f'Privacy budget of data set "{spent.data_set}"', show_header=False)
    until = "without end" if spent.valid_until is None else f"until {spent.valid_until} (UTC)"
    rounds = "unknown before the first run" if spent.rounds_left is None else str(spent.rounds_left)
    left = (
        f"nothing: dedicated to run {spent.dedicated_to}, declared first"
        if spent.dedicated_to is not None
        else f"epsilon {spent.left_epsilon:.4f}"
    )
    rows = (
        ("contract", f"epsilon {spent.contract_epsilon:g} at delta {spent.delta:g}, {until}"),
        ("unit", f"{spent.unit}, adjacency {spent.adjacency}"),
        (
            "spent",
            f"epsilon {spent.epsilon:.4f} by privacy loss distributions (parameters fixed beforehand)",
        ),
        ("", _guarantee(spent)),
        ("left for other runs", left),
        ("charges, releases", f"{spent.charges}, {spent.releases}"),
        ("attempts left at the latest run's rate", rounds),
    )
    for name, value in rows:
        table.add_row(name, value)
    return table


def _guarantee(spent: Spending) -> str:
    """The figure that the contract rests on."""
    if spent.declared_epsilon is not None:
        return f"epsilon {spent.declared_epsilon:.4f} for all that run {spent.dedicated_to} declared, spent or not"
    shown = (
        "more than can be reckoned"
        if spent.filter_epsilon is None
        else f"{spent.filter_epsilon:.4f}"
    )
    return f"epsilon {shown} by the filter of order {spent.rdp_order:g} (adaptive choices included)"


def _run_table(report: BudgetReport) -> Table:
    spent = report.spending
    table = Table(
        title=f"Runs (epsilon of each alone, at delta {spent.delta:g}, unit {spent.unit})"
    )
    for heading in ("run", "charges", "releases", "epsilon", "declared", "latest charge (UTC)"):
        table.add_column(
            heading, justify="right" if heading in ("charges", "releases", "epsilon") else "left"
        )
    for run in report.runs:
        table.add_row(
            run.run,
            str(run.charges),
            str(run.releases),
            f"{run.epsilon:.4f}",
            "whole" if run.is_declared else "no",
            run.last[:19],
        )
    return table


def _cumulative(charges: Sequence[Charge]) -> list[tuple[Event, ...]]:
    """All events charged after none, one, two ... of the charges."""
    totals: list[tuple[Event, ...]] = [()]
    for charge in charges:
        totals.append((*totals[-1], *charge.events))
    return totals


def _spread(last: int) -> list[int]:
    """At most `PLOTTED_POINTS` + 1 numbers from 0 to `last`, both included."""
    pieces = min(last, PLOTTED_POINTS)
    return sorted({round(last * piece / pieces) for piece in range(pieces + 1)}) if pieces else [0]


def _mark_runs(axes: Axes, charges: Sequence[Charge]) -> None:
    """A line where a run begins, with its name where the names do not cover one another."""
    begins = [n for n, charge in enumerate(charges) if n == 0 or charges[n - 1].run != charge.run]
    if len(begins) > NAMED_RUNS:
        return
    for begin in begins:
        axes.axvline(begin, color="grey", linewidth=0.6)
        axes.text(
            begin,
            0.99,
            f" {charges[begin].run}",
            transform=axes.get_xaxis_transform(),
            fontsize=7,
            va="top",
        )
