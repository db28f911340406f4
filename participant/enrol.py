"""Joining a consortium: `participant join INVITATION --home HOME`.

The steps, in order; each may be the last one before a crash, and the next try goes on from there:

1. Read the invitation. It names the site, the address to ask, the authority to trust and a one-time token.
2. Make the site's keys, where they are missing. They stay here; existing ones are never replaced.
3. Send the public halves and the token over TLS 1.3, trusting the invitation's authority and nobody else.
4. Check what came back: our key, our name, that authority, a certificate valid now.
5. Keep it: authority, coordinator's signing key (pinned), `site.toml` and `policy.toml` where they are missing, and
   last the certificate, whose presence says that the site has joined.

Repeating the same request within an invitation's life gets the same answer; later a new invitation for the same site
renews the certificate of the same keys.
"""

import json
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as strict_dataclass

from coordinator.wire.bundle import BUNDLE_SHA256
from participant.config import POLICY_TEMPLATE, SITE_TEMPLATE, Address, SiteName, load_site
from participant.durable import write_durably
from participant.errors import EnrolmentError
from participant.identity import (
    IdentityFiles,
    create_home,
    ensure_keys,
    load_tls_key,
    pin_coordinator_key,
    public_identity,
)
from participant.link import consortium_tls, describe_failure

logger = logging.getLogger(__name__)

MAX_INVITATION_BYTES = 64 << 10
MAX_ANSWER_BYTES = 64 << 10
ANSWER_SECONDS = 30.0
STRICT = ConfigDict(extra="forbid", strict=True)


@strict_dataclass(frozen=True, kw_only=True, config=STRICT)
class Invitation:
    """The file that the coordinator's operator handed over."""

    site: SiteName
    """Name that this site will have."""
    enrol: Address
    """host:port of the enrolment endpoint."""
    ca: str
    """Certificate of the consortium's authority, PEM."""
    token: str = field(repr=False)
    """Secret until used once."""


@strict_dataclass(frozen=True, kw_only=True, config=STRICT)
class _Answer:
    site: str
    certificate: str
    ca: str
    coordinator_signing_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    gateway: Address
    exchange: Address


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What joining led to."""

    site: str
    gateway: str
    exchange: str
    certificate_expires: datetime
    outdated_settings: tuple[str, ...]
    """Fields of an existing `site.toml` that differ from what the coordinator says now."""


def read_invitation(path: Path) -> Invitation:
    """The invitation in a file.

    Raises:
        EnrolmentError: it cannot be read or is not an invitation; never repeats its content.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INVITATION_BYTES + 1)
        if len(data) > MAX_INVITATION_BYTES:
            raise EnrolmentError(f'"{path}" is too large to be an invitation.')
        return TypeAdapter(Invitation).validate_json(data)
    except OSError as error:
        raise EnrolmentError(
            f'The invitation "{path}" cannot be read: {error.strerror}.'
        ) from error
    except ValidationError as error:
        fields = ", ".join(
            sorted({str(part["loc"][0]) for part in error.errors() if part["loc"]} or {"no JSON"})
        )
        raise EnrolmentError(
            f'"{path}" is not an invitation (wrong: {fields}). Ask the coordinator\'s operator for the file that '
            '"coordinator invite" wrote.'
        ) from None


def join(invitation: Invitation, home: Path) -> Membership:
    """Makes this home a member of the consortium.

    Raises:
        EnrolmentError: refused, unreachable, not whom the invitation names, or an answer that does not fit.
        IdentityError: a key of the home cannot be used, or the coordinator shows another key than before.
    """
    files = create_home(home)
    _require_same_membership(files, invitation)
    ensure_keys(files)
    answer = _ask(invitation, files)
    certificate = _verified_certificate(invitation, answer, files)
    _keep(answer, files)
    return Membership(
        site=answer.site,
        gateway=answer.gateway,
        exchange=answer.exchange,
        certificate_expires=certificate.not_valid_after_utc,
        outdated_settings=_outdated_settings(home, answer),
    )


def site_name(certificate: x509.Certificate) -> str | None:
    """The site that a certificate is for; None if it is for something else."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        other = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    roles = other.get_values_for_type(x509.UniformResourceIdentifier)
    name = names[0].value if len(names) == 1 else None
    if not isinstance(name, str) or roles != [f"concord:site:{name}"]:
        return None
    return name


def _require_same_membership(files: IdentityFiles, invitation: Invitation) -> None:
    if not files.tls_certificate.exists():
        return
    certificate = x509.load_pem_x509_certificate(files.tls_certificate.read_bytes())
    known = site_name(certificate)
    if known != invitation.site or files.ca_certificate.read_text("ascii") != invitation.ca:
        raise EnrolmentError(
            f'"{files.home}" is already the home of site "{known}"; the invitation is for site '
            f'"{invitation.site}" or comes from another consortium. Nothing was changed. Name another --home.'
        )


def _ask(invitation: Invitation, files: IdentityFiles) -> _Answer:
    identity = public_identity(files, site=invitation.site)
    request = {
        "token": invitation.token,
        "csr": identity.certificate_request,
        "signing_key": identity.signing_key.hex(),
        "node_key": identity.node_key,
    }
    status, body = _post(invitation, request)
    if status != httpx.codes.OK:
        raise EnrolmentError(_refusal(invitation, status, body))
    try:
        return TypeAdapter(_Answer).validate_json(body)
    except ValidationError as error:
        raise EnrolmentError(
            f"The answer of {invitation.enrol} does not parse: is a coordinator of another version running there?"
        ) from error


def _post(invitation: Invitation, request: Mapping[str, str]) -> tuple[int, bytes]:
    try:
        trust = consortium_tls(invitation.ca)
    except (ssl.SSLError, ValueError) as error:
        raise EnrolmentError(
            "The invitation holds no usable certificate of an authority."
        ) from error
    address = f"https://{invitation.enrol}/v1/enrol"
    try:
        with (
            httpx.Client(verify=trust, timeout=ANSWER_SECONDS, trust_env=False) as client,
            client.stream("POST", address, json=request) as answer,
        ):
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise EnrolmentError(f"The answer of {invitation.enrol} is too large.")
            return answer.status_code, bytes(body)
    except httpx.TransportError as error:
        raise EnrolmentError(
            f'Site "{invitation.site}" has not joined: {describe_failure(invitation.enrol, error)}'
        ) from error


def _refusal(invitation: Invitation, status: int, body: bytes) -> str:
    try:
        said = str(json.loads(body)["error"])[:300]
    except (ValueError, KeyError, TypeError):
        said = "no reason given"
    remedy = {
        403: "Keys made so far are kept; join again with the new invitation.",
        429: "Try again in a minute.",
        503: "Try again later; the invitation is not lost.",
    }.get(status, "Show this to the coordinator's operator.")
    return f'Site "{invitation.site}" has not joined: {invitation.enrol} answered {status}: {said} {remedy}'


def _verified_certificate(
    invitation: Invitation, answer: _Answer, files: IdentityFiles
) -> x509.Certificate:
    """The certificate in the answer, if it is ours and from the authority in the invitation."""

    def refuse(what: str) -> EnrolmentError:
        return EnrolmentError(
            f'Site "{invitation.site}" has not joined: the answer of {invitation.enrol} {what}. Nothing was kept. '
            "Ask the coordinator's operator."
        )

    try:
        authority = x509.load_pem_x509_certificate(invitation.ca.encode())
        certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise refuse("holds a certificate that the invitation's authority did not issue") from error
    if answer.ca != invitation.ca:
        raise refuse("names another authority than the invitation")
    if certificate.public_key() != load_tls_key(files).public_key():
        raise refuse("certifies another key than this site's")
    if answer.site != invitation.site or site_name(certificate) != invitation.site:
        raise refuse(f'is for site "{answer.site[:40]}"')
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise refuse(
            f"holds a certificate that is not valid at this machine's time, {now:%Y-%m-%d %H:%M} UTC: check the clock"
        )
    return certificate


def _keep(answer: _Answer, files: IdentityFiles) -> None:
    pin_coordinator_key(files, bytes.fromhex(answer.coordinator_signing_key))
    write_durably(files.ca_certificate, [answer.ca.encode("ascii")], replace=True)
    templates = {
        "site.toml": SITE_TEMPLATE.substitute(
            site=answer.site,
            gateway=answer.gateway,
            exchange=answer.exchange,
            data_set=answer.site,
        ),
        "policy.toml": POLICY_TEMPLATE.substitute(bundles=f'"{BUNDLE_SHA256}"'),
    }
    for name, text in templates.items():
        path = files.home / name
        if not path.exists():
            write_durably(path, [text.encode("utf-8")], replace=False)
    write_durably(files.tls_certificate, [answer.certificate.encode("ascii")], replace=True)


def _outdated_settings(home: Path, answer: _Answer) -> tuple[str, ...]:
    settings = load_site(home)
    now = {"site": answer.site, "gateway": answer.gateway, "exchange": answer.exchange}
    return tuple(name for name, value in now.items() if getattr(settings, name) != value)
