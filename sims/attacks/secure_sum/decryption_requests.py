"""Decryption requests that no honest coordinator makes: for one site's vector alone, and for what belongs to another round.

1. single  Every site is shown a survivor set of the victim alone, and asked to confirm and to release it.
2. replay  `mask`: in round 2 the sites are handed the box that the victim dealt in round 1, and the victim is called
           dropped. They would disclose its old mask key, where round 1 disclosed its old self seed.

Ours refuses the first for the number of its survivors, and the second because a box opens under one roster only. The
weak variants are a site that checks nothing, and boxes under lasting keys that are bound to no round.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.errors import MessageRefused
from sims.attacks.secure_sum.finding import AttackRow, Finding
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
from sims.attacks.secure_sum.subjects import SITES, Subject, mask_subject
from sims.attacks.secure_sum.weak_masks import ReplayableMaskSite

SINGLE, REPLAY = "single-site decryption request", "replayed from an earlier round"


def request_single(subject: Subject, seed: int) -> list[Finding]:
    """Ask ours, and sites that check nothing, to open the victim's vector by itself."""
    row = AttackRow(attack=SINGLE, scheme=subject.scheme)
    recovered, refusals, refusal = open_alone(subject.software, subject, seed)
    honest = SITES - subject.liars
    weak = subject.software.weakened(site=ObedientSite, scheme=subject.compliant)
    return [
        row.ours(
            recovered,
            note=f"{refusals} of {honest} honest sites refuse; {refusal}",
            figures={"honest_sites": honest, "refusals": refusals},
        ),
        row.weak(
            open_alone(weak, subject, seed)[0],
            variant="sites that check nothing before they release",
            figures={"honest_sites": honest, "refusals": 0},
        ),
    ]


def open_alone(software: Software, subject: Subject, seed: int) -> tuple[Recovery, int, str]:
    """What is recovered of the victim's vector, how many honest sites refuse to sign, and why."""
    enrolment = enrol(SITES, hostile=subject.liars)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    attacked = HostileSum(software, enrolment, vectors).seal_all()
    refusals = []
    for site in enrolment.honest:
        try:
            attacked.confirm(site, (VICTIM,))
        except MessageRefused as error:
            refusals.append(str(error))
    opened = attempt(lambda: attacked.open((VICTIM,), asked=enrolment.sites))
    recovered = compare(
        opened.integers,
        vectors[VICTIM],
        software.plan,
        tolerance_steps=subject.tolerance_steps,
    )
    return recovered, len(refusals), refusals[0] if refusals else opened.refusal


def replay_boxes(seed: int) -> list[Finding]:
    """Replay the victim's box of round 1 in round 2, to ours and to sites with lasting keys."""
    subject = mask_subject()
    weak = subject.software.weakened(scheme=ReplayableMaskSite, hostile_scheme=ReplayableMaskSite)
    row = AttackRow(attack=REPLAY, scheme="mask")
    recovered, refusal = replayed_boxes(subject.software, subject, seed)
    return [
        row.ours(recovered, note=refusal),
        row.weak(
            replayed_boxes(weak, subject, seed)[0],
            variant="shares under lasting keys, bound to no round",
        ),
    ]


def replayed_boxes(software: Software, subject: Subject, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector of round 1, and why not."""
    enrolment = enrol(SITES, hostile=subject.liars)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    old = HostileSum(software, enrolment, vectors).seal_all()
    old.open(enrolment.sites, asked=enrolment.sites)
    others = tuple(site for site in enrolment.sites if site != VICTIM)
    new = HostileSum(software, enrolment, vectors, number=2)
    new.greet()
    new.deal()

    def replay() -> NDArray[np.int32]:
        for site in others:
            new.seal(site, {**new.dealt_to(site), VICTIM: old.boxes[VICTIM][site]})
        confirmations = {site: new.confirm(site, others) for site in others}
        for site in others:
            new.release(site, confirmations, asked=others)
        roster = old.roster_of(enrolment.sites)
        return open_with_secrets(
            masked_words(old.sealed[VICTIM], software.plan),
            VICTIM,
            seed=secret_of(shares_disclosed(old.disclosed, enrolment.sites, VICTIM), roster),
            key=secret_of(shares_disclosed(new.disclosed, enrolment.sites, VICTIM), roster),
            roster=roster,
            plan=software.plan,
        )

    opened = attempt(replay)
    return compare(opened.integers, vectors[VICTIM], software.plan), opened.refusal
