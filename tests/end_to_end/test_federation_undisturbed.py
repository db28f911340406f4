"""A federation of real processes that nobody disturbs: it computes what the rehearsal computes, and strangers get nothing."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node

from coordinator.config import load_config
from coordinator.enrolment.authority import create_authority
from participant.identity import load_node_key, open_home
from sims.federation import RealFederation
from sims.rehearsal import rehearse
from sims.scenario import Scenario
from tests.coordinator.gateway_rig import make_site
from tests.end_to_end.federation_rig import (
    NO_DP,
    PATIENCE_SECONDS,
    Enrolled,
    committed_models,
    timing,
    tiny_heart,
)

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(900)]

SCHEMES = ("plain", "mask")
INSIDE = (
    "/v1/control/register-node",
    "/v1/control/start-run",
    "/v1/control/list-runs",
    "/v1/runtime/acquire-task",
    "/v1/runtime/pull-task-input",
)
FLEET = ("/v1/fleet/activate-node", "/v1/fleet/pull-messages", "/v1/fleet/push-messages")


def scenario_with(scheme: str) -> Scenario:
    return tiny_heart(
        hospitals=("cleveland", "hungarian", "va"),
        secure_sum={"scheme": scheme},
        timing=timing(silence_seconds=PATIENCE_SECONDS),
        **NO_DP,
    )


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    with RealFederation(tmp_path_factory.mktemp("undisturbed"), scenario_with("plain")) as running:
        yield running


@pytest.mark.parametrize("scheme", SCHEMES)
def test_real_processes_and_the_rehearsal_make_the_same_models(
    federation: RealFederation, tmp_path: Path, scheme: str
) -> None:
    scenario = scenario_with(scheme)
    run_id = federation.request(scheme, spec=scenario.spec)

    real = federation.wait(run_id, timeout_seconds=400)
    rehearsed = rehearse(scenario, tmp_path / "rehearsal")

    assert [a.cohort for a in real.attempts] == [tuple(scenario.train)] * scenario.spec.rounds
    assert len(set(committed_models(real).values())) == scenario.spec.rounds + 1
    assert committed_models(real) == committed_models(rehearsed)


@pytest.fixture
def gateway(federation: RealFederation) -> str:
    config = load_config(federation.coordinator_home)
    return f"{config.public_host}:{config.gateway_port}"


@pytest.fixture
def exchange(federation: RealFederation) -> str:
    config = load_config(federation.coordinator_home)
    return f"{config.public_host}:{config.exchange_port}"


@pytest.fixture
def root(federation: RealFederation) -> Path:
    return federation.coordinator_home.pki / "ca.crt"


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Path]:
    """Certificate and key of a site that another authority made, under the name of a member."""
    create_authority(tmp_path / "foreign", hosts=("127.0.0.1",))
    site = make_site("va", issuer=tmp_path / "foreign", folder=tmp_path / "site")
    return site.certificate, site.key


@pytest.fixture
def unharmed(federation: RealFederation) -> Iterator[None]:
    """Members, runs and rounds are the same after the test."""
    with federation.ledger() as ledger:
        before = ledger.sites.members(), ledger.histories()
        yield
        assert (ledger.sites.members(), ledger.histories()) == before


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", INSIDE + FLEET)
def test_a_stranger_does_not_get_past_the_tls_of_the_gateway(
    gateway: str, root: Path, foreign: tuple[Path, Path], path: str
) -> None:
    with_root_alone = ssl.create_default_context(cafile=str(root))
    with_foreign_certificate = ssl.create_default_context(cafile=str(root))
    with_foreign_certificate.load_cert_chain(*foreign)

    for trust in (with_root_alone, with_foreign_certificate):
        with (
            httpx.Client(verify=trust, trust_env=False, timeout=30) as client,
            pytest.raises(httpx.TransportError),
        ):
            client.post(f"https://{gateway}{path}")


@pytest.mark.usefixtures("unharmed")
def test_a_stranger_does_not_get_past_the_tls_of_the_exchange(
    exchange: str, root: Path, foreign: tuple[Path, Path]
) -> None:
    certificate, key = foreign
    with_root_alone = grpc.ssl_channel_credentials(root.read_bytes())
    with_foreign_certificate = grpc.ssl_channel_credentials(
        root.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )

    for credentials in (with_root_alone, with_foreign_certificate):
        with (
            grpc.secure_channel(exchange, credentials) as channel,
            pytest.raises(grpc.FutureTimeoutError),
        ):
            grpc.channel_ready_future(channel).result(timeout=3)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", INSIDE)
def test_what_lies_inside_is_not_found_by_a_member_either(
    federation: RealFederation, path: str
) -> None:
    assert Enrolled(federation, "va").call(path).status_code == 404


@pytest.mark.usefixtures("unharmed")
def test_a_member_cannot_act_for_another_ones_node(federation: RealFederation) -> None:
    member, other = Enrolled(federation, "va"), Enrolled(federation, "cleveland")
    node = Node(node_id=other.node_id())
    beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=30).SerializeToString()
    calls = {
        "/v1/fleet/send-node-heartbeat": beat,
        "/v1/fleet/pull-messages": PullMessagesRequest(node=node).SerializeToString(),
        "/v1/fleet/deactivate-node": DeactivateNodeRequest(
            node_id=other.node_id()
        ).SerializeToString(),
    }
    stolen = load_node_key(open_home(federation.folder / "cleveland"))

    with_own_key = {member.call(path, c).status_code for path, c in calls.items()}
    with_stolen_key = {
        member.call(path, c, node_key=stolen).status_code for path, c in calls.items()
    }

    assert with_own_key == {401}
    assert with_stolen_key == {401}
    assert other.call("/v1/fleet/send-node-heartbeat", beat).status_code == 200
