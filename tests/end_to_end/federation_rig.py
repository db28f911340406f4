"""A small federation of real processes whose sites can be told to die or to wait in a chosen leg of a secure sum."""

import contextlib
import datetime
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import DeactivateNodeRequest

from coordinator.config import load_config
from coordinator.ledger.records import RunHistory
from coordinator.ledger.states import ParticipationState
from participant.health import read_status
from participant.identity import load_node_key, open_home
from participant.link import site_tls
from sims.federation import RealFederation
from sims.scenario import Scenario, load_scenario
from tests.end_to_end.watched_site import NOTES, ORDERS

AGENT = Path(__file__).with_name("watched_agent.py")
SITES = ("cleveland", "hungarian", "switzerland", "va")
PATIENCE_SECONDS = 180.0
"""For anything that must happen sooner or later: machines that run tests may be slow."""
TINY_MODEL = {
    "width": 8,
    "layers": 1,
    "heads": 2,
    "kv_heads": 2,
    "experts": 2,
    "top_k": 1,
    "expert_width": 8,
}
TINY: dict[str, Any] = {
    "tier": None,
    "model": TINY_MODEL,
    "rounds": 2,
    "training": {"local_steps": 1},
}
NO_DP: dict[str, Any] = {"privacy": {"mechanism": "none"}, "seed": 7}


def timing(*, silence_seconds: float) -> dict[str, float]:
    """Waits of a run; only a site's silence is meant to be waited for."""
    return {
        "join_seconds": PATIENCE_SECONDS,
        "round_seconds": PATIENCE_SECONDS,
        "silence_seconds": silence_seconds,
        "online_seconds": PATIENCE_SECONDS,
    }


def tiny_heart(*, hospitals: Sequence[str] = SITES, **changes: Any) -> Scenario:
    """The heart scenario with these hospitals, three at least, and a model of a few thousand weights."""
    sites = {"sites": len(hospitals)}
    scenario = load_scenario("heart", split_seed=0, **{**TINY, **sites, **changes})
    tables = {site: scenario.train[site] for site in hospitals}
    return replace(scenario, train=tables)


def until(what: str, condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """The condition's answer as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


@dataclass(frozen=True, kw_only=True)
class LegNote:
    """A site entered a leg."""

    run: str
    round: int
    attempt: int
    leg: str
    order: str

    @property
    def where(self) -> tuple[int, int]:
        """Round and attempt."""
        return self.round, self.attempt


class Enrolled:
    """What can be done at the gateway with the keys of a site that has joined."""

    def __init__(self, federation: RealFederation, site: str) -> None:
        self._federation = federation
        self._site = site
        self._files = open_home(federation.folder / site)

    def node_id(self) -> int:
        """Flower's number for the site's node."""
        with self._federation.ledger() as ledger:
            member = ledger.sites.get(self._site)
        assert member is not None
        assert member.flower_node_id is not None
        return member.flower_node_id

    def call(
        self,
        path: str,
        content: bytes = b"",
        *,
        node_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> httpx.Response:
        """A call with the site's certificate, signed as a SuperNode signs it, with its node key or another one."""
        key = node_key or load_node_key(self._files)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signature = key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
        headers = {
            "flwr-public-key": b64encode(public).decode(),
            "flwr-timestamp": now,
            "flwr-signature": b64encode(signature).decode(),
            "content-type": "application/protobuf",
            "accept": "application/protobuf",
        }
        config = load_config(self._federation.coordinator_home)
        url = f"https://{config.public_host}:{config.gateway_port}{path}"
        with httpx.Client(verify=site_tls(self._files), trust_env=False, timeout=40) as client:
            return client.post(url, content=content, headers=headers)


class WatchedFederation(RealFederation):
    """A real federation whose sites note the legs that they enter and obey orders."""

    def start_site(self, site: str) -> None:
        self._spawn(site, "python", str(AGENT), str(self.folder / site))

    def order(self, site: str, leg: str, word: str, *, from_round: int = 1) -> None:
        """The site will "die" or "hold" the next time that it enters the leg, in that round or later."""
        orders = self.folder / site / ORDERS
        orders.mkdir(exist_ok=True)
        (orders / "new").write_text(f"{word} {from_round}")
        (orders / "new").replace(orders / leg)  # never half an order

    def withdraw(self, site: str, leg: str) -> None:
        """An order is void; a site that holds goes on."""
        (self.folder / site / ORDERS / leg).unlink()

    def notes(self, site: str, run_id: str) -> list[LegNote]:
        """The legs of a run that the site has entered, in order."""
        path = self.folder / site / NOTES
        lines = path.read_text().splitlines() if path.exists() else []
        notes = [LegNote(**json.loads(line)) for line in lines]
        return [note for note in notes if note.run == run_id]

    def wait_for_order(self, site: str, run_id: str, leg: str, word: str) -> LegNote:
        """The note of the first time that the order was executed in the run."""

        def found() -> list[LegNote]:
            return [n for n in self.notes(site, run_id) if (n.leg, n.order) == (leg, word)]

        first: LegNote = until(f"{site}: {word} in {leg}", found)[0]
        return first

    def wait_online(self, *sites: str) -> None:
        """Returns when the sites' agents say that the coordinator has taken them in."""
        for site in sites:
            until(f"{site} online", partial(self._is_online, site))

    def wait_dead(self, site: str) -> None:
        """Returns when the site's agent has ended, by whatever hand."""
        until(f"{site} dead", lambda: self.processes[site].poll() is not None)

    def bring_back(self, *sites: str) -> None:
        """Starts sites that were killed.

        Flower takes a killed node for online until 60 s after its last heartbeat, and refuses it so long. Its
        signing-off, which a kill prevented, is made up for here, so that a test need not wait.
        """
        for site in sites:
            self.wait_dead(site)
        for site in sites:
            member = Enrolled(self, site)
            request = DeactivateNodeRequest(node_id=member.node_id())
            # Refused where it is offline already.
            member.call("/v1/fleet/deactivate-node", request.SerializeToString())
        for site in sites:
            self.start_site(site)

    def descendants(self, name: str) -> list[psutil.Process]:
        """The processes that a site's agent or the coordinator has started, and what those have started."""
        return list(psutil.Process(self.processes[name].pid).children(recursive=True))

    def _is_online(self, site: str) -> bool:
        status = read_status(self.folder / site / "run.json")
        return (
            status is not None
            and status.pid == self.processes[site].pid
            and status.node == "online"
        )


def find_process(processes: list[psutil.Process], program: str) -> psutil.Process:
    """The youngest process that runs a program of that name: not its leash, which was there before it."""
    named = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(Path(word).name == program for word in process.cmdline()[:2]):
                named.append(process)
    assert named, f"no {program} among {processes}"
    return max(named, key=psutil.Process.create_time)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def states(history: RunHistory, round_number: int, attempt: int) -> dict[str, ParticipationState]:
    """What the ledger says of every site in an attempt."""
    return {
        row.participation.site: row.participation.state
        for row in history.participations
        if (row.round, row.attempt) == (round_number, attempt)
    }


def details(history: RunHistory, round_number: int, attempt: int) -> dict[str, str]:
    """Why, in words."""
    return {
        row.participation.site: row.participation.detail
        for row in history.participations
        if (row.round, row.attempt) == (round_number, attempt)
    }


def counted(history: RunHistory, round_number: int, attempt: int) -> tuple[str, ...]:
    """The sites whose contribution is in the committed model, by the ledger."""
    found = states(history, round_number, attempt)
    return tuple(s for s, state in found.items() if state is ParticipationState.COUNTED)


def committed_models(history: RunHistory) -> dict[int, str]:
    """Round -> hash of the model that it committed; round 0 is the start."""
    return {model.round: model.sha256 for model in history.models}


@contextlib.contextmanager
def frozen(processes: list[psutil.Process]) -> Iterator[None]:
    """The processes do nothing at all while the block runs."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()
