"""What every scheme owes whoever drives it: each leg once and in order, one sealed vector per attempt, sound values only."""

import numpy as np
import pytest

from privacy.secagg.errors import MessageRefused, SealedTwice
from privacy.secagg.integer_parts import PART_COORDINATES
from privacy.secagg.protocol import LEGS
from privacy.secagg.secure_sum import all_but_last
from tests.privacy.secagg_cohort import (
    BOXED_KINDS,
    BULK_KINDS,
    ROBUST_KINDS,
    Cohort,
    crossed,
    framed,
    plan_of,
)

robust_kind = pytest.mark.parametrize("kind", ROBUST_KINDS)
boxed_kind = pytest.mark.parametrize("kind", BOXED_KINDS)
bulk_kind = pytest.mark.parametrize("kind", BULK_KINDS)


@pytest.mark.parametrize(("kind", "bad"), crossed(ROBUST_KINDS, [np.nan, np.inf, -np.inf]))
def test_a_site_never_deals_or_seals_values_that_are_not_finite(kind, bad):
    cohort = Cohort(plan_of(kind)).play_before("share")
    cohort.values["site-0"][3] = bad
    with pytest.raises(ValueError, match="coordinate 3 is NaN or infinite"):
        cohort.answer("share", "site-0")


@pytest.mark.parametrize(("kind", "length"), crossed(ROBUST_KINDS, [9, 11, 0]))
def test_a_vector_of_wrong_length_is_refused_at_the_site(kind, length):
    cohort = Cohort(plan_of(kind)).play_before("share")
    with pytest.raises(ValueError, match=r"shape \(10,\)"):
        cohort.parts["site-0"].share(iter(cohort.inbox["site-0"]), np.zeros(length))


@bulk_kind
def test_after_values_were_refused_the_site_may_share_sound_ones(kind):
    cohort = Cohort(plan_of(kind)).play_before("share")
    with pytest.raises(ValueError, match="finite"):
        cohort.parts["site-0"].share(iter(cohort.inbox["site-0"]), np.full(10, np.nan))
    cohort.play("share").play("seal").play("confirm").play_release()
    result = cohort.coordinator.result()
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS))
def test_a_leg_is_taken_once_at_the_site(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    first = cohort.inbox
    cohort.play(leg)
    with pytest.raises(MessageRefused, match=r"for the second time|not with fewer sites"):
        cohort.answer(leg, "site-2", first["site-2"])


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS[1:]))
def test_a_leg_is_not_taken_before_its_turn(kind, leg):
    with pytest.raises(MessageRefused, match="out of turn"):
        Cohort(plan_of(kind)).answer(leg, "site-2", [])


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS))
def test_a_leg_is_not_delivered_out_of_its_turn(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    before_or_last = LEGS[LEGS.index(leg) - 1]
    with pytest.raises(MessageRefused, match=f"the open leg is {leg}"):
        cohort.coordinator.absorb(before_or_last, "site-2", b"")


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS[::-1]))
def test_a_second_delivery_is_refused_and_changes_nothing(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    answers = cohort.answer(leg, "site-2")
    cohort.deliver(leg, "site-2", answers)
    with pytest.raises(MessageRefused, match=f'leg "{leg}", site "site-2": delivered before'):
        cohort.deliver(leg, "site-2", answers)
    cohort.inbox.pop("site-2")
    result = cohort.play_on(leg)
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@bulk_kind
def test_frames_twice_or_out_of_order_are_refused_and_change_nothing(kind):
    cohort = Cohort(plan_of(kind, dimension=2 * PART_COORDINATES + 1)).play_before("seal")
    first, second, *rest = cohort.answer("seal", "site-2")
    cohort.deliver("seal", "site-2", [first])
    with pytest.raises(MessageRefused, match=r"frame 0 of .* came before, expected 1"):
        cohort.deliver("seal", "site-2", [first])
    with pytest.raises(MessageRefused, match="is out of order, expected 1"):
        cohort.deliver("seal", "site-2", [rest[-1]])
    cohort.deliver("seal", "site-2", [second, *rest])
    cohort.inbox.pop("site-2")
    result = cohort.play_on("seal")
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@bulk_kind
def test_the_coordinator_says_who_has_delivered(kind):
    cohort = Cohort(plan_of(kind, dimension=PART_COORDINATES + 1)).play_before("seal")
    *first, last = cohort.answer("seal", "site-2")
    cohort.deliver("seal", "site-2", first)
    assert not cohort.coordinator.is_complete("seal", "site-2")
    cohort.deliver("seal", "site-2", [last])
    assert cohort.coordinator.is_complete("seal", "site-2")


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS[:-1]))
def test_a_message_after_its_leg_is_closed_is_refused(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    late = cohort.answer(leg, "site-3")
    cohort.play(leg, silent=["site-3"])
    with pytest.raises(MessageRefused, match=f"the open leg is {LEGS[LEGS.index(leg) + 1]}"):
        cohort.deliver(leg, "site-3", late)


@robust_kind
def test_a_site_that_dropped_out_cannot_come_back(kind):
    cohort = Cohort(plan_of(kind)).play("hello", silent=["site-3"])
    with pytest.raises(MessageRefused, match='"site-3": not, or no longer, in this sum'):
        cohort.coordinator.absorb("share", "site-3", bytes(100))


@bulk_kind
def test_nothing_is_delivered_once_the_sum_is_open(kind):
    cohort = Cohort(plan_of(kind))
    cohort.play_all()
    with pytest.raises(MessageRefused, match="the open leg is None"):
        cohort.coordinator.absorb("release", "site-2", b"")


@pytest.mark.parametrize(("kind", "leg"), crossed(BULK_KINDS, ["share", "seal"]))
def test_a_site_that_restarts_before_it_sealed_is_left_out(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg).restart("site-3")
    with pytest.raises(MessageRefused, match="out of turn"):
        cohort.answer(leg, "site-3")
    cohort.inbox.pop("site-3")
    result = cohort.play_on(leg)
    assert "site-3" not in result.sites
    assert (result.integers == cohort.exact_sum(result.sites)).all()


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, ["confirm", "release"]))
def test_the_vector_of_a_site_that_restarts_after_it_sealed_counts(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg).restart("site-3")
    with pytest.raises(MessageRefused, match="out of turn"):
        cohort.answer(leg, "site-3")
    cohort.inbox.pop("site-3")
    result = cohort.play_on(leg)
    assert (result.integers == cohort.exact_sum(cohort.sites)).all()


@robust_kind
def test_a_restarted_site_cannot_seal_the_same_attempt_again(kind):
    before = Cohort(plan_of(kind)).play_before("confirm")
    again = before.next_attempt(attempt=1)
    again.values["site-2"][0] = 0.25 - again.values["site-2"][0] / 2
    again.play("hello").play("share")
    with pytest.raises(SealedTwice, match="run/3/1/seal was sealed before"):
        again.answer("seal", "site-2")


@boxed_kind
def test_not_even_the_same_vector_is_sealed_again_with_new_keys(kind):
    again = Cohort(plan_of(kind)).play_before("confirm").next_attempt(attempt=1)
    again.play("hello").play("share")
    with pytest.raises(SealedTwice):
        again.answer("seal", "site-2")


@robust_kind
def test_the_journal_is_written_before_anything_is_sent(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    cohort.journals["site-0"].record("secure-sum/run/3/1/seal", bytes(32))
    with pytest.raises(SealedTwice):
        cohort.parts["site-0"].seal(iter(cohort.inbox["site-0"]))


@robust_kind
def test_nothing_is_written_if_sealing_fails(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    cut = list(all_but_last(iter(cohort.inbox["site-0"])))
    with pytest.raises(MessageRefused, match="then no more"):
        cohort.answer("seal", "site-0", cut)
    cohort.journals["site-0"].record("secure-sum/run/3/1/seal", bytes(32))


@robust_kind
def test_a_part_that_refused_anything_is_over(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    with pytest.raises(MessageRefused, match="malformed"):
        cohort.answer("seal", "site-0", framed(b"no map"))
    with pytest.raises(MessageRefused, match="the next leg here is none"):
        cohort.answer("seal", "site-0")
