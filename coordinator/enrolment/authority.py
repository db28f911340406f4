"""The consortium's certificate authority: who may connect, and as whom.

One self-signed P-256 root per coordinator. It signs three kinds of certificate, told apart by what they carry:

- the server's own: DNS and IP names, for server authentication;
- the coordinator's role (`concord:role:coordinator`), for its ServerApp on the exchange;
- a site's (`concord:site:NAME`), made from a request whose key never left the site.

A site's name comes from its invitation. Nothing in the request but the public key is believed.
"""

import ipaddress
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.errors import ConfigError

COORDINATOR_ROLE = "concord:role:coordinator"
SITE_ROLE = "concord:site:"
SITE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
CLOCK_SKEW = timedelta(minutes=5)
MAX_REQUEST_BYTES = 8192


class CertificateRequestError(ValueError):
    """A certificate request that must not be signed."""


class Authority:
    """Signs certificates with the consortium's root key. Made by `create_authority` or `load_authority`."""

    def __init__(self, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @property
    def certificate_pem(self) -> str:
        """The root, which every party pins."""
        return _pem(self._certificate)

    def sign_site(self, request_pem: str, *, site: str) -> str:
        """A certificate for the key in the request, under the invited site's name.

        Raises:
            CertificateRequestError: not a request, not P-256, or not signed by the key that it carries.
        """
        require_site_name(site)
        key = requested_key(request_pem)
        role = x509.UniformResourceIdentifier(SITE_ROLE + site)
        return _pem(self._leaf(key, site, [role], ExtendedKeyUsageOID.CLIENT_AUTH))

    def sign_server(self, key: ec.EllipticCurvePublicKey, *, hosts: tuple[str, ...]) -> str:
        """The certificate of the gateway, the exchange, the enrolment endpoint and the loopback SuperLink."""
        names = dict.fromkeys((*hosts, "localhost", "127.0.0.1"))
        return _pem(
            self._leaf(
                key, hosts[0][:64], [_host(n) for n in names], ExtendedKeyUsageOID.SERVER_AUTH
            )
        )

    def sign_coordinator(self, key: ec.EllipticCurvePublicKey) -> str:
        """The certificate with which the coordinator's own ServerApp joins the exchange."""
        role = x509.UniformResourceIdentifier(COORDINATOR_ROLE)
        return _pem(self._leaf(key, "coordinator", [role], ExtendedKeyUsageOID.CLIENT_AUTH))

    def _leaf(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        alternative_names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
    ) -> x509.Certificate:
        builder = _builder(name, self._certificate.subject, key, LEAF_DAYS)
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternative_names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


def create_authority(folder: Path, *, hosts: tuple[str, ...]) -> Authority:
    """Makes the root, the server's and the coordinator's certificate in an empty folder (0700, keys 0600).

    Raises:
        FileExistsError: the folder holds an authority already; nothing is overwritten.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("concord-ca")
    certificate = (
        _builder("concord-ca", subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority = Authority(certificate=certificate, key=key)
    write_secret(folder / "ca.key", _private_pem(key))
    write_secret(folder / "ca.crt", authority.certificate_pem.encode())
    server = ec.generate_private_key(ec.SECP256R1())
    write_secret(folder / "server.key", _private_pem(server))
    write_secret(
        folder / "server.crt", authority.sign_server(server.public_key(), hosts=hosts).encode()
    )
    role = ec.generate_private_key(ec.SECP256R1())
    write_secret(folder / "coordinator.key", _private_pem(role))
    write_secret(folder / "coordinator.crt", authority.sign_coordinator(role.public_key()).encode())
    return authority


def load_authority(folder: Path) -> Authority:
    """The authority that `create_authority` left in the folder.

    Raises:
        ConfigError: a file is missing or unreadable, or the key is not an elliptic-curve key.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"The certificate authority in {folder} cannot be loaded ({type(error).__name__}). Restore ca.crt and "
            "ca.key from a backup."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{folder / 'ca.key'} is not an elliptic-curve key; restore it from backup."
        )
    return Authority(certificate=certificate, key=key)


def create_signing_key(path: Path) -> None:
    """The Ed25519 key that signs round plans (PKCS#8, 0600); sites pin its public half when they enrol."""
    write_secret(path, _private_pem(Ed25519PrivateKey.generate()))


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs round plans.

    Raises:
        ValueError: the file holds another kind of key.
    """
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} is not an Ed25519 key; restore it from backup.")
    return key


def site_of(certificate_der: bytes) -> str | None:
    """Name of the site in a certificate that our root has signed; None for any other role."""
    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    roles = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(roles) != 1 or not roles[0].startswith(SITE_ROLE):
        return None
    return roles[0].removeprefix(SITE_ROLE)


def requested_key(request_pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request, proven to be the requester's by the request's own signature.

    Raises:
        CertificateRequestError: not a request, not P-256, or not signed by the key that it carries.
    """
    if len(request_pem) > MAX_REQUEST_BYTES:
        raise CertificateRequestError(
            f"The certificate request has {len(request_pem)} bytes; the limit is {MAX_REQUEST_BYTES}."
        )
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateRequestError("The certificate request does not parse.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRequestError("The certificate request must carry a P-256 key.")
    if not is_signed:
        raise CertificateRequestError(
            "The certificate request is not signed by the key it carries."
        )
    return key


def require_site_name(site: str) -> None:
    """Raises ValueError unless the name is 1 to 40 of a-z, 0-9 and inner hyphens, and not a reserved one."""
    if SITE_NAME.fullmatch(site) is None or site in {"coordinator", "exchange"}:
        raise ValueError(
            f"Expected site={site!r} to be 1 to 40 lower-case letters, digits and inner hyphens, "
            'and neither "coordinator" nor "exchange".'
        )


def write_secret(path: Path, content: bytes) -> None:
    """Writes a new file that only its owner can read, durably.

    Raises:
        FileExistsError: the file exists; keys are never overwritten.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
