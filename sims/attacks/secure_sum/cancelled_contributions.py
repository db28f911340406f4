"""Cancelled contributions: one of the attacker's sites seals what makes the sum a multiple of the victim's ciphertext.

It waits until it has seen all others, takes n times the victim's ciphertext and subtracts the rest. If whoever decrypts
opens any sum of ciphertexts, as under a joint public key, n times the victim's vector comes out, and no check of names or
signatures helps: every site took part. In `ckks` the sum of the keys of the signed sites is taken off, whatever they sealed;
that is not n times the victim's key. In `paillier` a site commits to its ciphertext before it sees any other, and helpers
check what they are relayed against that; so does a ciphertext of an earlier round not pass.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.ckks.vectors import new_key
from privacy.randomness import OsRandom
from privacy.secagg.paillier_parts import Layout
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
from sims.attacks.secure_sum.subjects import (
    SITES,
    Subject,
    ckks_subject,
    light_subject,
    paillier_subject,
    with_ready_key,
)
from sims.attacks.secure_sum.weak_paillier import TrustingPaillierSite
from sims.attacks.secure_sum.weak_rings import JointKeyCkksSite, JointKeyLightSite

REPLAY = "replayed from an earlier round"
ORACLE = "helpers decrypt whatever they are relayed"
Forge = Callable[[HostileSum, str], list[bytes]]
"""Makes what the attacker's site seals, in parts, from what all have sealed."""
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
    return _cancel(subject, weak, forged_polynomial(tools), seed)


def cancel_on_light(seed: int) -> list[Finding]:
    """Run it on `ckks-light`."""
    subject = light_subject()
    tools = light_opening(subject.software.plan)
    key = new_key(tools.ring, OsRandom())
    weak = subject.software.weakened(
        scheme=lambda plan, site, _: JointKeyLightSite(plan, site, key),
        hostile_scheme=lambda plan, site, _: JointKeyLightSite(plan, site, key),
    )
    return _cancel(subject, weak, forged_polynomial(tools), seed)


def cancel_on_paillier(seed: int) -> list[Finding]:
    """Run it on `paillier`."""
    subject = paillier_subject()
    weak = subject.software.weakened(scheme=with_ready_key(TrustingPaillierSite))
    return _cancel(subject, weak, forged_units, seed, variant=ORACLE)


def replay_ciphertexts(seed: int) -> list[Finding]:
    """`paillier`: relay what the victim sealed in round 1 in round 2, beside ciphertexts of zero."""
    subject = paillier_subject()
    weak = subject.software.weakened(scheme=with_ready_key(TrustingPaillierSite))
    row = AttackRow(attack=REPLAY, scheme=subject.scheme)
    recovered, refusal = replayed_ciphertexts(subject.software, seed)
    return [
        row.ours(recovered, note=refusal),
        row.weak(replayed_ciphertexts(weak, seed)[0], variant=ORACLE),
    ]


def replayed_ciphertexts(software: Software, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector of round 1, and why not."""
    enrolment = enrol(SITES, hostile=1)
    generator = np.random.default_rng(seed)
    vectors = whole_vectors(software.plan, enrolment.sites, generator)
    old = HostileSum(software, enrolment, vectors).seal_all()
    others = whole_vectors(software.plan, enrolment.sites, generator)
    new = HostileSum(software, enrolment, others, number=2).seal_all()
    # The number 1 is a ciphertext of zero.
    sealed = {site: _with_units(new, site, [1]) for site in enrolment.sites}
    sealed[VICTIM] = old.sealed[VICTIM]
    # Every addend of a sum is taken to bring an offset of `limit`; here only the victim's does.
    offset = (SITES - 1) * software.plan.encoding.limit

    def open_old() -> NDArray[np.int32]:
        opened = new.open(enrolment.sites, asked=enrolment.sites, sealed=sealed)
        return opened + np.int32(offset)

    opened = attempt(open_old)
    return compare(opened.integers, vectors[VICTIM], software.plan), opened.refusal


def _cancel(
    subject: Subject, weak: Software, forge: Forge, seed: int, *, variant: str = WEAK
) -> list[Finding]:
    row = AttackRow(attack=ATTACK, scheme=subject.scheme)
    recovered, refusal = cancelled(subject.software, forge, seed)
    return [
        row.ours(recovered, note=refusal),
        row.weak(cancelled(weak, forge, seed)[0], variant=variant),
    ]


def cancelled(software: Software, forge: Forge, seed: int) -> tuple[Recovery, str]:
    """What is recovered of the victim's vector, and why not."""
    enrolment = enrol(SITES, hostile=1)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    attacked = HostileSum(software, enrolment, vectors).seal_all()
    (forger,) = enrolment.hostile
    sealed = {**attacked.sealed, forger: forge(attacked, forger)}

    def open_multiple() -> NDArray[np.int32]:
        return attacked.open(enrolment.sites, asked=enrolment.sites, sealed=sealed) // SITES

    opened = attempt(open_multiple)
    return compare(opened.integers, vectors[VICTIM], software.plan), opened.refusal


def forged_polynomial(tools: RingOpening) -> Forge:
    """With it, ring ciphertexts add up to as many times the victim's as there are sites."""

    def forge(attacked: HostileSum, forger: str) -> list[bytes]:
        forged = tools.ring.scaled(tools.polynomial(attacked.sealed[VICTIM]), SITES)
        for site, parts in attacked.sealed.items():
            if site != forger:
                forged = tools.ring.subtract(forged, tools.polynomial(parts))
        return list(tools.blocks.pack([forged]))

    return forge


def forged_units(attacked: HostileSum, forger: str) -> list[bytes]:
    """The same for Paillier ciphertexts, which multiply."""
    square = int(attacked.own(forger)._key.n) ** 2
    forged = [pow(unit, SITES, square) for unit in _units(attacked, VICTIM)]
    for site in attacked.sealed:
        if site != forger:
            forged = [
                one * pow(other, -1, square) % square
                for one, other in zip(forged, _units(attacked, site), strict=True)
            ]
    return _with_units(attacked, forger, forged)


def _units(attacked: HostileSum, site: str) -> list[int]:
    """A site's ciphertexts, of one part, as integers."""
    layout = Layout(plan=attacked.software.plan)
    (part,) = attacked.sealed[site]
    _, encoded = layout.split_sealed(part, 0, others=SITES - 1)
    size = layout.ciphertext_bytes
    return [
        int.from_bytes(encoded[start : start + size], "big")
        for start in range(0, len(encoded), size)
    ]


def _with_units(attacked: HostileSum, site: str, units: Sequence[int]) -> list[bytes]:
    """What a site sealed, with these ciphertexts in place of its own."""
    layout = Layout(plan=attacked.software.plan)
    (part,) = attacked.sealed[site]
    agreements, _ = layout.split_sealed(part, 0, others=SITES - 1)
    encoded = (unit.to_bytes(layout.ciphertext_bytes, "big") for unit in units)
    return [b"".join((agreements, *encoded))]
