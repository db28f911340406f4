"""Keys of a site: made once, private, never overwritten; peers pinned on first sight."""

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from participant.durable import write_durably
from participant.errors import IdentityError
from participant.identity import (
    IdentityFiles,
    PeerKeys,
    create_home,
    ensure_keys,
    load_coordinator_key,
    load_node_key,
    load_signing_key,
    load_tls_key,
    open_home,
    pin_coordinator_key,
    public_identity,
)


@pytest.fixture
def files(tmp_path: Path) -> IdentityFiles:
    files = create_home(tmp_path / "home")
    ensure_keys(files)
    return files


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def raw_key() -> bytes:
    return Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def test_home_and_keys_are_readable_by_their_owner_only(files: IdentityFiles) -> None:
    assert mode_of(files.home) == 0o700
    assert mode_of(files.tls_key.parent) == 0o700
    assert [mode_of(path) for path in (files.tls_key, files.signing_key, files.node_key)] == [
        0o600,
        0o600,
        0o600,
    ]


def test_keys_that_exist_are_kept(files: IdentityFiles) -> None:
    before = [path.read_bytes() for path in (files.tls_key, files.signing_key, files.node_key)]

    ensure_keys(files)

    after = [path.read_bytes() for path in (files.tls_key, files.signing_key, files.node_key)]
    assert after == before


def test_a_missing_key_is_made_beside_the_others(files: IdentityFiles) -> None:
    signing_key = files.signing_key.read_bytes()
    files.node_key.unlink()

    ensure_keys(files)

    assert isinstance(load_node_key(files), ec.EllipticCurvePrivateKey)
    assert files.signing_key.read_bytes() == signing_key


def test_public_identity_holds_the_public_halves_of_the_keys(files: IdentityFiles) -> None:
    identity = public_identity(files, site="st-anna")

    request = x509.load_pem_x509_csr(identity.certificate_request.encode())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=st-anna"
    assert request.public_key() == load_tls_key(files).public_key()
    assert identity.signing_key == load_signing_key(files).public_key().public_bytes_raw()
    assert load_ssh_public_key(identity.node_key.encode()) == load_node_key(files).public_key()


def test_a_key_that_others_can_read_is_refused_with_the_remedy(files: IdentityFiles) -> None:
    files.signing_key.chmod(0o640)

    with pytest.raises(IdentityError, match=r"mode 0640.*chmod 600"):
        load_signing_key(files)


def test_a_home_that_others_can_enter_is_refused(files: IdentityFiles) -> None:
    files.home.chmod(0o755)

    with pytest.raises(IdentityError, match="chmod 700"):
        open_home(files.home)


def test_a_missing_home_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="participant join"):
        open_home(tmp_path / "nowhere")


def test_a_key_of_another_kind_is_refused(files: IdentityFiles) -> None:
    os.replace(files.signing_key, files.tls_key)

    with pytest.raises(IdentityError, match="not an ECDSA P-256 key"):
        load_tls_key(files)


def test_a_damaged_key_is_refused(files: IdentityFiles) -> None:
    write_durably(files.node_key, [b"damaged"], replace=True)

    with pytest.raises(IdentityError, match="not a private key"):
        load_node_key(files)


def test_an_oversized_key_file_is_refused(files: IdentityFiles) -> None:
    write_durably(files.node_key, [bytes(70_000)], replace=True)

    with pytest.raises(IdentityError, match="larger than"):
        load_node_key(files)


def test_the_coordinator_key_is_pinned_on_first_sight(files: IdentityFiles) -> None:
    key = raw_key()

    pin_coordinator_key(files, key)
    pin_coordinator_key(files, key)

    assert load_coordinator_key(files).public_bytes_raw() == key
    with pytest.raises(IdentityError, match="another signing key"):
        pin_coordinator_key(files, raw_key())
    assert load_coordinator_key(files).public_bytes_raw() == key


def test_peer_keys_are_pinned_on_first_sight_and_kept(files: IdentityFiles) -> None:
    first, second = raw_key(), raw_key()
    PeerKeys(files.peer_keys).pin({"st-anna": first})

    PeerKeys(files.peer_keys).pin({"st-anna": first, "charite": second})

    assert PeerKeys(files.peer_keys).pinned() == {"st-anna": first, "charite": second}
    assert mode_of(files.peer_keys) == 0o600


def test_a_changed_peer_key_is_refused_by_name_and_pins_nothing_else(files: IdentityFiles) -> None:
    first = raw_key()
    PeerKeys(files.peer_keys).pin({"st-anna": first})

    with pytest.raises(IdentityError, match='"st-anna" shows another signing key'):
        PeerKeys(files.peer_keys).pin({"charite": raw_key(), "st-anna": raw_key()})

    assert PeerKeys(files.peer_keys).pinned() == {"st-anna": first}


def test_a_peer_key_of_a_wrong_length_is_refused(files: IdentityFiles) -> None:
    with pytest.raises(IdentityError, match="32 bytes, found 31"):
        PeerKeys(files.peer_keys).pin({"st-anna": bytes(31)})


def test_a_damaged_store_of_peer_keys_is_refused_not_replaced(files: IdentityFiles) -> None:
    write_durably(files.peer_keys, [b'{"st-anna": "!"}'], replace=True)

    with pytest.raises(IdentityError, match="does not hold pinned keys"):
        PeerKeys(files.peer_keys).pin({"st-anna": raw_key()})

    assert files.peer_keys.read_bytes() == b'{"st-anna": "!"}'
