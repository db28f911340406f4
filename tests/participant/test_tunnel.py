"""The tunnel between a SuperNode and the gateway: what it forwards, holds, refuses and remembers."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from participant.tunnel import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, Tunnel
from tests.participant.stub_coordinator import (
    Authority,
    CuttableProxy,
    free_port,
    joined_home,
    serving,
)


@dataclass
class Gateway:
    """Answers with the statuses in `script`, then with 200 and an echo."""

    script: list[int] = field(default_factory=list)
    answer: bytes | None = None
    seen: list[Request] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._take, methods=["POST", "GET"])])

    async def _take(self, request: Request) -> Response:
        body = await request.body()
        self.seen.append(request)
        status = self.script.pop(0) if self.script else 200
        return Response(
            self.answer if self.answer is not None else body[::-1],
            status_code=status,
            headers={"flwr-note": "kept", "x-other": "dropped", "content-type": "app/proto"},
        )


@dataclass
class Site:
    """A running tunnel with a client in the place of the SuperNode."""

    tunnel: Tunnel
    client: httpx.AsyncClient

    async def post(self, method: str, body: bytes = b"abc") -> httpx.Response:
        return await self.client.post(
            f"/v1/fleet/{method}",
            content=body,
            headers={"flwr-signature": "s", "x-secret": "never", "content-type": "app/proto"},
        )


@dataclass
class Setting:
    authority: Authority
    home: Path

    @contextlib.asynccontextmanager
    async def site(self, gateway: str, hold_seconds: float = 3.0) -> AsyncIterator[Site]:
        files = joined_home(self.home, self.authority)
        tunnel = Tunnel(gateway=gateway, files=files, folder=self.home, hold_seconds=hold_seconds)
        await tunnel.start()
        trust = ssl.create_default_context(cafile=tunnel.certificate)
        async with httpx.AsyncClient(
            base_url=f"https://{tunnel.address}", verify=trust, timeout=30.0, trust_env=False
        ) as client:
            yield Site(tunnel, client)
        await tunnel.stop()

    @contextlib.asynccontextmanager
    async def linked(self, gateway: Gateway, hold_seconds: float = 3.0) -> AsyncIterator[Site]:
        context = self.authority.issue_server(self.home.parent / "server")
        async with (
            serving(gateway.app(), context, client_ca=self.authority.pem) as port,
            self.site(f"localhost:{port}", hold_seconds) as site,
        ):
            yield site


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(Authority(), tmp_path / "home")


def test_a_fleet_request_passes_with_its_body_and_signature(setting: Setting) -> None:
    gateway = Gateway()

    async def scenario() -> httpx.Response:
        async with setting.linked(gateway) as site:
            return await site.post("pull-messages", b"abc")

    answer = asyncio.run(scenario())

    assert (answer.status_code, answer.content) == (200, b"cba")
    assert (answer.headers["flwr-note"], answer.headers["content-type"]) == ("kept", "app/proto")
    assert "x-other" not in answer.headers
    headers = gateway.seen[0].headers
    assert (headers["flwr-signature"], headers["content-type"]) == ("s", "app/proto")
    assert "x-secret" not in headers


def test_nothing_but_posts_to_the_fleet_interface_passes(setting: Setting) -> None:
    gateway = Gateway()

    async def scenario() -> list[int]:
        async with setting.linked(gateway) as site:
            answers = [
                await site.client.post("/v1/control/start-run", content=b""),
                await site.client.post("/v1/runtime/acquire-task", content=b""),
                await site.client.post("/v1/fleet/..%2fcontrol%2fstart-run", content=b""),
                await site.client.post("/v1/fleet/pull-messages%3Fx", content=b""),
                await site.client.get("/v1/fleet/pull-messages"),
            ]
            return [answer.status_code for answer in answers]

    assert asyncio.run(scenario()) == [404, 404, 404, 404, 405]
    assert gateway.seen == []


def test_a_server_error_of_the_coordinator_never_reaches_the_supernode(setting: Setting) -> None:
    gateway = Gateway(script=[500, 501, 408])

    async def scenario() -> httpx.Response:
        async with setting.linked(gateway, hold_seconds=10.0) as site:
            return await site.post("pull-messages")

    assert asyncio.run(scenario()).status_code == 200
    assert len(gateway.seen) == 4


def test_a_lasting_server_error_becomes_503(setting: Setting) -> None:
    gateway = Gateway(script=[500] * 20)

    async def scenario() -> tuple[httpx.Response, str | None]:
        async with setting.linked(gateway, hold_seconds=1.5) as site:
            return await site.post("pull-messages"), site.tunnel.traffic.refusal

    answer, refusal = asyncio.run(scenario())

    assert answer.status_code == 503
    assert refusal == 'The coordinator answered "pull-messages" with status 500.'


@pytest.mark.parametrize("status", [401, 403, 412])
def test_a_refusal_passes_as_it_is_and_is_remembered(setting: Setting, status: int) -> None:
    gateway = Gateway(script=[status])

    async def scenario() -> tuple[httpx.Response, str | None]:
        async with setting.linked(gateway) as site:
            return await site.post("activate-node"), site.tunnel.traffic.refusal

    answer, refusal = asyncio.run(scenario())

    assert answer.status_code == status
    assert refusal == f'The coordinator refused "activate-node" with status {status}.'
    assert len(gateway.seen) == 1


def test_an_oversized_request_is_refused_here(setting: Setting) -> None:
    gateway = Gateway()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield bytes(1 << 20)

    async def scenario() -> tuple[int, int]:
        async with setting.linked(gateway) as site:
            declared = await site.post("push-object", bytes(MAX_REQUEST_BYTES + 1))
            streamed = await site.client.post("/v1/fleet/push-object", content=chunks())
            return declared.status_code, streamed.status_code

    assert asyncio.run(scenario()) == (413, 413)
    assert gateway.seen == []


def test_an_oversized_answer_is_not_passed_on(setting: Setting) -> None:
    gateway = Gateway(answer=bytes(MAX_ANSWER_BYTES + 1))

    async def scenario() -> httpx.Response:
        async with setting.linked(gateway, hold_seconds=1.0) as site:
            return await site.post("pull-object")

    assert asyncio.run(scenario()).status_code == 503


def test_a_request_is_held_over_a_cut_and_answered_after_it(setting: Setting) -> None:
    gateway = Gateway()

    async def scenario() -> tuple[httpx.Response, float]:
        context = setting.authority.issue_server(setting.home.parent / "server")
        async with (
            serving(gateway.app(), context, client_ca=setting.authority.pem) as port,
            CuttableProxy(port) as proxy,
            setting.site(f"localhost:{proxy.port}", hold_seconds=20.0) as site,
        ):
            await site.post("pull-messages")
            proxy.cut()
            started = time.monotonic()
            held = asyncio.create_task(site.post("pull-messages"))
            await asyncio.sleep(1.5)
            assert not held.done()
            assert site.tunnel.traffic.refusal is not None
            proxy.mend()
            return await held, time.monotonic() - started

    answer, seconds = asyncio.run(scenario())

    assert answer.status_code == 200
    assert 1.5 < seconds < 6.0


def test_without_a_link_a_request_ends_in_503_when_the_hold_is_over(setting: Setting) -> None:
    async def scenario() -> tuple[httpx.Response, float, str | None]:
        async with setting.site(f"localhost:{free_port()}", hold_seconds=2.0) as site:
            started = time.monotonic()
            answer = await site.post("pull-messages")
            return answer, time.monotonic() - started, site.tunnel.traffic.refusal

    answer, seconds, refusal = asyncio.run(scenario())

    assert answer.status_code == 503
    assert 0.9 < seconds < 3.0
    assert refusal is not None
    assert "cannot be reached" in refusal


def test_a_gateway_of_another_authority_is_refused_by_name(setting: Setting) -> None:
    gateway = Gateway()
    stranger = Authority()

    async def scenario() -> tuple[httpx.Response, str | None]:
        context = stranger.issue_server(setting.home.parent / "server")
        async with (
            serving(gateway.app(), context) as port,
            setting.site(f"localhost:{port}", hold_seconds=1.0) as site,
        ):
            return await site.post("pull-messages"), site.tunnel.traffic.refusal

    answer, refusal = asyncio.run(scenario())

    assert answer.status_code == 503
    assert refusal is not None
    assert "was not issued by this consortium's authority" in refusal
    assert gateway.seen == []


@pytest.mark.parametrize(
    ("host", "days", "text"),
    [("elsewhere.test", 5, "is for another name"), ("localhost", -1, "Check the clock")],
)
def test_a_gateway_certificate_must_name_the_gateway_and_be_in_time(
    setting: Setting, host: str, days: int, text: str
) -> None:
    gateway = Gateway()

    async def scenario() -> str | None:
        context = setting.authority.issue_server(
            setting.home.parent / "server", host=host, days=days
        )
        async with (
            serving(gateway.app(), context) as port,
            setting.site(f"localhost:{port}", hold_seconds=1.0) as site,
        ):
            await site.post("pull-messages")
            return site.tunnel.traffic.refusal

    refusal = asyncio.run(scenario())

    assert refusal is not None
    assert text in refusal
    assert gateway.seen == []


def test_a_gateway_that_refuses_our_certificate_is_reported_as_such(setting: Setting) -> None:
    gateway = Gateway()

    async def scenario() -> str | None:
        context = setting.authority.issue_server(setting.home.parent / "server")
        async with (
            serving(gateway.app(), context, client_ca=Authority().pem) as port,
            setting.site(f"localhost:{port}", hold_seconds=1.0) as site,
        ):
            await site.post("pull-messages")
            return site.tunnel.traffic.refusal

    refusal = asyncio.run(scenario())

    assert refusal is not None
    assert "this site's certificate" in refusal
    assert gateway.seen == []


def test_the_tunnel_remembers_what_the_supernode_did(setting: Setting) -> None:
    async def scenario() -> Tunnel:
        async with setting.linked(Gateway()) as site:
            for method in ("activate-node", "send-node-heartbeat", "deactivate-node"):
                await site.post(method)
            return site.tunnel

    traffic = asyncio.run(scenario()).traffic

    assert traffic.activated is not None
    assert traffic.heartbeat is not None
    assert traffic.work is not None
    assert traffic.deactivated is not None
    assert traffic.activated <= traffic.heartbeat <= traffic.deactivated == traffic.work
    assert traffic.refusal is None


def test_a_stopping_tunnel_does_not_hold_requests(setting: Setting) -> None:
    async def scenario() -> float:
        async with setting.site(f"localhost:{free_port()}", hold_seconds=25.0) as site:
            site.tunnel.release_held()
            started = time.monotonic()
            await site.post("deactivate-node")
            return time.monotonic() - started

    assert asyncio.run(scenario()) < 2.0
