"""Which schemes are attacked, with which plans, and what runs at the parties.

Five sites, of which so many are the attacker's as a plan stands against while they lie together with the coordinator:
two different survivor sets never gather `confirmations` signatures each.
"""

import functools
from dataclasses import dataclass

from privacy.secagg.ckks import CkksCoordinator, CkksSite
from privacy.secagg.ckks_light import CkksLightCoordinator, CkksLightSite
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.mask import MaskCoordinator, MaskSite
from privacy.secagg.paillier import PaillierSite
from privacy.secagg.plan import Scheme, SumPlan, sum_threshold
from sims.attacks.secure_sum.hostile_sum import SiteSchemeType, Software
from sims.attacks.secure_sum.weak_masks import RememberingMaskSite
from sims.attacks.secure_sum.weak_paillier import (
    CarelessPaillierCoordinator,
    RememberingPaillierSite,
    TrustingPaillierSite,
)
from sims.attacks.secure_sum.weak_plans import MajorityPlan
from sims.attacks.secure_sum.weak_rings import RememberingLightSite

SITES = 5
KEY_HOLDER = "site-1"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One scheme under attack."""

    software: Software
    """Ours."""
    compliant: SiteSchemeType
    """The weak variant of its scheme that helps as often as it is asked."""
    tolerance_steps: int = 0
    """By how much an opened coordinate may be off."""

    @property
    def scheme(self) -> Scheme:
        """Its name."""
        return self.software.plan.scheme

    @property
    def liars(self) -> int:
        """Most sites of five that may lie together with the coordinator."""
        return self.software.plan.withstands(SITES)

    @property
    def majority(self) -> Software:
        """Ours under a plan that a bare majority serves, its check switched off."""
        plan = self.software.plan
        facts = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
        return self.software.weakened(
            plan=MajorityPlan(**(facts | {"threshold": SITES // 2 + 1, "quorum": 2}))
        )


def mask_subject(*, sites: int = SITES, dimension: int = 512) -> Subject:
    """`mask` among so many sites."""
    return Subject(
        software=Software(
            plan=_plan("mask", sites, dimension),
            scheme=lambda plan, site, _: MaskSite(plan, site),
            opening=MaskCoordinator,
            hostile_scheme=lambda plan, site, _: RememberingMaskSite(plan, site),
        ),
        compliant=lambda plan, site, _: RememberingMaskSite(plan, site),
    )


def ckks_subject(*, sites: int = SITES, dimension: int = 512) -> Subject:
    """`ckks` among so many sites."""
    return Subject(
        software=Software(
            plan=_plan("ckks", sites, dimension),
            scheme=CkksSite,
            opening=CkksCoordinator,
            hostile_scheme=CkksSite,
        ),
        compliant=CkksSite,
    )


def light_subject(*, sites: int = SITES, dimension: int = 512) -> Subject:
    """`ckks-light` among so many sites."""
    return Subject(
        software=Software(
            plan=_plan("ckks-light", sites, dimension),
            scheme=lambda plan, site, _: CkksLightSite(plan, site),
            opening=CkksLightCoordinator,
            hostile_scheme=lambda plan, site, _: RememberingLightSite(plan, site),
        ),
        compliant=lambda plan, site, _: RememberingLightSite(plan, site),
    )


def paillier_subject(*, sites: int = SITES, dimension: int = 100) -> Subject:
    """`paillier` among so many sites; the key holder is honest, or there would be nothing to attack."""
    return Subject(
        software=Software(
            plan=_plan("paillier", sites, dimension, key_holder=KEY_HOLDER),
            scheme=with_ready_key(PaillierSite),
            opening=CarelessPaillierCoordinator,
            hostile_scheme=with_ready_key(TrustingPaillierSite),
        ),
        compliant=with_ready_key(RememberingPaillierSite),
    )


def with_ready_key(scheme: SiteSchemeType) -> SiteSchemeType:
    """The scheme, with a key holder that has made its key before: that takes seconds."""
    return lambda plan, site, store: scheme(
        plan, site, MemoryKeyStore(_ready_key()) if site == plan.key_holder else store
    )


@functools.cache
def _ready_key() -> bytes:
    store = MemoryKeyStore()
    PaillierSite(_plan("paillier", SITES, 100, key_holder=KEY_HOLDER), KEY_HOLDER, store)
    return store.load() or b""


def _plan(scheme: Scheme, sites: int, dimension: int, *, key_holder: str = "") -> SumPlan:
    return SumPlan(
        key_holder=key_holder,
        scheme=scheme,
        dimension=dimension,
        max_sites=sites,
        quorum=3,
        threshold=sum_threshold(scheme, sites),
        value_range=1.0,
    )
