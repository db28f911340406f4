"""The gateway on a real TLS port, in front of a real HTTPS server that stands for the SuperLink."""

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from coordinator import gateway as gateway_module
from coordinator.enrolment.authority import create_authority
from coordinator.gateway import (
    MAX_BODY_BYTES,
    NODE_KEY_HEADER,
    same_node_key,
)
from tests.coordinator.gateway_rig import FLEET, Front, SiteKeys, behind_gateway, make_site


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "pki"
    create_authority(folder, hosts=("127.0.0.1",))
    return folder


@pytest.fixture(scope="module")
def site(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    return make_site("st-anna", issuer=pki, folder=tmp_path_factory.mktemp("st-anna"))


def test_a_members_fleet_call_reaches_the_superlink_and_back(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        answer = await front.call(site, body=b"hello")
        assert (answer.status_code, answer.content) == (200, b"reply:hello")
        assert answer.headers["flwr-note"] == "kept"
        assert "set-cookie" not in answer.headers
        path, headers, body = front.upstream.received[0]
        assert (path, body) == (FLEET, b"hello")
        assert headers[NODE_KEY_HEADER] == site.node_header
        assert "user-agent" not in headers or "python" in headers["user-agent"]

    behind_gateway(pki, site, scenario)


def test_only_known_headers_are_passed_on(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        headers = {
            NODE_KEY_HEADER: site.node_header,
            "flwr-timestamp": "now",
            "x-forwarded-for": "10.0.0.1",
            "cookie": "a=b",
            "authorization": "Bearer x",
        }
        async with front.client(site) as client:
            await client.post(FLEET, headers=headers)
        received = front.upstream.received[0][1]
        assert received["flwr-timestamp"] == "now"
        assert not {"x-forwarded-for", "cookie", "authorization"} & set(received)

    behind_gateway(pki, site, scenario)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/..%2Fcontrol%2Fstart-run",
        "/v1/fleet/%2e%2e",
        "/v1/fleet/pull-messages%3Fa",
        "//v1/fleet/pull-messages",
        "/V1/fleet/pull-messages",
    ],
)
def test_everything_but_a_fleet_call_is_not_found_even_for_a_member(
    pki: Path, site: SiteKeys, path: str
) -> None:
    async def scenario(front: Front) -> None:
        async with front.client(site) as client:
            url = httpx.URL(
                scheme="https", host="127.0.0.1", port=front.port, raw_path=path.encode()
            )
            answer = await client.post(url, headers={NODE_KEY_HEADER: site.node_header})
        assert answer.status_code == 404
        assert front.upstream.received == []

    behind_gateway(pki, site, scenario)


def test_only_post_is_answered(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        async with front.client(site) as client:
            statuses = [
                (await client.request(m, FLEET)).status_code for m in ("GET", "PUT", "DELETE")
            ]
        assert statuses == [404, 404, 404]
        assert front.upstream.received == []

    behind_gateway(pki, site, scenario)


def test_a_stranger_with_the_root_alone_does_not_get_past_tls(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        async with front.client(None) as client:
            with pytest.raises(httpx.TransportError):
                await client.post(FLEET)
        assert front.upstream.received == []

    behind_gateway(pki, site, scenario)


def test_a_certificate_of_another_root_does_not_get_past_tls(
    pki: Path, site: SiteKeys, tmp_path: Path
) -> None:
    create_authority(tmp_path / "foreign", hosts=("127.0.0.1",))
    foreign = make_site("st-anna", issuer=tmp_path / "foreign", folder=tmp_path / "site")

    async def scenario(front: Front) -> None:
        with pytest.raises(httpx.TransportError):
            await front.call(foreign)
        assert front.upstream.received == []

    behind_gateway(pki, site, scenario)


def test_old_tls_is_refused(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        trust = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        trust.load_cert_chain(site.certificate, site.key)
        trust.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):  # noqa: PT011  # SSLError, or a reset while it is being told
            await asyncio.open_connection("127.0.0.1", front.port, ssl=trust)

    behind_gateway(pki, site, scenario)


def test_a_member_cannot_speak_for_another_node(pki: Path, site: SiteKeys, tmp_path: Path) -> None:
    other = make_site("charite", issuer=pki, folder=tmp_path)

    async def scenario(front: Front) -> None:
        front.members["charite"] = other.member()
        stolen = replace(site, node_header=other.node_header)
        assert (await front.call(stolen)).status_code == 401
        assert (await front.call(replace(site, node_header="none"))).status_code == 401
        assert front.upstream.received == []
        assert (await front.call(other)).status_code == 200

    behind_gateway(pki, site, scenario)


def test_a_revoked_a_replaced_and_a_role_certificate_are_refused(
    pki: Path, site: SiteKeys, tmp_path: Path
) -> None:
    role = replace(site, certificate=pki / "coordinator.crt", key=pki / "coordinator.key")
    older = make_site("st-anna", issuer=pki, folder=tmp_path)

    async def scenario(front: Front) -> None:
        assert (await front.call(role)).status_code == 401
        assert (await front.call(replace(older, node_header=site.node_header))).status_code == 401
        del front.members["st-anna"]
        assert (await front.call(site)).status_code == 401
        assert front.upstream.received == []

    behind_gateway(pki, site, scenario)


def test_revocation_holds_on_a_connection_that_is_open(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        async with front.client(site) as client:
            headers = {NODE_KEY_HEADER: site.node_header}
            assert (await client.post(FLEET, headers=headers)).status_code == 200
            del front.members["st-anna"]
            assert (await client.post(FLEET, headers=headers)).status_code == 401

    behind_gateway(pki, site, scenario)


def test_a_node_that_flower_does_not_know_yet_is_told_to_try_again(
    pki: Path, site: SiteKeys
) -> None:
    async def scenario(front: Front) -> None:
        front.members["st-anna"] = replace(site.member(), is_registered=False)
        assert (await front.call(site)).status_code == 503
        assert front.upstream.received == []

    behind_gateway(pki, site, scenario)


def test_a_body_up_to_the_limit_passes_and_a_longer_one_is_refused(
    pki: Path, site: SiteKeys
) -> None:
    async def scenario(front: Front) -> None:
        assert (await front.call(site, body=bytes(MAX_BODY_BYTES))).status_code == 200
        assert (await front.call(site, body=bytes(MAX_BODY_BYTES + 1))).status_code == 413
        assert len(front.upstream.received) == 1

    behind_gateway(pki, site, scenario)


def test_an_oversized_header_is_refused(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        async with front.client(site) as client:
            answers = [
                await client.post(
                    FLEET, headers={NODE_KEY_HEADER: site.node_header, "flwr-x": "a" * size}
                )
                for size in (20_000, 500_000)
            ]
        assert {answer.status_code for answer in answers} <= {400, 431}
        assert front.upstream.received == []

    behind_gateway(pki, site, scenario)


def test_a_superlink_that_fails_is_answered_with_try_again_and_never_with_500(
    pki: Path, site: SiteKeys
) -> None:
    async def scenario(front: Front) -> None:
        front.upstream.status = 500
        assert (await front.call(site)).status_code == 503

    behind_gateway(pki, site, scenario)


def test_other_refusals_of_the_superlink_are_passed_on(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        front.upstream.status = 403
        assert (await front.call(site)).status_code == 403

    behind_gateway(pki, site, scenario)


def test_a_superlink_that_restarts_is_waited_for(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        await front.upstream_server.stop()
        waiting = asyncio.create_task(front.call(site, body=b"patient"))
        await asyncio.sleep(0.5)
        front.upstream_server = front.upstream.server(pki, front.upstream_port)
        await front.upstream_server.start()
        answer = await waiting
        assert (answer.status_code, answer.content) == (200, b"reply:patient")

    behind_gateway(pki, site, scenario)


def test_a_superlink_that_stays_away_is_answered_with_try_again(
    pki: Path, site: SiteKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "UPSTREAM_SECONDS", 0.6)

    async def scenario(front: Front) -> None:
        await front.upstream_server.stop()
        assert (await front.call(site)).status_code == 503

    behind_gateway(pki, site, scenario)


def test_a_failure_inside_the_gateway_is_answered_with_try_again(pki: Path, site: SiteKeys) -> None:
    async def scenario(front: Front) -> None:
        front.members["st-anna"] = replace(site.member(), node_key=None)  # type: ignore[arg-type]
        assert (await front.call(site)).status_code == 503

    behind_gateway(pki, site, scenario)


def test_node_keys_are_compared_by_their_numbers(site: SiteKeys) -> None:
    assert same_node_key(site.node_header, site.node_line)
    assert same_node_key(site.node_header, site.node_line + " comment")
    assert not same_node_key(site.node_header, "ecdsa-sha2-nistp384 AAAA")
    assert not same_node_key("", site.node_line)
