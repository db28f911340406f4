"""What every scheme owes whoever drives it: exact sums of those who stayed, or nothing at all.

Turns, restarts and what a site refuses of itself: `test_secagg_turns`. Dishonest parties: `test_secagg_bad_input`.
"""

import gc
import itertools
import os
import tracemalloc

import numpy as np
import pytest

from privacy.secagg.errors import MessageRefused, QuorumLost
from privacy.secagg.integer_parts import PART_COORDINATES
from privacy.secagg.protocol import LEGS
from privacy.secagg.secure_sum import coordinator_part, run_secure_sum
from tests.privacy.secagg_cohort import (
    BULK_KINDS,
    FRAGILE_KINDS,
    KEY_HOLDER,
    KINDS,
    ROBUST_KINDS,
    Cohort,
    crossed,
    plan_of,
)

SIZES = [1, 2, 4096, 8193, PART_COORDINATES, 2 * PART_COORDINATES + 1]
MULTIPART = PART_COORDINATES + 1
every_kind = pytest.mark.parametrize("kind", KINDS)
robust_kind = pytest.mark.parametrize("kind", ROBUST_KINDS)
bulk_kind = pytest.mark.parametrize("kind", BULK_KINDS)


@pytest.mark.parametrize(
    ("kind", "dimension"), [*itertools.product(BULK_KINDS, SIZES), ("paillier", 333)]
)
def test_the_sum_is_exactly_the_sum_of_integers(kind, dimension):
    cohort = Cohort(plan_of(kind, dimension=dimension))
    result = cohort.play_all()
    assert result.sites == cohort.sites
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@pytest.mark.parametrize(
    ("kind", "count"),
    [*itertools.product(KINDS, [2, 3]), *itertools.product([*BULK_KINDS, *FRAGILE_KINDS], [4, 6])],
)
def test_other_cohort_sizes_sum_exactly(kind, count):
    cohort = Cohort(plan_of(kind, count=count), count=count)
    assert (cohort.play_all().integers == cohort.exact_sum(cohort.sites)).all()


SIXTY = [
    pytest.param(kind, marks=pytest.mark.slow if kind not in ("mask", "plain") else ())
    for kind in ROBUST_KINDS
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", SIXTY)
def test_sixty_sites_with_a_full_modulus_sum_exactly_when_one_drops_in_every_leg(kind):
    cohort = Cohort(plan_of(kind, count=60, dimension=50, value_bits=26), count=60)
    drop = {leg: [f"site-{10 + number}"] for number, leg in enumerate(LEGS)}
    result = cohort.play_all(drop=drop)
    assert cohort.plan.encoding.modulus_bits == 32
    assert set(cohort.sites) - set(result.sites) == {"site-10", "site-11", "site-12"}
    assert (result.integers == cohort.exact_sum(result.sites)).all()


@pytest.mark.parametrize(("kind", "dtype"), crossed(BULK_KINDS, [np.float32, np.float64]))
def test_values_are_the_sum_of_clipped_values_within_a_step_each(kind, dtype):
    plan = plan_of(kind, dimension=1000)
    generator = np.random.default_rng(2)
    values = {f"site-{i}": generator.normal(0, 1, 1000).astype(dtype) for i in range(5)}
    result = Cohort(plan, values=values).play_all()
    clipped = np.sum(
        [np.clip(vector.astype(np.float64), -1, 1) for vector in values.values()], axis=0
    )
    assert result.values.dtype == np.float64
    assert np.abs(result.values - clipped).max() <= 5 / plan.encoding.scale


@pytest.mark.parametrize(("kind", "value_bits"), crossed(KINDS, [29, 8, 2]))
def test_values_at_the_ends_of_the_range_at_every_site_do_not_overflow(kind, value_bits):
    plan = plan_of(kind, dimension=4, value_bits=value_bits)
    values = {f"site-{i}": np.array([1e30, -1e30, 1.0, -1.0]) for i in range(5)}
    result = Cohort(plan, values=values).play_all()
    total = 5 * plan.encoding.limit
    assert plan.encoding.modulus_bits == value_bits + 3
    assert result.integers.tolist() == [total, -total, total, -total]


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize(("kind", "site"), crossed(ROBUST_KINDS, ["site-3", "site-0"]))
def test_a_drop_in_any_leg_leaves_the_exact_sum_of_the_survivors(kind, leg, site):
    cohort = Cohort(plan_of(kind))
    result = cohort.play_all(drop={leg: [site]})
    lost = {site} if leg in ("hello", "share", "seal") else set()
    assert result.sites == tuple(sorted(set(cohort.sites) - lost))
    assert (result.integers == cohort.exact_sum(result.sites)).all()


@bulk_kind
@pytest.mark.parametrize(("leg", "survivors"), [("seal", 4), ("release", 5)])
def test_a_drop_in_the_middle_of_a_message_leaves_the_exact_sum(kind, leg, survivors):
    cohort = Cohort(plan_of(kind, dimension=MULTIPART))
    result = run_secure_sum(cohort.plan, cohort.values, drop={"site-3": leg})
    assert len(result.sites) == survivors
    assert (result.integers == cohort.exact_sum(result.sites)).all()


@bulk_kind
def test_drops_in_several_legs_leave_the_exact_sum_of_the_survivors(kind):
    cohort = Cohort(plan_of(kind, count=8), count=8)
    result = cohort.play_all(drop={"share": ["site-2"], "seal": ["site-6"]})
    assert (result.integers == cohort.exact_sum(result.sites)).all()
    assert result.sites == ("site-0", "site-1", "site-3", "site-4", "site-5", "site-7")


@bulk_kind
def test_drops_after_sealing_lose_nobodys_vector(kind):
    cohort = Cohort(plan_of(kind, count=8), count=8)
    result = cohort.play_all(drop={"confirm": ["site-2"], "release": ["site-4"]})
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@pytest.mark.parametrize("kind", ["ckks-3-of-5"])
def test_helpers_may_fall_silent_one_after_the_other(kind):
    cohort = Cohort(plan_of(kind)).play_before("release")
    cohort.play("release", silent=["site-0"]).play("release", silent=["site-2"]).play("release")
    result = cohort.coordinator.result()
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS[::-1]))
def test_below_the_quorum_the_sum_is_lost_and_nothing_more_is_said(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    needed = cohort.plan.threshold if leg == "release" else 4
    silent = list(cohort.inbox)[needed - 1 :]
    with pytest.raises(QuorumLost, match=f'leg "{leg}": {needed - 1} sites left .*{needed} needed'):
        cohort.play(leg, silent=silent)
    with pytest.raises(ValueError, match="there is no sum"):
        cohort.coordinator.result()
    with pytest.raises(MessageRefused, match="the open leg is None"):
        cohort.coordinator.absorb(leg, "site-0", b"")


@pytest.mark.parametrize("kind", FRAGILE_KINDS)
@pytest.mark.parametrize("leg", LEGS)
def test_where_all_must_stay_any_drop_loses_the_sum(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    with pytest.raises(QuorumLost, match=f'leg "{leg}": 4 sites left .*5 needed'):
        cohort.play(leg, silent=["site-2"])
    with pytest.raises(ValueError, match="there is no sum"):
        cohort.coordinator.result()


@pytest.mark.parametrize(("kind", "count"), crossed(KINDS, [2, 3]))
def test_of_two_or_three_sites_none_may_drop(kind, count):
    cohort = Cohort(plan_of(kind, count=count), count=count).play_before("seal")
    with pytest.raises(QuorumLost, match=f"{count} needed"):
        cohort.play("seal", silent=["site-0"])


@every_kind
def test_survivors_below_the_quorum_are_not_opened_even_if_the_threshold_is_met(kind):
    cohort = Cohort(plan_of(kind, quorum=5)).play_before("seal")
    with pytest.raises(QuorumLost, match="5 needed"):
        cohort.play("seal", silent=["site-3"])


@pytest.mark.parametrize("kind", [*BULK_KINDS, *FRAGILE_KINDS])
def test_the_next_attempts_of_the_same_sites_sum_exactly(kind):
    cohort = Cohort(plan_of(kind))
    first = cohort.play_all()
    second = cohort.next_attempt(attempt=2)
    third = second.next_attempt(attempt=3)
    expected = cohort.exact_sum(cohort.sites)
    assert (first.integers == expected).all()
    assert (second.play_all().integers == expected).all()
    assert (third.play_all().integers == expected).all()


@every_kind
def test_an_attempt_that_was_lost_does_not_harm_the_next(kind):
    lost = Cohort(plan_of(kind)).play_before("confirm")
    again = lost.next_attempt()
    assert (again.play_all().integers == again.exact_sum(again.sites)).all()


@bulk_kind
def test_fewer_of_the_same_sites_sum_exactly_in_the_next_attempt(kind):
    cohort = Cohort(plan_of(kind))
    cohort.play_all()
    fewer = cohort.next_attempt(count=4)
    assert (fewer.play_all().integers == fewer.exact_sum(fewer.sites)).all()


@bulk_kind
def test_a_site_that_lost_what_it_keeps_takes_part_in_the_next_attempt(kind):
    cohort = Cohort(plan_of(kind))
    cohort.play_all()
    again = cohort.next_attempt()
    fresh = Cohort(cohort.plan)
    again.key_stores["site-2"] = fresh.key_stores["site-2"]
    again.restart("site-2")
    assert (again.play_all().integers == again.exact_sum(again.sites)).all()


@bulk_kind
def test_frames_fit_the_exchange(kind):
    cohort = Cohort(plan_of(kind, dimension=MULTIPART))
    cohort.play_all()
    assert max(len(frame) for _, _, frame in cohort.received) <= 512 * 1024
    assert max(len(frame) for _, _, frames in cohort.told for frame in frames) <= 512 * 1024


@bulk_kind
def test_without_room_for_an_upload_the_sum_is_over(kind, tmp_path):
    cohort = Cohort(plan_of(kind, dimension=MULTIPART))
    cohort.coordinator = coordinator_part(
        cohort.plan, context=cohort.context, keys=cohort.keys, spool_folder=tmp_path / "gone"
    )
    cohort.play_before("seal")
    upload = cohort.answer("seal", "site-0")
    with pytest.raises(FileNotFoundError):
        cohort.deliver("seal", "site-0", upload)
    with pytest.raises(MessageRefused, match="the open leg is None"):
        cohort.deliver("seal", "site-0", upload)


@bulk_kind
def test_a_sum_given_up_in_mid_upload_leaves_no_file_open(kind):
    cohort = Cohort(plan_of(kind, dimension=MULTIPART)).play_before("seal")
    before = len(os.listdir("/proc/self/fd"))
    cohort.deliver("seal", "site-0", cohort.answer("seal", "site-0")[:1])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del cohort
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@bulk_kind
def test_unfinished_uploads_are_forgotten_when_the_leg_is_closed(kind):
    cohort = Cohort(plan_of(kind, dimension=MULTIPART)).play_before("seal")
    before = len(os.listdir("/proc/self/fd"))
    cohort.deliver("seal", "site-0", cohort.answer("seal", "site-0")[:1])
    cohort.inbox.pop("site-0")
    cohort.play("seal")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("leg", ["hello", "share"])
def test_without_the_site_that_makes_the_key_the_sum_is_lost_before_anything_is_sealed(leg):
    cohort = Cohort(plan_of("paillier")).play_before(leg)
    with pytest.raises(QuorumLost, match=f'"{KEY_HOLDER}", which makes the key, needed'):
        cohort.play(leg, silent=[KEY_HOLDER])


def test_the_site_that_makes_the_key_may_drop_once_it_dealt_it():
    cohort = Cohort(plan_of("paillier"))
    result = cohort.play_all(drop={"seal": [KEY_HOLDER]})
    assert result.sites == ("site-0", "site-2", "site-3", "site-4")
    assert (result.integers == cohort.exact_sum(result.sites)).all()


@bulk_kind
def test_interleaved_uploads_take_the_memory_of_one_vector(kind):
    dimension = 6 * PART_COORDINATES
    cohort = Cohort(plan_of(kind, count=3, dimension=dimension), count=3).play_before("seal")
    uploads = [[(site, part) for part in cohort.answer("seal", site)] for site in cohort.sites]
    tracemalloc.start()
    for turn in zip(*uploads, strict=True):
        for site, part in turn:
            cohort.coordinator.absorb("seal", site, part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The sum itself was there before; a joining vector passes through one part at a time.
    assert peak < 4 * dimension / 2


@pytest.mark.parametrize("kind", ["mask", "plain"])
@pytest.mark.parametrize("bits", [8, 16, 29])
def test_bytes_follow_from_the_bits_that_the_plan_asks_for(kind, bits):
    cohort = Cohort(plan_of(kind, dimension=100_000, value_bits=bits)).play_before("seal")
    sealed = sum(map(len, cohort.answer("seal", "site-0")))
    assert sealed <= 1.01 * 100_000 * (bits + 3) / 8


@every_kind
@pytest.mark.parametrize(("count", "bits"), [(5, 30), (4, 31), (60, 27)])
def test_more_sites_than_the_modulus_has_room_for_are_refused_by_the_plan(kind, count, bits):
    with pytest.raises(ValueError, match=f"the sum of {count} sites would wrap"):
        plan_of(kind, count=count, value_bits=bits)
