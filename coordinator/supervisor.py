"""`coordinator serve`: one process that holds everything together, and what it starts, in order.

1. A lock on the home: a second coordinator on it is refused.
2. Child: the SuperLink, on a free loopback port.
3. In this process: the enrolment endpoint, the exchange and the gateway.
4. Ready when the SuperLink answers: `serve.json` is written and the addresses are reported.
5. Child: SuperExec, after Flower runs of an earlier process were ended; it starts the ServerApps.
6. Two watchers: nodes (equal to the ledger's sites) and the launcher (something drives every run).

SIGTERM or SIGINT stops all of it within ten seconds; SIGKILL leaves the children to their leashes.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import coordinator
from coordinator.config import (
    CoordinatorConfig,
    CoordinatorHome,
    free_port,
    load_config,
    reachable_host,
)
from coordinator.enrolment.authority import load_authority, load_signing_key
from coordinator.enrolment.endpoint import Consortium, EnrolmentEndpoint, EnrolmentProtocol
from coordinator.enrolment.invitations import Registrar
from coordinator.enrolment.tls import loopback_context, member_context, public_context
from coordinator.errors import ConfigError, CoordinatorError, SupervisorError
from coordinator.exchange.server import ExchangeServer
from coordinator.gateway import Gateway, Member, MemberProtocol
from coordinator.https import HttpsServer
from coordinator.launcher import Launcher
from coordinator.ledger.store import LedgerStore, open_ledger
from coordinator.nodes import NodeRegistry
from coordinator.superlink import LOOPBACK, SuperLink
from coordinator.wire.channel import TlsFiles
from coordinator.wire.children import Children, ChildSpec

logger = logging.getLogger(__name__)

APP = Path(coordinator.__file__).parent / "app"
START_SECONDS = 60.0
GRACE_SECONDS = 4.0
"""For children after SIGTERM. The servers in this process stop meanwhile; together well below ten seconds."""
SERVER_STOP_SECONDS = 5.0
RETRY_SECONDS = 5.0
MAX_MEMBER_CONNECTIONS = 512
MAX_ENROLMENT_CONNECTIONS = 32


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a coordinator that is ready reports of itself, and writes to `serve.json`."""

    pid: int
    gateway: str
    exchange: str
    enrolment: str
    superlink: str
    """Loopback only."""


class Server(Protocol):
    """Something in this process that listens on a port."""

    async def start(self) -> object:
        """Returns when it listens; raises OSError when the address cannot be bound."""

    async def stop(self) -> None:
        """Returns when it has stopped."""


async def serve(home: CoordinatorHome, *, report: Callable[[Serving], None]) -> None:
    """Serves until SIGTERM or SIGINT; `report` is called once, when all is ready.

    Raises:
        ConfigError: the home is no coordinator's or is being served, or a port is taken.
        SupervisorError: the SuperLink does not start.
        LedgerError: the ledger cannot be opened.
    """
    config = load_config(home)
    os.umask(0o077)  # whatever this process or a child writes is the owner's alone
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with locked(home), open_ledger(home.ledger_url(config), create=False) as ledger:
        superlink = SuperLink(home=home, port=free_port(LOOPBACK))
        superlink.prepare()
        nodes = NodeRegistry(
            superlink=superlink, sites=ledger.sites, numbers=home.flower / "nodes.json"
        )
        gateway = Gateway(
            superlink=superlink.url,
            tls=loopback_context(home.pki),
            member=lambda site: _member(site, ledger, nodes),
        )
        servers = _servers(home, config, ledger, gateway)
        children = Children()
        try:
            children.start(superlink.superlink_child())
            await _start(servers)
            await _first_of(
                stop.wait(), _work(home, config, ledger, superlink, nodes, children, report)
            )
            logger.info("Stopping.")
        finally:
            home.serve_file.unlink(missing_ok=True)
            # First the connections to the SuperLink, which waits for them before it ends.
            await gateway.close()
            await superlink.close()
            await _stop(children, servers)


@contextlib.contextmanager
def locked(home: CoordinatorHome) -> Iterator[None]:
    """Holds the home's lock, which the system releases with the process, however it ends.

    Raises:
        ConfigError: another process serves this home.
    """
    descriptor = os.open(home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{home.folder} is being served by another process; see {home.serve_file}. Stop that one first."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


async def _work(
    home: CoordinatorHome,
    config: CoordinatorConfig,
    ledger: LedgerStore,
    superlink: SuperLink,
    nodes: NodeRegistry,
    children: Children,
    report: Callable[[Serving], None],
) -> None:
    """Becomes ready, then keeps nodes and runs going, for ever."""
    await _until_it_answers(superlink, home)
    exchange = f"{reachable_host(config.bind_host)}:{config.exchange_port}"
    serving = Serving(
        pid=os.getpid(),
        gateway=f"{config.public_host}:{config.gateway_port}",
        exchange=f"{config.public_host}:{config.exchange_port}",
        enrolment=f"{config.public_host}:{config.enrolment_port}",
        superlink=superlink.address,
    )
    descriptor = os.open(home.serve_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(serving), file)
    report(serving)
    launcher = Launcher(
        superlink=superlink,
        app=APP,
        runs=ledger.runs,
        note_incident=lambda kind, text, run_id: ledger.record_incident(kind, text, run_id=run_id),
        children=children,
    )
    await _first_of(
        nodes.watch(), _drive(launcher, children, superlink.superexec_child(exchange=exchange))
    )


async def _drive(launcher: Launcher, children: Children, superexec: ChildSpec) -> None:
    while True:
        try:
            await launcher.stop_leftovers()
            break
        except CoordinatorError as error:
            logger.warning("Flower runs of an earlier process could not be ended yet: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
    children.start(superexec)
    await launcher.watch()


async def _until_it_answers(superlink: SuperLink, home: CoordinatorHome) -> None:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while not await superlink.answers():
        if asyncio.get_running_loop().time() > deadline:
            raise SupervisorError(
                f"The SuperLink did not answer within {START_SECONDS:.0f} s of its start. "
                f"Its log, {home.logs / 'superlink.log'}, says why."
            )
        await asyncio.sleep(0.05)


async def _member(site: str, ledger: LedgerStore, nodes: NodeRegistry) -> Member | None:
    """What the gateway must know of a site; None unless it is an active member."""
    found = await asyncio.to_thread(ledger.sites.get, site)
    if found is None or found.revoked_at is not None:
        return None
    return Member(
        certificate_sha256=found.certificate_sha256,
        node_key=found.node_key,
        is_registered=nodes.knows(found),
    )


def _servers(
    home: CoordinatorHome, config: CoordinatorConfig, ledger: LedgerStore, gateway: Gateway
) -> tuple[Server, ...]:
    authority = load_authority(home.pki)
    enrolment = EnrolmentEndpoint(
        registrar=Registrar(authority=authority, sites=ledger.sites, issued=home.issued),
        consortium=Consortium(
            ca_certificate=authority.certificate_pem,
            signing_key=load_signing_key(home.signing_key).public_key().public_bytes_raw().hex(),
            gateway=f"{config.public_host}:{config.gateway_port}",
            exchange=f"{config.public_host}:{config.exchange_port}",
        ),
    )
    server_tls = TlsFiles(
        ca=home.pki / "ca.crt",
        certificate=home.pki / "server.crt",
        key=home.pki / "server.key",
    )
    return (
        HttpsServer(
            enrolment.app,
            host=config.bind_host,
            port=config.enrolment_port,
            tls=public_context(home.pki),
            protocol=EnrolmentProtocol,
            max_connections=MAX_ENROLMENT_CONNECTIONS,
        ),
        ExchangeServer(
            models=home.models, tls=server_tls, host=config.bind_host, port=config.exchange_port
        ),
        HttpsServer(
            gateway.app,
            host=config.bind_host,
            port=config.gateway_port,
            tls=member_context(home.pki),
            protocol=MemberProtocol,
            max_connections=MAX_MEMBER_CONNECTIONS,
        ),
    )


async def _first_of(*work: Coroutine[Any, Any, object]) -> None:
    """Runs all until the first one ends, cancels the others, and raises what the first one raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


async def _start(servers: tuple[Server, ...]) -> None:
    try:
        for server in servers:
            await server.start()
    except OSError as error:
        raise ConfigError(
            f"{error}. Stop what uses the port, or change bind_host or the port in coordinator.toml."
        ) from error


async def _stop(children: Children, servers: tuple[Server, ...]) -> None:
    """Stops everything at the same time; what does not stop in time is left to the end of this process."""

    async def stop_server(server: Server) -> None:
        try:
            await asyncio.wait_for(server.stop(), SERVER_STOP_SECONDS)
        except TimeoutError:
            logger.warning(
                "%s did not stop within %.0f s.", type(server).__name__, SERVER_STOP_SECONDS
            )

    await asyncio.gather(
        children.stop(grace_seconds=GRACE_SECONDS), *(stop_server(server) for server in servers)
    )
