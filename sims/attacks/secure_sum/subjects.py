"""Which schemes are attacked, with which plans, and what runs at the parties.

Five sites, of which so many are the attacker's as a plan stands against while they lie together with the coordinator:
two different survivor sets never gather `confirmations` signatures each.
"""

from dataclasses import dataclass

from privacy.secagg.ckks import CkksCoordinator, CkksSite
from privacy.secagg.ckks_light import CkksLightCoordinator, CkksLightSite
from privacy.secagg.mask import MaskCoordinator, MaskSite
from privacy.secagg.plan import Scheme, SumPlan, sum_threshold
from sims.attacks.secure_sum.hostile_sum import SiteSchemeType, Software
from sims.attacks.secure_sum.weak_masks import RememberingMaskSite
from sims.attacks.secure_sum.weak_plans import MajorityPlan
from sims.attacks.secure_sum.weak_rings import RememberingLightSite

SITES = 5


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
        return 2 * self.software.plan.confirmations(SITES) - SITES - 1

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


def _plan(scheme: Scheme, sites: int, dimension: int) -> SumPlan:
    return SumPlan(
        scheme=scheme,
        dimension=dimension,
        max_sites=sites,
        quorum=3,
        threshold=sum_threshold(scheme, sites),
        value_range=1.0,
    )
