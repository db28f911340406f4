"""Who becomes a member: certificates, invitations and the endpoint, with real keys, a real ledger and real TLS."""

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from coordinator.enrolment.authority import (
    Authority,
    CertificateRequestError,
    create_authority,
    load_authority,
    require_site_name,
    site_of,
)
from coordinator.enrolment.endpoint import (
    MAX_BODY_BYTES,
    REFUSED,
    REQUESTS_PER_MINUTE,
    Consortium,
    EnrolmentEndpoint,
    EnrolmentProtocol,
)
from coordinator.enrolment.invitations import (
    EnrolmentRequest,
    Registrar,
    token_sha256,
    write_invitation,
)
from coordinator.enrolment.tls import public_context
from coordinator.errors import ConfigError, EnrolmentError, TokenRefused
from coordinator.https import HttpsServer
from coordinator.ledger.store import LedgerStore, open_ledger

BEYOND_ANY_REFILL = 2 * REQUESTS_PER_MINUTE
"""One more request is allowed per second, and no machine here takes a minute for so many."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "pki"
    create_authority(folder, hosts=("coordinator.example", "192.0.2.7"))
    return folder


@pytest.fixture
def authority(pki: Path) -> Authority:
    return load_authority(pki)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerStore]:
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as store:
        yield store


@pytest.fixture
def registrar(authority: Authority, ledger: LedgerStore, tmp_path: Path) -> Registrar:
    (tmp_path / "issued").mkdir()
    return Registrar(authority=authority, sites=ledger.sites, issued=tmp_path / "issued")


def request_for(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, name: str = "st-anna"
) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    claimed = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("concord:role:coordinator")]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    request = builder.add_extension(claimed, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def site_request() -> EnrolmentRequest:
    node = ec.generate_private_key(ec.SECP384R1()).public_key()
    return EnrolmentRequest(
        certificate_request=request_for(ec.generate_private_key(ec.SECP256R1())),
        signing_key=Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
        node_key=node.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        ).decode(),
    )


def invited(ledger: LedgerStore, folder: Path, site: str = "st-anna") -> str:
    path = folder / f"{site}.json"
    write_invitation(
        site, path, sites=ledger.sites, enrolment_address="127.0.0.1:1", ca_certificate="PEM"
    )
    token: str = json.loads(path.read_text())["token"]
    return token


def test_every_key_is_its_owners_alone(pki: Path) -> None:
    assert pki.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in pki.iterdir()} == {0o600}


def test_an_authority_is_never_overwritten(pki: Path) -> None:
    before = (pki / "ca.key").read_bytes()

    with pytest.raises(FileExistsError):
        create_authority(pki, hosts=("elsewhere",))

    assert (pki / "ca.key").read_bytes() == before


def test_the_server_certificate_names_public_hosts_and_loopback(pki: Path) -> None:
    certificate = x509.load_pem_x509_certificate((pki / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName) == ["coordinator.example", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "192.0.2.7",
        "127.0.0.1",
    ]


def test_the_name_comes_from_the_invitation_and_not_from_the_request(authority: Authority) -> None:
    request = request_for(ec.generate_private_key(ec.SECP256R1()), name="another-site")

    certificate = x509.load_pem_x509_certificate(
        authority.sign_site(request, site="st-anna").encode()
    )

    assert site_of(certificate.public_bytes(serialization.Encoding.DER)) == "st-anna"
    assert certificate.subject.rfc4514_string() == "CN=st-anna"
    assert certificate.not_valid_after_utc < datetime.now(UTC) + timedelta(days=366)
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    )


def test_the_coordinators_role_is_no_site(pki: Path) -> None:
    certificate = x509.load_pem_x509_certificate((pki / "coordinator.crt").read_bytes())

    assert site_of(certificate.public_bytes(serialization.Encoding.DER)) is None


def test_requests_that_must_not_be_signed_are_refused(authority: Authority) -> None:
    good = request_for(ec.generate_private_key(ec.SECP256R1()))
    other = x509.load_pem_x509_csr(request_for(ec.generate_private_key(ec.SECP256R1())).encode())
    der = x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER)
    forged = der[: -len(other.signature)] + other.signature
    forged_pem = ssl.DER_cert_to_PEM_cert(forged).replace("CERTIFICATE", "CERTIFICATE REQUEST")

    with pytest.raises(CertificateRequestError, match="P-256"):
        authority.sign_site(request_for(rsa.generate_private_key(65537, 2048)), site="st-anna")
    with pytest.raises(CertificateRequestError, match="P-256"):
        authority.sign_site(request_for(ec.generate_private_key(ec.SECP384R1())), site="st-anna")
    with pytest.raises(CertificateRequestError, match="parse"):
        authority.sign_site("not a request", site="st-anna")
    with pytest.raises(CertificateRequestError, match="bytes"):
        authority.sign_site("x" * 10_000, site="st-anna")
    with pytest.raises(CertificateRequestError):
        authority.sign_site(forged_pem, site="st-anna")


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a" * 41, "a/b", "coordinator", "exchange", "a\n"]
)
def test_a_name_that_could_mislead_is_no_site_name(name: str) -> None:
    with pytest.raises(ValueError, match="Expected site="):
        require_site_name(name)


def test_an_invitation_is_a_private_file_and_the_ledger_holds_only_its_hash(
    ledger: LedgerStore, tmp_path: Path
) -> None:
    token = invited(ledger, tmp_path)

    assert (tmp_path / "st-anna.json").stat().st_mode & 0o777 == 0o600
    assert token.encode() not in (tmp_path / "ledger.db").read_bytes()
    assert len(token) == 43


def test_an_invitation_file_is_never_overwritten_and_opens_nothing(
    ledger: LedgerStore, tmp_path: Path
) -> None:
    token = invited(ledger, tmp_path)

    with pytest.raises(ConfigError, match="Name a new file"):
        invited(ledger, tmp_path)

    assert ledger.sites.redeem_invitation(token_sha256(token)) == "st-anna"


def test_no_invitation_file_is_left_for_a_site_that_is_enrolled(
    ledger: LedgerStore, registrar: Registrar, tmp_path: Path
) -> None:
    registrar.enrol(invited(ledger, tmp_path), site_request())
    (tmp_path / "again").mkdir()

    with pytest.raises(EnrolmentError, match="enrolled since"):
        invited(ledger, tmp_path / "again")

    assert list((tmp_path / "again").iterdir()) == []


def test_an_invited_site_becomes_a_member_with_the_certificate_it_gets(
    ledger: LedgerStore, registrar: Registrar, tmp_path: Path
) -> None:
    request = site_request()

    enrolled = registrar.enrol(invited(ledger, tmp_path), request)

    fingerprint = x509.load_pem_x509_certificate(enrolled.certificate.encode()).fingerprint(
        hashes.SHA256()
    )
    member = ledger.sites.by_certificate(fingerprint.hex())
    assert member is not None
    assert (member.name, member.signing_key, member.node_key) == (
        "st-anna",
        request.signing_key,
        request.node_key,
    )


def test_a_token_works_once_for_others_and_again_for_the_same_request(
    ledger: LedgerStore, registrar: Registrar, tmp_path: Path
) -> None:
    token, request = invited(ledger, tmp_path), site_request()
    first = registrar.enrol(token, request)

    assert registrar.enrol(token, request) == first
    with pytest.raises(TokenRefused):
        registrar.enrol(token, site_request())
    with pytest.raises(TokenRefused):
        registrar.enrol(token, replace(request, node_key=site_request().node_key))
    ledger.sites.revoke("st-anna")
    with pytest.raises(TokenRefused):
        registrar.enrol(token, request)


def test_a_malformed_request_does_not_use_the_token_up(
    ledger: LedgerStore, registrar: Registrar, tmp_path: Path
) -> None:
    token, request = invited(ledger, tmp_path), site_request()

    with pytest.raises(CertificateRequestError):
        registrar.enrol(token, replace(request, certificate_request="broken"))
    with pytest.raises(CertificateRequestError, match="signing_key"):
        registrar.enrol(token, replace(request, signing_key="00"))
    with pytest.raises(CertificateRequestError, match="node_key"):
        registrar.enrol(token, replace(request, node_key="ssh-ed25519 AAAA"))

    assert registrar.enrol(token, request).site == "st-anna"


def served(
    registrar: Registrar, pki: Path, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]
) -> None:
    """Runs a scenario against the endpoint on a real TLS port."""

    async def main() -> None:
        consortium = Consortium(
            ca_certificate=(pki / "ca.crt").read_text(),
            signing_key="ab",
            gateway="g:1",
            exchange="e:2",
        )
        server = HttpsServer(
            EnrolmentEndpoint(registrar=registrar, consortium=consortium).app,
            host="127.0.0.1",
            port=0,
            tls=public_context(pki),
            protocol=EnrolmentProtocol,
            max_connections=8,
        )
        port = await server.start()
        trust = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        try:
            async with httpx.AsyncClient(
                base_url=f"https://127.0.0.1:{port}", verify=trust, trust_env=False
            ) as client:
                await scenario(client)
        finally:
            await server.stop()

    asyncio.run(main())


def body(token: str, request: EnrolmentRequest) -> dict[str, str]:
    return {
        "token": token,
        "csr": request.certificate_request,
        "signing_key": request.signing_key,
        "node_key": request.node_key,
    }


def test_the_endpoint_enrols_an_invited_site(
    ledger: LedgerStore, registrar: Registrar, pki: Path, tmp_path: Path
) -> None:
    token = invited(ledger, tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/enrol", json=body(token, site_request()))
        assert answer.status_code == 200
        told = answer.json()
        assert told["ca"] == (pki / "ca.crt").read_text()
        assert {
            key: told[key] for key in ("site", "coordinator_signing_key", "gateway", "exchange")
        } == {
            "site": "st-anna",
            "coordinator_signing_key": "ab",
            "gateway": "g:1",
            "exchange": "e:2",
        }

    served(registrar, pki, scenario)


def test_unknown_used_and_expired_tokens_get_the_same_words_and_none_is_logged(
    registrar: Registrar,
    ledger: LedgerStore,
    pki: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = invited(ledger, tmp_path, "used")
    registrar.enrol(used, site_request())
    ledger.sites.invite("late", token_sha256=token_sha256("late-token"), lifetime=timedelta(0))
    caplog.set_level(logging.DEBUG)

    async def scenario(client: httpx.AsyncClient) -> None:
        for token in ("never-seen", used, "late-token"):
            answer = await client.post("/v1/enrol", json=body(token, site_request()))
            assert (answer.status_code, answer.json()) == (403, {"error": REFUSED})

    served(registrar, pki, scenario)

    assert not any(word in caplog.text for word in ("never-seen", used, "late-token"))


def test_the_endpoint_refuses_what_is_malformed_or_too_large(
    registrar: Registrar, ledger: LedgerStore, pki: Path, tmp_path: Path
) -> None:
    token = invited(ledger, tmp_path)
    good = body(token, site_request())

    async def scenario(client: httpx.AsyncClient) -> None:
        malformed: list[object] = [{}, [], {**good, "extra": "x"}, {**good, "token": 1}]
        for broken in (*malformed, {**good, "csr": "x"}):
            answer = await client.post("/v1/enrol", json=broken)
            assert answer.status_code == 400
            assert token not in answer.text
        large = await client.post("/v1/enrol", content=b"x" * (MAX_BODY_BYTES + 1))
        assert large.status_code == 413
        assert (await client.get("/v1/enrol")).status_code == 404
        assert (await client.post("/v1/fleet/pull-messages")).status_code == 404
        assert (await client.post("/v1/enrol", json=good)).status_code == 200

    served(registrar, pki, scenario)


def test_a_key_of_another_site_is_refused_without_a_membership(
    registrar: Registrar, ledger: LedgerStore, pki: Path, tmp_path: Path
) -> None:
    first = site_request()
    registrar.enrol(invited(ledger, tmp_path, "first"), first)
    token = invited(ledger, tmp_path, "second")

    async def scenario(client: httpx.AsyncClient) -> None:
        stolen = replace(site_request(), node_key=first.node_key)
        answer = await client.post("/v1/enrol", json=body(token, stolen))
        assert answer.status_code == 409

    served(registrar, pki, scenario)

    assert [site.name for site in ledger.sites.members()] == ["first"]


def test_a_flood_of_requests_is_turned_away(registrar: Registrar, pki: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answers = [(await client.post("/v1/enrol")).status_code for _ in range(BEYOND_ANY_REFILL)]
        assert set(answers[:REQUESTS_PER_MINUTE]) == {400}
        assert 429 in answers

    served(registrar, pki, scenario)
