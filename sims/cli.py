"""`sims`: rehearse a federation on one machine, show the main job with real processes, measure it."""

import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sims.attack_cli import app as attack_app
from sims.bench_cli import app as bench_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Rehearse a federation on one machine before anybody signs anything.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
SecureSum = Annotated[
    str | None,
    typer.Option(help="How contributions are added: mask, ckks, ckks-light, paillier or plain."),
]
Tier = Annotated[
    str | None,
    typer.Option(
        help="Size of the model, instead of the scenario's; with paillier, which is for short vectors, cpu-small."
    ),
]
SCENARIOS = ("heart", "credit")
PIPE_WIDTH = 130
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
app.add_typer(bench_app, name="bench")
app.add_typer(attack_app, name="attack")


@app.callback()
def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.WARNING)


@app.command()
def run(  # noqa: PLR0913 - the options of a command
    scenario: Annotated[str, typer.Argument(help=f"One of: {', '.join(SCENARIOS)}.")],
    seed: Annotated[int, typer.Option(min=0, help="Which patients are held out.")] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="More than 1: what privacy costs, over so many seeds from --seed."
        ),
    ] = 1,
    rounds: Annotated[int | None, typer.Option(help="Rounds, instead of the scenario's.")] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Total epsilon, instead of the scenario's; several with --seeds."),
    ] = None,
    no_dp: Annotated[
        bool, typer.Option("--no-dp", help="Without differential privacy, reproducible.")
    ] = False,
    secure_sum: SecureSum = None,
    tier: Tier = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep ledger, models and sites in this new folder.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Workers, with --seeds.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Rehearse SCENARIO in this process: the same apps, ledger, budgets and secure sums as in reality.

    With --seeds 2 or more: every epsilon on every seed beside the same model without privacy, in worker processes.
    """
    # Imported here, so that --help does not wait for torch.
    from coordinator.errors import CoordinatorError

    if scenario not in SCENARIOS:
        raise typer.BadParameter(f"{scenario!r} is none of {', '.join(SCENARIOS)}.")
    epsilons = epsilon or []
    changes = _changes(secure_sum, tier)
    if rounds is not None:
        changes["rounds"] = rounds
    try:
        if seeds > 1:
            if no_dp or out is not None:
                raise typer.BadParameter("--seeds goes with neither --no-dp nor --out.")
            every_seed = range(seed, seed + seeds)
            _show_utility(scenario, every_seed, epsilons, processes, as_json, changes)
        else:
            if len(epsilons) > 1:
                raise typer.BadParameter("More than one --epsilon needs --seeds 2 or more.")
            if epsilons:
                changes["privacy"] = {"epsilon": epsilons[0]}
            if no_dp:
                changes |= {"privacy": {"mechanism": "none"}, "seed": seed}
            _show_run(scenario, seed, out, as_json, changes)
    except CoordinatorError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def _show_run(
    name: str, seed: int, out: Path | None, as_json: bool, changes: dict[str, Any]
) -> None:
    """One rehearsal, and its outcome."""
    from sims.evaluation import read_tables
    from sims.outcome import read_outcome
    from sims.rehearsal import rehearse
    from sims.report import print_outcome
    from sims.scenario import load_scenario
    from sims.utility import size_warning

    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} exists; name a new folder.")
    chosen = load_scenario(name, split_seed=seed, **changes)
    if (warning := size_warning(chosen)) is not None:
        typer.echo(f"Warning: {warning}", err=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch) / name
        folder.mkdir(mode=0o700, parents=True)
        started = time.monotonic()
        history = rehearse(chosen, folder)
        outcome = read_outcome(
            history,
            scenario=chosen,
            held_out=read_tables(chosen, held_out=True),
            models=folder / "coordinator" / "models",
            seconds=time.monotonic() - started,
        )
    if as_json:
        typer.echo(json.dumps(outcome.as_json()))
    else:
        print_outcome(outcome, _paper())


def _show_utility(
    name: str,
    seeds: Sequence[int],
    epsilons: Sequence[float],
    processes: int,
    as_json: bool,
    changes: dict[str, Any],
) -> None:
    """Every epsilon on every seed, and what each costs."""
    from sims.report import print_utility
    from sims.utility import count_trials, measure_utility

    with Progress(*BAR, console=Console(stderr=True)) as progress:
        bar = progress.add_task(
            f"{name}, {len(seeds)} seeds",
            total=count_trials(name, seeds=len(seeds), epsilons=epsilons),
        )
        report = measure_utility(
            name,
            seeds=seeds,
            epsilons=epsilons,
            processes=processes,
            on_trial=lambda _: progress.advance(bar),
            **changes,
        )
    for warning in report.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        print_utility(report, _paper())


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for everything the demo leaves; replaced.")
    ] = Path("demo-out"),
    scenario: Annotated[str, typer.Option(help=f"One of: {', '.join(SCENARIOS)}.")] = "heart",
    seeds: Annotated[int, typer.Option(min=1, help="Splits of the patients to compare over.")] = 5,
    secure_sum: SecureSum = None,
    tier: Tier = None,
    no_dp: Annotated[
        bool, typer.Option("--no-dp", help="Without differential privacy, reproducible.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The main job with real processes: coordinator and hospitals on this machine, then a table and report.html."""
    from coordinator.errors import CoordinatorError
    from sims.demo import demonstrate, show
    from sims.federation import FederationError

    if out.exists() and any(out.iterdir()) and not (out / "coordinator").is_dir():
        raise typer.BadParameter(f"{out} is not a folder that a demo left; name another.")
    changes = _changes(secure_sum, tier)
    if no_dp:
        changes |= {"privacy": {"mechanism": "none"}, "seed": 0}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(mode=0o700, parents=True)
    try:
        found = demonstrate(
            scenario, out, seeds=seeds, console=Console(stderr=True), changes=changes
        )
    except (CoordinatorError, FederationError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        show(found, _paper())


def _changes(secure_sum: str | None, tier: str | None) -> dict[str, Any]:
    """What the options change of a scenario's run."""
    changes: dict[str, Any] = {}
    if secure_sum is not None:
        changes["secure_sum"] = {"scheme": secure_sum}
    if tier is None and secure_sum == "paillier":
        tier = "cpu-small"
    if tier is not None:
        changes["tier"] = tier
    return changes


def _paper() -> Console:
    """Standard output; wide enough for the tables when it is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


if __name__ == "__main__":
    app()
