"""`coordinator serve` as an operator runs it: real processes, real TLS, and nothing left behind."""

import contextlib
import datetime
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]
COORDINATOR = str(Path(sys.executable).with_name("coordinator"))
READY_SECONDS = 90
STOP_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """A serving coordinator: its process, its home, and what it said when it was ready."""

    process: subprocess.Popen[bytes]
    home: Path
    addresses: dict[str, Any]

    def stop(self) -> float:
        """Seconds from SIGTERM to the end, which must be a clean one."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_SECONDS) == 0
        return time.monotonic() - started


def command(*arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run([COORDINATOR, *arguments, "--json"], check=True, capture_output=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "coordinator-home"
    ports = [f"--{name}-port=0" for name in ("gateway", "exchange", "enrolment")]
    command("init", "--home", folder, *ports)
    yield folder
    for pid in processes_of(folder):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def serving(home: Path) -> Iterator[Coordinator]:
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [COORDINATOR, "serve", "--home", home, "--json"], stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (home / "serve.log").read_text()
        yield Coordinator(process=process, home=home, addresses=json.loads(line))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def processes_of(home: Path) -> list[int]:
    """Every process that mentions this home in its arguments or environment; ended ones do not count."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                mentions = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                if str(home).encode() in mentions:
                    found.append(int(folder.name))
    return found


def until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the awaited state did not come"
        time.sleep(0.1)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site enrolled by hand."""

    folder: Path
    gateway: str
    node_key: ec.EllipticCurvePrivateKey

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        context.load_cert_chain(self.folder / "site.crt", self.folder / "site.key")
        return context

    def post(
        self, path: str, content: bytes = b"", *, node_key: ec.EllipticCurvePrivateKey | None = None
    ) -> httpx.Response:
        """A fleet call signed as Flower's SuperNode signs it."""
        key = node_key or self.node_key
        now = datetime.datetime.now(datetime.UTC).isoformat()
        headers = {
            "flwr-public-key": b64encode(public_pem(key)).decode(),
            "flwr-timestamp": now,
            "flwr-signature": b64encode(key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
            "content-type": "application/protobuf",
            "accept": "application/protobuf",
        }
        with httpx.Client(verify=self.tls(), trust_env=False, timeout=40) as client:
            return client.post(f"https://{self.gateway}{path}", content=content, headers=headers)

    def activate(self, *, node_key: ec.EllipticCurvePrivateKey | None = None) -> httpx.Response:
        key = node_key or self.node_key
        request = ActivateNodeRequest(public_key=public_pem(key), heartbeat_interval=30)
        return self.post("/v1/fleet/activate-node", request.SerializeToString(), node_key=key)

    def beat(self, node_id: int) -> httpx.Response:
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=30)
        return self.post("/v1/fleet/send-node-heartbeat", request.SerializeToString())

    def node_id(self) -> int:
        """Flower's number for this site's node, once it is registered."""
        answer = until(lambda: (found := self.activate()).status_code != 503 and found, 60)
        assert answer.status_code == 200
        return int(ActivateNodeResponse.FromString(answer.content).node_id)


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def enrol(coordinator: Coordinator, folder: Path, name: str = "st-anna") -> Site:
    """What `participant join` does, step by step."""
    folder.mkdir()
    command("invite", name, "--out", folder / "invitation.json", "--home", coordinator.home)
    invitation = json.loads((folder / "invitation.json").read_text())
    (folder / "ca.crt").write_text(invitation["ca"])
    key, node_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    )
    shown = {
        "token": invitation["token"],
        "csr": request.public_bytes(serialization.Encoding.PEM).decode(),
        "signing_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
        "node_key": node_key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode(),
    }
    trust = ssl.create_default_context(cadata=invitation["ca"])
    answer = httpx.post(
        f"https://{invitation['enrol']}/v1/enrol", json=shown, verify=trust, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    (folder / "site.crt").write_text(answer.json()["certificate"])
    (folder / "site.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Site(folder=folder, gateway=answer.json()["gateway"], node_key=node_key)


def test_a_member_gets_its_fleet_calls_through_and_nothing_else(home: Path, tmp_path: Path) -> None:
    with serving(home) as coordinator:
        site = enrol(coordinator, tmp_path / "site")
        other = enrol(coordinator, tmp_path / "other", "charite")

        node_id, other_id = site.node_id(), other.node_id()

        members = {
            s["name"]: s["flower_node_id"] for s in command("sites", "--home", home)["sites"]
        }
        assert members == {"st-anna": node_id, "charite": other_id}
        assert site.beat(node_id).status_code == 200
        assert site.beat(other_id).status_code == 401
        assert site.activate(node_key=other.node_key).status_code == 401
        forbidden = [
            "/v1/control/register-node",
            "/v1/control/start-run",
            "/v1/control/list-runs",
            "/v1/runtime/acquire-task",
            "/v1/runtime/pull-task-input",
            "/v1/fleet/../control/start-run",
            "/health",
            "/docs",
        ]
        assert {site.post(path).status_code for path in forbidden} == {404}
        status = command("status", "--home", home)
        assert {s["name"]: s["online"] for s in status["sites"]}["st-anna"] is True
        command("revoke", "st-anna", "--home", home)
        assert site.activate().status_code == 401
        assert other.beat(other_id).status_code == 200


def test_a_stranger_with_only_the_root_certificate_can_do_nothing(home: Path) -> None:
    with serving(home) as coordinator:
        root = (home / "pki" / "ca.crt").read_text()
        trust = ssl.create_default_context(cadata=root)
        paths = [
            "control/register-node",
            "control/start-run",
            "runtime/acquire-task",
            "fleet/activate-node",
        ]

        for path in paths:
            with pytest.raises(httpx.TransportError):
                httpx.post(
                    f"https://{coordinator.addresses['gateway']}/v1/{path}",
                    verify=trust,
                    trust_env=False,
                )
            refused = httpx.post(
                f"https://{coordinator.addresses['enrolment']}/v1/{path}",
                verify=trust,
                trust_env=False,
            )
            assert refused.status_code == 404
        credentials = grpc.ssl_channel_credentials(root.encode())
        with (
            grpc.secure_channel(coordinator.addresses["exchange"], credentials) as channel,
            pytest.raises(grpc.FutureTimeoutError),
        ):
            grpc.channel_ready_future(channel).result(timeout=3)


def test_sigterm_ends_everything_within_ten_seconds(home: Path) -> None:
    with serving(home) as coordinator:
        until(lambda: len(processes_of(home)) >= 5, 30)  # itself, SuperLink, SuperExec, two leashes
        facts = json.loads((home / "serve.json").read_text())
        assert facts == coordinator.addresses
        assert (home / "serve.json").stat().st_mode & 0o777 == 0o600
        second = subprocess.run(
            [COORDINATOR, "serve", "--home", home], check=False, capture_output=True
        )
        assert second.returncode == 2
        assert b"being served" in second.stderr

        seconds = coordinator.stop()

    assert seconds < STOP_SECONDS
    assert processes_of(home) == []
    assert not (home / "serve.json").exists()


def test_sigkill_leaves_nothing_behind_and_the_home_can_be_served_again(
    home: Path, tmp_path: Path
) -> None:
    with serving(home) as coordinator:
        site = enrol(coordinator, tmp_path / "site")
        before = site.node_id()
        coordinator.process.kill()
        coordinator.process.wait()
        until(lambda: processes_of(home) == [], 5)

    with serving(home) as again:
        until(lambda: site.beat(before).status_code == 200, 30)
        again.stop()

    assert processes_of(home) == []


def test_a_superlink_that_is_killed_is_replaced_and_calls_wait_for_it(
    home: Path, tmp_path: Path
) -> None:
    with serving(home) as coordinator:
        site = enrol(coordinator, tmp_path / "site")
        before = site.node_id()
        port = coordinator.addresses["superlink"].rpartition(":")[2]
        superlink = [
            pid
            for pid in processes_of(home)
            if f"flower-superlink\0--host\x00127.0.0.1\0--port\0{port}"
            in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        os.kill(max(superlink), signal.SIGKILL)

        # One call, which the gateway holds until the new SuperLink answers.
        assert site.beat(before).status_code == 200
        coordinator.stop()


def test_a_port_that_is_taken_is_a_clear_error(home: Path, tmp_path: Path) -> None:
    with serving(home):
        twin = tmp_path / "twin"
        taken = json.loads((home / "serve.json").read_text())["gateway"].rpartition(":")[2]
        command(
            "init",
            "--home",
            twin,
            "--gateway-port",
            taken,
            "--exchange-port=0",
            "--enrolment-port=0",
        )

        failed = subprocess.run(
            [COORDINATOR, "serve", "--home", twin], check=False, capture_output=True
        )

        assert failed.returncode == 2
        assert f"127.0.0.1:{taken}".encode() in failed.stderr
        assert processes_of(twin) == []
