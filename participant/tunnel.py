"""The tunnel: a loopback door for the SuperNode, whose other end is the coordinator's gateway over mutual TLS.

A request goes through in this order:

1. Only `POST /v1/fleet/...` is taken, and only up to `MAX_REQUEST_BYTES`; all else is refused here.
2. It is forwarded over TLS 1.3 with the site's certificate; the gateway's certificate must name the gateway.
3. While the link is down the request is held and tried again, shorter than the SuperNode waits for an answer, and
   then answered with 503.

The SuperNode (flwr 1.41) repeats a request for ever after 502, 503 or 504, but a 500 makes it stop polling while its
process lives on, and so does a broken TLS connection on loopback. Therefore every failure upstream, the gateway's own
5xx included, becomes a 503 here. Refusals (4xx) pass as they are: repeating them would not help.

The tunnel also remembers what it saw (`Traffic`): a SuperNode is judged by its requests, not by being alive.
It uses TLS on loopback because a SuperNode signs its requests only over TLS; that certificate is made at each start.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from participant.durable import write_durably
from participant.health import Traffic
from participant.identity import IdentityFiles
from participant.link import describe_failure, site_tls

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 8 << 20
"""Flower cuts what it pushes into chunks of at most 5 MB."""
MAX_ANSWER_BYTES = 16 << 20
"""Flower's largest bundle has 10 MB."""
TRY_AGAIN = frozenset({408, 425, 429})
"""Refusals that a repetition may overcome, although a SuperNode takes them for final; so is every 5xx."""
METHOD = re.compile(r"[a-z]+(-[a-z]+)*")
HEARTBEAT = "send-node-heartbeat"
HOLD_SECONDS = 25.0
"""A SuperNode gives a request 30 s."""
HOLD_HEARTBEAT_SECONDS = 4.0
"""It gives a heartbeat 5 s."""
HOLD_STOPPING_SECONDS = 2.0
"""A SuperNode that was told to stop is given 5 s by itself to sign off."""
RETRY_SECONDS = 0.5
ANSWER_SECONDS = 30.0
MAX_CONNECTIONS = 8
"""A SuperNode uses one connection for messages, one for heartbeats and up to four for objects."""
FORWARDED_HEADERS = ("content-type", "accept")
FLOWER_HEADER_PREFIX = "flwr-"
RETURNED_HEADERS = ("content-type",)
LOOPBACK = "127.0.0.1"


class Tunnel:
    """Serves the loopback door from `start` until `stop`, on the running event loop."""

    def __init__(
        self,
        *,
        gateway: str,
        files: IdentityFiles,
        folder: Path,
        hold_seconds: float = HOLD_SECONDS,
    ) -> None:
        """Prepares the tunnel.

        Args:
            gateway: "host:port" of the coordinator's gateway.
            files: the site's certificate, key and authority.
            folder: private folder for the loopback certificate.
            hold_seconds: how long a request may wait for the link.

        Raises:
            OSError: a key file cannot be read.
            ssl.SSLError: certificate and key do not belong together.
        """
        self.traffic = Traffic()
        self._gateway = gateway
        self._folder = folder
        self._hold = hold_seconds
        self._is_stopping = False
        self._client = httpx.AsyncClient(
            base_url=f"https://{gateway}",
            verify=site_tls(files),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=10.0),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            trust_env=False,
        )
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """ "host:port" for the SuperNode, known after `start`."""
        return self._address

    @property
    def certificate(self) -> Path:
        """What the SuperNode must trust to talk to the tunnel."""
        return self._folder / "loopback.crt"

    async def start(self) -> None:
        """Opens the loopback port. Does not wait for the gateway.

        Raises:
            OSError: no port can be opened.
        """
        key = self._folder / "loopback.key"
        make_loopback_certificate(self.certificate, key)
        listener = socket.create_server((LOOPBACK, 0))
        self._address = f"{LOOPBACK}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            Starlette(routes=[Route("/v1/fleet/{method}", self._forward, methods=["POST"])]),
            ssl_certfile=str(self.certificate),
            ssl_keyfile=str(key),
            lifespan="off",
            access_log=False,
            log_config=None,
            http="h11",
            ws="none",
            # A SuperNode drops its idle connections after 5 s. If the tunnel were the first to close one, the
            # SuperNode could meet a broken TLS connection, which it takes for final.
            timeout_keep_alive=120,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]), name="tunnel")
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)
        if self._serving.done():
            self._serving.result()

    async def stop(self) -> None:
        """Closes the door and the link."""
        self.release_held()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        await self._client.aclose()

    def release_held(self) -> None:
        """From now on a request is tried once, and not for long: a SuperNode that signs off must not be kept waiting."""
        self._is_stopping = True

    async def _forward(self, request: Request) -> Response:
        method = request.path_params["method"]
        if not METHOD.fullmatch(method):
            return _refuse(404, "Not a method of the fleet interface.")
        self._note_request(method)
        if int(request.headers.get("content-length", "0")) > MAX_REQUEST_BYTES:
            return _refuse(413, f"Request larger than {MAX_REQUEST_BYTES} bytes.")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_REQUEST_BYTES:
                return _refuse(413, f"Request larger than {MAX_REQUEST_BYTES} bytes.")
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in FORWARDED_HEADERS or name.startswith(FLOWER_HEADER_PREFIX)
        }
        return await self._send_until_answered(method, headers, bytes(body))

    async def _send_until_answered(
        self, method: str, headers: dict[str, str], body: bytes
    ) -> Response:
        deadline = time.monotonic() + self._hold_seconds(method)
        while True:
            try:
                # The hold covers the answer too: the SuperNode must hear from us before it gives up.
                async with asyncio.timeout(max(0.5, deadline - time.monotonic())):
                    answer = await self._send(method, headers, body)
            except (httpx.TransportError, TimeoutError) as error:
                self._note_failure(describe_failure(self._gateway, error))
            else:
                if answer.status_code < 500 and answer.status_code not in TRY_AGAIN:
                    self._note_answer(method, answer)
                    return answer
                self._note_failure(
                    f'The coordinator answered "{method}" with status {answer.status_code}.'
                )
            if self._is_stopping or time.monotonic() + RETRY_SECONDS >= deadline:
                return _refuse(503, "The coordinator cannot be reached now.")
            await asyncio.sleep(RETRY_SECONDS)

    def _hold_seconds(self, method: str) -> float:
        longest = HOLD_STOPPING_SECONDS if self._is_stopping else self._hold
        return min(longest, HOLD_HEARTBEAT_SECONDS) if method == HEARTBEAT else longest

    async def _send(self, method: str, headers: dict[str, str], body: bytes) -> Response:
        async with self._client.stream(
            "POST", f"/v1/fleet/{method}", headers=headers, content=body
        ) as answer:
            content = bytearray()
            async for chunk in answer.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    return _refuse(502, f"Answer larger than {MAX_ANSWER_BYTES} bytes.")
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name in RETURNED_HEADERS or name.startswith(FLOWER_HEADER_PREFIX)
            }
            return Response(bytes(content), status_code=answer.status_code, headers=kept)

    def _note_request(self, method: str) -> None:
        now = time.monotonic()
        if method == HEARTBEAT:
            self.traffic.heartbeat = now
        else:
            self.traffic.work = now
        if method == "deactivate-node":
            self.traffic.deactivated = now

    def _note_answer(self, method: str, answer: Response) -> None:
        now = time.monotonic()
        if answer.status_code < 400:
            self.traffic.answered = now
            if self.traffic.refusal is not None:
                logger.info("The coordinator answers again.")
            self.traffic.refusal = None
            if method == "activate-node":
                self.traffic.activated = now
        else:
            self._note_failure(
                f'The coordinator refused "{method}" with status {answer.status_code}.'
            )

    def _note_failure(self, reason: str) -> None:
        if reason != self.traffic.refusal:
            logger.warning("%s", reason)
        self.traffic.refusal = reason


def free_port() -> int:
    """A loopback port that nobody uses now, for a child process that cannot choose one itself."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def make_loopback_certificate(certificate: Path, key: Path) -> None:
    """A new self-signed certificate for 127.0.0.1, trusted by this site's SuperNode alone."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "concord-loopback")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]),
            critical=False,
        )
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_durably(key, [secret], replace=True)
    write_durably(certificate, [signed.public_bytes(serialization.Encoding.PEM)], replace=True)


def _refuse(status: int, reason: str) -> Response:
    return Response(reason, status_code=status, media_type="text/plain")


class _Server(uvicorn.Server):
    """Leaves signals to the supervisor that runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
