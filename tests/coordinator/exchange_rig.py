"""What the tests of the data plane stand on: a small authority, a server in a thread, a link that can be cut."""

import asyncio
import datetime
import hashlib
import ipaddress
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.exchange.server import ExchangeServer
from coordinator.wire.channel import LinkTiming, SessionSpec, SessionTicket, TlsFiles

QUICK = LinkTiming(heartbeat_seconds=0.15, break_seconds=0.8, connect_seconds=5.0)


class Authority:
    """A certificate authority that writes PEM files into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "concord-ca")])
        self._ca = folder / "ca.crt"
        certificate = self._sign(self._name, self._key, [], None)
        self._ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self) -> TlsFiles:
        names = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        return self._leaf("server", names, ExtendedKeyUsageOID.SERVER_AUTH)

    def site(self, name: str, *, days: int = 1) -> TlsFiles:
        role = [x509.UniformResourceIdentifier(f"concord:site:{name}")]
        return self._leaf(name, role, ExtendedKeyUsageOID.CLIENT_AUTH, days=days)

    def coordinator(self) -> TlsFiles:
        role = [x509.UniformResourceIdentifier("concord:role:coordinator")]
        return self._leaf("coordinator", role, ExtendedKeyUsageOID.CLIENT_AUTH)

    def endpoint(self, name: str) -> TlsFiles:
        return self.coordinator() if name == "coordinator" else self.site(name)

    def _leaf(self, name: str, names: list[Any], usage: Any, *, days: int = 1) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, names, usage, days=days)
        files = TlsFiles(
            ca=self._ca,
            certificate=self._folder / f"{name}.crt",
            key=self._folder / f"{name}.key",
        )
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _sign(
        self, subject: x509.Name, key: Any, names: list[Any], usage: Any, *, days: int = 1
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=30))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class ServerThread:
    """An `ExchangeServer` in an event loop of its own."""

    def __init__(self, **arguments: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = ExchangeServer(**arguments)
        self.port: int = self._do(self.server.start())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def held_bytes(self) -> int:
        return self.server.relay.held_bytes

    def stop(self) -> None:
        self._do(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=20)


class FaultyLink:
    """A TCP proxy whose connections can be frozen, cut at once, or cut after so many bytes."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut_after: int | None = None
        self.connections = 0
        self.bytes_to_client = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self._server: asyncio.Server = self._do(asyncio.start_server(self._serve, sock=listener))

    def freeze(self) -> None:
        """Pass nothing on, and accept no one, without a word to either side."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def thaw(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.set)

    def cut(self) -> None:
        """Drop every connection now."""
        self._do(self._drop())

    def cut_after(self, bytes_to_client: int) -> None:
        """Drop every connection once so many more bytes have gone to the client."""
        self._cut_after = self.bytes_to_client + bytes_to_client

    def close(self) -> None:
        self.thaw()
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._drop()
        await asyncio.sleep(0.01)  # let the transports report that they are closed

    async def _drop(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        await self._flowing.wait()
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.add(up_writer)
        await asyncio.gather(
            self._pump(reader, up_writer, to_client=False),
            self._pump(up_reader, writer, to_client=True),
        )
        self._writers -= {writer, up_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool
    ) -> None:
        try:
            while block := await reader.read(1 << 16):
                await self._flowing.wait()
                if to_client and self._cut_after is not None:
                    left = self._cut_after - self.bytes_to_client
                    if left < len(block):
                        self._cut_after = None
                        writer.write(block[:left])
                        await writer.drain()
                        await self._drop()
                        return
                if to_client:
                    self.bytes_to_client += len(block)
                writer.write(block)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=20)


@dataclass(frozen=True, kw_only=True)
class Tickets:
    """A session that a test opens, and the tickets to it."""

    spec: SessionSpec
    tickets: dict[str, SessionTicket]


def make_session(
    *endpoints: str,
    models: tuple[str, ...] = (),
    silence_seconds: float = 60.0,
    deadline_seconds: float = 120.0,
) -> Tickets:
    session_id = f"run/{secrets.token_hex(4)}/1"
    tickets = {
        name: SessionTicket(session_id=session_id, endpoint=name, ticket=secrets.token_bytes(32))
        for name in endpoints
    }
    spec = SessionSpec(
        session_id=session_id,
        tickets={name: hashlib.sha256(ticket.ticket).digest() for name, ticket in tickets.items()},
        models=models,
        silence_seconds=silence_seconds,
        deadline_seconds=deadline_seconds,
    )
    return Tickets(spec=spec, tickets=tickets)


def write_model(folder: Path, content: bytes) -> str:
    """Put a model file where the exchange serves it; returns its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / f"{sha256}.safetensors").write_bytes(content)
    return sha256
