"""Replayed, forged, altered and meaningless messages are refused in every leg."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg.coordinator import MOST_FRAME_BYTES
from privacy.secagg.errors import MessageRefused
from privacy.secagg.messages import encode_sites
from privacy.secagg.protocol import LEGS
from tests.privacy.secagg_cohort import (
    HEAD,
    Cohort,
    framed,
    hellos_of,
    make_context,
)

OTHER_SUMS = [
    {"run_id": "other"},
    {"round": 4},
    {"attempt": 2},
    {"plan_digest": bytes(31) + b"\1"},
    {"model": "n"},
    {"group": 1},
]


@pytest.mark.parametrize("other", OTHER_SUMS)
@pytest.mark.parametrize("leg", LEGS)
def test_a_message_of_another_sum_is_refused_by_the_coordinator(leg, other):
    elsewhere = Cohort(context=make_context(**other)).play_before(leg)
    here = Cohort().play_before(leg)
    with pytest.raises(MessageRefused, match=f'leg "{leg}", site "site-1": the signature is not'):
        here.deliver(leg, "site-1", elsewhere.answer(leg, "site-1")[:1])


@pytest.mark.parametrize("other", OTHER_SUMS)
def test_a_hello_of_another_sum_is_refused_by_the_sites(other):
    here = Cohort()
    hellos = hellos_of(here) | {
        "site-3": hellos_of(Cohort(context=make_context(**other)))["site-3"]
    }
    with pytest.raises(MessageRefused, match='leg "hello", site "site-3": the signature is not'):
        here.answer("share", "site-0", framed(encode_sites(hellos)))


@pytest.mark.parametrize("other", OTHER_SUMS)
def test_shares_of_another_sum_do_not_open(other):
    elsewhere = Cohort(context=make_context(**other)).play_before("seal")
    here = Cohort().play_before("seal")
    with pytest.raises(MessageRefused, match="does not open here"):
        here.answer("seal", "site-0", elsewhere.inbox["site-0"])


@pytest.mark.parametrize("other", OTHER_SUMS)
def test_confirmations_of_another_sum_release_nothing(other):
    elsewhere = Cohort(context=make_context(**other)).play_before("release")
    here = Cohort().play_before("release")
    with pytest.raises(MessageRefused, match="the signature is not"):
        here.answer("release", "site-0", elsewhere.inbox["site-0"])


@pytest.mark.parametrize("leg", LEGS)
def test_a_message_signed_with_another_identity_is_refused(leg):
    cohort = Cohort().play_before(leg)
    body = cohort.answer(leg, "site-1")[0][HEAD:]
    forged = cohort.sign(leg, "site-1", body, signer="site-7")
    with pytest.raises(MessageRefused, match=f'leg "{leg}", site "site-1": the signature is not'):
        cohort.deliver(leg, "site-1", [forged])


@pytest.mark.parametrize("leg", LEGS)
def test_a_message_is_not_taken_in_the_name_of_another_site(leg):
    cohort = Cohort().play_before(leg)
    with pytest.raises(MessageRefused, match='site "site-2": the signature is not'):
        cohort.deliver(leg, "site-2", cohort.answer(leg, "site-1"))


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("position", [0, 63, 64, -1])
def test_a_message_altered_in_one_bit_is_refused(leg, position):
    cohort = Cohort().play_before(leg)
    message = bytearray(cohort.answer(leg, "site-1")[0])
    message[position] ^= 1
    with pytest.raises(MessageRefused, match="the signature is not"):
        cohort.deliver(leg, "site-1", [bytes(message)])


@settings(max_examples=30, deadline=None)
@given(leg=st.sampled_from(LEGS), body=st.binary(max_size=95))
def test_bytes_that_a_site_signed_but_are_no_message_are_refused(leg, body):
    cohort = Cohort().play_before(leg)
    with pytest.raises(MessageRefused, match=f'leg "{leg}", site "site-1"'):
        cohort.deliver(leg, "site-1", [cohort.sign(leg, "site-1", body)])


@settings(max_examples=30, deadline=None)
@given(leg=st.sampled_from(LEGS[1:]), message=st.binary(max_size=300))
def test_bytes_from_the_coordinator_that_are_no_message_are_refused(leg, message):
    cohort = Cohort().play_before(leg)
    with pytest.raises(MessageRefused):
        cohort.answer(leg, "site-1", [message])


@pytest.mark.parametrize("leg", LEGS)
def test_an_oversized_frame_is_refused_unread(leg):
    cohort = Cohort().play_before(leg)
    with pytest.raises(MessageRefused, match=f"at most {MOST_FRAME_BYTES}"):
        cohort.deliver(leg, "site-1", [bytes(MOST_FRAME_BYTES + 1)])


def test_an_unknown_leg_or_site_is_refused():
    cohort = Cohort()
    with pytest.raises(MessageRefused, match="the open leg is hello"):
        cohort.deliver("goodbye", "site-1", [b""])
    with pytest.raises(MessageRefused, match="not, or no longer, in this sum"):
        cohort.deliver("hello", "site-7", [b""])
