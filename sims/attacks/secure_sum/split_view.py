"""Split view: different sites are shown different rosters or survivor sets.

1. survivors  Everybody has sealed. Some sites are shown the set of all, the others the set without the victim; the
              attacker's sites sign both. If both sums open, their difference is the victim's vector.
2. roster     The victim is shown a roster in which all other sites are the attacker's. What it opens there is its own
              vector plus what the attacker knows.

Ours asks for so many signatures on one set that two sets cannot both have them, and no roster may be smaller than that.
The weak variant is ours under a plan of a bare majority, as it serves against a coordinator that is only curious.
"""

import numpy as np
from numpy.typing import NDArray

from sims.attacks.secure_sum.finding import AttackRow, Finding
from sims.attacks.secure_sum.hostile_sum import (
    VICTIM,
    Enrolment,
    HostileSum,
    Outcome,
    Recovery,
    Software,
    attempt,
    compare,
    enrol,
    steps_of,
    whole_vectors,
)
from sims.attacks.secure_sum.subjects import SITES, Subject

WEAK = "a bare majority confirms and opens"


def split_views(subject: Subject, seed: int) -> list[Finding]:
    """Try both splits on ours and on the weak variant."""
    findings = []
    views = {"survivors": split_survivors, "roster": split_roster}
    if subject.software.plan.key_holder:
        # A roster without the key holder opens nothing, and with it the victim is not alone among the attacker's sites.
        del views["roster"]
    for name, attack in views.items():
        row = AttackRow(attack=f"split view of the {name}", scheme=subject.scheme)
        ours, refusal = attack(subject.software, subject, seed)
        weak, _ = attack(subject.majority, subject, seed)
        findings += [
            row.ours(ours, note=refusal),
            row.weak(weak, variant=WEAK),
        ]
    return findings


def split_survivors(software: Software, subject: Subject, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector from two sets, and why not."""
    enrolment, vectors = _cohort(software, subject, seed)
    attacked = HostileSum(software, enrolment, vectors).seal_all()
    _, second, third = enrolment.honest
    without = tuple(site for site in enrolment.sites if site != VICTIM)
    with_victim = attempt(
        lambda: attacked.open(enrolment.sites, asked=(VICTIM, second, *enrolment.hostile))
    )
    without_victim = attempt(lambda: attacked.open(without, asked=(third, *enrolment.hostile)))
    known = sum(steps_of(vectors[site], software.plan) for site in enrolment.hostile)
    guess = difference(with_victim, without_victim, known)
    refusal = with_victim.refusal or without_victim.refusal
    return _recovered(guess, vectors, software, subject), refusal


def split_roster(software: Software, subject: Subject, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector from a roster of its own, and why not."""
    enrolment, vectors = _cohort(software, subject, seed)
    shown = (VICTIM, *enrolment.hostile)

    def open_alone() -> NDArray[np.int32]:
        attacked = HostileSum(software, enrolment, vectors)
        attacked.greet()
        attacked.deal(dict.fromkeys(shown, shown))
        for site in shown:
            attacked.seal(site)
        return attacked.open(shown, asked=shown, roster=shown)

    alone = attempt(open_alone)
    known = sum(steps_of(vectors[site], software.plan) for site in enrolment.hostile)
    guess = None if alone.integers is None else alone.integers - known
    return _recovered(guess, vectors, software, subject), alone.refusal


def difference(
    with_victim: Outcome, without_victim: Outcome, known: NDArray[np.int64] | int
) -> NDArray[np.int64] | None:
    """The best guess at the victim's vector: the sums' difference, else the one sum less what is known of it."""
    if with_victim.integers is None:
        return None
    taken = known if without_victim.integers is None else without_victim.integers
    return with_victim.integers.astype(np.int64) - taken


def _cohort(
    software: Software, subject: Subject, seed: int
) -> tuple[Enrolment, dict[str, NDArray[np.float64]]]:
    enrolment = enrol(SITES, hostile=subject.liars)
    return enrolment, whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))


def _recovered(
    guess: NDArray[np.signedinteger] | None,
    vectors: dict[str, NDArray[np.float64]],
    software: Software,
    subject: Subject,
) -> Recovery:
    return compare(guess, vectors[VICTIM], software.plan, tolerance_steps=subject.tolerance_steps)
