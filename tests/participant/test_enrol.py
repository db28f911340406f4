"""Joining a consortium: what a site sends, checks, keeps, and how a half-finished join is finished."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coordinator.wire.bundle import BUNDLE_SHA256
from participant.config import load_site
from participant.enrol import Invitation, join, read_invitation
from participant.errors import EnrolmentError, IdentityError
from participant.identity import (
    IdentityFiles,
    load_coordinator_key,
    load_node_key,
    load_signing_key,
    load_tls_key,
)
from tests.participant.stub_coordinator import Authority, free_port, serving_in_thread


@dataclass
class Endpoint:
    """An enrolment endpoint; `change` alters its answer, `refusal` replaces it."""

    authority: Authority
    signing_key: bytes = field(
        default_factory=lambda: Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    )
    change: dict[str, Any] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    certificate_days: int = 5
    seen: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    def invitation(self, site: str = "st-anna") -> Invitation:
        return Invitation(
            site=site, enrol=f"localhost:{self.port}", ca=self.authority.pem, token="t-secret"
        )

    async def enrol(self, request: Request) -> Response:
        shown = await request.json()
        self.seen.append(shown)
        if self.refusal is not None:
            status, text = self.refusal
            return JSONResponse({"error": text}, status_code=status)
        key = x509.load_pem_x509_csr(shown["csr"].encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        answer = {
            "site": "st-anna",
            "certificate": self.authority.issue_site("st-anna", key, days=self.certificate_days),
            "ca": self.authority.pem,
            "coordinator_signing_key": self.signing_key.hex(),
            "gateway": "coordinator.test:8443",
            "exchange": "coordinator.test:8444",
        }
        return JSONResponse(answer | self.change)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    endpoint = Endpoint(Authority())
    app = Starlette(routes=[Route("/v1/enrol", endpoint.enrol, methods=["POST"])])
    with serving_in_thread(app, endpoint.authority.issue_server(tmp_path / "server")) as port:
        endpoint.port = port
        yield endpoint


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_joining_shows_the_public_halves_of_keys_made_here(endpoint: Endpoint, home: Path) -> None:
    join(endpoint.invitation(), home)

    files = IdentityFiles(home=home)
    (shown,) = endpoint.seen
    assert set(shown) == {"token", "csr", "signing_key", "node_key"}
    assert shown["token"] == "t-secret"
    assert shown["signing_key"] == load_signing_key(files).public_key().public_bytes_raw().hex()
    assert shown["node_key"].startswith("ecdsa-sha2-nistp384 ")
    assert load_node_key(files).key_size == 384
    assert "PRIVATE" not in json.dumps(shown)


def test_joining_leaves_a_home_that_is_ready_to_be_filled_in(
    endpoint: Endpoint, home: Path
) -> None:
    membership = join(endpoint.invitation(), home)

    files = IdentityFiles(home=home)
    certificate = x509.load_pem_x509_certificate(files.tls_certificate.read_bytes())
    assert certificate.public_key() == load_tls_key(files).public_key()
    assert load_coordinator_key(files).public_bytes_raw() == endpoint.signing_key
    assert load_site(home).gateway == "coordinator.test:8443"
    assert load_site(home).exchange == "coordinator.test:8444"
    assert f'bundles = ["{BUNDLE_SHA256}"]' in (home / "policy.toml").read_text()
    assert membership.site == "st-anna"
    assert membership.outdated_settings == ()
    assert membership.certificate_expires > datetime.datetime.now(datetime.UTC)


def test_everything_a_join_leaves_is_private(endpoint: Endpoint, home: Path) -> None:
    join(endpoint.invitation(), home)

    modes = {path.stat().st_mode & 0o777 for path in home.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (home, home / "pki")} == {0o700}


def test_a_refused_join_keeps_the_keys_for_the_next_try(endpoint: Endpoint, home: Path) -> None:
    endpoint.refusal = (403, "The invitation is unknown, used or expired.")
    with pytest.raises(EnrolmentError, match=r"403: .*unknown, used or expired.* join again"):
        join(endpoint.invitation(), home)
    endpoint.refusal = None

    join(endpoint.invitation(), home)

    first, second = endpoint.seen
    assert first["signing_key"] == second["signing_key"]
    assert first["node_key"] == second["node_key"]


def test_joining_again_renews_the_certificate_and_keeps_the_site_files(
    endpoint: Endpoint, home: Path
) -> None:
    join(endpoint.invitation(), home)
    before = (home / "pki" / "site.crt").read_bytes()
    settings = (home / "site.toml").read_text().replace("coordinator.test:8444", "10.0.0.1:8444")
    (home / "site.toml").write_text(settings)

    membership = join(endpoint.invitation(), home)

    assert (home / "pki" / "site.crt").read_bytes() != before
    assert (home / "site.toml").read_text() == settings
    assert membership.outdated_settings == ("exchange",)


def test_a_home_of_another_site_is_left_alone(endpoint: Endpoint, home: Path) -> None:
    join(endpoint.invitation(), home)

    with pytest.raises(EnrolmentError, match='already the home of site "st-anna"'):
        join(endpoint.invitation("charite"), home)

    assert len(endpoint.seen) == 1


def test_a_coordinator_that_changed_its_signing_key_is_refused(
    endpoint: Endpoint, home: Path
) -> None:
    join(endpoint.invitation(), home)
    pinned = endpoint.signing_key
    endpoint.signing_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()

    with pytest.raises(IdentityError, match="another signing key"):
        join(endpoint.invitation(), home)

    assert load_coordinator_key(IdentityFiles(home=home)).public_bytes_raw() == pinned


def test_a_certificate_for_another_key_is_refused(endpoint: Endpoint, home: Path) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    endpoint.change = {"certificate": endpoint.authority.issue_site("st-anna", stranger)}

    with pytest.raises(EnrolmentError, match="certifies another key"):
        join(endpoint.invitation(), home)

    assert not (home / "pki" / "site.crt").exists()


def test_a_certificate_of_another_authority_is_refused(endpoint: Endpoint, home: Path) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    endpoint.change = {"certificate": Authority().issue_site("st-anna", stranger)}

    with pytest.raises(EnrolmentError, match="authority did not issue"):
        join(endpoint.invitation(), home)


def test_a_certificate_for_another_site_is_refused(endpoint: Endpoint, home: Path) -> None:
    endpoint.change = {"site": "charite"}

    with pytest.raises(EnrolmentError, match='is for site "charite"'):
        join(endpoint.invitation(), home)


def test_a_certificate_out_of_time_points_to_the_clock(endpoint: Endpoint, home: Path) -> None:
    endpoint.certificate_days = -1

    with pytest.raises(EnrolmentError, match="check the clock"):
        join(endpoint.invitation(), home)


@pytest.mark.parametrize(
    "change",
    [
        {"coordinator_signing_key": "00"},
        {"gateway": "https://coordinator.test"},
        {"extra": 1},
        {"exchange": 7},
    ],
)
def test_an_answer_of_another_shape_is_refused(
    endpoint: Endpoint, home: Path, change: dict[str, Any]
) -> None:
    endpoint.change = change

    with pytest.raises(EnrolmentError, match="does not parse"):
        join(endpoint.invitation(), home)

    assert not (home / "site.toml").exists()


def test_an_endless_answer_is_refused(endpoint: Endpoint, home: Path) -> None:
    endpoint.change = {"certificate": "x" * 100_000}

    with pytest.raises(EnrolmentError, match="too large"):
        join(endpoint.invitation(), home)


def test_a_server_of_another_authority_is_refused_and_gets_no_token(
    endpoint: Endpoint, home: Path
) -> None:
    invitation = Invitation(
        site="st-anna", enrol=f"localhost:{endpoint.port}", ca=Authority().pem, token="t-secret"
    )

    with pytest.raises(EnrolmentError, match="was not issued by this consortium's authority"):
        join(invitation, home)

    assert endpoint.seen == []


def test_an_unreachable_coordinator_is_named(home: Path) -> None:
    port = free_port()
    invitation = Invitation(
        site="st-anna", enrol=f"localhost:{port}", ca=Authority().pem, token="t-secret"
    )

    with pytest.raises(EnrolmentError, match=f"localhost:{port} cannot be reached"):
        join(invitation, home)


def test_an_invitation_is_read_and_its_token_is_not_shown(tmp_path: Path) -> None:
    content = {"site": "st-anna", "enrol": "c.test:1", "ca": "PEM", "token": "t-secret"}
    (tmp_path / "invitation").write_text(json.dumps(content))

    invitation = read_invitation(tmp_path / "invitation")

    assert invitation.token == "t-secret"
    assert "t-secret" not in repr(invitation)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "no JSON"),
        ('{"site": "St. Anna", "enrol": "c:1", "ca": "", "token": "t-secret"}', "site"),
        ('{"site": "st-anna", "enrol": "c", "ca": "", "token": "t-secret"}', "enrol"),
        ('{"site": "st-anna", "enrol": "c:1", "ca": ""}', "token"),
        ('{"site": "st-anna", "enrol": "c:1", "ca": "", "token": 5}', "token"),
    ],
)
def test_a_file_that_is_no_invitation_is_refused_without_repeating_it(
    tmp_path: Path, content: str, wrong: str
) -> None:
    (tmp_path / "invitation").write_text(content)

    with pytest.raises(EnrolmentError, match=rf"wrong: {wrong}\)") as caught:
        read_invitation(tmp_path / "invitation")

    assert "t-secret" not in str(caught.value)


def test_a_missing_invitation_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="No such file"):
        read_invitation(tmp_path / "invitation")


def test_an_invitation_without_a_certificate_is_refused(home: Path) -> None:
    invitation = Invitation(site="st-anna", enrol="localhost:1", ca="none", token="t-secret")

    with pytest.raises(EnrolmentError, match="no usable certificate"):
        join(invitation, home)
