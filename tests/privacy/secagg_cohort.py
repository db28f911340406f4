"""A whole secure sum whose legs a test plays one by one, looking at and changing what goes over the wire."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.secagg.envelopes import SIGNATURE_BYTES, Scope, scope_of, signature
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.messages import FRAME_HEADER, decode_sites, encode_sites, frames_of, split
from privacy.secagg.plan import Scheme, SumPlan, sum_threshold
from privacy.secagg.protocol import LEGS, SumContext
from privacy.secagg.secure_sum import MemoryJournal, answer_of, coordinator_part, site_part
from privacy.secagg.site import ASKED
from tests.privacy.paillier_keys import STORED

IDENTITIES = {f"site-{number}": Ed25519PrivateKey.generate() for number in range(64)}
KEY_HOLDER = "site-1"
HEAD = SIGNATURE_BYTES + FRAME_HEADER.size
"""Bytes before the part in a frame that a site sends."""


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


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to protect a sum."""

    scheme: Scheme
    needs_all: bool = False
    """Whether no site may drop out: all of them together open the sum."""
    takes_seconds: bool = False
    """For one sum of a few coordinates; nothing large is summed with it in these tests."""

    def threshold(self, count: int) -> int:
        """Shares that open a sum of so many sites; `plain` waits for as many sites as `mask`."""
        if self.needs_all:
            return count
        return sum_threshold("mask" if self.scheme == "plain" else self.scheme, count)


KINDS: dict[str, Kind] = {
    "mask": Kind(scheme="mask"),
    "ckks-3-of-5": Kind(scheme="ckks"),
    "ckks-5-of-5": Kind(scheme="ckks", needs_all=True),
    "ckks-light": Kind(scheme="ckks-light"),
    "paillier": Kind(scheme="paillier", takes_seconds=True),
    "plain": Kind(scheme="plain"),
}
"""What the contract tests run; thresholds are told of five sites."""
FRAGILE_KINDS = [name for name, kind in KINDS.items() if kind.needs_all]
ROBUST_KINDS = [name for name, kind in KINDS.items() if not kind.needs_all]
BOXED_KINDS = [name for name in ROBUST_KINDS if name != "plain"]
"""Where sites deal something to each other."""
BULK_KINDS = [name for name in ROBUST_KINDS if not KINDS[name].takes_seconds]


def crossed(kinds: Iterable[str], values: Iterable[Any]) -> list[tuple[str, Any]]:
    """Every kind with every value, but for kinds that take seconds: those with the first one only."""
    return [
        (kind, value)
        for kind in kinds
        for value in (list(values)[:1] if KINDS[kind].takes_seconds else values)
    ]


def plan_of(kind: str, *, count: int = 5, **changes: Any) -> SumPlan:
    """A plan for so many sites, with the threshold that a coordinator asks for."""
    scheme = KINDS[kind].scheme
    facts: dict[str, Any] = {
        "scheme": scheme,
        "max_sites": count,
        "quorum": min(3, count),
        "threshold": KINDS[kind].threshold(count),
    }
    if scheme == "paillier":
        facts |= {"key_holder": KEY_HOLDER, "obfuscation": "subgroup"}
    return make_plan(**(facts | changes))


def key_stores_of(plan: SumPlan, sites: Iterable[str]) -> dict[str, MemoryKeyStore]:
    """What every site keeps; a Paillier key is not made anew."""
    return {
        site: MemoryKeyStore(STORED["subgroup-3072"] if site == plan.key_holder else None)
        for site in sites
    }


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


def frame_of(index: int, total: int, part: bytes) -> bytes:
    """One frame, without a signature."""
    return FRAME_HEADER.pack(index, total) + part


def framed(message: bytes) -> list[bytes]:
    """A message of the coordinator, in frames."""
    return list(frames_of(split(message)))


def joined(frames: list[bytes]) -> bytes:
    """What the frames of the coordinator hold."""
    return b"".join(frame[FRAME_HEADER.size :] for frame in frames)


def names(*sites: str) -> list[bytes]:
    """A survivor set as the coordinator sends it."""
    return framed(encode_sites(dict.fromkeys(sites, b"")))


def signatures(confirmations: dict[str, bytes], asked: Iterable[str] | None = None) -> list[bytes]:
    """Signed confirmations as the coordinator hands them out in `release`."""
    asked = confirmations if asked is None else asked
    return framed(
        encode_sites(
            {
                site: (ASKED if site in asked else b"\0") + message
                for site, message in confirmations.items()
            }
        )
    )


def on_grid(plan: SumPlan, generator: np.random.Generator) -> np.ndarray:
    """Values that are encoded exactly: whole steps, from end to end of the range."""
    limit = plan.encoding.limit
    return generator.integers(-limit, limit + 1, plan.dimension) / plan.encoding.scale


def hellos_of(cohort: "Cohort") -> dict[str, bytes]:
    """Every site's hello, before any was delivered."""
    return {site: cohort.answer("hello", site)[0] for site in cohort.sites}


class Cohort:
    """Five sites and a coordinator."""

    def __init__(self, plan=None, *, context=None, count=5, values=None):
        self.plan = plan or make_plan()
        self.context = context or make_context()
        self.sites = tuple(sorted(list(IDENTITIES)[:count]))
        self.keys = public_keys(self.sites)
        generator = np.random.default_rng(1)
        self.values = values or {site: on_grid(self.plan, generator) for site in self.sites}
        self.journals = {site: MemoryJournal() for site in self.sites}
        self.key_stores = key_stores_of(self.plan, self.sites)
        self.coordinator = coordinator_part(self.plan, context=self.context, keys=self.keys)
        self.parts = {site: self.new_part(site) for site in self.sites}
        self.inbox: dict[str, list[bytes]] = {site: [] for site in self.sites}
        self.received: list[tuple[str, str, bytes]] = []
        self.told: list[tuple[str, str, list[bytes]]] = []

    def new_part(self, site):
        return site_part(
            self.plan,
            site=site,
            context=self.context,
            identity=IDENTITIES[site],
            keys=self.keys,
            journal=self.journals[site],
            key_store=self.key_stores[site],
        )

    def next_attempt(self, *, attempt=2, count=None):
        """The first `count` of the same sites in another attempt, with what they keep."""
        count = count or len(self.sites)
        after = Cohort(self.plan, context=make_context(attempt=attempt), count=count)
        after.journals, after.key_stores = self.journals, self.key_stores
        after.parts = {site: after.new_part(site) for site in after.sites}
        return after

    def restart(self, site):
        """The site's process ends and begins anew, with what it keeps."""
        self.parts[site] = self.new_part(site)
        return self

    def answer(self, leg, site, frames=None):
        """What the site sends in the leg, having been told `frames` (default: what the coordinator says)."""
        frames = self.inbox[site] if frames is None else frames
        self.told.append((leg, site, frames))
        return list(answer_of(self.parts[site], leg, iter(frames), self.values[site]))

    def deliver(self, leg, site, messages):
        for message in messages:
            self.received.append((leg, site, message))
            self.coordinator.absorb(leg, site, message)

    def deliver_signed(self, leg, site, body):
        """Deliver what the site signs, whatever it is, in as many frames as it takes."""
        parts = split(body)
        for index, part in enumerate(parts):
            frame = self.sign(leg, site, part, index=index, total=len(parts))
            self.deliver(leg, site, [frame])

    def close(self, leg):
        """Close the leg; every site's frames of the next one."""
        messages = self.coordinator.close_leg(leg)
        self.inbox = {site: list(frames) for site, frames in messages.items()}
        return self

    def play(self, leg, silent=()):
        """Everybody but the silent plays the leg; then it is closed."""
        for site in [site for site in self.inbox if site not in silent]:
            self.deliver(leg, site, self.answer(leg, site))
        self.close(leg)
        if leg == "hello":
            self.roster = joined(next(iter(self.inbox.values())))
        return self

    def play_before(self, leg, drop=None):
        """All legs before this one; `drop` names, per leg, who falls silent."""
        for earlier in LEGS[: LEGS.index(leg)]:
            self.play(earlier, silent=(drop or {}).get(earlier, ()))
        return self

    def play_release(self, silent=()):
        """The last leg, as often as the scheme asks for it."""
        self.play("release", silent=silent)
        while self.inbox:
            self.play("release")
        return self

    def play_on(self, leg):
        """This leg, by those who have not delivered yet, and all that follow."""
        for later in LEGS[LEGS.index(leg) : -1]:
            self.play(later)
        self.play_release()
        return self.coordinator.result()

    def play_all(self, drop=None):
        """All legs."""
        drop = drop or {}
        self.play_before("release", drop).play_release(drop.get("release", ()))
        return self.coordinator.result()

    def exact_sum(self, sites):
        """The integers that must come out, of values on the grid."""
        encoded = [np.rint(self.values[site] * self.plan.encoding.scale) for site in sites]
        return np.sum(encoded, axis=0).astype(np.int64)

    def scope(self, *, with_roster: bool) -> Scope:
        """What signatures are bound to."""
        scope = scope_of(self.plan, self.context)
        return scope.with_roster(self.roster) if with_roster else scope

    def sign(self, leg, site, body, *, signer=None, index=0, total=1):
        """A frame around the part that the site could have signed, or that `signer` signs in its name."""
        return self.sign_frame(leg, site, frame_of(index, total, body), signer=signer)

    def sign_frame(self, leg, site, frame, *, signer=None):
        """The frame, or what is none, with the signature of the site or of `signer` in its name."""
        scope = self.scope(with_roster=leg != "hello")
        identity = IDENTITIES[signer or site]
        return signature(frame, leg=leg, site=site, scope=scope, identity=identity) + frame

    def boxes(self, site):
        """What was dealt to the site."""
        return decode_sites(joined(self.inbox[site]), leg="seal", sender="coordinator")
