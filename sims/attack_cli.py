"""`sims attack`: attack a rehearsed federation from the coordinator's chair, with privacy and without.

The result goes to standard output, as a table or as one JSON object; progress goes to standard error. Exit code 1 if an
attack gets more than the declared epsilon allows, or if one that should work without privacy does not.
"""

import json
import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sims.attacks.attack import AttackResult, AttackSuite

PIPE_WIDTH = 130


def attack(
    epsilon: Annotated[float, typer.Option(help="Total epsilon of the private runs.")] = 3.0,
    pairs: Annotated[
        int,
        typer.Option(min=4, help="Pairs of independent rehearsals of each kind."),
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Coins that decide who takes part.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Invert gradients and infer members from what the coordinator sees: the sum, and single vectors in the clear."""
    # Imported here, so that --help does not wait for torch.
    from coordinator.errors import CoordinatorError
    from sims.attacks.attack import run_attacks

    logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower sets its level when imported
    try:
        suite = run_attacks(
            epsilon=epsilon,
            pairs=pairs,
            seed=seed,
            progress=lambda text: typer.echo(text, err=True),
        )
    except CoordinatorError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(suite.as_json()))
    else:
        print_suite(suite, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH))
    if not suite.report.passed:
        raise typer.Exit(1)


def print_suite(suite: "AttackSuite", console: Console) -> None:
    """The results as a table, the verdicts below it."""
    table = Table(title="What the coordinator can find out")
    for name in ("view", "privacy", "noise", "inversion", "membership AUC", "epsilon allows"):
        table.add_column(name)
    for result in suite.results:
        table.add_row(*_cells(result))
    console.print(table)
    for line in suite.report.lines:
        console.print(f"{line.verdict.upper():5} {line.name} ({line.detail})", highlight=False)


def _cells(result: "AttackResult") -> tuple[str, ...]:
    area = result.membership
    privacy = (
        "none"
        if result.epsilon is None
        else f"epsilon {result.epsilon:g}, delta {result.delta:g}, patient, add or remove one"
    )
    return (
        result.view,
        privacy,
        f"{result.noise_multiplier:.2f}",
        f"{result.likeness:.3f} (chance {result.chance:.2f})",
        f"{area.auc:.3f} [{area.lower:.3f}, {area.upper:.3f}]",
        f"{result.auc_bound:.3f}",
    )
