"""The main job on one machine: a coordinator and four hospitals as real processes, judged beside its alternatives.

While the federation trains, the alternatives are trained on several splits of the patients in processes of lower
priority; most of a real round is waiting. Everything stays in one folder: ledger, models, site folders, logs, report.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coordinator.ledger.records import Run, RunHistory
from sims.comparison import Summary, compare, summarise, verdicts
from sims.evaluation import read_tables
from sims.federation import RealFederation
from sims.outcome import Outcome, read_outcome
from sims.report import print_comparison, print_outcome, write_html
from sims.scenario import Scenario, load_scenario

SPLIT_SEED = 0
RUN_SECONDS = 1200.0
LOWER_PRIORITY = 10
REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """What the demo came to."""

    outcome: Outcome
    summaries: list[Summary]
    seeds: int
    verdicts: list[str]
    report: Path

    def as_json(self) -> dict[str, Any]:
        """The object that `sims demo --json` prints."""
        return {
            **self.outcome.as_json(),
            "methods": [asdict(summary) for summary in self.summaries],
            "seeds": self.seeds,
            "verdicts": self.verdicts,
            "report": str(self.report),
        }


def demonstrate(
    name: str, folder: Path, *, seeds: int, console: Console, changes: Mapping[str, Any]
) -> Demonstration:
    """Runs the scenario for real in `folder`, compares, and writes the report there.

    Args:
        name: of the scenario.
        folder: new or empty.
        seeds: splits of the patients over which the alternatives are compared.
        console: where progress is shown.
        changes: of the scenario's run, as for `load_scenario`; the alternatives stay as the scenario has them.

    Raises:
        FederationError: a process did not do what it must; its log is named.
        RoundError: a rehearsed run failed.
    """
    scenario = load_scenario(name, split_seed=SPLIT_SEED, **changes)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(1) as background:
        comparing = progress.add_task(f"alternatives on {seeds} splits", total=seeds)
        comparison = background.submit(
            compare,
            name,
            range(seeds),
            niceness=LOWER_PRIORITY,
            on_seed=lambda _: progress.advance(comparing),
        )
        history, seconds = _federate(scenario, folder, progress)
        results = comparison.result()
    outcome = read_outcome(
        history,
        scenario=scenario,
        held_out=read_tables(scenario, held_out=True),
        models=folder / "coordinator" / "models",
        seconds=seconds,
    )
    summaries = summarise(results)
    found = Demonstration(
        outcome=outcome,
        summaries=summaries,
        seeds=seeds,
        verdicts=verdicts(summaries),
        report=folder / REPORT,
    )
    write_html(
        found.report, outcome=outcome, summaries=summaries, seeds=seeds, verdicts=found.verdicts
    )
    return found


def show(found: Demonstration, console: Console) -> None:
    """Tables and verdicts for people."""
    print_outcome(found.outcome, console)
    print_comparison(found.summaries, found.seeds, console)
    for verdict in found.verdicts:
        console.print(verdict)
    console.print(
        f"Report: {found.report}   Ledger: coordinator ledger list --home {found.report.parent / 'coordinator'}"
    )


def _federate(scenario: Scenario, folder: Path, progress: Progress) -> tuple[RunHistory, float]:
    bar = progress.add_task("starting coordinator and hospitals", total=scenario.spec.rounds)

    def follow(run: Run, committed: int) -> None:
        progress.update(bar, completed=committed, description=f"federation {run.state}")

    with RealFederation(folder, scenario) as federation:
        started = time.monotonic()
        history = federation.wait(federation.request(), timeout_seconds=RUN_SECONDS, on_poll=follow)
        progress.update(bar, completed=scenario.spec.rounds, description="federation finished")
        return history, time.monotonic() - started
