"""`participant`: the command line of one institution.

    participant join INVITATION   become a member of a consortium
    participant data check        does the site's table fit the published schema?
    participant run               take part, until stopped
    participant status            what the running agent does
    participant budget show       what the data set's privacy budget has spent, and how far the rest reaches
    participant certificate       what was guaranteed, signed; or check such a certificate
    participant drill             audit the installed privacy code on made-up patients

Every command takes --home (or CONCORD_SITE_HOME) and --json. Results go to standard output, with --json as exactly one
object; progress and problems go to standard error. Exit code 0: done; 1: it failed, and the text says what to do;
2: the command was not understood.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from participant.config import load_site
from participant.enrol import join as join_consortium
from participant.enrol import read_invitation
from participant.errors import ParticipantError
from participant.health import read_status
from participant.identity import open_home

app = typer.Typer(
    help="One institution's agent: its records, its keys and its privacy budget stay here.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would print local variables
)
data = typer.Typer(help="The site's table.", no_args_is_help=True)
budget = typer.Typer(help="The privacy budget of the site's data set.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(budget, name="budget")

Home = Annotated[
    Path, typer.Option("--home", envvar="CONCORD_SITE_HOME", help="Folder of this site.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
HOME = Path("site-home")
PICTURES = (".png", ".svg", ".pdf")


@app.command()
def join(
    invitation: Annotated[
        Path, typer.Argument(help='File that the operator made with "coordinator invite SITE".')
    ],
    home: Home = HOME,
    as_json: AsJson = False,
) -> None:
    """Become a member: make keys here, have them certified, write site.toml and policy.toml to be filled in.

    A join that was interrupted is repeated with the same command. Existing keys and files are kept.
    """

    def work() -> dict[str, Any]:
        membership = join_consortium(read_invitation(invitation), home)
        for name in membership.outdated_settings:
            typer.echo(
                f"Check {home / 'site.toml'}: `{name}` differs from what the coordinator says now: "
                f"{getattr(membership, name)}",
                err=True,
            )
        return asdict(membership) | {
            "certificate_expires": membership.certificate_expires.isoformat(),
            "home": str(home.absolute()),
        }

    def show(joined: dict[str, Any]) -> str:
        return (
            f'Site "{joined["site"]}" has joined; its certificate is valid until {joined["certificate_expires"]}.\n'
            f"Next: fill in {home / 'site.toml'} and {home / 'policy.toml'}, put the consortium's schema beside them,\n"
            f'then "participant data check --home {home}" and "participant run --home {home}".'
        )

    _answer(work, show, as_json=as_json)


@app.command()
def run(home: Home = HOME, as_json: AsJson = False) -> None:
    """Take part until SIGTERM or Ctrl-C. The table is checked first; a bad one is an error before anything is sent."""
    # Imported here: the accountant takes seconds, and most commands do without it.
    from participant import supervisor

    def work() -> dict[str, Any]:
        logging.basicConfig(
            level=load_site(home).log_level.upper(),
            format="%(asctime)s %(levelname)s %(message)s",
            force=True,  # a library may have set handlers when it was imported
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every request
        status = supervisor.run_site(
            home, announce=lambda table: typer.echo(_describe(asdict(table)), err=True)
        )
        return asdict(status)

    _answer(work, lambda status: f'Site "{status["site"]}" has stopped.', as_json=as_json)


@app.command()
def status(home: Home = HOME, as_json: AsJson = False) -> None:
    """Show whether an agent runs here, whether its node is online, and why not."""
    # Imported here: the accountant takes seconds, and most commands do without it.
    from participant import supervisor

    def work() -> dict[str, Any]:
        open_home(home)
        is_running = supervisor.is_running(home)
        last = read_status(home / "run.json")
        return {"running": is_running, "agent": asdict(last) if is_running and last else None}

    def show(found: dict[str, Any]) -> str:
        agent = found["agent"]
        if agent is None:
            return f'No agent runs on {home}. Start it with "participant run --home {home}".'
        link = agent["link"] or "The coordinator answers."
        starts = ", ".join(f"{name} {count}" for name, count in agent["starts"].items())
        return (
            f'Site "{agent["site"]}", process {agent["pid"]}: node {agent["node"]}, executor '
            f"{agent['executor']}.\n{link}\nProcess starts: {starts}."
        )

    _answer(work, show, as_json=as_json)


@data.command("check")
def check_data(home: Home = HOME, as_json: AsJson = False) -> None:
    """Read the site's table and check it against the published schema. Nothing is sent and nothing is charged."""
    # Imported here: the accountant takes seconds, and most commands do without it.
    from participant import supervisor

    _answer(lambda: asdict(supervisor.check_data(load_site(home))), _describe, as_json=as_json)


@budget.command("show")
def show_budget(
    home: Home = HOME,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw how it was used up into this file: .png, .svg or .pdf."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the data set's privacy budget has spent, over all runs, and how far the rest reaches."""
    if plot is not None and plot.suffix not in PICTURES:
        raise typer.BadParameter(f'"{plot.name}" does not end in {", ".join(PICTURES)}.')
    # Imported here: the accountant takes seconds, and most commands do without it.
    from participant.budget import SiteBudget
    from participant.budget_report import BudgetReport, draw_budget, format_report, read_report

    found: list[BudgetReport] = []

    def work() -> dict[str, Any]:
        budget = SiteBudget(home / "budget.db", load_site(home).budget)
        report, history = read_report(budget)
        found.append(report)
        if plot is not None:
            draw_budget(history, budget.contract, plot)
        return report.to_fields()

    _answer(work, lambda _: format_report(found[0]), as_json=as_json)


@budget.command("accept-clock")
def accept_clock(home: Home = HOME, as_json: AsJson = False) -> None:
    """Vouch for this machine's clock, after entries were made under a clock that ran ahead. Stays in the budget file."""
    # Imported here: the accountant takes seconds, and most commands do without it.
    from participant.budget import SiteBudget

    def work() -> dict[str, Any]:
        now = SiteBudget(home / "budget.db", load_site(home).budget).accept_clock()
        return {"accepted": now.isoformat()}

    _answer(work, lambda found: f"The clock was accepted: {found['accepted']}.", as_json=as_json)


@app.command()
def certificate(
    home: Home = HOME,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write; certificate.json in the home by default."),
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", help="Check this certificate instead of writing one.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="With --verify: the site's public signing key in hex."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write what was guaranteed to the patients, signed by this site; anybody can recompute it offline."""
    if verify is not None:
        _verify(verify, key, as_json=as_json)
        return
    # Imported here: the accountant takes seconds, and most commands do without it.
    from participant.certificate import write_certificate

    path = out if out is not None else home / "certificate.json"

    def work() -> dict[str, Any]:
        is_printed = as_json and out is None
        return write_certificate(home, load_site(home), None if is_printed else path)

    _answer(
        work,
        lambda written: (
            f'Certificate of data set "{written["statement"]["contract"]["data_set"]}" written to {path}, signed with key '
            f'{written["public_key"]}.\nCheck it with "participant certificate --verify {path}".'
        ),
        as_json=as_json,
    )


@app.command()
def drill(
    home: Home = HOME,
    schema: Annotated[
        Path | None,
        typer.Option(help="The consortium's published schema; the home's schema.toml by default."),
    ] = None,
    tier: Annotated[str, typer.Option(help="Size of the model to audit.")] = "cpu-small",
    as_json: AsJson = False,
) -> None:
    """Audit the privacy code that is installed here, on made-up patients; needs no coordinator and no record.

    Exit code 0 only if every test passes and every variant that is broken on purpose is caught.
    """
    # Imported here: torch takes seconds, and most commands do without it.
    from participant.drill import format_line, run_drill

    passed: list[bool] = []

    def work() -> dict[str, Any]:
        report = run_drill(
            schema if schema is not None else home / "schema.toml",
            tier,
            progress=None if as_json else lambda line: typer.echo(format_line(line)),
        )
        passed.append(report.passed)
        return report.as_json()

    def show(report: dict[str, Any]) -> str:
        outcome = "The drill passed" if report["passed"] else "THE DRILL FAILED"
        return f"{outcome}; it flags correct code with probability {report['false_alarm']:.0e} at most."

    _answer(work, show, as_json=as_json)
    if not passed[0]:
        raise typer.Exit(1)


def _verify(path: Path, key: str | None, *, as_json: bool) -> None:
    # Imported here: the accountant takes seconds, and most commands do without it.
    from participant.certificate import verify_certificate

    found: list[bool] = []

    def work() -> dict[str, Any]:
        checks = [asdict(check) for check in verify_certificate(path, key=key)]
        found.append(all(check["holds"] for check in checks))
        return {"holds": found[0], "checks": checks}

    def show(result: dict[str, Any]) -> str:
        lines = (
            f"{'holds' if check['holds'] else 'FAILS'}  {check['name']}: {check['found']}"
            for check in result["checks"]
        )
        return "\n".join(lines)

    _answer(work, show, as_json=as_json)
    if not found[0]:
        raise typer.Exit(1)


def _describe(table: dict[str, Any]) -> str:
    return (
        f"The table fits schema {table['schema']}: {table['rows']} rows of {table['patients']} patients, "
        f"{table['columns']} columns, {table['missing_values']} missing values, {table['positive_labels']} positive labels"
        f" ({table['ignored_columns']} other columns ignored). These counts stay here."
    )


def _answer(
    work: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], str], *, as_json: bool
) -> None:
    """Does the work and prints its result, or what went wrong and exit code 1."""
    try:
        result = work()
    except (ParticipantError, OSError) as error:
        # Standard error is the administrator's own terminal; a record's value may stand there, never in the JSON.
        text = error.local_message if isinstance(error, ParticipantError) else str(error)
        typer.echo(f"Error: {text}", err=True)
        if as_json:
            typer.echo(json.dumps({"error": str(error), "kind": type(error).__name__}))
        raise typer.Exit(1) from None
    typer.echo(json.dumps(result) if as_json else show(result))
