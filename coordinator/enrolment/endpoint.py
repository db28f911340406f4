"""The enrolment endpoint: `POST /v1/enrol` on its own TLS port, the only one that answers without a certificate.

Bounds, in order: connections and their lifetime (`EnrolmentProtocol`, server), a rate over all callers, the size of
the body, its shape. Then one decision by the registrar. Unknown, used and expired tokens get the same words after the
same work (one lookup by hash), and neither token nor body is ever logged. Never answers more than it must.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as strict_dataclass
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.enrolment.authority import CertificateRequestError
from coordinator.enrolment.invitations import EnrolmentRequest, Registrar
from coordinator.errors import CoordinatorError, EnrolmentError, TokenRefused

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 10
BODY_SECONDS = 10.0
CONNECTION_SECONDS = 30.0
REQUESTS_PER_MINUTE = 60
"""Over all callers: enrolment happens a few times in a consortium's life, guessing 256 bits never succeeds."""
REFUSED = (
    "The invitation is unknown, used or expired. Ask the coordinator's operator for a new one."
)


@strict_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class _Body:
    token: str
    csr: str
    signing_key: str
    node_key: str


@dataclass(frozen=True, kw_only=True)
class Consortium:
    """What every new member is told."""

    ca_certificate: str
    """PEM."""
    signing_key: str
    """The coordinator's raw Ed25519 public key, in hex; sites pin it."""
    gateway: str
    """host:port."""
    exchange: str
    """host:port."""


class EnrolmentProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a limit on a connection's life: strangers may not hold connections open."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self.loop.call_later(CONNECTION_SECONDS, transport.close)


class EnrolmentEndpoint:
    """Answers invited sites. An ASGI application."""

    def __init__(self, *, registrar: Registrar, consortium: Consortium) -> None:
        self._registrar = registrar
        self._consortium = consortium
        self._allowance = float(REQUESTS_PER_MINUTE)
        self._refilled = time.monotonic()
        self._one_at_a_time = asyncio.Lock()
        route = Route("/v1/enrol", self._enrol, methods=["POST"])
        self.app = Starlette(
            routes=[route],
            exception_handlers={404: _not_found, 405: _not_found, Exception: _failed},
        )
        self.app.router.redirect_slashes = False

    async def _enrol(self, request: Request) -> Response:
        if not self._within_rate():
            return _error(429, "Too many requests. Try again in a minute.")
        body = await _read_body(request)
        if body is None:
            return _error(
                413, f"The request must be complete within {MAX_BODY_BYTES} bytes and 10 s."
            )
        try:
            shown = TypeAdapter(_Body).validate_json(body)
        except ValidationError:
            # The parser's own words could repeat the token.
            return _error(
                400, "Expected a JSON object with the texts token, csr, signing_key and node_key."
            )
        request_of_site = EnrolmentRequest(
            certificate_request=shown.csr, signing_key=shown.signing_key, node_key=shown.node_key
        )
        try:
            async with self._one_at_a_time:
                enrolled = await asyncio.to_thread(
                    self._registrar.enrol, shown.token, request_of_site
                )
        except CertificateRequestError as error:
            return _error(400, str(error))
        except TokenRefused:
            logger.warning("Refused an enrolment: no such open invitation.")
            return _error(403, REFUSED)
        except EnrolmentError as error:
            logger.warning("Refused an enrolment: %s", error)
            return _error(409, str(error))
        logger.info('Site "%s" enrolled.', enrolled.site)
        return JSONResponse(
            {
                "site": enrolled.site,
                "certificate": enrolled.certificate,
                "ca": self._consortium.ca_certificate,
                "coordinator_signing_key": self._consortium.signing_key,
                "gateway": self._consortium.gateway,
                "exchange": self._consortium.exchange,
            }
        )

    def _within_rate(self) -> bool:
        now = time.monotonic()
        refill = (now - self._refilled) * REQUESTS_PER_MINUTE / 60
        self._allowance = min(REQUESTS_PER_MINUTE, self._allowance + refill)
        self._refilled = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


async def _read_body(request: Request) -> bytes | None:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    return None
    except (TimeoutError, ClientDisconnect):
        return None
    return bytes(body)


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


def _not_found(*_: object) -> Response:
    return _error(404, "Not found.")


def _failed(_request: Request, error: Exception) -> Response:
    # The ledger's texts name paths of this machine: they go to the log, not to the caller.
    what = str(error) if isinstance(error, CoordinatorError) else type(error).__name__
    logger.error("An enrolment failed: %s", what)
    return _error(
        503, "The coordinator cannot enrol anybody now. Tell its operator; try again later."
    )
