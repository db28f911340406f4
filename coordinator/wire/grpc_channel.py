"""The data plane over the network: gRPC under mutual TLS, for synchronous programs.

A background thread keeps the link: it connects, reads what comes, and connects again with growing pauses when the
link breaks. Silence is a break: both ends send something every `heartbeat_seconds`, and an end that hears
nothing for `break_seconds` gives the connection up. The thread gives up for good when the relay refuses the
endpoint, or when it has heard nothing for so long that the relay must have declared the endpoint lost.

Every connection gets a gRPC channel of its own: on an old one a new stream would go over the dead connection.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

import grpc

from coordinator.wire import exchange_pb2 as pb
from coordinator.wire import exchange_pb2_grpc as stubs
from coordinator.wire.channel import (
    ChannelClosed,
    ChannelError,
    LinkTiming,
    SessionSpec,
    SessionTicket,
    TlsFiles,
    TransferError,
)
from coordinator.wire.codec import (
    MAX_MESSAGE_BYTES,
    FromRelayDecoder,
    attach_to_proto,
    chunk_from_proto,
    spec_to_proto,
    ticket_to_proto,
    to_relay_to_proto,
)
from coordinator.wire.link import Link
from coordinator.wire.messages import Ping, ProtocolError
from coordinator.wire.transfer import Chunk, LinkBrokenError

GRPC_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # no dead connection of an earlier channel
    ("grpc.enable_retries", 0),  # the link resumes by itself, with numbers
    ("grpc.enable_http_proxy", 0),  # the exchange is dialled directly
)
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
FETCH_PAUSE_SECONDS: Final = 0.25
_FINAL_CODES: Final = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_FOREIGN_SERVER: Final = "Tls handshake failed"
"""gRPC's words when this end does not trust the server; they only make the failure prompt."""
_log = logging.getLogger(__name__)


class GrpcTransport:
    """Keeps one link to the exchange. Implements `Transport`."""

    def __init__(
        self, address: str, *, ticket: SessionTicket, credentials: TlsFiles, timing: LinkTiming
    ) -> None:
        self.lock = threading.RLock()
        self._address = address
        self._ticket = ticket
        self._credentials = read_credentials(credentials)
        self._timing = timing
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._call: Any = None
        self._heard_at = time.monotonic()
        self.last_break = "not yet connected"

    def start(self, link: Link) -> None:
        """Begin to connect."""
        name = f"exchange link {self._ticket.endpoint}"
        self._thread = threading.Thread(target=self._run, args=(link,), name=name, daemon=True)
        self._thread.start()

    def pump(self) -> None:
        """Nothing to move: the thread does it."""

    def stop(self) -> None:
        """End the link and its thread."""
        self._stopped.set()
        call = self._call
        if call is not None:
            call.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self._timing.break_seconds)

    def chunks(self, sha256: str, offset: int) -> Iterator[Chunk]:
        """Stream a model file from `offset` on; a pause comes before LinkBrokenError, so that callers may just retry."""
        request = pb.FetchRequest(
            ticket=ticket_to_proto(self._ticket), sha256=sha256, offset=offset
        )
        channel = self._connect()
        try:
            call = stubs.ExchangeStub(channel).FetchModel(request)
            with StallGuard(call.cancel, seconds=self._timing.break_seconds) as guard:
                for message in call:
                    guard.touch()
                    yield chunk_from_proto(message)
        except ProtocolError as violation:
            raise TransferError(f"Model {sha256}: the exchange sent {violation}.") from violation
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise TransferError(error.details()) from error
            if error.code() in _FINAL_CODES:
                raise ChannelClosed(str(error.details())) from error
            _log.info("Fetch of model %s broke (%s); resuming", sha256, error.code().name)
            self._stopped.wait(FETCH_PAUSE_SECONDS)
            raise LinkBrokenError(str(error.details())) from error
        finally:
            channel.close()

    def _run(self, link: Link) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopped.is_set() and link.closed_reason is None:
            heard_before = self._heard_at
            self.last_break = self._hold_connection(link)
            if self._heard_at > heard_before:
                pause = FIRST_PAUSE_SECONDS
            if self._stopped.is_set() or link.closed_reason is not None:
                return
            self._give_up_if_lost(link)
            _log.info(
                "Link of %s to %s broke (%s); connecting again",
                self._ticket.endpoint,
                self._address,
                self.last_break,
            )
            self._stopped.wait(pause * (0.5 + secrets.randbelow(1000) / 1000))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _hold_connection(self, link: Link) -> str:
        """Attach and carry messages until the connection breaks; returns why it did."""
        channel = self._connect()
        stream = _Outgoing(link, heartbeat_seconds=self._timing.heartbeat_seconds)
        decoder = FromRelayDecoder()
        try:
            call = stubs.ExchangeStub(channel).Link(stream.messages())
            self._call = call
            with StallGuard(call.cancel, seconds=self._timing.break_seconds) as guard:
                for piece in call:
                    guard.touch()
                    self._heard_at = time.monotonic()
                    message = decoder.add(piece)
                    if message is not None:
                        link.handle(message)
            return "ended by the exchange"
        except grpc.RpcError as error:
            details = str(error.details())
            is_foreign = link.silence_seconds is None and _FOREIGN_SERVER in details
            if error.code() in _FINAL_CODES or is_foreign:
                link.fail(details)
            return details
        except ProtocolError as violation:
            return f"the exchange broke the protocol: {violation}"
        finally:
            stream.end()
            self._call = None
            channel.close()

    def _give_up_if_lost(self, link: Link) -> None:
        silence_seconds = link.silence_seconds
        if silence_seconds is None:
            patience = self._timing.connect_seconds
        else:
            patience = silence_seconds + self._timing.break_seconds
        silent = time.monotonic() - self._heard_at
        if silent > patience:
            link.fail(f"no link to the exchange for {silent:.0f} s ({self.last_break})")

    def _connect(self) -> grpc.Channel:
        return grpc.secure_channel(self._address, self._credentials, options=GRPC_OPTIONS)


class GrpcSessionAdmin:
    """Opens and closes sessions over the network. Implements `SessionAdmin`."""

    def __init__(
        self, address: str, *, credentials: TlsFiles, timeout_seconds: float = 10.0
    ) -> None:
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.secure_channel(
            address, read_credentials(credentials), options=GRPC_OPTIONS
        )
        self._stub = stubs.ExchangeStub(self._channel)

    def open_session(self, spec: SessionSpec) -> None:
        """Open a session. See `SessionAdmin`."""
        self._call(self._stub.OpenSession, spec_to_proto(spec), spec.session_id)

    def close_session(self, session_id: str, *, reason: str) -> None:
        """End a session. See `SessionAdmin`."""
        request = pb.CloseSessionRequest(session_id=session_id, reason=reason)
        self._call(self._stub.CloseSession, request, session_id)

    def close(self) -> None:
        """Release the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any, session_id: str) -> None:
        try:
            method(request, timeout=self._timeout_seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ChannelError(
                f"Session {session_id!r}: the exchange at {self._address} answered "
                f"{error.code().name}: {error.details()}"
            ) from error


class StallGuard:
    """Cancels a call that shows no sign of life for `seconds`; `touch` is a sign of life."""

    def __init__(self, cancel: Callable[[], object], *, seconds: float) -> None:
        self._cancel = cancel
        self._seconds = seconds
        self._done = threading.Event()
        self._touched_at = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="exchange watch", daemon=True)

    def touch(self) -> None:
        """Something arrived."""
        self._touched_at = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(max(self._touched_at + self._seconds - time.monotonic(), 0)):
            if time.monotonic() >= self._touched_at + self._seconds:
                self._cancel()
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()


class _Outgoing:
    """What one connection sends: the link's messages as they come, else a ping."""

    def __init__(self, link: Link, *, heartbeat_seconds: float) -> None:
        self._link = link
        self._lock = link.lock
        self._heartbeat_seconds = heartbeat_seconds
        self._attach = link.attach_request()
        self._ended = threading.Event()

    def messages(self) -> Iterator[pb.ToRelay]:
        """Runs in a thread of gRPC until `end`."""
        yield attach_to_proto(self._attach)
        while True:
            with self._lock:
                if self._ended.is_set():
                    return
                message = self._link.next_outgoing()
                if message is None:
                    is_quiet = not self._link.wait_outgoing(self._heartbeat_seconds)
                    if self._ended.is_set():
                        return
                    message = self._link.next_outgoing()
                    if message is None and is_quiet:
                        message = Ping()
            if message is not None:
                yield from to_relay_to_proto(message)

    def end(self) -> None:
        """The connection is down."""
        with self._lock:
            self._ended.set()
            self._link.wake()


def read_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """The client's side of mutual TLS. gRPC checks the server's name against its certificate."""
    return grpc.ssl_channel_credentials(
        root_certificates=files.ca.read_bytes(),
        private_key=files.key.read_bytes(),
        certificate_chain=files.certificate.read_bytes(),
    )
