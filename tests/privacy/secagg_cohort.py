"""A whole secure sum whose legs a test plays one by one, looking at and changing what goes over the wire."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.secagg.envelopes import Scope, scope_of, signature
from privacy.secagg.messages import decode_sites, encode_sites
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS, SumContext
from privacy.secagg.secure_sum import MemoryJournal, coordinator_part, site_part

IDENTITIES = {f"site-{number}": Ed25519PrivateKey.generate() for number in range(8)}


def make_plan(**changes: Any) -> SumPlan:
    facts: dict[str, Any] = {
        "scheme": "mask",
        "dimension": 10,
        "max_sites": 5,
        "quorum": 3,
        "threshold": 4,
        "value_range": 1.0,
    }
    return SumPlan(**(facts | changes))


def make_context(**changes: Any) -> SumContext:
    facts: dict[str, Any] = {
        "run_id": "run",
        "round": 3,
        "attempt": 1,
        "plan_digest": bytes(32),
        "model": "m",
    }
    return SumContext(**(facts | changes))


def public_keys(sites: Iterable[str]) -> dict[str, bytes]:
    return {site: IDENTITIES[site].public_key().public_bytes_raw() for site in sites}


def names(*sites: str) -> bytes:
    """A survivor set as the coordinator sends it."""
    return encode_sites(dict.fromkeys(sites, b""))


def hellos_of(cohort: "Cohort") -> dict[str, bytes]:
    """Every site's hello, before any was delivered."""
    return {site: cohort.answer("hello", site)[0] for site in cohort.sites}


class Cohort:
    """Five sites and a coordinator."""

    def __init__(self, plan=None, *, context=None, count=5, values=None):
        self.plan = plan or make_plan()
        self.context = context or make_context()
        self.sites = tuple(IDENTITIES)[:count]
        self.keys = public_keys(self.sites)
        generator = np.random.default_rng(1)
        self.values = values or {
            site: generator.uniform(-1.1, 1.1, self.plan.dimension) for site in self.sites
        }
        self.journals = {site: MemoryJournal() for site in self.sites}
        self.coordinator = coordinator_part(self.plan, context=self.context, keys=self.keys)
        self.parts = {site: self.new_part(site) for site in self.sites}
        self.inbox = dict.fromkeys(self.sites, b"")
        self.received: list[tuple[str, str, bytes]] = []
        self.told: list[tuple[str, str, bytes]] = []

    def new_part(self, site):
        return site_part(
            self.plan,
            site=site,
            context=self.context,
            identity=IDENTITIES[site],
            keys=self.keys,
            journal=self.journals[site],
        )

    def answer(self, leg, site, message=None):
        """What the site sends in the leg, having been told `message` (default: what the coordinator says)."""
        message = self.inbox[site] if message is None else message
        part = self.parts[site]
        self.told.append((leg, site, message))
        if leg == "hello":
            return [part.hello()]
        if leg == "seal":
            return list(part.seal(message, self.values[site]))
        return [getattr(part, leg)(message)]

    def deliver(self, leg, site, messages):
        for message in messages:
            self.received.append((leg, site, message))
            self.coordinator.absorb(leg, site, message)

    def play(self, leg, silent=()):
        """Everybody but the silent plays the leg; then it is closed."""
        for site in [site for site in self.inbox if site not in silent]:
            self.deliver(leg, site, self.answer(leg, site))
        self.inbox = self.coordinator.close_leg(leg)
        if leg == "hello":
            self.roster = next(iter(self.inbox.values()))
        return self

    def play_before(self, leg, drop=None):
        """All legs before this one; `drop` names, per leg, who falls silent."""
        for earlier in LEGS[: LEGS.index(leg)]:
            self.play(earlier, silent=(drop or {}).get(earlier, ()))
        return self

    def play_all(self, drop=None):
        """All legs."""
        for leg in LEGS:
            self.play(leg, silent=(drop or {}).get(leg, ()))
        return self.coordinator.result()

    def exact_sum(self, sites):
        """The integers that must come out."""
        encoded = [self.plan.encoding.encode(self.values[site]).view(np.int32) for site in sites]
        return np.sum(encoded, axis=0, dtype=np.int64)

    def scope(self, *, with_roster: bool) -> Scope:
        """What signatures are bound to."""
        scope = scope_of(self.plan, self.context)
        return scope.with_roster(self.roster) if with_roster else scope

    def sign(self, leg, site, body, *, signer=None):
        """A message that the site could have signed, or that `signer` signs in its name."""
        scope = self.scope(with_roster=leg != "hello")
        identity = IDENTITIES[signer or site]
        return signature(body, leg=leg, site=site, scope=scope, identity=identity) + body

    def boxes(self, site):
        """What was dealt to the site."""
        return decode_sites(self.inbox[site], leg="seal", sender="coordinator")
