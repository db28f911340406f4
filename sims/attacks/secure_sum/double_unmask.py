"""Double unmask: get the sites to help with two different sets in one sum.

For `mask` that gives the self seed and the mask key of the same site, and with both its vector opens. For the other
schemes it gives two sums whose difference is the vector. Flower's SecAgg+ returns both kinds of shares to a server that
names one node as active and as dead; it is attacked through its own functions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims.attacks.secure_sum.finding import AttackRow, Finding
from sims.attacks.secure_sum.flower_unmask import flower_double_unmask
from sims.attacks.secure_sum.hostile_sum import (
    VICTIM,
    HostileSum,
    ObedientSite,
    Recovery,
    Software,
    attempt,
    compare,
    enrol,
    whole_vectors,
)
from sims.attacks.secure_sum.mask_opening import (
    masked_words,
    open_with_secrets,
    secret_of,
    shares_disclosed,
)
from sims.attacks.secure_sum.split_view import difference
from sims.attacks.secure_sum.subjects import SITES, Subject

ATTACK = "double unmask"
WEAK = "sites confirm and release as often as they are asked"


def double_unmask(subject: Subject, seed: int) -> list[Finding]:
    """Ask ours and the weak variant twice, and for `mask` Flower as well."""
    row = AttackRow(attack=ATTACK, scheme=subject.scheme)
    weak = subject.software.weakened(site=ObedientSite, scheme=subject.compliant)
    recovered, refusal = open_twice(subject.software, subject, seed)
    findings = [
        row.ours(recovered, note=refusal),
        row.weak(open_twice(weak, subject, seed)[0], variant=WEAK),
    ]
    if subject.scheme == "mask":
        findings.append(
            row.weak(
                flower_double_unmask(seed),
                target="peer",
                variant="Flower's SecAgg+ answers for a node named active and dead",
            )
        )
    return findings


def open_twice(software: Software, subject: Subject, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector by asking for two sets, and why not."""
    enrolment = enrol(SITES, hostile=subject.liars)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    attacked = HostileSum(software, enrolment, vectors).seal_all()
    without = tuple(site for site in enrolment.sites if site != VICTIM)
    first = attempt(lambda: attacked.open(enrolment.sites, asked=enrolment.sites))
    seeds = attacked.disclosed
    second = attempt(lambda: attacked.open(without, asked=without))
    guess: NDArray[Any] | None = difference(first, second, 0)
    if subject.scheme == "mask":
        guess = _open_with_both(attacked, seeds)
    recovered = compare(
        guess, vectors[VICTIM], software.plan, tolerance_steps=subject.tolerance_steps
    )
    return recovered, first.refusal or second.refusal


def _open_with_both(attacked: HostileSum, seeds: dict[str, bytes]) -> NDArray[np.int32]:
    """The victim's vector from the self seed disclosed first and the mask key disclosed last, if it was one."""
    sites = attacked.enrolment.sites
    roster = attacked.roster_of(sites)
    return open_with_secrets(
        masked_words(attacked.sealed[VICTIM], attacked.software.plan),
        VICTIM,
        seed=secret_of(shares_disclosed(seeds, sites, VICTIM), roster),
        key=secret_of(shares_disclosed(attacked.disclosed, sites, VICTIM), roster),
        roster=roster,
        plan=attacked.software.plan,
    )
