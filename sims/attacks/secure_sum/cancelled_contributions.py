"""Cancelled contributions: one of the attacker's sites seals what makes the sum a multiple of the victim's ciphertext.

It waits until it has seen all others, takes n times the victim's ciphertext and subtracts the rest. If whoever decrypts
opens any sum of ciphertexts, as under a joint public key, n times the victim's vector comes out, and no check of names or
signatures helps: every site took part. In ours the sum of the keys of the signed sites is taken off, whatever they sealed;
that is not n times the victim's key.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.ckks.vectors import new_key
from privacy.randomness import OsRandom
from sims.attacks.secure_sum.finding import AttackRow, Finding
from sims.attacks.secure_sum.hostile_sum import (
    VICTIM,
    HostileSum,
    Recovery,
    Software,
    attempt,
    compare,
    enrol,
    whole_vectors,
)
from sims.attacks.secure_sum.ring_opening import RingOpening, light_opening, standard_opening
from sims.attacks.secure_sum.subjects import SITES, Subject, ckks_subject, light_subject
from sims.attacks.secure_sum.weak_rings import JointKeyCkksSite, JointKeyLightSite

ATTACK = "contribution that cancels the others"
WEAK = "all sites encrypt under one joint key"


def cancel_on_ckks(seed: int) -> list[Finding]:
    """Run it on `ckks`."""
    subject = ckks_subject()
    tools = standard_opening(subject.software.plan)
    key = new_key(tools.ring, OsRandom())
    weak = subject.software.weakened(
        scheme=lambda plan, site, store: JointKeyCkksSite(plan, site, store, key),
        hostile_scheme=lambda plan, site, store: JointKeyCkksSite(plan, site, store, key),
    )
    return _cancel(subject, weak, tools, seed)


def cancel_on_light(seed: int) -> list[Finding]:
    """Run it on `ckks-light`."""
    subject = light_subject()
    tools = light_opening(subject.software.plan)
    key = new_key(tools.ring, OsRandom())
    weak = subject.software.weakened(
        scheme=lambda plan, site, _: JointKeyLightSite(plan, site, key),
        hostile_scheme=lambda plan, site, _: JointKeyLightSite(plan, site, key),
    )
    return _cancel(subject, weak, tools, seed)


def _cancel(subject: Subject, weak: Software, tools: RingOpening, seed: int) -> list[Finding]:
    row = AttackRow(attack=ATTACK, scheme=subject.scheme)
    recovered, refusal = cancelled(subject.software, tools, seed)
    return [
        row.ours(recovered, note=refusal),
        row.weak(cancelled(weak, tools, seed)[0], variant=WEAK),
    ]


def cancelled(software: Software, tools: RingOpening, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector, and why not."""
    enrolment = enrol(SITES, hostile=1)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    attacked = HostileSum(software, enrolment, vectors).seal_all()
    (forger,) = enrolment.hostile
    sealed = {**attacked.sealed, forger: _forged(attacked, forger, tools)}

    def open_multiple() -> NDArray[np.int32]:
        return attacked.open(enrolment.sites, asked=enrolment.sites, sealed=sealed) // SITES

    opened = attempt(open_multiple)
    return compare(opened.integers, vectors[VICTIM], software.plan), opened.refusal


def _forged(attacked: HostileSum, forger: str, tools: RingOpening) -> list[bytes]:
    """With it, everything sealed adds up to as many times the victim's ciphertext as there are sites."""
    forged = tools.ring.scaled(tools.polynomial(attacked.sealed[VICTIM]), SITES)
    for site, parts in attacked.sealed.items():
        if site != forger:
            forged = tools.ring.subtract(forged, tools.polynomial(parts))
    return list(tools.blocks.pack([forged]))
