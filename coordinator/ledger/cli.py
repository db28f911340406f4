"""`coordinator ledger list` and `coordinator ledger show RUN`: what happened, from the ledger alone.

Both only read, and work while the coordinator serves. With --json, standard output is one JSON object.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coordinator.config import HOME_VARIABLE, CoordinatorHome, load_config
from coordinator.errors import CoordinatorError
from coordinator.ledger.report import (
    detail_tables,
    run_detail,
    run_summary,
    summary_tables,
    to_json,
)
from coordinator.ledger.store import LedgerStore, open_ledger

ledger_app = typer.Typer(
    name="ledger", help="What happened in every round, from the ledger.", no_args_is_help=True
)

Home = Annotated[
    Path,
    typer.Option("--home", envvar=HOME_VARIABLE, help="The coordinator's folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]


@ledger_app.command("list")
def list_runs(home: Home = Path("coordinator-home"), as_json: AsJson = False) -> None:
    """Every run with every round."""
    with _opened(home) as store:
        summary = run_summary(store)
    if as_json:
        typer.echo(to_json(summary))
    else:
        Console().print(summary_tables(summary))


@ledger_app.command("show")
def show_run(
    run: Annotated[str, typer.Argument(help="Name of the run, as `list` prints it.")],
    only_round: Annotated[
        int | None, typer.Option("--round", min=1, help="Only this round.")
    ] = None,
    home: Home = Path("coordinator-home"),
    as_json: AsJson = False,
) -> None:
    """One run: every attempt site by site, charges, metrics, incidents."""
    with _opened(home) as store:
        detail = run_detail(store, run, round=only_round)
    if as_json:
        typer.echo(to_json(detail))
    else:
        Console().print(detail_tables(detail))


@contextmanager
def _opened(home: Path) -> Iterator[LedgerStore]:
    """The ledger of that home; whatever the ledger refuses becomes a message and exit code 2."""
    try:
        with open_ledger(_ledger_url(home), create=False) as store:
            yield store
    except CoordinatorError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


def _ledger_url(home: Path) -> str:
    """From coordinator.toml; a folder without one (a copied ledger) holds `ledger.db`."""
    place = CoordinatorHome(folder=home)
    if place.config_file.is_file():
        return place.ledger_url(load_config(place))
    return f"sqlite:///{home / 'ledger.db'}"
