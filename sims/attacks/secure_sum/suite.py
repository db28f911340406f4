"""Every attack on secure sums, on ours, on variants that are weak on purpose, and on a peer's code where it can be run."""

from collections.abc import Callable
from functools import partial

from sims.attacks.secure_sum.cancelled_contributions import (
    cancel_on_ckks,
    cancel_on_light,
    cancel_on_paillier,
    replay_ciphertexts,
)
from sims.attacks.secure_sum.collusion import (
    collude_on_ckks,
    collude_on_light,
    collude_on_mask,
    collude_on_paillier,
)
from sims.attacks.secure_sum.decryption_requests import replay_boxes, request_single
from sims.attacks.secure_sum.double_unmask import double_unmask
from sims.attacks.secure_sum.finding import Finding, SecureSumSuite
from sims.attacks.secure_sum.fractional_release import see_through_flooding
from sims.attacks.secure_sum.mask_averaging import average_masks, subtract_ciphertexts
from sims.attacks.secure_sum.seed_search import search_seeds
from sims.attacks.secure_sum.split_view import split_views
from sims.attacks.secure_sum.subjects import (
    ckks_subject,
    light_subject,
    mask_subject,
    paillier_subject,
)

Attack = Callable[[int], list[Finding]]
"""Takes the seed of the vectors; keys and masks are fresh in every run."""

ATTACKS: dict[str, Attack] = {
    "seed search: mask": search_seeds,
    "mask averaging: mask": average_masks,
    "rounds subtracted: ckks": subtract_ciphertexts,
    "coordinator and t - 1 sites: mask": collude_on_mask,
    "coordinator and t - 1 sites: ckks": collude_on_ckks,
    "coordinator and t - 1 sites: ckks-light": collude_on_light,
    "flooding seen through fractions: ckks": see_through_flooding,
    "cancelled contributions: ckks": cancel_on_ckks,
    "cancelled contributions: ckks-light": cancel_on_light,
    "coordinator and t - 1 sites: paillier": collude_on_paillier,
    "cancelled contributions: paillier": cancel_on_paillier,
    "replayed shares: mask": replay_boxes,
    "replayed ciphertexts: paillier": replay_ciphertexts,
    **{
        f"{name}: {subject.scheme}": partial(attack, subject)
        for name, attack in (
            ("single-site request", request_single),
            ("split views", split_views),
            ("double unmask", double_unmask),
        )
        for subject in (mask_subject(), ckks_subject(), light_subject(), paillier_subject())
    },
}


def attack_secure_sums(*, seed: int, progress: Callable[[str], None]) -> SecureSumSuite:
    """Run all of them.

    Args:
        seed: of the vectors that are attacked.
        progress: told what is being done.
    """
    findings: list[Finding] = []
    for name, attack in ATTACKS.items():
        progress(name)
        findings += attack(seed)
    return SecureSumSuite(findings=tuple(findings))
