"""Start a part in a secure sum, or run a whole one in memory.

`run_secure_sum` is the protocol, executed in order by everybody at once. What a deployment adds is transport only.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.randomness import OsRandom, Random
from privacy.secagg.ckks import CkksCoordinator, CkksSite
from privacy.secagg.ckks_light import CkksLightCoordinator, CkksLightSite
from privacy.secagg.coordinator import Coordinator
from privacy.secagg.errors import SealedTwice
from privacy.secagg.key_store import KeyStore, MemoryKeyStore
from privacy.secagg.mask import MaskCoordinator, MaskSite
from privacy.secagg.paillier import PaillierSite
from privacy.secagg.paillier_coordinator import PaillierCoordinator
from privacy.secagg.plain import PlainCoordinator, PlainSite
from privacy.secagg.plan import Scheme, SumPlan
from privacy.secagg.protocol import (
    LEGS,
    CoordinatorPart,
    SealJournal,
    SitePart,
    SumContext,
    SumResult,
)
from privacy.secagg.schemes import CoordinatorScheme, SiteScheme
from privacy.secagg.site import Site

T = TypeVar("T")

SITE_SCHEMES: dict[Scheme, Callable[[SumPlan, str, KeyStore], SiteScheme]] = {
    "mask": lambda plan, site, _: MaskSite(plan, site),
    "ckks": CkksSite,
    "ckks-light": lambda plan, site, _: CkksLightSite(plan, site),
    "paillier": PaillierSite,
    "plain": lambda plan, *_: PlainSite(plan),
}
COORDINATOR_SCHEMES: dict[Scheme, Callable[[SumPlan, Path | None], CoordinatorScheme]] = {
    "mask": lambda plan, _: MaskCoordinator(plan),
    "ckks": lambda plan, _: CkksCoordinator(plan),
    "ckks-light": lambda plan, _: CkksLightCoordinator(plan),
    "paillier": PaillierCoordinator,
    "plain": lambda plan, _: PlainCoordinator(plan),
}


def site_part(
    plan: SumPlan,
    *,
    site: str,
    context: SumContext,
    identity: Ed25519PrivateKey,
    keys: Mapping[str, bytes],
    journal: SealJournal,
    key_store: KeyStore,
    rounding: Random | None = None,
) -> SitePart:
    """This site's part in one sum, with fresh secrets.

    Args:
        plan: the same at every party.
        site: this site's name.
        context: which sum this is.
        identity: signs whatever this site says.
        keys: raw Ed25519 public key of every site of the cohort, this one included, as pinned here.
        journal: remembers durably what was sealed.
        key_store: keeps what the scheme uses in more than one sum; one for each scheme.
        rounding: decides how fractions of a step are rounded; the operating system's randomness by default.

    Raises:
        ValueError: the plan is not safe for so many sites, or the keys are not acceptable.
    """
    return Site(
        plan,
        site=site,
        context=context,
        identity=identity,
        keys=keys,
        journal=journal,
        scheme=SITE_SCHEMES[plan.scheme](plan, site, key_store),
        rounding=rounding or OsRandom(),
    )


def coordinator_part(
    plan: SumPlan,
    *,
    context: SumContext,
    keys: Mapping[str, bytes],
    spool_folder: Path | None = None,
) -> CoordinatorPart:
    """The coordinator's part in one sum.

    Args:
        plan: the same at every party.
        context: which sum this is.
        keys: raw Ed25519 public key of every site of the cohort.
        spool_folder: where sealed vectors of several parts wait for their last one; a folder on disk, not in memory.
            Default: the system's folder for temporary files.

    Raises:
        ValueError: the plan is not safe for so many sites, or the keys are not acceptable.
    """
    return Coordinator(
        plan,
        context=context,
        keys=keys,
        scheme=COORDINATOR_SCHEMES[plan.scheme](plan, spool_folder),
        spool_folder=spool_folder,
    )


class MemoryJournal:
    """A journal for rehearsals and tests: it forgets with the process."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def record(self, key: str, digest: bytes) -> None:
        """Remember that `key` was sealed with these bytes."""
        if self._digests.setdefault(key, digest) != digest:
            raise SealedTwice(
                f"{key} was sealed before with other bytes; sealing it again could reveal the difference. "
                "Start a new attempt."
            )


def run_secure_sum(
    plan: SumPlan,
    vectors: Mapping[str, NDArray[np.floating]],
    *,
    context: SumContext | None = None,
    drop: Mapping[str, str] | None = None,
    key_stores: Mapping[str, KeyStore] | None = None,
) -> SumResult:
    """The whole protocol in memory, with fresh identities.

    Args:
        plan: what is summed and how.
        vectors: each site's contribution.
        context: which sum this is; a throw-away one by default.
        drop: legs in which sites fall silent for good, before the last frame of their message.
        key_stores: each site's, if it shall outlive the sum.

    Raises:
        QuorumLost: too many sites dropped.
    """
    context = context or SumContext(
        run_id=secrets.token_hex(8), round=1, attempt=1, plan_digest=bytes(32), model=""
    )
    drop, key_stores = drop or {}, key_stores or {}
    identities = {site: Ed25519PrivateKey.generate() for site in vectors}
    keys = {site: identity.public_key().public_bytes_raw() for site, identity in identities.items()}
    coordinator = coordinator_part(plan, context=context, keys=keys)
    parts = {
        site: site_part(
            plan,
            site=site,
            context=context,
            identity=identities[site],
            keys=keys,
            journal=MemoryJournal(),
            key_store=key_stores.get(site) or MemoryKeyStore(),
        )
        for site in vectors
    }
    # 1. Nothing is sent for the first leg; afterwards each leg's messages are what closing the one before gave.
    inbox: Mapping[str, Iterator[bytes]] = {site: iter(()) for site in vectors}
    for leg in LEGS:
        while inbox:
            # 2. Every site still in answers, ...
            for site, frames in inbox.items():
                answer = answer_of(parts[site], leg, frames, vectors[site])
                if drop.get(site) == leg:
                    answer = all_but_last(answer)
                # 3. ... and the coordinator absorbs what arrives.
                for frame in answer:
                    coordinator.absorb(leg, site, frame)
            # 4. Whoever has not delivered is out. A scheme may ask those who are left again for their help.
            inbox = coordinator.close_leg(leg)
            if leg != LEGS[-1]:
                break
    return coordinator.result()


def answer_of(
    part: SitePart, leg: str, frames: Iterator[bytes], values: NDArray[np.floating]
) -> Iterator[bytes]:
    """What a site answers to the coordinator's message of a leg."""
    match leg:
        case "hello":
            return part.hello()
        case "share":
            return part.share(frames, values)
        case "seal":
            return part.seal(frames)
        case "confirm":
            return part.confirm(frames)
        case _:
            return part.release(frames)


def all_but_last(items: Iterator[T]) -> Iterator[T]:
    """Everything but the last item, one item behind."""
    held = next(items, None)
    for item in items:
        if held is not None:
            yield held
        held = item
