"""`sims attack`: attack a rehearsed federation from the coordinator's chair; `sims attack secure-sum`: attack the sums.

The result goes to standard output, as a table or as one JSON object; progress goes to standard error. Exit code 1 if an
attack gets more than it may, or if one that should work (without privacy, on a weak variant) does not.
"""

import json
import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sims.attacks.attack import AttackResult, AttackSuite
    from sims.attacks.secure_sum.finding import Finding, SecureSumSuite

PIPE_WIDTH = 130
app = typer.Typer()


@app.callback(invoke_without_command=True)
def attack(
    context: typer.Context,
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
    if context.invoked_subcommand is not None:
        _require_no_options(context)
        return
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


@app.command()
def secure_sum(
    seed: Annotated[int, typer.Option(min=0, help="Of the vectors that are attacked.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Attacks that break published secure sums, on ours and on weak variants of the same code, where each must succeed."""
    # Imported here, so that --help does not wait for Flower.
    from sims.attacks.secure_sum.suite import attack_secure_sums

    suite = attack_secure_sums(seed=seed, progress=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(suite.as_json()))
    else:
        print_secure_sums(suite, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH))
    if not suite.report.passed:
        raise typer.Exit(1)


def _require_no_options(context: typer.Context) -> None:
    """Refuse options in front of a subcommand: they would go unheeded."""
    for option in context.command.params:
        if option.name and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            raise typer.BadParameter(
                f"{option.opts[-1]} goes behind {context.invoked_subcommand}, if at all.",
                ctx=context,
            )


def print_secure_sums(suite: "SecureSumSuite", console: Console) -> None:
    """What each attack measured as a table, and below it what stopped it or helped it."""
    table = Table(title="Attacks on secure sums")
    for name in ("attack", "scheme", "target", "measured", "must be", "verdict"):
        table.add_column(name)
    for finding in suite.findings:
        table.add_row(*_finding_cells(finding))
    console.print(table)
    for finding in suite.findings:
        if finding.note:
            console.print(f"{finding.line.name}: {finding.note}", highlight=False)


def _finding_cells(finding: "Finding") -> tuple[str, ...]:
    line = finding.line
    return (
        finding.attack,
        finding.scheme,
        f"{finding.target}: {finding.variant}" if finding.variant else finding.target,
        f"{line.measured:.3g} {finding.measure}",
        f"{line.sense} {line.bound:.3g}",
        line.verdict.value,
    )


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
