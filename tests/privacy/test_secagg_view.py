"""What the coordinator can form from everything it receives, and what it cannot.

Every test runs the same attack where it must succeed, so that a silent attack cannot pass for a secret kept.
"""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from privacy.packing import unpack
from privacy.secagg import shamir
from privacy.secagg.envelopes import agree, stretch
from privacy.secagg.mask import MaskSite
from privacy.secagg.masking import apply_streams
from privacy.secagg.messages import decode_sites
from privacy.secagg.schemes import Roster
from tests.privacy.secagg_cohort import HEAD, Cohort, make_context, make_plan

DIMENSION = 40_000
# A correlation of independent vectors of this length is normal with standard deviation 1/200: 6 deviations have
# probability 2e-9 per comparison.
INDEPENDENT = 6 / np.sqrt(DIMENSION)


def opened(cohort, words):
    """The integers behind words of which all masks were taken off."""
    return cohort.plan.encoding.signed(words.copy())


def played(scheme="mask", late=(), **plan):
    """A finished sum. Uploads of the `late` sites reach the coordinator, after it has closed the leg."""
    cohort = Cohort(
        make_plan(scheme=scheme, dimension=DIMENSION, value_bits=29, **plan)
    ).play_before("seal")
    cohort.late = {site: cohort.answer("seal", site) for site in late}
    for site in late:
        cohort.inbox.pop(site)
    for leg in ("seal", "confirm", "release"):
        cohort.play(leg)
    return cohort


def upload(cohort, site):
    """The words that the site sent, as received or too late."""
    sent = [message for leg, sender, message in cohort.received if (leg, sender) == ("seal", site)]
    late: list[bytes] = list(cohort.late.get(site, []))
    (frame,) = sent + late
    return unpack(memoryview(frame)[HEAD:], cohort.plan.encoding.modulus_bits, DIMENSION)


def released_secret(cohort, site):
    """The secret of the site that all released shares give."""
    bodies = {
        sender: message[HEAD:] for leg, sender, message in cohort.received if leg == "release"
    }
    points = [cohort.sites.index(sender) + 1 for sender in bodies]
    where = slice(32 * cohort.sites.index(site), 32 * cohort.sites.index(site) + 32)
    shares = [int.from_bytes(body[where], "big") for body in bodies.values()]
    return shamir.combine(shares, shamir.weights_at_zero(points))


def without_self_mask(cohort, site, secret):
    words = upload(cohort, site)
    seed = secret.to_bytes(32, "big")
    scope = cohort.scope(with_roster=True)
    apply_streams(
        words, plus=[], minus=[stretch(seed, label="self-mask", scope=scope, site=site, size=16)]
    )
    return words


def without_pair_masks(cohort, site, secret, words):
    key = X25519PrivateKey.from_private_bytes(secret.to_bytes(32, "little"))
    roster = decode_sites(cohort.roster, leg="share", sender="test")
    scope = cohort.scope(with_roster=True)
    for peer in cohort.sites:
        if peer != site:
            pair = (min(site, peer), max(site, peer))
            public = roster[peer][HEAD:][32:64]
            stream = agree(key, public, label="pair-mask", scope=scope, pair=pair, size=16)
            plus, minus = ([], [stream]) if site < peer else ([stream], [])
            apply_streams(words, plus=plus, minus=minus)
    return words


def correlation(words, values):
    return abs(np.corrcoef(words.view(np.int32), values)[0, 1])


def byte_chi_square(words):
    counts = np.bincount(words.view(np.uint8), minlength=256)
    return stats.chisquare(counts).statistic


@pytest.mark.statistical
@pytest.mark.parametrize("site", ["site-0", "site-2", "site-4"])
def test_no_update_can_be_formed_from_all_that_the_coordinator_receives(site):
    cohort = played()
    stripped = {
        name: without_self_mask(cohort, name, released_secret(cohort, name))
        for name in cohort.sites
    }
    update = cohort.values[site]
    # The shares that were released open what they should: all vectors together ...
    total = np.sum(list(stripped.values()), axis=0, dtype=np.uint32)
    assert (opened(cohort, total) == cohort.exact_sum(cohort.sites)).all()
    # ... but not one of them, ...
    assert correlation(upload(cohort, site), update) < INDEPENDENT
    assert correlation(stripped[site], update) < INDEPENDENT
    # ... nor all but one.
    others = [words for name, words in stripped.items() if name != site]
    assert correlation(np.sum(others, axis=0, dtype=np.uint32), update) < INDEPENDENT


def test_the_same_look_at_plain_finds_every_update():
    cohort = played("plain")
    found = [correlation(upload(cohort, site), cohort.values[site]) for site in cohort.sites]
    assert min(found) > 0.99


@pytest.mark.statistical
def test_a_late_upload_stays_closed_although_its_mask_key_is_known():
    cohort = played(late=["site-4"])
    assert (cohort.coordinator.result().integers == cohort.exact_sum(cohort.sites[:4])).all()
    secret = released_secret(cohort, "site-4")
    words = without_pair_masks(cohort, "site-4", secret, upload(cohort, "site-4"))
    assert correlation(words, cohort.values["site-4"]) < INDEPENDENT


def test_with_both_secrets_of_a_site_its_update_would_be_open():
    # Why a site never gives both shares: this is the attack that the confirm leg prevents.
    cohort = played(late=["site-4"])
    own_seed = int.from_bytes(cohort.parts["site-4"]._scheme._self_seed, "big")
    words = without_pair_masks(
        cohort,
        "site-4",
        released_secret(cohort, "site-4"),
        without_self_mask(cohort, "site-4", own_seed),
    )
    assert (opened(cohort, words) == cohort.exact_sum(["site-4"])).all()


def test_shares_below_the_threshold_restore_nothing():
    cohort = played()
    cohort.received = [
        message
        for message in cohort.received
        if message[0] != "release" or message[1] in ("site-0", "site-1", "site-2")
    ]
    secret = released_secret(cohort, "site-3")
    assert secret != int.from_bytes(cohort.parts["site-3"]._scheme._self_seed, "big")


@pytest.mark.statistical
def test_masked_vectors_are_uniform_byte_by_byte():
    # 255 degrees of freedom; error rate 1e-6 for each of the five sites.
    cohort = played()
    worst = max(byte_chi_square(upload(cohort, site)) for site in cohort.sites)
    assert worst < stats.chi2.isf(1e-6, 255)


def test_the_same_measure_tells_plain_vectors_from_uniform_ones():
    cohort = played("plain")
    least = min(byte_chi_square(upload(cohort, site)) for site in cohort.sites)
    assert least > 100 * stats.chi2.isf(1e-6, 255)


@pytest.mark.statistical
def test_two_sums_of_the_same_vectors_have_nothing_in_common():
    # Two equal words among 40 000 random pairs have probability 4e-11.
    first, second = played(), played()
    assert (upload(first, "site-0") == upload(second, "site-0")).sum() < 2
    assert released_secret(first, "site-0") != released_secret(second, "site-0")


@pytest.mark.statistical
def test_every_bit_of_pair_keys_and_self_seeds_varies():
    # A bit that is fair stays constant over 200 draws with probability 2**-199.
    plan = make_plan()
    context = Cohort(plan, context=make_context()).scope(with_roster=False)
    seeds, keys = [], []
    for _ in range(200):
        site, peer = MaskSite(plan, "a"), MaskSite(plan, "b")
        roster = Roster(scope=context, public={"a": site.public(), "b": peer.public()})
        public = roster.public["b"][32:64]
        key = agree(
            site._mask_key, public, label="pair-mask", scope=context, pair=("a", "b"), size=16
        )
        keys.append(int.from_bytes(key, "big"))
        seeds.append(int.from_bytes(site._self_seed, "big"))
    assert bits_that_vary(keys) == 2**128 - 1
    assert bits_that_vary(seeds) == 2**255 - 1
    assert len(set(keys)) == len(set(seeds)) == 200


def bits_that_vary(numbers):
    varying = 0
    for number in numbers:
        varying |= number ^ numbers[0]
    return varying


def test_no_secret_shows_in_the_text_of_a_part_or_result():
    cohort = played()
    part = cohort.parts["site-0"]
    text = repr(part) + repr(part._scheme) + repr(cohort.coordinator.result())
    assert part._scheme._self_seed.hex() not in text
    assert "integers" not in text
