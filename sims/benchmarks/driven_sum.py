"""A secure sum of the product's own parts, driven leg by leg, with the processor time and the bytes of every step.

Everybody is in this process, as in `privacy.secagg.secure_sum.run_secure_sum`; what travels is made and checked as it is
between machines. Sites that do the same work are observed together, and the least time of any
of them counts; the coordinator's is counted whole.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg.key_store import KeyStore, MemoryKeyStore
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import COORDINATOR, LEGS, SitePart, SumContext, SumResult
from privacy.secagg.secure_sum import MemoryJournal, answer_of, coordinator_part, site_part


@dataclass(frozen=True, kw_only=True)
class DrivenSum:
    """What one sum took."""

    result: SumResult
    site_seconds: Mapping[str, float]
    """Leg -> least processor time of any observed site."""
    site_bytes: Mapping[str, int]
    """Leg -> most bytes that any site sent, signatures and headers included."""
    absorb_seconds: Mapping[str, float]
    """Leg -> processor time of the coordinator for what all sites sent."""
    close_seconds: Mapping[str, float]
    """Leg -> processor time of the coordinator to end it; for `release`, to open the sum."""


@dataclass
class _Meter:
    """Adds up the time of steps by leg and party."""

    seconds: dict[str, dict[str, float]] = field(default_factory=lambda: {leg: {} for leg in LEGS})

    def since(self, started: float, leg: str, party: str) -> None:
        """Count what has passed since then."""
        passed = time.process_time() - started
        self.seconds[leg][party] = self.seconds[leg].get(party, 0.0) + passed

    def least(self, parties: Sequence[str]) -> dict[str, float]:
        """Leg -> time of the party that took least, of these."""
        return {leg: min(found[party] for party in parties) for leg, found in self.seconds.items()}

    def total(self) -> dict[str, float]:
        """Leg -> time of all parties."""
        return {leg: sum(found.values()) for leg, found in self.seconds.items()}


def site_names(count: int) -> tuple[str, ...]:
    """Names in rising order."""
    return tuple(f"site-{number:03d}" for number in range(count))


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Sites with fresh identities, and a sum that never was before."""

    context: SumContext
    identities: Mapping[str, Ed25519PrivateKey] = field(repr=False)
    keys: Mapping[str, bytes]
    """Raw public key of every site."""


def new_cohort(sites: Sequence[str]) -> Cohort:
    """Fresh identities for these sites."""
    identities = {site: Ed25519PrivateKey.generate() for site in sites}
    return Cohort(
        context=SumContext(
            run_id=secrets.token_hex(8),
            round=1,
            attempt=1,
            plan_digest=bytes(32),
            model="benchmark",
        ),
        identities=identities,
        keys={
            site: identity.public_key().public_bytes_raw() for site, identity in identities.items()
        },
    )


def site_parts(
    plan: SumPlan, cohort: Cohort, key_stores: Mapping[str, KeyStore] | None = None
) -> dict[str, SitePart]:
    """Every site's part in the cohort's sum."""
    return {
        site: site_part(
            plan,
            site=site,
            context=cohort.context,
            identity=identity,
            keys=cohort.keys,
            journal=MemoryJournal(),
            key_store=key_stores[site] if key_stores else MemoryKeyStore(),
        )
        for site, identity in cohort.identities.items()
    }


def drive_sum(
    plan: SumPlan,
    vectors: Mapping[str, NDArray[np.floating]],
    key_stores: Mapping[str, KeyStore] | None = None,
    observed: Sequence[str] | None = None,
) -> DrivenSum:
    """One sum of all vectors, from hello to release.

    Args:
        plan: what is summed and how.
        vectors: each site's contribution [dimension].
        key_stores: each site's, if its key was dealt in an earlier sum.
        observed: sites whose least time counts; all by default.
    """
    cohort = new_cohort(sorted(vectors))
    coordinator = coordinator_part(plan, context=cohort.context, keys=cohort.keys)
    parts = site_parts(plan, cohort, key_stores)
    working, absorbing, closing = _Meter(), _Meter(), _Meter()
    sent = dict.fromkeys(LEGS, 0)
    inbox: Mapping[str, Iterator[bytes]] = {site: iter(()) for site in parts}
    for leg in LEGS:
        while inbox:
            for site, frames in inbox.items():
                started = time.process_time()
                # What the coordinator relays is made while it is sent, on its own account.
                received = list(frames)
                closing.since(started, leg, site)
                started = time.process_time()
                answer = list(answer_of(parts[site], leg, iter(received), vectors[site]))
                working.since(started, leg, site)
                sent[leg] = max(sent[leg], sum(map(len, answer)))
                started = time.process_time()
                for frame in answer:
                    coordinator.absorb(leg, site, frame)
                absorbing.since(started, leg, site)
            started = time.process_time()
            inbox = coordinator.close_leg(leg)
            closing.since(started, leg, COORDINATOR)
            if leg != LEGS[-1]:
                break
    return DrivenSum(
        result=coordinator.result(),
        site_seconds=working.least(observed or tuple(parts)),
        site_bytes=sent,
        absorb_seconds=absorbing.total(),
        close_seconds=closing.total(),
    )
