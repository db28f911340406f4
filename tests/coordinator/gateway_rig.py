"""A gateway on a real TLS port, in front of a real HTTPS server that stands for the SuperLink."""

import asyncio
import contextlib
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.enrolment.authority import load_authority
from coordinator.enrolment.tls import loopback_context, member_context, public_context
from coordinator.gateway import (
    NODE_KEY_HEADER,
    Gateway,
    Member,
    MemberProtocol,
)
from coordinator.https import HttpsServer

FLEET = "/v1/fleet/pull-messages"


@dataclass(frozen=True, kw_only=True)
class SiteKeys:
    """A site's certificate on disk, and its node key in both forms."""

    certificate: Path
    key: Path
    node_line: str
    node_header: str

    def member(self) -> Member:
        certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        return Member(
            certificate_sha256=certificate.fingerprint(hashes.SHA256()).hex(),
            node_key=self.node_line,
            is_registered=True,
        )


def make_site(name: str, *, issuer: Path, folder: Path) -> SiteKeys:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    )
    pem = request.public_bytes(serialization.Encoding.PEM).decode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.crt").write_text(load_authority(issuer).sign_site(pem, site=name))
    (folder / "site.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    node = ec.generate_private_key(ec.SECP384R1()).public_key()
    encode = node.public_bytes
    return SiteKeys(
        certificate=folder / "site.crt",
        key=folder / "site.key",
        node_line=encode(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        ).decode(),
        node_header=b64encode(
            encode(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        ).decode(),
    )


@dataclass(kw_only=True)
class Upstream:
    """Stands for the SuperLink: keeps what it was sent, answers as it is told."""

    status: int = 200
    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def reply(self, request: Request) -> Response:
        body = await request.body()
        self.received.append((request.url.path, dict(request.headers), body))
        headers = {"flwr-note": "kept", "set-cookie": "dropped"}
        return Response(b"reply:" + body, self.status, headers, "application/protobuf")

    def server(self, pki: Path, port: int) -> HttpsServer:
        return HttpsServer(
            Starlette(routes=[Route("/{path:path}", self.reply, methods=["GET", "POST"])]),
            host="127.0.0.1",
            port=port,
            tls=public_context(pki),
            protocol=H11Protocol,
            max_connections=64,
        )


@dataclass(kw_only=True)
class Front:
    """A running gateway: its address, its members, the SuperLink behind it."""

    port: int
    members: dict[str, Member]
    upstream: Upstream
    upstream_server: HttpsServer
    upstream_port: int
    pki: Path

    def client(self, site: SiteKeys | None) -> httpx.AsyncClient:
        trust = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        if site is not None:
            trust.load_cert_chain(site.certificate, site.key)
        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}", verify=trust, trust_env=False, timeout=10
        )

    async def call(self, site: SiteKeys, path: str = FLEET, body: bytes = b"x") -> httpx.Response:
        async with self.client(site) as client:
            return await client.post(
                path, content=body, headers={NODE_KEY_HEADER: site.node_header}
            )


@contextlib.asynccontextmanager
async def running(pki: Path, members: dict[str, Member]) -> AsyncIterator[Front]:
    upstream = Upstream()
    upstream_server = upstream.server(pki, 0)
    upstream_port = await upstream_server.start()

    async def member(name: str) -> Member | None:
        return members.get(name)

    gateway = Gateway(
        superlink=f"https://127.0.0.1:{upstream_port}", tls=loopback_context(pki), member=member
    )
    server = HttpsServer(
        gateway.app,
        host="127.0.0.1",
        port=0,
        tls=member_context(pki),
        protocol=MemberProtocol,
        max_connections=64,
    )
    front = Front(
        port=await server.start(),
        members=members,
        upstream=upstream,
        upstream_server=upstream_server,
        upstream_port=upstream_port,
        pki=pki,
    )
    try:
        yield front
    finally:
        await gateway.close()
        await asyncio.gather(server.stop(), front.upstream_server.stop())


def behind_gateway(pki: Path, site: SiteKeys, scenario: Callable[[Front], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running(pki, {"st-anna": site.member()}) as front:
            await scenario(front)

    asyncio.run(main())
