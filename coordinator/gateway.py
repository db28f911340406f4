"""The gateway: the only way from outside to the SuperLink, and only for enrolled sites and fleet calls.

For each request, in this order:

1. TLS 1.3 with a certificate of our root, or the handshake fails and no byte of HTTP is read.
2. Only `POST /v1/fleet/NAME` exists. Everything else is 404, whoever asks.
3. The certificate must be the one enrolled for an active site, and the Flower node key in the request must be that
   site's. The SuperLink then checks the signature made with that key, so a site can only speak for its own node.
4. The body is read up to a limit; known headers alone are passed on to the loopback SuperLink.
5. A SuperLink that is down or restarting is waited for. The gateway never answers 500: after one, a SuperNode stops
   polling for ever while it stays alive. It answers 503 instead, which a SuperNode tries again.
"""

import asyncio
import hashlib
import logging
import re
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.enrolment.authority import site_of

logger = logging.getLogger(__name__)

FLEET_CALL = re.compile(r"[a-z][a-z-]{0,39}")
MAX_BODY_BYTES = 8 << 20
"""Flower cuts objects into chunks of at most 5 MB; the rest of a message is small."""
MAX_HEADER_BYTES = 16 << 10
BODY_SECONDS = 25.0
UPSTREAM_SECONDS = 25.0
"""A SuperNode gives a request up after 30 s; the answer must come before."""
RETRY_SECONDS = 0.25
NODE_KEY_HEADER = "flwr-public-key"
PASSED_HEADERS = ("accept", "content-type", "traceparent")
RETURNED_HEADERS = ("content-type", "content-length")
PASSED_PREFIX = "flwr-"
CERTIFICATE = "concord.client_certificate"


@dataclass(frozen=True, kw_only=True)
class Member:
    """What the gateway must know of an enrolled, active site."""

    certificate_sha256: str
    node_key: str
    """The Flower node's public key, an OpenSSH line."""
    is_registered: bool
    """Whether the SuperLink knows the node already; until then a SuperNode is told to try again."""


MemberLookup = Callable[[str], Awaitable[Member | None]]
Scope = dict[str, Any]


class MemberProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which also puts the peer's certificate (DER) into each request's scope."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Binds the certificate of this connection's handshake to every request on it."""
        super().connection_made(transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
        app = self.app

        async def with_certificate(scope: Any, receive: Any, send: Any) -> None:
            scope[CERTIFICATE] = certificate
            await app(scope, receive, send)

        self.app = with_certificate


class Gateway:
    """Passes fleet calls of enrolled sites on to the SuperLink. An ASGI application."""

    def __init__(self, *, superlink: str, tls: ssl.SSLContext, member: MemberLookup) -> None:
        self._member = member
        self._superlink = httpx.AsyncClient(
            base_url=superlink,
            verify=tls,
            timeout=httpx.Timeout(UPSTREAM_SECONDS, connect=2.0),
            # The SuperLink closes idle connections after 5 s; reusing one at that moment would fail.
            limits=httpx.Limits(max_connections=128, keepalive_expiry=3.0),
            trust_env=False,
        )
        route = Route("/v1/fleet/{call}", self._fleet, methods=["POST"])
        self.app = Starlette(
            routes=[route], exception_handlers={405: _not_found, Exception: _unavailable}
        )
        self.app.router.redirect_slashes = False

    async def close(self) -> None:
        """Closes the connections to the SuperLink."""
        await self._superlink.aclose()

    async def _fleet(self, request: Request) -> Response:
        call = request.path_params["call"]
        if FLEET_CALL.fullmatch(call) is None:
            return _not_found(request)
        header_bytes = sum(len(name) + len(value) for name, value in request.scope["headers"])
        if header_bytes > MAX_HEADER_BYTES:
            return PlainTextResponse(f"Headers are limited to {MAX_HEADER_BYTES} bytes.", 431)
        certificate: bytes = request.scope[CERTIFICATE]
        site = site_of(certificate)
        member = None if site is None else await self._member(site)
        refusal = _refusal(request, certificate, member)
        if member is None or refusal is not None:
            # 401, not 403: a SuperNode ends itself on 401, but takes 403 for "this run is over".
            logger.warning('Refused fleet call %s of site "%s": %s', call, site, refusal)
            return PlainTextResponse(refusal, status_code=401)
        if not member.is_registered:
            return _unavailable()
        try:
            body = await asyncio.wait_for(_read_body(request), BODY_SECONDS)
        except TimeoutError:
            return PlainTextResponse("The request body did not arrive in time.", status_code=408)
        except ClientDisconnect:
            return PlainTextResponse("The client left.", status_code=400)
        if body is None:
            # Closed, or the rest of the body would have to be read.
            closing = {"connection": "close"}
            return PlainTextResponse(f"The limit is {MAX_BODY_BYTES} bytes.", 413, closing)
        return await self._pass_on(call, request.headers, body)

    async def _pass_on(self, call: str, headers: Mapping[str, str], body: bytes) -> Response:
        answer = await self._ask_superlink(call, headers, body)
        if answer is None:
            logger.warning("The SuperLink could not be reached for %s.", call)
            return _unavailable()
        if answer.status_code >= 500:
            logger.warning("The SuperLink answered %d to %s.", answer.status_code, call)
            await answer.aclose()
            return _unavailable()
        returned = {
            name: value
            for name, value in answer.headers.items()
            if name in RETURNED_HEADERS or name.startswith(PASSED_PREFIX)
        }
        return StreamingResponse(_parts(answer), answer.status_code, returned)

    async def _ask_superlink(
        self, call: str, headers: Mapping[str, str], body: bytes
    ) -> httpx.Response | None:
        """The SuperLink's answer, its body unread; None when it stayed away for too long.

        A SuperNode itself repeats a call whose connection broke, so repeating it here is nothing new for the SuperLink.
        """
        passed = {
            name: value
            for name, value in headers.items()
            if name in PASSED_HEADERS or name.startswith(PASSED_PREFIX)
        }
        # The answer is passed on byte by byte, so it must not come compressed.
        passed["accept-encoding"] = "identity"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + UPSTREAM_SECONDS
        while loop.time() < deadline:
            request = self._superlink.build_request(
                "POST", f"/v1/fleet/{call}", headers=passed, content=body
            )
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._superlink.send(request, stream=True)
            except (httpx.TransportError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
        return None


async def _parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()


def _refusal(request: Request, certificate: bytes, member: Member | None) -> str | None:
    """Why this caller may not speak for its node; None if it may."""
    if member is None or member.certificate_sha256 != hashlib.sha256(certificate).hexdigest():
        return "This certificate is not that of an enrolled, active site."
    if not same_node_key(request.headers.get(NODE_KEY_HEADER, ""), member.node_key):
        return "The node key is not the one that this site enrolled."
    return None


def same_node_key(header: str, enrolled: str) -> bool:
    """Whether the base64 PEM in Flower's header is the key of the enrolled OpenSSH line."""
    try:
        claimed = serialization.load_pem_public_key(b64decode(header, validate=True))
        known = serialization.load_ssh_public_key(enrolled.encode())
    except (ValueError, UnsupportedAlgorithm):
        return False
    return (
        isinstance(claimed, ec.EllipticCurvePublicKey)
        and isinstance(known, ec.EllipticCurvePublicKey)
        and claimed.curve.name == known.curve.name
        and claimed.public_numbers() == known.public_numbers()
    )


async def _read_body(request: Request) -> bytes | None:
    """The whole body; None when it is longer than the limit, of which no more is kept in memory."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _not_found(*_: object) -> Response:
    return PlainTextResponse("Not found.", status_code=404)


def _unavailable(*_: object) -> Response:
    return PlainTextResponse("Try again.", status_code=503, headers={"retry-after": "1"})
