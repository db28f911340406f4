"""TLS contexts of the coordinator's own ports: TLS 1.3 only, keys from files, one root.

- `public_context`: the enrolment endpoint, where a site has no certificate yet.
- `member_context`: the gateway, where the handshake fails without a certificate of our root.
- `loopback_context`: the gateway as a client of the SuperLink on the same machine.
"""

import ssl
from pathlib import Path


def public_context(pki: Path) -> ssl.SSLContext:
    """Server side; the client is not authenticated by TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pki / "server.crt", pki / "server.key")
    return context


def member_context(pki: Path) -> ssl.SSLContext:
    """Server side; a client certificate signed by our root is required, and no other root is trusted."""
    context = public_context(pki)
    context.load_verify_locations(pki / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def loopback_context(pki: Path) -> ssl.SSLContext:
    """Client side; trusts our root alone and checks the server's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(pki / "ca.crt")
    return context
