"""`sims bench NAME`: measure ours beside a baseline, in one call, on this machine.

The result goes to standard output, as a table or as one JSON object; progress goes to standard error.
"""

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
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
DP_SKIPPABLE = (
    "steps", "memory", "opacus", "noise", "budget", "accountant", "d128", "d256", "t64",
)  # fmt: skip
SECURE_SUM_SKIPPABLE = ("mask", "ckks", "paillier", "noise", "memory")


@app.command()
def dp(
    repetitions: Annotated[
        int, typer.Option(min=1, help="Turns of which the least time counts.")
    ] = 7,
    skip: Annotated[
        list[str] | None,
        typer.Option(help=f"Leave out; may be repeated. One of: {', '.join(DP_SKIPPABLE)}."),
    ] = None,
    device: Annotated[
        str, typer.Option(help='Where models run: "cpu", "cuda", or "auto": cuda if there is one.')
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """A private step beside a plain one and beside Opacus; exact noise; the accounts."""
    if unknown := sorted(set(skip or ()) - set(DP_SKIPPABLE)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(DP_SKIPPABLE)}.")
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{device!r} is none of auto, cpu, cuda.")
    # Imported here, so that --help does not wait for torch.
    import torch

    from sims.benchmarks.benchmark import print_benchmark
    from sims.benchmarks.dp import Options, measure_dp

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options = Options(repetitions=repetitions, skipped=frozenset(skip or ()), device=device)
    benchmark = measure_dp(options, _progress())
    if as_json:
        typer.echo(json.dumps(benchmark.as_json()))
    else:
        print_benchmark(benchmark, Console())


@app.command(name="secure-sum")
def secure_sum(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer values and sites: a minute instead of some.")
    ] = False,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Leave out; may be repeated. One of: {', '.join(SECURE_SUM_SKIPPABLE)}."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Masks, CKKS, Paillier and shared noise beside Flower, NVIDIA FLARE's TenSEAL, phe and OpenDP."""
    if unknown := sorted(set(skip or ()) - set(SECURE_SUM_SKIPPABLE)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SECURE_SUM_SKIPPABLE)}.")
    # Imported here, so that --help does not wait for Flower and SEAL.
    from sims.benchmarks.benchmark import print_benchmark
    from sims.benchmarks.secure_sum import Options, measure_secure_sum
    from sims.benchmarks.secure_sum_workload import FULL, QUICK

    logging.getLogger("flwr").setLevel(logging.ERROR)  # Flower sets its level when imported
    options = Options(workload=QUICK if quick else FULL, skipped=frozenset(skip or ()))
    benchmark = measure_secure_sum(options, _progress())
    if as_json:
        typer.echo(json.dumps(benchmark.as_json()))
    else:
        print_benchmark(benchmark, Console())


def _progress() -> Callable[[str], None]:
    """Tells standard error what is measured, with the seconds so far."""
    started = time.monotonic()
    return lambda text: typer.echo(f"{time.monotonic() - started:6.0f} s  {text}", err=True)


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
    progress = _progress()
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
