"""`sims`: rehearse a federation on one machine, show the main job with real processes, measure it."""

import json
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sims.bench_cli import app as bench_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Rehearse a federation on one machine before anybody signs anything.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
SCENARIOS = ("heart",)
PIPE_WIDTH = 130
app.add_typer(bench_app, name="bench")


@app.callback()
def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.WARNING)


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help=f"One of: {', '.join(SCENARIOS)}.")],
    seed: Annotated[int, typer.Option(help="Which patients are held out.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds, instead of the scenario's.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Total epsilon, instead of the scenario's.")
    ] = None,
    no_dp: Annotated[
        bool, typer.Option("--no-dp", help="Without differential privacy, reproducible.")
    ] = False,
    scheme: Annotated[str | None, typer.Option(help="Secure sum: mask or plain.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep ledger, models and sites in this new folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rehearse SCENARIO in this process: the same apps, ledger, budgets and secure sums as in reality."""
    # Imported here, so that --help does not wait for torch.
    from coordinator.errors import CoordinatorError
    from sims.evaluation import read_tables
    from sims.outcome import read_outcome
    from sims.rehearsal import rehearse
    from sims.report import print_outcome
    from sims.scenario import load_scenario

    changes: dict[str, Any] = {}
    if rounds is not None:
        changes["rounds"] = rounds
    if epsilon is not None:
        changes["privacy"] = {"epsilon": epsilon}
    if no_dp:
        changes |= {"privacy": {"mechanism": "none"}, "seed": seed}
    if scheme is not None:
        changes["secure_sum"] = {"scheme": scheme}
    if scenario not in SCENARIOS:
        raise typer.BadParameter(f"{scenario!r} is none of {', '.join(SCENARIOS)}.")
    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} exists; name a new folder.")
    try:
        chosen = load_scenario(scenario, split_seed=seed, **changes)
        with tempfile.TemporaryDirectory() as scratch:
            folder = out or Path(scratch) / scenario
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
    except CoordinatorError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(outcome.as_json()))
    else:
        print_outcome(outcome, _paper())


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for everything the demo leaves; replaced.")
    ] = Path("demo-out"),
    scenario: Annotated[str, typer.Option(help=f"One of: {', '.join(SCENARIOS)}.")] = "heart",
    seeds: Annotated[int, typer.Option(min=1, help="Splits of the patients to compare over.")] = 5,
    as_json: AsJson = False,
) -> None:
    """The main job with real processes: coordinator and hospitals on this machine, then a table and report.html."""
    from coordinator.errors import CoordinatorError
    from sims.demo import demonstrate, show
    from sims.federation import FederationError

    if out.exists() and any(out.iterdir()) and not (out / "coordinator").is_dir():
        raise typer.BadParameter(f"{out} is not a folder that a demo left; name another.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(mode=0o700, parents=True)
    try:
        found = demonstrate(scenario, out, seeds=seeds, console=Console(stderr=True))
    except (CoordinatorError, FederationError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        show(found, _paper())


def _paper() -> Console:
    """Standard output; wide enough for the tables when it is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


if __name__ == "__main__":
    app()
