"""Invitations: a one-time token handed to a site by its operator's own means, stored here only as a hash.

1. `coordinator invite SITE --out FILE` draws a token, records its SHA-256 with an expiry, and writes the file (0600).
2. The file travels to the site outside of this system (it is a secret until used).
3. The site trusts the root in that file, makes its keys, and sends the token with a certificate request.
4. The first request that is well formed uses the token up. The same request repeated gets the same certificate
   again: an answer that was lost on the way costs nothing.
"""

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.enrolment.authority import (
    Authority,
    CertificateRequestError,
    requested_key,
    require_site_name,
    write_secret,
)
from coordinator.errors import ConfigError, CoordinatorError, TokenRefused
from coordinator.ledger.sites import SiteTable

TOKEN_BYTES = 32
MAX_NODE_KEY_CHARACTERS = 512


@dataclass(frozen=True, kw_only=True)
class EnrolmentRequest:
    """What a site shows of itself. The token that admits it is passed beside it, never stored in it."""

    certificate_request: str
    """PEM; only its public key is believed."""
    signing_key: str
    """Raw Ed25519 public key, in hex."""
    node_key: str
    """Public key line (OpenSSH) of the site's Flower node, on a NIST curve."""


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """A site that became a member."""

    site: str
    certificate: str
    """PEM."""


def write_invitation(
    site: str, path: Path, *, sites: SiteTable, enrolment_address: str, ca_certificate: str
) -> datetime:
    """Invites a site: a new token in a new file that only its owner can read. Returns when it expires.

    Raises:
        EnrolmentError: the site is enrolled already.
        ConfigError: the name is none, or the file exists or cannot be written; no invitation is open then.
    """
    try:
        require_site_name(site)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    token = secrets.token_urlsafe(TOKEN_BYTES)
    content = {
        "site": site,
        "enrol": enrolment_address,
        "ca": ca_certificate,
        "token": token,
    }
    try:
        write_secret(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f'Cannot write the invitation of site "{site}" to {path}: {error.strerror}. Name a new file.'
        ) from error
    try:
        return sites.invite(site, token_sha256=token_sha256(token))
    except CoordinatorError:
        path.unlink()
        raise


def token_sha256(token: str) -> str:
    """What the ledger keeps of a token. A random token of 256 bits needs no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


class Registrar:
    """Turns an invitation into a membership."""

    def __init__(self, *, authority: Authority, sites: SiteTable, issued: Path) -> None:
        """Takes what it signs with and writes to.

        Args:
            authority: signs the site's certificate.
            sites: the ledger's members and invitations.
            issued: folder of the certificates that were issued, by the hash of their token.
        """
        self._authority = authority
        self._sites = sites
        self._issued = issued

    def enrol(self, token: str, request: EnrolmentRequest) -> Enrolled:
        """Makes the invited site a member and returns its certificate.

        The request is checked as a whole before the token is touched: a malformed one does not use it up.

        Raises:
            CertificateRequestError: the request is malformed.
            TokenRefused: the token is unknown, used or expired.
            EnrolmentError: a key in the request belongs to another site; the token is used up.
        """
        key = requested_key(request.certificate_request)
        require_public_keys(request)
        token_hash = token_sha256(token)
        try:
            site = self._sites.redeem_invitation(token_hash)
        except TokenRefused:
            again = self._issued_before(token_hash, key, request)
            if again is None:
                raise
            return again
        certificate = self._authority.sign_site(request.certificate_request, site=site)
        write_secret(self._issued_file(token_hash), certificate.encode())
        self._sites.enrol(
            name=site,
            signing_key=request.signing_key,
            node_key=request.node_key,
            certificate_sha256=_fingerprint(certificate),
        )
        return Enrolled(site=site, certificate=certificate)

    def _issued_before(
        self, token_hash: str, key: ec.EllipticCurvePublicKey, request: EnrolmentRequest
    ) -> Enrolled | None:
        """The answer to exactly this request, if it was given once and the site is still a member with it."""
        try:
            certificate = self._issued_file(token_hash).read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        if x509.load_pem_x509_certificate(certificate.encode()).public_key() != key:
            return None
        site = self._sites.by_certificate(_fingerprint(certificate))
        if site is None or (site.signing_key, site.node_key) != (
            request.signing_key,
            request.node_key,
        ):
            return None
        return Enrolled(site=site.name, certificate=certificate)

    def _issued_file(self, token_hash: str) -> Path:
        return self._issued / f"{token_hash}.crt"


def require_public_keys(request: EnrolmentRequest) -> None:
    """Raises CertificateRequestError unless the signing key is Ed25519 and the node key on a NIST curve."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(request.signing_key))
    except ValueError as error:
        raise CertificateRequestError(
            "signing_key must be 64 hex digits: a raw Ed25519 key."
        ) from error
    if request.signing_key != request.signing_key.lower():
        raise CertificateRequestError("signing_key must be in lower-case hex.")
    if len(request.node_key) > MAX_NODE_KEY_CHARACTERS:
        raise CertificateRequestError(
            f"node_key is longer than {MAX_NODE_KEY_CHARACTERS} characters."
        )
    try:
        node_key = serialization.load_ssh_public_key(request.node_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateRequestError("node_key must be an OpenSSH public key line.") from error
    if not isinstance(node_key, ec.EllipticCurvePublicKey):
        raise CertificateRequestError(
            "node_key must be an elliptic-curve key (ecdsa-sha2-nistp384)."
        )


def _fingerprint(certificate_pem: str) -> str:
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    return certificate.fingerprint(hashes.SHA256()).hex()
