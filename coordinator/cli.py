"""The `coordinator` command: what an operator of a consortium can do.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings. With `--json`, standard output is one JSON object (also for
an error); progress and logs go to standard error.
"""

import asyncio
import json
import logging
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coordinator.config import (
    HOME_VARIABLE,
    CoordinatorConfig,
    CoordinatorHome,
    free_port,
    load_config,
    reachable_host,
)
from coordinator.errors import ConfigError, CoordinatorError
from coordinator.initialise import initialise
from coordinator.ledger.cli import ledger_app
from coordinator.ledger.records import Run
from coordinator.ledger.states import DRIVABLE_RUNS, RunState
from coordinator.ledger.store import LedgerStore, open_ledger

POLL_SECONDS = 0.5
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CHATTY_LOGGERS = ("alembic", "asyncio", "httpx", "uvicorn")

app = typer.Typer(
    help="The coordinator of a consortium that trains one shared model; records stay at the sites.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables could show a key.
    pretty_exceptions_enable=False,
)
app.add_typer(ledger_app)

Home = Annotated[
    Path,
    typer.Option("--home", envvar=HOME_VARIABLE, help="The coordinator's folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 picks a free one now.")]
DEFAULT_HOME = Path("coordinator-home")


@dataclass(kw_only=True)
class Answer:
    """What a command says: an object for programs, lines for people."""

    content: dict[str, Any]
    lines: list[str]


@app.command()
def init(
    home: Home = DEFAULT_HOME,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address by which sites reach this machine; the first is told to them."
        ),
    ] = None,
    bind: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    gateway_port: Port = 8443,
    exchange_port: Port = 8444,
    enrolment_port: Port = 8445,
    ledger_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL; SQLite in the home folder if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a coordinator: keys, certificate authority, settings, empty ledger."""
    with _reported(as_json) as answer:
        hosts = tuple(host or ["127.0.0.1"])
        ports = [
            port or free_port(reachable_host(bind))
            for port in (gateway_port, exchange_port, enrolment_port)
        ]
        config = CoordinatorConfig(
            public_host=hosts[0],
            bind_host=bind,
            gateway_port=ports[0],
            exchange_port=ports[1],
            enrolment_port=ports[2],
            ledger_url=ledger_url,
        )
        # The ServerApp reaches the exchange on this machine, under this name.
        initialise(CoordinatorHome(folder=home), config, hosts=(*hosts, reachable_host(bind)))
        answer.content = {"home": str(home.absolute()), **asdict(config)}
        answer.lines = [
            f"Made a coordinator in {home}. Keep {home}/pki/ca.key secret: it decides who is a member.",
            f"Next: coordinator serve --home {home}, then coordinator invite SITE --out FILE --home {home}",
        ]


@app.command()
def invite(
    site: Annotated[str, typer.Argument(help="Name of the site: a-z, 0-9 and inner hyphens.")],
    out: Annotated[
        Path, typer.Option(help="New file for the invitation. It is a secret: send it safely.")
    ],
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Invite a site: a one-time token in a file, valid for an hour."""
    # Imported here: loading the cryptography of a certificate authority costs more than most commands.
    from coordinator.enrolment.invitations import write_invitation

    with _reported(as_json) as answer, _ledger(home) as (place, config, ledger):
        expires = write_invitation(
            site,
            out,
            sites=ledger.sites,
            enrolment_address=f"{config.public_host}:{config.enrolment_port}",
            ca_certificate=(place.pki / "ca.crt").read_text(encoding="ascii"),
        )
        answer.content = {
            "site": site,
            "invitation": str(out.absolute()),
            "expires_at": expires.isoformat(),
        }
        answer.lines = [
            f'Invited site "{site}" until {expires:%Y-%m-%d %H:%M} UTC. Give it {out}; it works once.'
        ]


@app.command()
def sites(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """List the enrolled sites."""
    with _reported(as_json) as answer, _ledger(home) as (_, _, ledger):
        members = ledger.sites.members()
        answer.content = {
            "sites": [
                {
                    "name": site.name,
                    "enrolled_at": site.enrolled_at.isoformat(),
                    "certificate_sha256": site.certificate_sha256,
                    "flower_node_id": site.flower_node_id,
                }
                for site in members
            ]
        }
        answer.lines = [f"{s.name}  enrolled {s.enrolled_at:%Y-%m-%d %H:%M} UTC" for s in members]


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """End a site's membership: its next call is refused. What it did stays in the ledger."""
    with _reported(as_json) as answer, _ledger(home) as (_, _, ledger):
        ledger.sites.revoke(site)
        answer.content = {"site": site, "revoked": True}
        answer.lines = [f'Site "{site}" is no member any more.']


@app.command()
def serve(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Serve the consortium until SIGTERM or Ctrl-C: gateway, exchange, enrolment, Flower, runs."""
    from coordinator.supervisor import Serving
    from coordinator.supervisor import serve as serve_home

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)

    def report(serving: Serving) -> None:
        line = f"Ready: gateway {serving.gateway}, exchange {serving.exchange}, enrolment {serving.enrolment}"
        print(json.dumps(asdict(serving)) if as_json else line, flush=True)  # noqa: T201

    with _reported(as_json, says_nothing=True):
        asyncio.run(serve_home(CoordinatorHome(folder=home), report=report))


@app.command()
def train(
    spec: Annotated[Path, typer.Argument(help="The run, in TOML.", exists=True, dir_okay=False)],
    home: Home = DEFAULT_HOME,
    run_id: Annotated[
        str | None, typer.Option(help="Name in the ledger; made up if not given.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show progress until the run has ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Request a federated run; a serving coordinator drives it."""
    # Imported here: calibrating noise loads the accountant, which costs seconds.
    from coordinator.run_spec import load_run_spec, noise_facts, tolerance_facts

    with _reported(as_json) as answer, _ledger(home) as (_, _, ledger):
        request = load_run_spec(spec)
        name = run_id or f"{request.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        run = ledger.runs.request(name, spec=request.to_json(), rounds=request.rounds)
        if wait:
            run = _wait(ledger, run)
        answer.content = _run_facts(run)
        answer.lines = [f"Run {run.run_id}: {run.state}. {run.reason or ''}".strip()]
        stands = tolerance_facts(request)
        answer.content["tolerance"] = asdict(stands)
        answer.lines.append(stands.words)
        if (noise := noise_facts(request)) is not None:
            answer.content["shared_noise"] = asdict(noise)
            answer.lines.append(noise.words)
        if run.state in {RunState.FAILED, RunState.CANCELLED}:
            raise CoordinatorError(f"Run {run.run_id} {run.state}: {run.reason}")


@app.command()
def status(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Show whether the coordinator serves, which sites are online, and which runs are under way."""
    with _reported(as_json) as answer, _ledger(home) as (place, _, ledger):
        serving = _serving(place)
        online = asyncio.run(_online_nodes(place, serving)) if serving else frozenset()
        members = ledger.sites.members()
        runs = [run for run in ledger.runs.all() if run.state in DRIVABLE_RUNS]
        answer.content = {
            "serving": serving,
            "sites": [{"name": s.name, "online": s.flower_node_id in online} for s in members],
            "runs": [_run_facts(run) for run in runs],
        }
        answer.lines = [
            f"Serving, process {serving['pid']}." if serving else "Not serving.",
            *(
                f"{s.name}: {'online' if s.flower_node_id in online else 'offline'}"
                for s in members
            ),
            *(f"Run {run.run_id}: {run.state}" for run in runs),
        ]


async def _online_nodes(home: CoordinatorHome, serving: dict[str, Any]) -> frozenset[int]:
    from coordinator.superlink import SuperLink

    superlink = SuperLink(home=home, port=int(serving["superlink"].rpartition(":")[2]))
    try:
        return frozenset(node.node_id for node in await superlink.nodes() if node.is_online)
    finally:
        await superlink.close()


def _serving(home: CoordinatorHome) -> dict[str, Any] | None:
    """What the serving process wrote of itself; None when nobody holds the lock."""
    from coordinator.supervisor import locked

    try:
        with locked(home):
            return None
    except ConfigError:
        if not home.serve_file.exists():
            return None
        facts: dict[str, Any] = json.loads(home.serve_file.read_text(encoding="utf-8"))
        return facts


def _wait(ledger: LedgerStore, run: Run) -> Run:
    """Shows the committed rounds on standard error until the run has ended."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(run.run_id, total=run.rounds)
        while run.state in DRIVABLE_RUNS:
            time.sleep(POLL_SECONDS)
            run = ledger.runs.get(run.run_id)
            last = ledger.runs.last_committed(run.run_id)
            progress.update(
                bar, completed=last.round if last else 0, description=f"{run.run_id} {run.state}"
            )
    return run


def _run_facts(run: Run) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "state": str(run.state),
        "rounds": run.rounds,
        "reason": run.reason,
    }


@contextmanager
def _ledger(home: Path) -> Iterator[tuple[CoordinatorHome, CoordinatorConfig, LedgerStore]]:
    place = CoordinatorHome(folder=home)
    config = load_config(place)
    with open_ledger(place.ledger_url(config), create=False) as ledger:
        yield place, config, ledger


@contextmanager
def _reported(as_json: bool, *, says_nothing: bool = False) -> Iterator[Answer]:
    """Prints the answer, or the error with its exit code."""
    answer = Answer(content={}, lines=[])
    try:
        yield answer
    except CoordinatorError as error:
        if as_json:
            typer.echo(json.dumps({**answer.content, "error": str(error)}))
        typer.echo(str(error), err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
    if says_nothing:
        return
    typer.echo(json.dumps(answer.content) if as_json else "\n".join(answer.lines))
