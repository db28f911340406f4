"""The exchange as a network service: gRPC under mutual TLS around the relay, in the caller's event loop.

Each `Link` is read and written by two tasks; what is read goes straight into the relay, which never waits,
and what the relay has for the endpoint is written as fast as the network takes it. The relay holds at most
what its windows allow, so a slow or dead endpoint costs nobody else memory or time.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc

from coordinator.exchange.peers import (
    PeerError,
    require_coordinator_role,
    require_role_of_endpoint,
    server_credentials,
)
from coordinator.wire import exchange_pb2 as pb
from coordinator.wire import exchange_pb2_grpc as stubs
from coordinator.wire.channel import LinkTiming, TlsFiles, TransferError, require_session_id
from coordinator.wire.codec import (
    MAX_MESSAGE_BYTES,
    ToRelayDecoder,
    attach_from_proto,
    chunk_to_proto,
    fetch_from_proto,
    from_relay_to_proto,
    spec_from_proto,
)
from coordinator.wire.messages import Ping, ProtocolError
from coordinator.wire.relay import Relay
from coordinator.wire.session import Connection, Observer, RefusedError, RelayLimits
from coordinator.wire.transfer import open_model, read_chunk

TICK_SECONDS: Final = 0.25
STOP_SECONDS: Final = 2.0
MAX_CALLS: Final = 2048
DEFAULT_TIMING: Final = LinkTiming()


class ExchangeServer:
    """Serves the data plane until stopped. Sessions live in memory: a restart forgets them all."""

    def __init__(
        self,
        *,
        models: Path,
        tls: TlsFiles,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: RelayLimits | None = None,
        observer: Observer | None = None,
        timing: LinkTiming = DEFAULT_TIMING,
    ) -> None:
        """Prepare a server.

        Args:
            models: folder of `<sha256>.safetensors` files.
            tls: the authority and the server's own certificate.
            host: interface to listen on.
            port: 0 lets the system choose.
            limits: what the relay may hold.
            observer: sees every frame that the relay accepts, with its receiver's name.
            timing: heartbeat, and the silence that ends a connection.
        """
        self.relay = Relay(models=models, limits=limits or RelayLimits(), observer=observer)
        self._tls = tls
        self._timing = timing
        self._listen = f"{host}:{port}"
        self._servicer = _ExchangeServicer(self.relay, timing)
        self._server: Any = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address cannot be bound.
        """
        keepalive_milliseconds = int(1000 * self._timing.break_seconds / 2)
        self._server = grpc.aio.server(
            options=(
                ("grpc.keepalive_time_ms", keepalive_milliseconds),
                ("grpc.keepalive_timeout_ms", keepalive_milliseconds),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                (
                    "grpc.so_reuseport",
                    0,
                ),  # two exchanges on one port would each lose half the sites
            ),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        stubs.add_ExchangeServicer_to_server(self._servicer, self._server)
        tls = self._tls
        credentials = server_credentials(
            tls.ca.read_bytes(), tls.certificate.read_bytes(), tls.key.read_bytes()
        )
        try:
            port: int = self._server.add_secure_port(self._listen, credentials)
        except RuntimeError as error:
            raise OSError(
                f"The exchange cannot listen on {self._listen}: {error}. Choose another port."
            ) from error
        await self._server.start()
        self._ticker = asyncio.create_task(self._tick())
        return port

    async def stop(self) -> None:
        """End every session and the server; clients hear the reason."""
        self.relay.close_all("the exchange has stopped")
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        if self._server is not None:
            await self._server.stop(STOP_SECONDS)

    async def _tick(self) -> None:
        while True:
            self.relay.tick()
            await asyncio.sleep(TICK_SECONDS)


class _ExchangeServicer:
    """Answers the calls of exchange.proto; the method names are the proto's."""

    def __init__(self, relay: Relay, timing: LinkTiming) -> None:
        self._relay = relay
        self._timing = timing

    async def Link(self, requests: Any, context: Any) -> None:  # noqa: N802
        """Seat an endpoint and carry its messages until the connection ends."""
        async with _answer_refusals(context):
            async with asyncio.timeout(self._timing.break_seconds):
                first = await context.read()
            if first is grpc.aio.EOF:
                return
            attach = attach_from_proto(first)
            require_role_of_endpoint(context, attach.ticket.endpoint)
            wake = asyncio.Event()
            connection = self._relay.connect(attach, wake.set)
            stream = _LinkStream(connection, context, wake, self._timing)
            await stream.carry()

    async def FetchModel(self, request: pb.FetchRequest, context: Any) -> None:  # noqa: N802
        """Stream a model file from an offset on."""
        async with _answer_refusals(context):
            ticket, sha256, offset = fetch_from_proto(request)
            require_role_of_endpoint(context, ticket.endpoint)
            path = self._relay.require_model(ticket, sha256)
            with open_model(path) as file:
                while True:
                    chunk = await asyncio.to_thread(read_chunk, file, offset)
                    if chunk is None:
                        return
                    self._relay.require_model(ticket, sha256)  # the session may have ended
                    await context.write(chunk_to_proto(chunk))
                    offset += len(chunk.payload)

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.Done:  # noqa: N802
        """Open a session for the coordinator."""
        async with _answer_refusals(context):
            require_coordinator_role(context)
            self._relay.open_session(spec_from_proto(request))
        return pb.Done()

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.Done:  # noqa: N802
        """Close a session for the coordinator."""
        async with _answer_refusals(context):
            require_coordinator_role(context)
            try:
                require_session_id(request.session_id)
            except ValueError as error:
                raise ProtocolError(str(error)) from error
            self._relay.close_session(request.session_id, request.reason)
        return pb.Done()


class _LinkStream:
    """One connection of an endpoint: a task that reads, one that writes, until either ends."""

    def __init__(
        self, connection: Connection, context: Any, wake: asyncio.Event, timing: LinkTiming
    ) -> None:
        self._heard_at = time.monotonic()
        self._connection = connection
        self._context = context
        self._wake = wake
        self._timing = timing

    async def carry(self) -> None:
        """Read and write until the client ends, falls silent, breaks the protocol, or is told to go.

        Raises:
            ProtocolError: the client broke the protocol; its endpoint is gone.
        """
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and isinstance(violation := reader.exception(), ProtocolError):
                self._connection.expel(violation, now=time.monotonic())
        finally:
            self._connection.detach(silent_since=self._heard_at)
            self._wake.set()
            reader.cancel()
            # A write that is cancelled half-way would keep gRPC from ever ending the call. It ends by
            # itself: the network takes it, or the transport's keepalive declares the network dead.
            await asyncio.wait({writer}, timeout=2 * self._timing.break_seconds)
            writer.cancel()
            outcomes = await asyncio.gather(reader, writer, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, TimeoutError):
                raise outcome

    async def _read(self) -> None:
        decoder = ToRelayDecoder()
        while True:
            async with asyncio.timeout(self._timing.break_seconds):
                piece = await self._context.read()
            if piece is grpc.aio.EOF:
                return
            self._heard_at = time.monotonic()
            message = decoder.add(piece)
            if message is not None:
                self._connection.accept(message, now=self._heard_at)

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            message = self._connection.take(now=time.monotonic())
            if message is None:
                if self._connection.is_over:
                    return
                message = await self._wait_or_ping()
            if message is not None:
                for piece in from_relay_to_proto(message):
                    await self._context.write(piece)

    async def _wait_or_ping(self) -> Ping | None:
        try:
            async with asyncio.timeout(self._timing.heartbeat_seconds):
                await self._wake.wait()
        except TimeoutError:
            return Ping()
        return None


@contextlib.asynccontextmanager
async def _answer_refusals(context: Any) -> AsyncIterator[None]:
    """Turn what the relay refuses into the status that the client acts on."""
    try:
        yield
    except PeerError as refusal:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(refusal))
    except RefusedError as refusal:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(refusal))
    except TransferError as error:
        await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    except ProtocolError as violation:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(violation))
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing was heard for too long")
