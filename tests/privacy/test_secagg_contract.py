"""What every scheme owes whoever drives it: exact sums, drop-outs in every leg, nothing below the quorum."""

import gc
import os
import tracemalloc

import numpy as np
import pytest

from privacy.secagg.errors import MessageRefused, QuorumLost, SealedTwice
from privacy.secagg.messages import CHUNK_COORDINATES
from privacy.secagg.protocol import LEGS
from privacy.secagg.secure_sum import coordinator_part, run_secure_sum
from tests.privacy.secagg_cohort import Cohort, make_context, make_plan

SIZES = [1, 2, 999, 65_537, CHUNK_COORDINATES, CHUNK_COORDINATES + 1, 3 * CHUNK_COORDINATES - 1]


@pytest.fixture(params=["mask", "plain"])
def scheme(request):
    return request.param


@pytest.mark.parametrize("dimension", SIZES)
def test_the_sum_is_exactly_the_sum_of_integers(scheme, dimension):
    cohort = Cohort(make_plan(scheme=scheme, dimension=dimension))
    result = cohort.play_all()
    assert result.sites == cohort.sites
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_the_sum_of_clipped_values_within_half_a_step_each(scheme, dtype):
    plan = make_plan(scheme=scheme, dimension=1000)
    generator = np.random.default_rng(2)
    vectors = {f"s{i}": generator.normal(0, 1, 1000).astype(dtype) for i in range(5)}
    result = run_secure_sum(plan, vectors)
    clipped = np.sum(
        [np.clip(vector.astype(np.float64), -1, 1) for vector in vectors.values()], axis=0
    )
    assert result.values.dtype == np.float64
    assert np.abs(result.values - clipped).max() <= 5 * 0.5 / plan.encoding.scale


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("site", ["site-0", "site-3"])
@pytest.mark.parametrize("dimension", [7, 2 * CHUNK_COORDINATES + 5])
def test_a_drop_in_any_leg_leaves_the_exact_sum_of_the_survivors(scheme, leg, site, dimension):
    plan = make_plan(scheme=scheme, dimension=dimension)
    cohort = Cohort(plan)
    result = run_secure_sum(plan, cohort.values, drop={site: leg})
    survivors = cohort.sites
    if leg in ("hello", "share", "seal"):
        survivors = tuple(name for name in cohort.sites if name != site)
    assert result.sites == survivors
    assert (result.integers == cohort.exact_sum(survivors)).all()


def test_drops_in_several_legs_leave_the_exact_sum_of_the_survivors(scheme):
    plan = make_plan(scheme=scheme, max_sites=8, threshold=6)
    cohort = Cohort(plan, count=8)
    result = cohort.play_all(drop={"share": ["site-1"], "seal": ["site-7"]})
    assert (result.integers == cohort.exact_sum(result.sites)).all()
    assert result.sites == ("site-0", "site-2", "site-3", "site-4", "site-5", "site-6")


@pytest.mark.parametrize("leg", LEGS)
def test_below_the_quorum_the_sum_is_lost_and_nothing_more_is_said(scheme, leg):
    cohort = Cohort(make_plan(scheme=scheme)).play_before(leg)
    with pytest.raises(QuorumLost, match=f'leg "{leg}": 3 sites left .*site-2.* 4 needed'):
        cohort.play(leg, silent=["site-0", "site-1"])
    with pytest.raises(ValueError, match="there is no sum"):
        cohort.coordinator.result()
    with pytest.raises(MessageRefused, match="the open leg is None"):
        cohort.coordinator.absorb(leg, "site-0", b"")


def test_survivors_below_the_quorum_are_not_opened_even_if_the_threshold_is_met(scheme):
    cohort = Cohort(make_plan(scheme=scheme, quorum=5)).play_before("seal")
    with pytest.raises(QuorumLost, match="5 needed"):
        cohort.play("seal", silent=["site-3"])


@pytest.mark.parametrize("count", [3, 4, 6])
def test_other_cohort_sizes_sum_exactly(scheme, count):
    plan = make_plan(scheme=scheme, max_sites=64, threshold=2 * count // 3 + 1)
    cohort = Cohort(plan, count=count)
    assert (cohort.play_all().integers == cohort.exact_sum(cohort.sites)).all()


def test_extreme_values_of_every_site_do_not_overflow(scheme):
    values = {f"s{i}": np.array([1e30, -1e30, 1.0]) for i in range(5)}
    result = run_secure_sum(make_plan(scheme=scheme, dimension=3), values)
    assert result.values.tolist() == [5.0, -5.0, 5.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_site_never_sends_values_that_are_not_finite(scheme, bad):
    cohort = Cohort(make_plan(scheme=scheme)).play_before("seal")
    cohort.values["site-0"][3] = bad
    with pytest.raises(ValueError, match="coordinate 3 is NaN or infinite"):
        cohort.answer("seal", "site-0")


@pytest.mark.parametrize("length", [9, 11, 0])
def test_a_vector_of_wrong_length_is_refused_at_the_site(scheme, length):
    cohort = Cohort(make_plan(scheme=scheme)).play_before("seal")
    with pytest.raises(ValueError, match=r"shape \(10,\)"):
        cohort.parts["site-0"].seal(cohort.inbox["site-0"], np.zeros(length))


def test_after_values_were_refused_the_site_may_seal_sound_ones(scheme):
    cohort = Cohort(make_plan(scheme=scheme)).play_before("seal")
    with pytest.raises(ValueError, match="finite"):
        cohort.parts["site-0"].seal(cohort.inbox["site-0"], np.full(10, np.nan))
    cohort.play("seal").play("confirm").play("release")
    assert cohort.coordinator.result().sites == cohort.sites


def test_chunks_and_control_messages_fit_the_exchange(scheme):
    cohort = Cohort(make_plan(scheme=scheme, dimension=2 * CHUNK_COORDINATES))
    cohort.play_all()
    assert max(len(message) for _, _, message in cohort.received) <= 512 * 1024
    assert max(len(message) for _, _, message in cohort.told) <= 512 * 1024


@pytest.mark.parametrize("leg", LEGS)
def test_a_leg_is_taken_once_at_the_site(scheme, leg):
    cohort = Cohort(make_plan(scheme=scheme)).play_before(leg)
    first = cohort.inbox
    cohort.play(leg)
    with pytest.raises(MessageRefused, match="for the second time"):
        cohort.answer(leg, "site-1", first["site-1"])


@pytest.mark.parametrize("leg", LEGS[1:])
def test_a_leg_is_not_taken_before_its_turn(scheme, leg):
    with pytest.raises(MessageRefused, match="out of turn"):
        Cohort(make_plan(scheme=scheme)).answer(leg, "site-1", b"")


@pytest.mark.parametrize("leg", LEGS)
def test_a_second_delivery_is_refused_and_changes_nothing(scheme, leg):
    cohort = Cohort(make_plan(scheme=scheme)).play_before(leg)
    answers = cohort.answer(leg, "site-1")
    cohort.deliver(leg, "site-1", answers)
    with pytest.raises(MessageRefused, match=f'leg "{leg}", site "site-1": delivered before'):
        cohort.deliver(leg, "site-1", answers)
    cohort.inbox.pop("site-1")
    cohort.play(leg)
    for later in LEGS[LEGS.index(leg) + 1 :]:
        cohort.play(later)
    result = cohort.coordinator.result()
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


def test_the_coordinator_says_who_has_delivered(scheme):
    cohort = Cohort(make_plan(scheme=scheme, dimension=CHUNK_COORDINATES + 1)).play_before("seal")
    first, last = cohort.answer("seal", "site-1")
    cohort.deliver("seal", "site-1", [first])
    assert not cohort.coordinator.is_complete("seal", "site-1")
    cohort.deliver("seal", "site-1", [last])
    assert cohort.coordinator.is_complete("seal", "site-1")


def test_a_message_after_its_leg_is_closed_is_refused(scheme):
    cohort = Cohort(make_plan(scheme=scheme)).play_before("seal")
    late = cohort.answer("seal", "site-4")
    cohort.play("seal", silent=["site-4"])
    with pytest.raises(MessageRefused, match="the open leg is confirm"):
        cohort.deliver("seal", "site-4", late)


def test_a_site_that_dropped_out_cannot_come_back(scheme):
    cohort = Cohort(make_plan(scheme=scheme)).play("hello", silent=["site-4"])
    with pytest.raises(MessageRefused, match='"site-4": not, or no longer, in this sum'):
        cohort.coordinator.absorb("share", "site-4", bytes(100))


def test_a_restarted_site_cannot_seal_the_same_attempt_again(scheme):
    before = Cohort(make_plan(scheme=scheme)).play_before("confirm")
    again = Cohort(before.plan)
    again.journals.update(before.journals)
    again.values["site-2"][0] += 0.25
    again.parts["site-2"] = again.new_part("site-2")
    again.play("hello").play("share")
    with pytest.raises(SealedTwice, match="run/3/1/seal was sealed before"):
        again.answer("seal", "site-2")


def test_the_next_attempt_may_be_sealed(scheme):
    before = Cohort(make_plan(scheme=scheme)).play_before("confirm")
    again = Cohort(before.plan, context=make_context(attempt=2))
    again.journals.update(before.journals)
    again.parts = {site: again.new_part(site) for site in again.sites}
    assert (again.play_all().integers == again.exact_sum(again.sites)).all()


def test_the_journal_is_written_before_anything_is_sent(scheme):
    cohort = Cohort(make_plan(scheme=scheme)).play_before("seal")
    cohort.journals["site-0"].record("secure-sum/run/3/1/seal", bytes(32))
    with pytest.raises(SealedTwice):
        cohort.parts["site-0"].seal(cohort.inbox["site-0"], cohort.values["site-0"])


def test_without_room_for_an_upload_the_sum_is_over(scheme, tmp_path):
    cohort = Cohort(make_plan(scheme=scheme, dimension=CHUNK_COORDINATES + 1))
    cohort.coordinator = coordinator_part(
        cohort.plan, context=cohort.context, keys=cohort.keys, spool_folder=tmp_path / "gone"
    )
    cohort.play_before("seal")
    upload = cohort.answer("seal", "site-0")
    with pytest.raises(FileNotFoundError):
        cohort.deliver("seal", "site-0", upload)
    with pytest.raises(MessageRefused, match="the open leg is None"):
        cohort.deliver("seal", "site-0", upload)


def test_a_sum_given_up_in_mid_upload_leaves_no_file_open(scheme):
    cohort = Cohort(make_plan(scheme=scheme, dimension=CHUNK_COORDINATES + 1)).play_before("seal")
    before = len(os.listdir("/proc/self/fd"))
    cohort.deliver("seal", "site-0", cohort.answer("seal", "site-0")[:1])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del cohort
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_sixty_four_sites_sum_exactly_when_one_drops():
    plan = make_plan(dimension=3, max_sites=64, threshold=43)
    vectors = {f"s{number}": np.array([number / 64, -1.0, 1.0]) for number in range(64)}
    result = run_secure_sum(plan, vectors, drop={"s63": "seal"})
    assert result.values.tolist() == [62 * 63 / 2 / 64, -63.0, 63.0]


def test_interleaved_uploads_take_the_memory_of_one_vector(scheme):
    dimension = 8 * CHUNK_COORDINATES
    cohort = Cohort(make_plan(scheme=scheme, dimension=dimension)).play_before("seal")
    uploads = [[(site, chunk) for chunk in cohort.answer("seal", site)] for site in cohort.sites]
    tracemalloc.start()
    for turn in zip(*uploads, strict=True):
        for site, chunk in turn:
            cohort.coordinator.absorb("seal", site, chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The sum itself was there before; a joining vector passes through one chunk at a time.
    assert peak < 4 * dimension / 2
