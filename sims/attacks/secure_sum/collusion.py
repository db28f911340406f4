"""Collusion: the coordinator and t - 1 sites pool everything that they hold, and try to open one honest site's vector.

The sum itself is opened as planned, so the attacker has also whatever the honest sites disclosed for it. Of what is still
missing it holds t - 1 shares. A secret that these interpolated to would open the vector; the true one is a value of a
polynomial of which every value is still possible.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from privacy.ckks.ring import Residues
from sims.attacks.secure_sum.finding import AttackRow, Finding
from sims.attacks.secure_sum.hostile_sum import (
    VICTIM,
    HostileSum,
    Recovery,
    SiteSchemeType,
    Software,
    attempt,
    compare,
    enrol,
    whole_vectors,
)
from sims.attacks.secure_sum.mask_opening import (
    KEY,
    masked_words,
    open_with_secrets,
    secret_of,
    shares_disclosed,
)
from sims.attacks.secure_sum.ring_opening import RingOpening, light_opening, standard_opening
from sims.attacks.secure_sum.subjects import (
    Subject,
    ckks_subject,
    light_subject,
    mask_subject,
    paillier_subject,
    with_ready_key,
)
from sims.attacks.secure_sum.weak_masks import LowThresholdMaskSite
from sims.attacks.secure_sum.weak_paillier import LowThresholdPaillierSite
from sims.attacks.secure_sum.weak_rings import LowThresholdCkksSite, LowThresholdLightSite

ATTACK = "coordinator and t - 1 sites"
SITES = 7
Pool = Callable[[HostileSum], NDArray[np.signedinteger] | None]
"""Makes the best guess at the victim's vector from what the attacker's sites hold."""


def collude_on_mask(seed: int) -> list[Finding]:
    """Pool on `mask`."""
    low: SiteSchemeType = lambda plan, site, _: LowThresholdMaskSite(plan, site)  # noqa: E731
    return _collude(mask_subject(sites=SITES), low, pool_masks, seed)


def collude_on_ckks(seed: int) -> list[Finding]:
    """Pool on `ckks`."""
    return _collude(ckks_subject(sites=SITES), LowThresholdCkksSite, pool_epoch_keys, seed)


def collude_on_light(seed: int) -> list[Finding]:
    """Pool on `ckks-light`."""
    low: SiteSchemeType = lambda plan, site, _: LowThresholdLightSite(plan, site)  # noqa: E731
    return _collude(light_subject(sites=SITES), low, pool_ring_keys, seed)


def collude_on_paillier(seed: int) -> list[Finding]:
    """Pool on `paillier`."""
    low = with_ready_key(LowThresholdPaillierSite)
    return _collude(paillier_subject(), low, pool_partials, seed)


def _collude(subject: Subject, low: SiteSchemeType, pool: Pool, seed: int) -> list[Finding]:
    """Pool t - 1 sites of ours, t - 1 of a variant whose shares open with one fewer, and t of ours."""
    row = AttackRow(attack=ATTACK, scheme=subject.scheme)
    threshold = subject.software.plan.threshold
    few, many = threshold - 1, threshold
    return [
        row.ours(
            pooled(subject.software, subject, few, seed, pool),
            note=f"{few} of {subject.software.plan.max_sites} sites, threshold {threshold}",
            figures={"colluding_sites": few, "threshold": threshold},
        ),
        row.weak(
            pooled(subject.software.weakened(scheme=low), subject, few, seed, pool),
            variant=f"{few} shares open",
            figures={"colluding_sites": few, "threshold": few},
        ),
        row.weak(
            pooled(subject.software, subject, many, seed, pool),
            variant=f"one site more: {many} collude",
            figures={"colluding_sites": many, "threshold": threshold},
        ),
    ]


def pooled(software: Software, subject: Subject, hostile: int, seed: int, pool: Pool) -> Recovery:
    """What so many hostile sites recover of the victim's vector after a sum that ended well."""
    enrolment = enrol(software.plan.max_sites, hostile=hostile)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    attacked = HostileSum(software, enrolment, vectors).seal_all()
    if pool is not pool_partials:
        # What the honest sites disclosed for it is pooled as well; of `paillier` it says nothing more.
        attacked.open(enrolment.sites, asked=enrolment.sites)
    return compare(
        pool(attacked), vectors[VICTIM], software.plan, tolerance_steps=subject.tolerance_steps
    )


def pool_masks(attacked: HostileSum) -> NDArray[np.int32]:
    """The self seed, which the sum's opening gave away, and what the pooled shares of the mask key interpolate to."""
    sites, plan = attacked.enrolment.sites, attacked.software.plan
    roster = attacked.roster_of(sites)
    held = {site: attacked.own(site)._held[VICTIM][KEY] for site in attacked.enrolment.hostile}
    return open_with_secrets(
        masked_words(attacked.sealed[VICTIM], plan),
        VICTIM,
        seed=secret_of(shares_disclosed(attacked.disclosed, sites, VICTIM), roster),
        key=secret_of(held, roster),
        roster=roster,
        plan=plan,
    )


def pool_epoch_keys(attacked: HostileSum) -> NDArray[np.signedinteger] | None:
    """`ckks`: what the pooled shares of the victim's key of the epoch interpolate to."""
    held = {site: attacked.own(site)._epoch.shares[VICTIM] for site in attacked.enrolment.hostile}
    return _opened(attacked, held, standard_opening(attacked.software.plan))


def pool_ring_keys(attacked: HostileSum) -> NDArray[np.signedinteger] | None:
    """`ckks-light`: what the pooled shares of the victim's key interpolate to."""
    held = {site: attacked.own(site)._held[VICTIM] for site in attacked.enrolment.hostile}
    return _opened(attacked, held, light_opening(attacked.software.plan))


def pool_partials(attacked: HostileSum) -> NDArray[np.int32] | None:
    """`paillier`: partial decryptions of the victim's ciphertexts under the pooled shares, combined as if they were enough."""
    hostile = attacked.enrolment.hostile
    plan = replace(attacked.software.plan, threshold=len(hostile))
    opening = attacked.opening(attacked.enrolment.sites, plan)
    for index, part in enumerate(attacked.sealed[VICTIM]):
        opening.add(VICTIM, index, memoryview(part))
    for site in hostile:
        sealed = iter(attacked.sealed[VICTIM])
        partials = attacked.own(site).disclose((VICTIM,), hostile, sealed)
        for index, part in enumerate(partials):
            opening.require_disclosure(site, index, part, (VICTIM,))
    return attempt(lambda: opening.open((VICTIM,), hostile)).integers


def _opened(
    attacked: HostileSum, held: Mapping[str, Residues], tools: RingOpening
) -> NDArray[np.int32] | None:
    roster = attacked.roster_of(attacked.enrolment.sites)
    key = tools.key_of({roster.point(site): share for site, share in held.items()})
    return tools.decrypted(tools.polynomial(attacked.sealed[VICTIM]), key, roster)
