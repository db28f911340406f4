"""A site's keys: made at the site, kept there, readable by nobody else.

Three private keys, one purpose each, and none of them ever leaves the home folder:

- `pki/site.key`, ECDSA P-256: mutual TLS with the coordinator's gateway and exchange;
- `signing.key`, Ed25519: signs the site's messages of a secure sum, so that the coordinator cannot stand in for a peer;
- `node.key`, ECDSA P-384 in OpenSSH form: what Flower's SuperNode signs its requests with.

Rules: the home is 0700 and every key 0600, or loading is refused; a key that exists is never overwritten; a file
appears whole or not at all. Peers and the coordinator are pinned: the first key seen for a name is the only one
accepted for it afterwards.
"""

import base64
import binascii
import contextlib
import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from participant.durable import write_durably
from participant.errors import IdentityError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
MAX_KEY_FILE_BYTES = 64 << 10
ED25519_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class IdentityFiles:
    """Where a site's keys and certificates lie."""

    home: Path

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the consortium's authority."""
        return self.home / "pki" / "ca.crt"

    @property
    def tls_certificate(self) -> Path:
        """The site's own certificate; its presence says that the site has joined."""
        return self.home / "pki" / "site.crt"

    @property
    def tls_key(self) -> Path:
        """Private key of the certificate."""
        return self.home / "pki" / "site.key"

    @property
    def signing_key(self) -> Path:
        """Private key of the site's signatures."""
        return self.home / "signing.key"

    @property
    def node_key(self) -> Path:
        """Private key of the Flower node."""
        return self.home / "node.key"

    @property
    def coordinator_key(self) -> Path:
        """Pinned public key of the coordinator's signatures."""
        return self.home / "coordinator.pub"

    @property
    def peer_keys(self) -> Path:
        """Pinned public keys of the other sites."""
        return self.home / "peers.json"


@dataclass(frozen=True, kw_only=True)
class PublicIdentity:
    """What a site shows of itself when it joins. Nothing here is secret."""

    certificate_request: str
    """PEM, signed with the TLS key."""
    signing_key: bytes
    """Raw Ed25519 public key, 32 bytes."""
    node_key: str
    """OpenSSH public line of the Flower node key."""


def open_home(home: Path) -> IdentityFiles:
    """The files of a home that exists and that nobody else can read.

    Raises:
        IdentityError: there is no such folder, or others may enter it.
    """
    if not home.is_dir():
        raise IdentityError(
            f'There is no site home at "{home}". Run "participant join INVITATION --home {home}" first.'
        )
    _require_private(home, PRIVATE_FOLDER)
    return IdentityFiles(home=home)


def create_home(home: Path) -> IdentityFiles:
    """Like `open_home`, and makes the folder where it is missing."""
    home.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    files = open_home(home)
    files.tls_key.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    return files


def ensure_keys(files: IdentityFiles) -> None:
    """Makes each of the three keys that does not exist yet; one that exists stays as it is."""
    makers: tuple[tuple[Path, Callable[[], bytes]], ...] = (
        (files.tls_key, lambda: _pkcs8(ec.generate_private_key(ec.SECP256R1()))),
        (files.signing_key, lambda: _pkcs8(Ed25519PrivateKey.generate())),
        (files.node_key, lambda: _openssh(ec.generate_private_key(ec.SECP384R1()))),
    )
    for path, make in makers:
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # another join made it in the meantime
                write_durably(path, [make()], replace=False)


def public_identity(files: IdentityFiles, *, site: str) -> PublicIdentity:
    """The public halves of the site's keys, with a certificate request for `site`."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(load_tls_key(files), hashes.SHA256())
    )
    node_public = load_node_key(files).public_key()
    return PublicIdentity(
        certificate_request=request.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        signing_key=load_signing_key(files).public_key().public_bytes_raw(),
        node_key=node_public.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        ).decode("ascii"),
    )


def load_tls_key(files: IdentityFiles) -> ec.EllipticCurvePrivateKey:
    """The private key of the site's certificate."""
    key = _load_pem(files.tls_key, serialization.load_pem_private_key)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f'"{files.tls_key}" is not an ECDSA P-256 key. Restore it from backup.')
    return key


def load_signing_key(files: IdentityFiles) -> Ed25519PrivateKey:
    """The key of the site's signatures."""
    key = _load_pem(files.signing_key, serialization.load_pem_private_key)
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f'"{files.signing_key}" is not an Ed25519 key. Restore it from backup.')
    return key


def load_node_key(files: IdentityFiles) -> ec.EllipticCurvePrivateKey:
    """The key of the Flower node."""
    key = _load_pem(files.node_key, serialization.load_ssh_private_key)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise IdentityError(
            f'"{files.node_key}" is not an ECDSA P-384 key in OpenSSH form. Restore it from backup.'
        )
    return key


def load_coordinator_key(files: IdentityFiles) -> Ed25519PublicKey:
    """The pinned public key with which every plan must be signed."""
    data = _read(files.coordinator_key)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(
            f'"{files.coordinator_key}" is not a public key in PEM form. Restore it from backup.'
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError(
            f'"{files.coordinator_key}" is not an Ed25519 key. Restore it from backup.'
        )
    return key


def pin_coordinator_key(files: IdentityFiles, raw_key: bytes) -> None:
    """Keeps the coordinator's key; another one than the pinned one is refused.

    Raises:
        IdentityError: the coordinator has shown a different key before.
    """
    key = Ed25519PublicKey.from_public_bytes(raw_key)
    if files.coordinator_key.exists():
        if load_coordinator_key(files).public_bytes_raw() != raw_key:
            raise IdentityError(
                "The coordinator shows another signing key than the one pinned in "
                f'"{files.coordinator_key}". Nothing was changed. If the operator confirms by another '
                "way that the key was replaced, remove that file and join again."
            )
        return
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_durably(files.coordinator_key, [pem], replace=False)


class PeerKeys:
    """The signing keys of other sites, pinned on first sight, in one file of the site's home."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pinned(self) -> dict[str, bytes]:
        """Site name to raw Ed25519 public key, as pinned so far."""
        if not self._path.exists():
            return {}
        _require_private(self._path, PRIVATE_FILE)
        try:
            stored = json.loads(_read(self._path))
            return {
                str(site): _peer_key(str(site), base64.b64decode(key, validate=True))
                for site, key in stored.items()
            }
        except (AttributeError, TypeError, ValueError, binascii.Error) as error:
            raise IdentityError(
                f'"{self._path}" does not hold pinned keys. Restore it from backup; to pin every '
                "peer anew, after asking the operator, remove it."
            ) from error

    def pin(self, keys: Mapping[str, bytes]) -> None:
        """Accepts the keys of a cohort: known ones must be equal, new ones are kept. All or none.

        Raises:
            IdentityError: a site shows another key than before (the message names it), a key is not 32 bytes, or the file cannot be read.
        """
        pinned = self.pinned()
        for site, key in keys.items():
            if pinned.setdefault(site, _peer_key(site, key)) != key:
                raise IdentityError(
                    f'Site "{site}" shows another signing key than the one pinned in {self._path.name}. '
                    "Nothing was sent. Either the site made new keys or somebody stands in for it: ask "
                    "the site itself, and only then remove its line from that file."
                )
        if pinned != self.pinned():
            text = {site: base64.b64encode(key).decode("ascii") for site, key in pinned.items()}
            data = json.dumps(text, indent=1, sort_keys=True).encode("utf-8")
            write_durably(self._path, [data], replace=True)


def _peer_key(site: str, key: bytes) -> bytes:
    if len(key) != ED25519_KEY_BYTES:
        raise IdentityError(
            f'Site "{site}": expected a signing key of {ED25519_KEY_BYTES} bytes, found {len(key)}.'
        )
    return key


def _pkcs8(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _load_pem(path: Path, load: Callable[[bytes, None], object]) -> object:
    data = _read(path)
    _require_private(path, PRIVATE_FILE)
    try:
        return load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f'"{path}" is not a private key. Restore it from backup.') from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise IdentityError(
            f'"{path}" is missing. Run "participant join INVITATION --home HOME", or restore the home '
            "from backup."
        ) from error
    if len(data) > MAX_KEY_FILE_BYTES:
        raise IdentityError(f'"{path}" is larger than {MAX_KEY_FILE_BYTES} bytes: not a key file.')
    return data


def _require_private(path: Path, allowed: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise IdentityError(
            f'"{path}" may be read or entered by others (mode {mode:04o}). '
            f'Run "chmod {allowed:o} {path}"; if others had access to this machine, join anew with new keys.'
        )
