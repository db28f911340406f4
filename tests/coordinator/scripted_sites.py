"""Sites of a secure sum whose every step a test decides, on the real in-memory exchange with the real protocol."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.wire.channel import COORDINATOR, Channel, SessionSpec, SessionTicket
from coordinator.wire.connect import open_channel
from coordinator.wire.memory_channel import start_relay
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS, SitePart, SumContext
from privacy.secagg.secure_sum import MemoryJournal, site_part

WAIT_SECONDS = 10.0
SESSION = "small/1/1"
CONTEXT = SumContext(run_id="small", round=1, attempt=1, plan_digest=bytes(32), model="m")


class ScriptedSite:
    """One site: it does what it is told, leg by leg."""

    def __init__(self, name: str, channel: Channel, part: SitePart, values: np.ndarray) -> None:
        self.name, self.channel, self.values = name, channel, values
        self._part = part

    def send(self, kind: str, payload: bytes) -> None:
        self.channel.send(to=COORDINATOR, kind=kind, payload=payload)

    def play(self, leg: str) -> None:
        """Waits for what the leg needs and answers it."""
        for answer in self.answers(leg):
            self.send(leg, answer)

    def answers(self, leg: str) -> list[bytes]:
        """What the site would send in the leg."""
        if leg == "hello":
            return [self._part.hello()]
        frame = self.channel.receive(timeout_seconds=WAIT_SECONDS)
        assert frame.kind == leg
        if leg == "seal":
            return list(self._part.seal(frame.payload, self.values))
        return [getattr(self._part, leg)(frame.payload)]


class SumSession:
    """One open session of a cohort, with a seat for everybody."""

    def __init__(self, address: str, names: tuple[str, ...], plan: SumPlan) -> None:
        self.address, self.names, self.plan = address, names, plan
        self.identities = {name: Ed25519PrivateKey.generate() for name in names}
        self.keys = {
            name: identity.public_key().public_bytes_raw()
            for name, identity in self.identities.items()
        }
        generator = np.random.default_rng(3)
        self.values = {name: generator.uniform(-1, 1, plan.dimension) for name in names}

    def seat(self, name: str) -> Channel:
        ticket = SessionTicket(session_id=SESSION, endpoint=name, ticket=ticket_of(name))
        return open_channel(self.address, session=ticket, credentials=None)

    def site(self, name: str) -> ScriptedSite:
        part = site_part(
            self.plan,
            site=name,
            context=CONTEXT,
            identity=self.identities[name],
            keys=self.keys,
            journal=MemoryJournal(),
        )
        return ScriptedSite(name, self.seat(name), part, self.values[name])


def ticket_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@contextmanager
def sum_session(
    relay_name: str,
    *,
    names: tuple[str, ...],
    plan: SumPlan,
    models: Path,
    silence_seconds: float = 30.0,
) -> Iterator[SumSession]:
    """A relay with one session for these sites, the coordinator and a bystander."""
    endpoints = (*names, COORDINATOR, "bystander")
    with start_relay(relay_name, models=models) as relay:
        relay.open_session(
            SessionSpec(
                session_id=SESSION,
                tickets={name: hashlib.sha256(ticket_of(name)).digest() for name in endpoints},
                silence_seconds=silence_seconds,
                deadline_seconds=60.0,
            )
        )
        yield SumSession(f"memory:{relay_name}", names, plan)


def play_all(sites: Sequence[ScriptedSite], legs: Sequence[str] = LEGS) -> None:
    """Everybody plays these legs in step."""
    for leg in legs:
        for site in sites:
            site.play(leg)
