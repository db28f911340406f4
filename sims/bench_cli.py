"""`sims bench NAME`: measure ours beside a baseline, in one call, on this machine.

The result goes to standard output, as a table or as one JSON object; progress goes to standard error.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure ours beside a baseline: a table, or one JSON object.",
)
SKIPPABLE = ("real", "rehearsal", "memory", "flower", "ray", "small", "medium")


@app.callback()
def _group() -> None:
    """Keeps `rounds` a command of its own while it is the only one."""


@app.command()
def rounds(
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds to count; one more is run before them.")
    ] = 7,
    skip: Annotated[
        list[str] | None,
        typer.Option(help=f"Leave out; may be repeated. One of: {', '.join(SKIPPABLE)}."),
    ] = None,
    ray_python: Annotated[
        Path,
        typer.Option(help="Interpreter with flwr[simulation], for Flower's Ray simulation."),
    ] = Path(sys.executable),
    keep: Annotated[
        Path | None, typer.Option(help="Keep homes and logs of all processes in this new folder.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """A federated round of ours, with real processes and in rehearsal, beside Flower's."""
    if unknown := sorted(set(skip or ()) - set(SKIPPABLE)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SKIPPABLE)}.")
    if keep is not None and keep.exists():
        raise typer.BadParameter(f"{keep} exists; name a new folder.")
    # Imported here, so that --help does not wait for torch.
    from coordinator.errors import CoordinatorError
    from sims.benchmarks.benchmark import print_benchmark
    from sims.benchmarks.rounds import Options, measure_rounds
    from sims.federation import FederationError

    logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower sets its level when imported
    started = time.monotonic()

    def progress(text: str) -> None:
        typer.echo(f"{time.monotonic() - started:6.0f} s  {text}", err=True)

    with tempfile.TemporaryDirectory(prefix="concord-bench-") as scratch:
        options = Options(
            rounds=rounds,
            skipped=frozenset(skip or ()),
            ray_python=ray_python,
            folder=keep or Path(scratch) / "rounds",
        )
        try:
            benchmark = measure_rounds(options, progress)
        except (CoordinatorError, FederationError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(benchmark.as_json()))
    else:
        print_benchmark(benchmark, Console())
