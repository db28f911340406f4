"""Sums of `mask` in which a site deals with some of the others only.

Most run with 14 neighbours among 30 sites, which takes the same turns as a hundred among hundreds and a hundredth of
the time: 15 holders of every site's shares, of whom 11 restore a secret.
"""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.randomness import OsRandom
from privacy.secagg.coordinator import Coordinator
from privacy.secagg.envelopes import SIGNATURE_BYTES, Scope
from privacy.secagg.errors import MessageRefused, QuorumLost
from privacy.secagg.mask import BOX_BYTES, COMMITMENTS, SCALAR_BYTES, MaskCoordinator, MaskSite
from privacy.secagg.messages import FRAME_HEADER, decode_sites
from privacy.secagg.plan import sum_threshold
from privacy.secagg.protocol import LEGS
from privacy.secagg.schemes import Roster
from privacy.secagg.secure_sum import MemoryJournal, answer_of, run_secure_sum
from privacy.secagg.site import Site
from tests.privacy.secagg_cohort import make_context, make_plan, on_grid

NEIGHBOURS = 14
NAMES = tuple(f"site-{number:02d}" for number in range(30))
KEYS = {site: Ed25519PrivateKey.generate() for site in NAMES}
PUBLIC_KEYS = {site: key.public_key().public_bytes_raw() for site, key in KEYS.items()}
PLAN = make_plan(max_sites=30, threshold=21, quorum=3, dimension=40)
VICTIM = "site-07"


class LargeCohort:
    """Thirty sites with fourteen neighbours each, and a coordinator."""

    def __init__(self):
        self.coordinator = Coordinator(
            PLAN,
            context=make_context(),
            keys=PUBLIC_KEYS,
            scheme=MaskCoordinator(PLAN, neighbours=NEIGHBOURS),
        )
        self.sites = {site: self._site(site) for site in NAMES}
        generator = np.random.default_rng(5)
        self.values = {site: on_grid(PLAN, generator) for site in NAMES}
        self.inbox: dict[str, list[bytes]] = {site: [] for site in NAMES}
        self.sent: dict[str, dict[str, list[bytes]]] = {leg: {} for leg in LEGS}

    def _site(self, site):
        return Site(
            PLAN,
            site=site,
            context=make_context(),
            identity=KEYS[site],
            keys=PUBLIC_KEYS,
            journal=MemoryJournal(),
            scheme=MaskSite(PLAN, site, neighbours=NEIGHBOURS),
            rounding=OsRandom(),
        )

    def play(self, leg, silent=()):
        """Everybody but the silent answers; the leg is closed."""
        for site in sorted(set(self.inbox) - set(silent)):
            frames = iter(self.inbox[site])
            self.sent[leg][site] = list(answer_of(self.sites[site], leg, frames, self.values[site]))
            for frame in self.sent[leg][site]:
                self.coordinator.absorb(leg, site, frame)
        messages = self.coordinator.close_leg(leg)
        self.inbox = {site: list(frames) for site, frames in messages.items()}
        return self

    def play_all(self, drop):
        for leg in LEGS:
            self.play(leg, silent=drop.get(leg, ()))
        return self.coordinator.result()

    def body(self, leg, site):
        """What the site said in a leg of one frame."""
        (frame,) = self.sent[leg][site]
        return frame[SIGNATURE_BYTES + FRAME_HEADER.size :]

    def holders(self, dealer):
        """Who holds shares of the dealer, besides itself."""
        boxes = decode_sites(self.body("share", dealer), leg="share", sender=dealer)
        return [site for site, box in boxes.items() if box and site != dealer]

    def exact_sum(self, sites):
        return np.rint(sum(self.values[site] for site in sites) * PLAN.encoding.scale)


@pytest.fixture
def roster():
    schemes = {site: MaskSite(PLAN, site, neighbours=NEIGHBOURS) for site in NAMES}
    public = {site: scheme.public() for site, scheme in schemes.items()}
    roster = Roster(scope=Scope(sum_digest=bytes(32), roster_digest=b"\1" * 32), public=public)
    return schemes, roster


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("site", ["site-00", "site-29"])
def test_a_drop_in_any_leg_leaves_the_exact_sum_of_the_survivors(leg, site):
    cohort = LargeCohort()
    result = cohort.play_all({leg: [site]})
    lost = {site} if leg in ("hello", "share", "seal") else set()
    assert result.sites == tuple(sorted(set(NAMES) - lost))
    assert (result.integers == cohort.exact_sum(result.sites)).all()


def test_a_drop_in_every_leg_leaves_the_exact_sum_of_the_survivors():
    cohort = LargeCohort()
    result = cohort.play_all({leg: [NAMES[3 * turn]] for turn, leg in enumerate(LEGS)})
    assert result.sites == tuple(sorted(set(NAMES) - {"site-00", "site-03", "site-06"}))
    assert (result.integers == cohort.exact_sum(result.sites)).all()


def test_several_who_shared_and_never_sealed_are_taken_out_exactly():
    cohort = LargeCohort()
    result = cohort.play_all({"seal": ["site-01", "site-02", "site-28", "site-29"]})
    assert len(result.sites) == 26
    assert (result.integers == cohort.exact_sum(result.sites)).all()


def test_a_site_deals_to_fourteen_others_and_tells_the_rest_nothing():
    cohort = LargeCohort().play("hello").play("share")
    boxes = decode_sites(cohort.body("share", VICTIM), leg="share", sender=VICTIM)
    lengths = sorted(len(box) for box in boxes.values())
    assert lengths == [0] * 15 + [COMMITMENTS.stop] + [BOX_BYTES] * NEIGHBOURS
    assert len(boxes[VICTIM]) == COMMITMENTS.stop


def test_a_site_releases_one_share_of_each_whose_holder_it_is():
    cohort = LargeCohort()
    cohort.play_all({"seal": ["site-00"]})
    held = 1 + sum(VICTIM in cohort.holders(dealer) for dealer in NAMES if dealer != VICTIM)
    assert len(cohort.body("release", VICTIM)) == held * SCALAR_BYTES


@pytest.mark.parametrize("leg", ["share", "seal", "confirm", "release"])
def test_as_many_lost_holders_as_leave_a_threshold_change_nothing(leg):
    cohort = LargeCohort()
    result = cohort.play_all({leg: ["site-04", "site-05", "site-20", "site-21"]})
    assert (result.integers == cohort.exact_sum(result.sites)).all()


def test_a_neighbourhood_that_loses_too_many_ends_the_attempt_and_nothing_is_opened():
    cohort = LargeCohort().play("hello").play("share").play("seal").play("confirm")
    with pytest.raises(
        QuorumLost, match=r'that hold shares of site "site-.*11 needed\. Nothing was opened'
    ) as found:
        cohort.play("release", silent=cohort.holders(VICTIM)[:5])
    assert len(found.value.present) < found.value.needed == 11
    with pytest.raises(ValueError, match="there is no sum yet"):
        cohort.coordinator.result()


def test_nobody_is_asked_for_shares_that_could_not_open_the_sum():
    cohort = LargeCohort().play("hello").play("share").play("seal")
    with pytest.raises(QuorumLost):
        cohort.play("confirm", silent=cohort.holders(VICTIM)[:5])
    assert cohort.sent["release"] == {}


def test_a_neighbourhood_lost_before_sealing_ends_the_attempt_as_well():
    cohort = LargeCohort().play("hello").play("share")
    cohort.play("seal", silent=[VICTIM, *cohort.holders(VICTIM)[:5]])
    with pytest.raises(QuorumLost, match="that hold shares of site"):
        cohort.play("confirm")


@pytest.mark.parametrize("change", ["one too few", "one too many"])
def test_the_coordinator_refuses_another_number_of_holders(roster, change):
    schemes, known = roster
    boxes = schemes[VICTIM].deal(known, np.zeros(40, dtype=np.int32))
    others = [site for site in NAMES if site != VICTIM]
    dealt = next(site for site in others if boxes[site])
    spared = next(site for site in others if not boxes[site])
    boxes |= {"one too few": {dealt: b""}, "one too many": {spared: bytes(BOX_BYTES)}}[change]
    coordinator = MaskCoordinator(PLAN, neighbours=NEIGHBOURS)
    with pytest.raises(MessageRefused, match=r"shares for 1[46] sites, expected 15") as refusal:
        coordinator.require_boxes(VICTIM, boxes, known)
    assert refusal.value.site == VICTIM


@pytest.mark.parametrize("size", [1, COMMITMENTS.stop, BOX_BYTES - 1, BOX_BYTES + 1])
def test_the_coordinator_refuses_a_box_of_another_length(roster, size):
    schemes, known = roster
    boxes = schemes[VICTIM].deal(known, np.zeros(40, dtype=np.int32))
    recipient = next(site for site, box in boxes.items() if box and site != VICTIM)
    boxes[recipient] = bytes(size)
    with pytest.raises(MessageRefused, match=f"{size} bytes for site"):
        MaskCoordinator(PLAN, neighbours=NEIGHBOURS).require_boxes(VICTIM, boxes, known)


def test_a_dealer_that_keeps_no_commitment_of_its_own_shares_is_refused(roster):
    schemes, known = roster
    boxes = schemes[VICTIM].deal(known, np.zeros(40, dtype=np.int32)) | {VICTIM: b""}
    with pytest.raises(MessageRefused, match='0 bytes for site "site-07", expected 64'):
        MaskCoordinator(PLAN, neighbours=NEIGHBOURS).require_boxes(VICTIM, boxes, known)


def test_a_box_that_is_withheld_is_refused_where_everybody_deals_with_everybody(roster):
    _, known = roster
    site = MaskSite(PLAN, VICTIM)
    known = Roster(scope=known.scope, public={**known.public, VICTIM: site.public()})
    site.deal(known, np.zeros(40, dtype=np.int32))
    with pytest.raises(MessageRefused, match="its box does not open here"):
        site.protect({"site-00": b""})


def test_every_share_of_a_wrong_secret_names_the_dealer(roster):
    schemes, known = roster
    coordinator = MaskCoordinator(PLAN, neighbours=NEIGHBOURS)
    boxes = {
        site: scheme.deal(known, np.zeros(40, dtype=np.int32)) for site, scheme in schemes.items()
    }
    for site in NAMES:
        coordinator.require_boxes(site, boxes[site], known)
    dealt_to = {dealer: boxes[dealer]["site-00"] for dealer in NAMES[1:]}
    tuple(schemes["site-00"].protect(dealt_to))
    (disclosed,) = schemes["site-00"].disclose(NAMES, NAMES, iter(()))
    altered = bytes([disclosed[0] ^ 1]) + disclosed[1:]
    with pytest.raises(MessageRefused, match="is not the one that was dealt to it"):
        coordinator.require_disclosure("site-00", 0, altered, NAMES)
    with pytest.raises(MessageRefused, match="bytes of shares, expected"):
        coordinator.require_disclosure("site-00", 0, disclosed[:-SCALAR_BYTES], NAMES)


def test_the_first_size_above_the_other_schemes_sums_exactly():
    vectors = {f"s{number}": np.full(3, number / 128) for number in range(65)}
    plan = make_plan(
        max_sites=65, dimension=3, threshold=sum_threshold("mask", 65), quorum=2, value_bits=20
    )
    result = run_secure_sum(plan, vectors, drop={"s9": "seal"})
    assert (result.values == sum(vectors[site] for site in result.sites)).all()
    assert len(result.sites) == 64


@pytest.mark.slow
def test_a_large_cohort_sums_exactly_when_one_drops_in_every_leg():
    count = 110
    plan = make_plan(max_sites=count, dimension=7, threshold=sum_threshold("mask", count), quorum=2)
    generator = np.random.default_rng(count)
    vectors = {f"s{number}": on_grid(plan, generator) for number in range(count)}
    drop = {f"s{20 + number}": leg for number, leg in enumerate(LEGS)}
    result = run_secure_sum(plan, vectors, drop=drop)
    assert result.sites == tuple(sorted(set(vectors) - {"s20", "s21", "s22"}))
    assert (result.values == sum(vectors[site] for site in result.sites)).all()
