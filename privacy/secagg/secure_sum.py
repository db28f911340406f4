"""Start a part in a secure sum, or run a whole one in memory.

`run_secure_sum` is the protocol, executed in order by everybody at once. What a deployment adds is transport only.
"""

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg.coordinator import Coordinator
from privacy.secagg.errors import SealedTwice
from privacy.secagg.mask import MaskCoordinator, MaskSite
from privacy.secagg.plain import PlainCoordinator, PlainSite
from privacy.secagg.plan import SumPlan
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


def site_part(
    plan: SumPlan,
    *,
    site: str,
    context: SumContext,
    identity: Ed25519PrivateKey,
    keys: Mapping[str, bytes],
    journal: SealJournal,
) -> SitePart:
    """This site's part in one sum, with fresh secrets.

    Args:
        plan: the same at every party.
        site: this site's name.
        context: which sum this is.
        identity: signs whatever this site says.
        keys: raw Ed25519 public key of every site of the cohort, this one included, as pinned here.
        journal: remembers durably what was sealed.

    Raises:
        ValueError: the plan is not safe for so many sites, or the keys are not acceptable.
    """
    scheme: SiteScheme = MaskSite(plan, site) if plan.scheme == "mask" else PlainSite()
    return Site(
        plan,
        site=site,
        context=context,
        identity=identity,
        keys=keys,
        journal=journal,
        scheme=scheme,
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
        spool_folder: where sealed vectors of several chunks wait for their last one, at most 4 bytes per coordinate
            and site; a folder on disk, not in memory. Default: the system's folder for temporary files.

    Raises:
        ValueError: the plan is not safe for so many sites, or the keys are not acceptable.
    """
    scheme: CoordinatorScheme = (
        MaskCoordinator(plan) if plan.scheme == "mask" else PlainCoordinator(plan)
    )
    return Coordinator(plan, context=context, keys=keys, scheme=scheme, spool_folder=spool_folder)


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
) -> SumResult:
    """The whole protocol in memory, with fresh identities.

    Args:
        plan: what is summed and how.
        vectors: each site's contribution.
        context: which sum this is; a throw-away one by default.
        drop: legs in which sites fall silent for good; in `seal`, in the middle of the upload.

    Raises:
        QuorumLost: too many sites dropped.
    """
    context = context or SumContext(
        run_id=secrets.token_hex(8), round=1, attempt=1, plan_digest=bytes(32), model=""
    )
    drop = drop or {}
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
        )
        for site in vectors
    }
    # 1. Nothing is sent for the first leg; afterwards each leg's messages are what closing the one before gave.
    inbox = dict.fromkeys(vectors, b"")
    for leg in LEGS:
        # 2. Every site still in answers, ...
        for site, message in inbox.items():
            answers = _answer(parts[site], leg, message, vectors[site])
            if drop.get(site) == leg:
                answers = list(answers)[:-1]
            # 3. ... and the coordinator absorbs what arrives.
            for answer in answers:
                coordinator.absorb(leg, site, answer)
        # 4. Whoever has not delivered is out.
        inbox = coordinator.close_leg(leg)
    return coordinator.result()


def _answer(
    part: SitePart, leg: str, message: bytes, values: NDArray[np.floating]
) -> Iterable[bytes]:
    match leg:
        case "hello":
            return [part.hello()]
        case "share":
            return [part.share(message)]
        case "seal":
            return part.seal(message, values)
        case "confirm":
            return [part.confirm(message)]
        case _:
            return [part.release(message)]
