"""What the coordinator and the sites refuse from a dishonest site, naming it."""

import numpy as np
import pytest

from privacy.packing import pack, packed_bytes
from privacy.randomness import OsRandom
from privacy.secagg.errors import MessageRefused, SumImpossible
from privacy.secagg.integer_parts import PART_COORDINATES
from privacy.secagg.mask import COMMITMENTS, MaskSite
from privacy.secagg.messages import PART_BYTES
from privacy.secagg.secure_sum import MemoryJournal
from privacy.secagg.site import Site
from tests.privacy.secagg_cohort import HEAD, IDENTITIES, Cohort, frame_of, make_plan


def test_a_wrong_share_is_detected_and_the_others_suffice():
    cohort = Cohort().play_before("release", drop={"seal": ["site-4"]})
    body = bytearray(cohort.answer("release", "site-1")[0][HEAD:])
    cohort.inbox.pop("site-1")
    for position, kind in ((31, "seed share of site .site-0"), (159, "key share of site .site-4")):
        wrong = bytearray(body)
        wrong[position] ^= 1
        with pytest.raises(MessageRefused, match=f'site "site-1": its {kind}'):
            cohort.deliver("release", "site-1", [cohort.sign("release", "site-1", bytes(wrong))])
    cohort.deliver("release", "site-1", [cohort.sign("release", "site-1", bytes(body))])
    cohort.play_release()
    result = cohort.coordinator.result()
    assert (result.integers == cohort.exact_sum(cohort.sites[:4])).all()


class LyingDealer(MaskSite):
    """Announces one secret in hello and deals out shares of another."""

    lies_about = "seed"

    def deal(self, roster, integers):
        if self.lies_about == "seed":
            self._self_seed = bytes(32)
        else:
            self._mask_scalar = bytes(31) + b"\x40"
        return super().deal(roster, integers)


class LyingKeyDealer(LyingDealer):
    lies_about = "key"


class CarelessDealer(MaskSite):
    """Commits to other shares than it deals."""

    def deal(self, roster, integers):
        boxes = super().deal(roster, integers)
        commitments = boxes["site-1"][COMMITMENTS]
        boxes["site-0"] = commitments + boxes["site-0"][64:]
        return boxes


class GreedySite(MaskSite):
    """Seals more than the plan allows."""

    def protect(self, boxes):
        self._vector[:] = 2**28
        return super().protect(boxes)


def with_hostile(cohort, site, scheme):
    cohort.parts[site] = Site(
        cohort.plan,
        site=site,
        context=cohort.context,
        identity=IDENTITIES[site],
        keys=cohort.keys,
        journal=MemoryJournal(),
        scheme=scheme(cohort.plan, site),
        rounding=OsRandom(),
    )
    return cohort


def test_shares_of_another_self_seed_than_announced_name_the_dealer():
    cohort = with_hostile(Cohort(), "site-3", LyingDealer)
    with pytest.raises(MessageRefused, match='leg "share", site "site-3": the shares it dealt'):
        cohort.play_all()
    with pytest.raises(ValueError, match="there is no sum"):
        cohort.coordinator.result()


def test_shares_of_another_mask_key_than_announced_name_the_dealer():
    cohort = with_hostile(Cohort(), "site-3", LyingKeyDealer)
    with pytest.raises(MessageRefused, match='leg "share", site "site-3": the shares it dealt'):
        cohort.play_all(drop={"seal": ["site-3"]})


def test_shares_that_contradict_their_commitments_name_the_dealer():
    cohort = with_hostile(Cohort(), "site-3", CarelessDealer).play_before("seal")
    with pytest.raises(MessageRefused, match='leg "share", site "site-3": its box does not open'):
        cohort.answer("seal", "site-0")


def test_a_sum_beyond_what_the_sites_could_reach_is_discarded():
    cohort = with_hostile(Cohort(make_plan(max_sites=64)), "site-3", GreedySite)
    with pytest.raises(SumImpossible, match="exceeds what they could"):
        cohort.play_all()
    with pytest.raises(ValueError, match="there is no sum"):
        cohort.coordinator.result()


@pytest.mark.parametrize("coordinate", [0, 9])
@pytest.mark.parametrize("direction", [1, -1])
def test_plain_refuses_a_coordinate_beyond_the_plan_on_arrival(coordinate, direction):
    cohort = Cohort(make_plan(scheme="plain")).play_before("seal")
    integers = np.zeros(10, dtype=np.int32)
    integers[coordinate] = direction * (cohort.plan.encoding.limit + 1)
    part = pack(integers.view(np.uint32), cohort.plan.encoding.modulus_bits)
    with pytest.raises(MessageRefused, match='site "site-1": a coordinate exceeds'):
        cohort.deliver("seal", "site-1", [cohort.sign("seal", "site-1", part)])


@pytest.mark.parametrize("where", [slice(0, 32), slice(32, 64)])
def test_a_key_of_small_order_is_refused_on_arrival(where):
    cohort = Cohort()
    public = bytearray(cohort.answer("hello", "site-3")[0][HEAD:])
    public[where] = bytes(32)
    with pytest.raises(MessageRefused, match='site "site-3": a key of small order'):
        cohort.deliver("hello", "site-3", [cohort.sign("hello", "site-3", bytes(public))])


def test_keys_copied_from_another_site_are_refused_on_arrival():
    cohort = Cohort()
    honest = cohort.answer("hello", "site-2")
    cohort.deliver("hello", "site-2", honest)
    with pytest.raises(MessageRefused, match='site "site-3": a key that another site'):
        cohort.deliver("hello", "site-3", [cohort.sign("hello", "site-3", honest[0][HEAD:])])


FULL = packed_bytes(PART_COORDINATES, 27)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"", "frame of 0 bytes"),
        (bytes(7), "frame of 7 bytes"),
        (frame_of(0, 2, bytes(FULL)), "frame 0 of 2, expected 3 frames"),
        (frame_of(1, 3, bytes(FULL)), "frame 1 of 3 is out of order, expected 0"),
        (frame_of(2**32 - 1, 3, bytes(3)), "frame 4294967295 of 3 is out of order, expected 0"),
        (frame_of(0, 0, bytes(FULL)), f"frame 0 of 0, {FULL + 8} bytes"),
        (frame_of(0, 3, b""), "frame 0 of 3, 8 bytes"),
        (frame_of(0, 3, bytes(FULL - 1)), f"part 0: {FULL - 1} bytes, expected {FULL}"),
        (frame_of(0, 3, bytes(FULL + 1)), f"part 0: {FULL + 1} bytes, expected {FULL}"),
        (frame_of(0, 3, bytes(PART_BYTES + 1)), f"{PART_BYTES + HEAD + 1} bytes, at most"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame, why):
    cohort = Cohort(make_plan(dimension=2 * PART_COORDINATES + 3)).play_before("seal")
    with pytest.raises(MessageRefused, match=f'leg "seal", site "site-1": .*{why}'):
        cohort.deliver("seal", "site-1", [cohort.sign_frame("seal", "site-1", frame)])


@pytest.mark.parametrize("scheme", ["mask", "plain"])
def test_bits_behind_the_last_coordinate_are_refused(scheme):
    # There would be room for a message that no sum shows.
    cohort = Cohort(make_plan(scheme=scheme)).play_before("seal")
    part = bytearray(cohort.answer("seal", "site-1")[0][HEAD:])
    part[-1] |= 0x80
    with pytest.raises(MessageRefused, match="bits are set behind the last word"):
        cohort.deliver("seal", "site-1", [cohort.sign("seal", "site-1", bytes(part))])


def test_repeated_and_skipped_frames_change_nothing():
    cohort = Cohort(make_plan(dimension=2 * PART_COORDINATES + 3)).play_before("seal")
    first, second, third = cohort.answer("seal", "site-1")
    cohort.deliver("seal", "site-1", [first])
    with pytest.raises(MessageRefused, match="frame 0 of 3 came before, expected 1"):
        cohort.deliver("seal", "site-1", [first])
    with pytest.raises(MessageRefused, match="frame 2 of 3 is out of order, expected 1"):
        cohort.deliver("seal", "site-1", [third])
    cohort.deliver("seal", "site-1", [second, third])
    cohort.inbox.pop("site-1")
    cohort.play("seal").play("confirm").play_release()
    assert (cohort.coordinator.result().integers == cohort.exact_sum(cohort.sites)).all()
