"""Mask averaging: what many rounds of one site's masked vectors give away if masks are not fresh and not uniform.

A site's update changes little from round to round. The attacker is a coordinator that keeps what it is sent, and it tries
three things that have opened peers' masks:

1. float   masks are real numbers of the values' size, added without a modulus: the average over the rounds tends to the
           update, since the masks' average tends to 0 (the generator compiled into FATE).
2. scalar  one number masks all coordinates: differences between coordinates are those of the update (OpenFL).
3. reused  the same masks in every round: the difference of two rounds is the difference of two updates.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.ckks.vectors import decoded
from privacy.secagg.mask import MaskCoordinator, MaskSite
from privacy.secagg.plan import SumPlan
from sims.attacks.secure_sum.finding import AttackRow, Finding
from sims.attacks.secure_sum.hostile_sum import (
    NOTHING,
    VICTIM,
    HostileSum,
    Recovery,
    SiteSchemeType,
    Software,
    compare,
    enrol,
    whole_vectors,
)
from sims.attacks.secure_sum.mask_opening import masked_words, signed
from sims.attacks.secure_sum.ring_opening import standard_opening
from sims.attacks.secure_sum.subjects import ckks_subject
from sims.attacks.secure_sum.weak_masks import FloatMaskSite, ReusedMaskSite, ScalarMaskSite
from sims.attacks.secure_sum.weak_rings import SamePolynomialSite

ATTACK = "mask averaging"
SITES = 3
DIMENSION = 4096
ROUNDS = 200
SHOWN = (1, 10, 50, 200)
SPREAD, DRIFT = 0.3, 0.003
"""Standard deviation of an update, and of what a round adds to it, as shares of the range."""
NOISE = 6.0 / DIMENSION**0.5
"""Six standard deviations of the correlation with an independent vector: exceeded with probability 2e-9."""
CONFIDENCE = 1.0 - 1e-8
CHANGE = "of the change of the update recovered"
CORRELATION = "correlation with the update"


def average_masks(seed: int, rounds: int = ROUNDS) -> list[Finding]:
    """Keep so many rounds of ours and of each weak variant, and look for the update in them."""
    ours = _kept(lambda plan, site, _: MaskSite(plan, site), seed, rounds)
    weak = {
        "float": _kept(lambda plan, site, _: FloatMaskSite(plan, site), seed, rounds),
        "scalar": _kept(lambda plan, site, _: ScalarMaskSite(plan, site), seed, 2),
        "reused": _kept(ReusedMaskSite, seed, 2),
    }
    averaged = AttackRow(
        attack=f"{ATTACK}, {rounds} rounds",
        scheme="mask",
        measure=CORRELATION,
        hidden=NOISE,
        found=0.9,
        confidence=CONFIDENCE,
    )
    scalar = AttackRow(
        attack=f"{ATTACK}, within one round",
        scheme="mask",
        measure=CORRELATION,
        hidden=NOISE,
        found=0.999,
        confidence=CONFIDENCE,
    )
    reused = AttackRow(
        attack=f"{ATTACK}, two rounds subtracted",
        scheme="mask",
        measure=CHANGE,
    )
    floats = _by_rounds(weak["float"])
    return [
        averaged.ours(abs(_averaged(ours)), figures=_by_rounds(ours)),
        averaged.weak(
            abs(_averaged(weak["float"])),
            variant="floating-point masks",
            note=", ".join(f"{name}: {value:.2f}" for name, value in floats.items()),
            figures=floats,
        ),
        scalar.ours(abs(_within(ours))),
        scalar.weak(abs(_within(weak["scalar"])), variant="one number masks all coordinates"),
        reused.ours(_subtracted(ours)),
        reused.weak(_subtracted(weak["reused"]), variant="masks used again"),
    ]


def subtract_ciphertexts(seed: int) -> list[Finding]:
    """`ckks`, whose keys serve many rounds: subtract two rounds of ours, and of public polynomials that stay the same."""
    subject = ckks_subject(sites=SITES, dimension=DIMENSION)
    row = AttackRow(attack=f"{ATTACK}, two rounds subtracted", scheme="ckks", measure=CHANGE)
    weak = subject.software.weakened(scheme=SamePolynomialSite)
    return [
        row.ours(_subtracted_ciphertexts(subject.software, seed)),
        row.weak(
            _subtracted_ciphertexts(weak, seed),
            variant="the same public polynomials in every round",
        ),
    ]


def _subtracted_ciphertexts(software: Software, seed: int) -> Recovery:
    """What is recovered of the change of the victim's vector."""
    enrolment, tools = enrol(SITES, hostile=0), standard_opening(software.plan)
    generator = np.random.default_rng(seed)
    # Half the range, so that the change is a vector of the range.
    rounds = [
        {
            site: _whole(vector / 2, software.plan)
            for site, vector in whole_vectors(software.plan, enrolment.sites, generator).items()
        }
        for _ in range(2)
    ]
    sealed = [
        tools.polynomial(
            HostileSum(software, enrolment, vectors, number=number).seal_all().sealed[VICTIM]
        )
        for number, vectors in enumerate(rounds, start=1)
    ]
    change = rounds[1][VICTIM] - rounds[0][VICTIM]
    try:
        found = decoded(tools.ring, tools.sizes, tools.ring.subtract(sealed[1], sealed[0]))
    except ValueError:
        return NOTHING
    return compare(found, change, software.plan)


class Kept:
    """What the coordinator has kept of one site's rounds, and what it must not find."""

    def __init__(self, plan: SumPlan) -> None:
        self.plan = plan
        self.sealed: list[NDArray[np.int32]] = []
        self.updates: list[NDArray[np.float64]] = []


def _kept(scheme: SiteSchemeType, seed: int, rounds: int) -> Kept:
    plan = SumPlan(
        scheme="mask",
        dimension=DIMENSION,
        max_sites=SITES,
        quorum=SITES,
        threshold=SITES,
        value_range=1.0,
    )
    software = Software(plan=plan, scheme=scheme, opening=MaskCoordinator, hostile_scheme=scheme)
    enrolment = enrol(SITES, hostile=0)
    generator = np.random.default_rng(seed)
    updates = {site: generator.normal(0.0, SPREAD, DIMENSION) for site in enrolment.sites}
    kept = Kept(plan)
    for number in range(1, rounds + 1):
        vectors = {
            site: _whole(update + generator.normal(0.0, DRIFT, DIMENSION), plan)
            for site, update in updates.items()
        }
        attacked = HostileSum(software, enrolment, vectors, number=number)
        attacked.greet()
        attacked.deal()
        attacked.seal(VICTIM)
        kept.sealed.append(signed(masked_words(attacked.sealed[VICTIM], plan), plan))
        kept.updates.append(vectors[VICTIM])
    return kept


def _whole(values: NDArray[np.float64], plan: SumPlan) -> NDArray[np.float64]:
    """The values within the range, in whole steps."""
    limit, scale = plan.encoding.limit, plan.encoding.scale
    return np.clip(np.rint(values * scale), -limit, limit) / scale


def _averaged(kept: Kept, rounds: int | None = None) -> float:
    average = np.mean([vector.astype(np.float64) for vector in kept.sealed[:rounds]], axis=0)
    return _correlation(average, np.mean(kept.updates[:rounds], axis=0))


def _by_rounds(kept: Kept) -> dict[str, float]:
    """The correlation after fewer rounds, too."""
    return {
        f"after {rounds} rounds": _averaged(kept, rounds)
        for rounds in SHOWN
        if rounds <= len(kept.sealed)
    }


def _within(kept: Kept) -> float:
    """One round's coordinates, each minus the first, against the update's."""
    words = kept.sealed[0].view(np.uint32)
    return _correlation(signed(words - words[0], kept.plan), kept.updates[0])


def _subtracted(kept: Kept) -> float:
    """Share of coordinates in which two rounds differ by what the updates differ by."""
    first, second = (vector.view(np.uint32) for vector in kept.sealed[:2])
    change = kept.updates[1] - kept.updates[0]
    return compare(signed(second - first, kept.plan), change, kept.plan).share


def _correlation(
    guess: NDArray[np.float64] | NDArray[np.int32], true: NDArray[np.float64]
) -> float:
    return float(np.corrcoef(guess.astype(np.float64), true)[0, 1])
