"""An HTTPS server inside the coordinator's own event loop: bounded, quiet, and stopped with its owner."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 16 << 10
KEEP_ALIVE_SECONDS = 30
STOP_SECONDS = 2


class HttpsServer:
    """Serves one ASGI application on one TLS port."""

    def __init__(
        self,
        app: Any,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext,
        protocol: type[H11Protocol],
        max_connections: int,
    ) -> None:
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                ssl_context_factory=lambda *_: tls,
                limit_concurrency=max_connections,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listens; returns the port when connections are accepted.

        Raises:
            OSError: the address cannot be bound; the text names it.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listener = socket.create_server((self._host, self._port), family=family, backlog=256)
        except OSError as error:
            raise OSError(
                f"Cannot listen on {self._host}:{self._port}: {error.strerror}"
            ) from error
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0.01)
        port: int = listener.getsockname()[1]
        return port

    async def stop(self) -> None:
        """Ends within a few seconds; requests that run longer are cut off."""
        if self._serving is None:
            return
        self._server.should_exit = True
        await self._serving


class _Server(uvicorn.Server):
    """Leaves signals to the supervisor that owns the event loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
