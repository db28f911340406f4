"""Fractional release: with t - 1 shares known, the flooding of a weighted release hides less than it covers.

In `ckks` the flooding hides the sum E of the sites' errors in an opened sum. Whoever knows E knows the sum of the keys, and
from two survivor sets of one key epoch the key of the site in which they differ. A helper k releases w * X + f with X its
share, w its Lagrange weight among those who are asked, f the flooding. With t - 1 shares known, X is a multiple of
a * (sum of keys) = A + E plus something known, where the opened sum gives A. So the attacker has r * E + f with
r = w times that multiple, a fraction n / b of small numbers. Modulo q the term r * E is large, but  b * (r * E + f)  is the
small integer n * E + b * f: it gives E modulo b. The attacker chooses who is asked, so that b exceeds the range of E.

Ours adds to every release a stream for each other helper, which only the sum over exactly those helpers cancels.
"""

import math
from collections.abc import Sequence

import numpy as np

from privacy.ckks.ring import Residues
from privacy.secagg.errors import SecureSumError
from privacy.secagg.ring_sum import sum_of_shares
from sims.attacks.secure_sum.finding import AttackRow, Finding
from sims.attacks.secure_sum.hostile_sum import (
    NOTHING,
    VICTIM,
    Enrolment,
    HostileSum,
    Recovery,
    Software,
    compare,
    enrol,
    whole_vectors,
)
from sims.attacks.secure_sum.ring_opening import (
    RingOpening,
    Whole,
    centred,
    lagrange,
    modulo,
    standard_opening,
)
from sims.attacks.secure_sum.subjects import ckks_subject
from sims.attacks.secure_sum.weak_rings import FractionalReleaseSite

ATTACK = "flooding seen through fractions"
SITES = 12
ASKED = {2: (2, 9), 7: (2, 7), 8: (5, 8), 5: (5, 9)}
"""By the point of an honest helper, which honest points it is told are asked beside the attacker's. The fractions are 9/7,
-2/5, -5/3 and 9/4, so E is found modulo 420; twelve errors of deviation 4.6 exceed 210 with probability below 1e-38."""


def see_through_flooding(seed: int) -> list[Finding]:
    """Run it on ours and on releases without streams that cancel."""
    subject = ckks_subject(sites=SITES, dimension=8192)
    weak = subject.software.weakened(
        scheme=FractionalReleaseSite, hostile_scheme=FractionalReleaseSite
    )
    row = AttackRow(attack=ATTACK, scheme="ckks")
    threshold = subject.software.plan.threshold
    note = f"{threshold - 1} of {SITES} sites, threshold {threshold}"
    recovered, refusal = key_by_difference(subject.software, seed)
    return [
        row.ours(recovered, note=f"{note}; {refusal}" if refusal else note),
        row.weak(
            key_by_difference(weak, seed)[0],
            variant="releases that are weighted and flooded, no more",
            note=note,
        ),
    ]


def key_by_difference(software: Software, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector of round 1, and why not.

    Two sums of one key epoch: all sites, then all but the victim. The keys differ by the victim's.
    """
    enrolment = enrol(SITES, hostile=software.plan.threshold - 1)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    others = tuple(site for site in enrolment.sites if site != VICTIM)
    tools = standard_opening(software.plan)
    first = HostileSum(software, enrolment, vectors)
    try:
        all_keys = _sum_of_keys(first, enrolment.sites, tools)
        second = HostileSum(software, enrolment, vectors, number=2)
        other_keys = _sum_of_keys(second, others, tools)
    except SecureSumError as error:
        return NOTHING, str(error)
    key = tools.ring.subtract(all_keys, other_keys)
    sealed = tools.polynomial(first.sealed[VICTIM])
    guess = tools.decrypted(sealed, key, first.roster_of(enrolment.sites))
    return compare(guess, vectors[VICTIM], software.plan), ""


def _sum_of_keys(attacked: HostileSum, survivors: Sequence[str], tools: RingOpening) -> Residues:
    """The sum of the survivors' keys, if the errors in the opened sum can be told."""
    attacked.greet()
    attacked.deal()
    for site in survivors:
        attacked.seal(site)
    opened = attacked.open(survivors, asked=survivors, helpers=len(survivors))
    sealed = tools.polynomial(attacked.sealed[survivors[0]])
    for site in survivors[1:]:
        sealed = tools.ring.add(sealed, tools.polynomial(attacked.sealed[site]))
    sums = opened.astype(object) * (1 << tools.sizes.delta_exponent) - tools.whole(sealed)
    roster = attacked.roster_of(attacked.enrolment.sites)
    return tools.quotient(sums + _errors(attacked, survivors, sums, tools), roster)


def _errors(
    attacked: HostileSum, survivors: Sequence[str], sums: Whole, tools: RingOpening
) -> Whole:
    """The sum E of the survivors' errors, coefficient by coefficient, from what each helper of `ASKED` gives again."""
    modulus = math.prod(_denominator(attacked.enrolment, point) for point in ASKED)
    errors: Whole = np.zeros(len(sums), dtype=object)
    for point in ASKED:
        denominator = _denominator(attacked.enrolment, point)
        rest = modulus // denominator
        residue = _errors_modulo(attacked, survivors, sums, tools, point=point)
        errors = errors + residue * rest * pow(rest, -1, denominator)
    return centred(errors, modulus)


def _points(enrolment: Enrolment, helper: int) -> tuple[list[int], list[int]]:
    """Points of the attacker's sites, and of all that a helper is told are asked."""
    hostile = [enrolment.sites.index(site) + 1 for site in enrolment.hostile]
    return hostile, sorted([*hostile, *ASKED[helper]])


def _denominator(enrolment: Enrolment, helper: int) -> int:
    hostile, asked = _points(enrolment, helper)
    return (lagrange(helper, asked) * lagrange(0, [0, *hostile], at=helper)).denominator


def _errors_modulo(
    attacked: HostileSum, survivors: Sequence[str], sums: Whole, tools: RingOpening, *, point: int
) -> Whole:
    """E modulo the denominator b of the helper's fraction."""
    sites, q = attacked.enrolment.sites, tools.ring.modulus
    hostile, asked = _points(attacked.enrolment, point)
    released = attacked.release(
        sites[point - 1], attacked.confirmations, asked=[sites[place - 1] for place in asked]
    )
    weight = lagrange(point, asked)
    known: Whole = np.zeros(len(sums), dtype=object)
    for place in hostile:
        shares = attacked.own(sites[place - 1])._epoch.shares
        product = tools.product(
            sum_of_shares(tools.ring, shares, survivors), attacked.roster_of(sites)
        )
        factor = weight * lagrange(place, [0, *hostile], at=point)
        known = known + modulo(factor, q) * tools.whole(product)
    ratio = weight * lagrange(0, [0, *hostile], at=point)
    left = tools.whole(tools.polynomial(released)) - known - modulo(ratio, q) * sums
    small = centred(left * ratio.denominator, q)
    inverse = pow(ratio.numerator, -1, ratio.denominator)
    residues: Whole = small * inverse % ratio.denominator
    return residues
