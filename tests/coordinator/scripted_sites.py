"""Sites of a secure sum whose every step a test decides, on the real in-memory exchange with the real protocol."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.summation import GroupPart
from coordinator.wire.channel import COORDINATOR, Channel, SessionSpec, SessionTicket
from coordinator.wire.connect import open_channel
from coordinator.wire.memory_channel import start_relay
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS, SitePart, SumContext
from privacy.secagg.secure_sum import MemoryJournal, answer_of, coordinator_part, site_part

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
        return list(answer_of(self._part, leg, self._frames(leg), self.values))

    def _frames(self, leg: str) -> Iterator[bytes]:
        while True:
            frame = self.channel.receive(timeout_seconds=WAIT_SECONDS)
            assert frame.kind == leg
            yield frame.payload


class SumSession:
    """One open session of a cohort, with a seat for everybody, and a sum for each of its groups."""

    def __init__(self, address: str, groups: tuple[tuple[str, ...], ...], plan: SumPlan) -> None:
        self.address, self.groups, self.plan = address, groups, plan
        names = [name for group in groups for name in group]
        self.identities = {name: Ed25519PrivateKey.generate() for name in names}
        self.journals = {name: MemoryJournal() for name in names}
        generator = np.random.default_rng(3)
        self.values = {name: generator.uniform(-1, 1, plan.dimension) for name in names}

    def seat(self, name: str) -> Channel:
        ticket = SessionTicket(session_id=SESSION, endpoint=name, ticket=ticket_of(name))
        return open_channel(self.address, session=ticket, credentials=None)

    def keys(self, group: int) -> dict[str, bytes]:
        return {
            name: self.identities[name].public_key().public_bytes_raw()
            for name in self.groups[group]
        }

    def part(self, group: int) -> GroupPart:
        """The coordinator's part in the group's sum."""
        part = coordinator_part(
            self.plan, context=replace(CONTEXT, group=group), keys=self.keys(group)
        )
        return GroupPart(sites=self.groups[group], part=part)

    def site(self, name: str) -> ScriptedSite:
        (group,) = [number for number, names in enumerate(self.groups) if name in names]
        part = site_part(
            self.plan,
            site=name,
            context=replace(CONTEXT, group=group),
            identity=self.identities[name],
            keys=self.keys(group),
            journal=self.journals[name],
            key_store=MemoryKeyStore(),
        )
        return ScriptedSite(name, self.seat(name), part, self.values[name])


def ticket_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@contextmanager
def sum_session(
    relay_name: str,
    *,
    groups: tuple[tuple[str, ...], ...],
    plan: SumPlan,
    models: Path,
    silence_seconds: float = 30.0,
) -> Iterator[SumSession]:
    """A relay with one session for these sites, the coordinator and a bystander."""
    endpoints = (*(name for group in groups for name in group), COORDINATOR, "bystander")
    with start_relay(relay_name, models=models) as relay:
        relay.open_session(
            SessionSpec(
                session_id=SESSION,
                tickets={name: hashlib.sha256(ticket_of(name)).digest() for name in endpoints},
                silence_seconds=silence_seconds,
                deadline_seconds=60.0,
            )
        )
        yield SumSession(f"memory:{relay_name}", groups, plan)


def play_all(sites: Sequence[ScriptedSite], legs: Sequence[str] = LEGS) -> None:
    """Everybody plays these legs in step."""
    for leg in legs:
        for site in sites:
            site.play(leg)
