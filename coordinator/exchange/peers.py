"""Who is at the other end of a call, by its certificate: the roles in the URI names that the authority signed.

`concord:site:<name>` may be the endpoint of that name; `concord:role:coordinator` may be the endpoint
"coordinator" and open and close sessions. A certificate without the role is refused, whatever its subject says.
"""

from typing import Any, Final

import grpc

from coordinator.wire.channel import COORDINATOR

COORDINATOR_ROLE: Final = "concord:role:coordinator"
SITE_ROLE_PREFIX: Final = "concord:site:"
_TLS_VERSION: Final = "TLSv1.3"


class PeerError(Exception):
    """The certificate does not carry the role, or the connection is not TLS 1.3."""


def require_role_of_endpoint(context: Any, endpoint: str) -> None:
    """Refuse a peer whose certificate is not this endpoint's."""
    role = COORDINATOR_ROLE if endpoint == COORDINATOR else f"{SITE_ROLE_PREFIX}{endpoint}"
    _require_role(context, role)


def require_coordinator_role(context: Any) -> None:
    """Refuse a peer that is not the coordinator."""
    _require_role(context, COORDINATOR_ROLE)


def _require_role(context: Any, role: str) -> None:
    properties = context.auth_context()
    version = _texts(properties, "ssl_tls_version")
    if version != [_TLS_VERSION]:
        raise PeerError(f"expected {_TLS_VERSION}, got {version or 'no TLS'}")
    if role not in _texts(properties, "peer_uri"):
        raise PeerError(f"the certificate does not carry the role {role}")


def _texts(properties: dict[str, list[bytes]], key: str) -> list[str]:
    return [value.decode("utf-8", "replace") for value in properties.get(key, [])]


def server_credentials(ca: bytes, certificate: bytes, key: bytes) -> grpc.ServerCredentials:
    """The server's side of mutual TLS: every client must show a certificate of the authority."""
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=ca, require_client_auth=True
    )
