"""What no scheme accepts: from a dishonest site at the coordinator, from a dishonest coordinator at the sites.

Nothing here depends on what a scheme sends: bytes are cut, turned, replayed and withheld.
"""

import pytest

from privacy.secagg.errors import MessageRefused
from privacy.secagg.messages import decode_sites, encode_sites
from privacy.secagg.protocol import LEGS
from privacy.secagg.secure_sum import all_but_last
from tests.privacy.secagg_cohort import (
    BOXED_KINDS,
    HEAD,
    ROBUST_KINDS,
    Cohort,
    crossed,
    framed,
    hellos_of,
    make_context,
    names,
    plan_of,
    signatures,
)

robust_kind = pytest.mark.parametrize("kind", ROBUST_KINDS)
boxed_kind = pytest.mark.parametrize("kind", BOXED_KINDS)


def confirmations_of(cohort):
    """Every site's signed confirmation, as it was delivered."""
    return {site: frame for leg, site, frame in cohort.received if leg == "confirm"}


def map_of(frames):
    """The site map in the frames of a site."""
    message = b"".join(frame[HEAD:] for frame in frames)
    return decode_sites(message, leg="share", sender="test")


@pytest.mark.parametrize(("kind", "place"), crossed(BOXED_KINDS, [0, -1]))
def test_a_share_that_was_altered_is_refused_where_it_is_opened_with_the_dealers_name(kind, place):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    boxes = cohort.boxes("site-0")
    altered = bytearray(boxes["site-2"])
    altered[place] ^= 1
    with pytest.raises(MessageRefused, match=r'leg "share", site "site-2": .*Nothing was sealed'):
        cohort.answer("seal", "site-0", framed(encode_sites(boxes | {"site-2": bytes(altered)})))


@boxed_kind
def test_a_share_that_is_another_dealers_is_refused(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    boxes = cohort.boxes("site-0")
    duplicated = boxes | {"site-2": boxes["site-1"]}
    with pytest.raises(MessageRefused, match='leg "share", site "site-2": '):
        cohort.answer("seal", "site-0", framed(encode_sites(duplicated)))


@boxed_kind
def test_a_share_that_was_dealt_to_another_site_is_refused(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    boxes = cohort.boxes("site-0") | {"site-2": cohort.boxes("site-1")["site-2"]}
    with pytest.raises(MessageRefused, match='leg "share", site "site-2": '):
        cohort.answer("seal", "site-0", framed(encode_sites(boxes)))


@robust_kind
def test_shares_dealt_by_this_site_itself_are_refused(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    boxes = cohort.boxes("site-0")
    with pytest.raises(MessageRefused, match="shares of this site itself"):
        cohort.answer(
            "seal", "site-0", framed(encode_sites(boxes | {"site-0": boxes.pop("site-1")}))
        )


@boxed_kind
def test_shares_of_another_attempt_are_refused(kind):
    elsewhere = Cohort(plan_of(kind), context=make_context(attempt=2)).play_before("seal")
    here = Cohort(plan_of(kind)).play_before("seal")
    with pytest.raises(MessageRefused, match='leg "share", site "site-1": '):
        here.answer("seal", "site-0", elsewhere.inbox["site-0"])


@pytest.mark.parametrize(("kind", "more"), crossed(ROBUST_KINDS, [1, 200 * 1024]))
def test_shares_that_are_too_long_are_refused_on_arrival(kind, more):
    cohort = Cohort(plan_of(kind)).play_before("share")
    dealt = map_of(cohort.answer("share", "site-1"))
    dealt["site-2"] += bytes(more)
    with pytest.raises(MessageRefused, match='leg "share", site "site-1": '):
        cohort.deliver_signed("share", "site-1", encode_sites(dealt))


@boxed_kind
def test_shares_that_are_too_short_are_refused_on_arrival(kind):
    cohort = Cohort(plan_of(kind)).play_before("share")
    dealt = map_of(cohort.answer("share", "site-1"))
    dealt["site-2"] = dealt["site-2"][:-1]
    with pytest.raises(MessageRefused, match='leg "share", site "site-1": '):
        cohort.deliver_signed("share", "site-1", encode_sites(dealt))


@pytest.mark.parametrize(
    ("kind", "sites"), crossed(ROBUST_KINDS, [("site-0", "site-1"), ("site-0", "site-7"), ()])
)
def test_shares_for_other_sites_than_the_rosters_are_refused_on_arrival(kind, sites):
    cohort = Cohort(plan_of(kind)).play_before("share")
    with pytest.raises(MessageRefused, match="shares for other sites than the roster's"):
        cohort.deliver_signed("share", "site-1", encode_sites(dict.fromkeys(sites, b"")))


@robust_kind
def test_a_hello_of_another_attempt_is_refused_by_the_sites(kind):
    older = hellos_of(Cohort(plan_of(kind), context=make_context(attempt=0)))
    here = Cohort(plan_of(kind))
    roster = encode_sites(hellos_of(here) | {"site-3": older["site-3"]})
    with pytest.raises(MessageRefused, match='leg "hello", site "site-3": the signature is not'):
        here.answer("share", "site-0", framed(roster))


@robust_kind
def test_a_hello_with_bytes_behind_its_end_is_refused_on_arrival(kind):
    cohort = Cohort(plan_of(kind))
    public = cohort.answer("hello", "site-1")[0][HEAD:]
    with pytest.raises(MessageRefused, match='leg "hello", site "site-1": '):
        cohort.deliver_signed("hello", "site-1", public + b"x")


@boxed_kind
def test_a_truncated_hello_is_refused_on_arrival(kind):
    cohort = Cohort(plan_of(kind))
    public = cohort.answer("hello", "site-1")[0][HEAD:]
    with pytest.raises(MessageRefused, match='leg "hello", site "site-1": '):
        cohort.deliver_signed("hello", "site-1", public[:-1])


@boxed_kind
def test_a_hello_copied_from_another_site_is_refused_on_arrival(kind):
    cohort = Cohort(plan_of(kind))
    honest = cohort.answer("hello", "site-2")
    cohort.deliver("hello", "site-2", honest)
    with pytest.raises(MessageRefused, match='leg "hello", site "site-1": '):
        cohort.deliver_signed("hello", "site-1", honest[0][HEAD:])


@robust_kind
def test_a_vector_outside_the_group_is_refused_on_arrival(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    part = cohort.answer("seal", "site-1")[0][HEAD:]
    with pytest.raises(MessageRefused, match='leg "seal", site "site-1": '):
        cohort.deliver_signed("seal", "site-1", b"\xff" * len(part))
    assert not cohort.coordinator.is_complete("seal", "site-1")


@pytest.mark.parametrize(("kind", "cut"), crossed(ROBUST_KINDS, [1, 8, 100]))
def test_a_truncated_vector_is_refused_and_the_whole_one_may_still_come(kind, cut):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    part = cohort.answer("seal", "site-1")[0][HEAD:]
    with pytest.raises(MessageRefused, match='leg "seal", site "site-1": '):
        cohort.deliver_signed("seal", "site-1", part[:-cut])
    cohort.deliver_signed("seal", "site-1", part)
    assert cohort.coordinator.is_complete("seal", "site-1")


@robust_kind
def test_a_vector_with_bytes_behind_its_end_is_refused(kind):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    part = cohort.answer("seal", "site-1")[0][HEAD:]
    with pytest.raises(MessageRefused, match='leg "seal", site "site-1": '):
        cohort.deliver_signed("seal", "site-1", part + b"\0")


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS[1:]))
def test_a_truncated_message_of_the_coordinator_is_refused(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    *before, last = cohort.inbox["site-0"]
    with pytest.raises(MessageRefused):
        cohort.answer(leg, "site-0", [*before, last[:-1]])


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS[1:]))
def test_a_message_of_the_coordinator_without_its_last_frame_is_refused(kind, leg):
    cohort = Cohort(plan_of(kind)).play_before(leg)
    with pytest.raises(MessageRefused):
        cohort.answer(leg, "site-0", list(all_but_last(iter(cohort.inbox["site-0"]))))


@robust_kind
def test_an_unknown_site_is_refused_by_the_coordinator(kind):
    cohort = Cohort(plan_of(kind))
    with pytest.raises(MessageRefused, match='"site-7": not, or no longer, in this sum'):
        cohort.deliver_signed("hello", "site-7", b"")


@robust_kind
def test_an_unknown_site_in_the_roster_is_refused_by_the_sites(kind):
    here, wider = Cohort(plan_of(kind)), Cohort(plan_of(kind, count=6), count=6)
    roster = encode_sites(hellos_of(here) | {"site-5": hellos_of(wider)["site-5"]})
    with pytest.raises(MessageRefused, match="'site-5', whose key is not pinned here"):
        here.answer("share", "site-0", framed(roster))


@robust_kind
def test_fewer_sites_than_the_quorum_begin_nothing(kind):
    with pytest.raises(ValueError, match=r"Expected 4 to 5 sites .* got 3"):
        Cohort(plan_of(kind, quorum=4), count=3)


@pytest.mark.parametrize(
    ("kind", "left"),
    crossed(ROBUST_KINDS, [("site-0",), ("site-0", "site-1"), ("site-0", "site-1", "site-2")]),
)
def test_a_roster_below_the_quorum_is_refused_by_the_sites(kind, left):
    cohort = Cohort(plan_of(kind))
    hellos = hellos_of(cohort)
    few = encode_sites({site: hellos[site] for site in left})
    with pytest.raises(MessageRefused, match=f"{len(left)} sites, . are needed"):
        cohort.answer("share", "site-0", framed(few))


@pytest.mark.parametrize(
    ("kind", "others"), crossed(ROBUST_KINDS, [(), ("site-1",), ("site-1", "site-2")])
)
def test_fewer_sharers_than_the_quorum_are_refused_by_the_sites(kind, others):
    cohort = Cohort(plan_of(kind)).play_before("seal")
    boxes = cohort.boxes("site-0")
    few = encode_sites({site: boxes[site] for site in others})
    with pytest.raises(MessageRefused, match=f"{1 + len(others)} sites, . are needed"):
        cohort.answer("seal", "site-0", framed(few))


@pytest.mark.parametrize(
    ("kind", "left"),
    crossed(ROBUST_KINDS, [("site-0",), ("site-0", "site-1"), ("site-0", "site-1", "site-2")]),
)
def test_survivors_below_the_quorum_are_not_signed(kind, left):
    cohort = Cohort(plan_of(kind)).play_before("confirm")
    with pytest.raises(MessageRefused, match=f"{len(left)} sites, . are needed"):
        cohort.answer("confirm", "site-0", names(*left))


@robust_kind
def test_a_second_survivor_set_is_not_signed(kind):
    cohort = Cohort(plan_of(kind)).play_before("confirm")
    cohort.answer("confirm", "site-0")
    with pytest.raises(MessageRefused, match="for the second time"):
        cohort.answer("confirm", "site-0", names("site-0", "site-1", "site-2", "site-3"))


@pytest.mark.parametrize(
    ("kind", "signers"), crossed(ROBUST_KINDS, [(), ("site-0",), ("site-0", "site-1", "site-2")])
)
def test_a_request_to_open_without_enough_signatures_is_refused(kind, signers):
    cohort = Cohort(plan_of(kind)).play_before("release")
    signed = confirmations_of(cohort)
    with pytest.raises(MessageRefused, match=f"{len(signers)} confirmations; . are needed"):
        cohort.answer("release", "site-0", signatures({site: signed[site] for site in signers}))


@robust_kind
def test_a_request_to_open_with_a_forged_signature_is_refused(kind):
    cohort = Cohort(plan_of(kind)).play_before("release")
    signed = confirmations_of(cohort)
    signed["site-3"] = cohort.sign("confirm", "site-3", signed["site-3"][HEAD:], signer="site-4")
    with pytest.raises(MessageRefused, match='site "site-3": the signature is not'):
        cohort.answer("release", "site-0", signatures(signed))


@pytest.mark.parametrize(("kind", "asked"), crossed(ROBUST_KINDS, [("site-0",), ()]))
def test_a_request_that_asks_too_few_sites_for_help_is_refused(kind, asked):
    # One site alone would give what opens a sum of one.
    cohort = Cohort(plan_of(kind)).play_before("release")
    with pytest.raises(MessageRefused, match=f"{len(asked)} sites are asked to help"):
        cohort.answer("release", "site-0", signatures(confirmations_of(cohort), asked))


@robust_kind
def test_a_request_of_another_attempt_is_refused(kind):
    elsewhere = Cohort(plan_of(kind), context=make_context(attempt=2)).play_before("release")
    here = Cohort(plan_of(kind)).play_before("release")
    with pytest.raises(MessageRefused, match="the signature is not"):
        here.answer("release", "site-0", elsewhere.inbox["site-0"])


@robust_kind
def test_a_request_that_is_replayed_is_refused(kind):
    cohort = Cohort(plan_of(kind)).play_before("release")
    request = cohort.inbox["site-0"]
    cohort.answer("release", "site-0")
    with pytest.raises(MessageRefused, match=r"for the second time|not with fewer sites"):
        cohort.answer("release", "site-0", request)


@pytest.mark.parametrize(("kind", "leg"), crossed(ROBUST_KINDS, LEGS[::-1]))
def test_a_message_of_another_attempt_is_refused_on_arrival(kind, leg):
    elsewhere = Cohort(plan_of(kind), context=make_context(attempt=2)).play_before(leg)
    here = Cohort(plan_of(kind)).play_before(leg)
    with pytest.raises(MessageRefused, match=f'leg "{leg}", site "site-2": the signature is not'):
        here.deliver(leg, "site-2", elsewhere.answer(leg, "site-2")[:1])


@robust_kind
def test_sites_that_are_shown_different_survivors_release_nothing(kind):
    cohort = Cohort(plan_of(kind)).play_before("confirm")
    whole, lacking = names(*cohort.sites), names(*cohort.sites[:4])
    told = dict.fromkeys(cohort.sites, whole) | {"site-0": lacking}
    signed = {site: cohort.answer("confirm", site, told[site])[0] for site in cohort.sites}
    shown = {"site-0": dict(list(signed.items())[:4]), "site-2": signed}
    with pytest.raises(MessageRefused, match=r"shows different sites different sets\. Nothing was"):
        cohort.answer("release", "site-0", signatures(shown["site-0"]))
    with pytest.raises(MessageRefused, match=r"shows different sites different sets\. Nothing was"):
        cohort.answer("release", "site-2", signatures(shown["site-2"]))


def dealt_under_split_rosters(cohort):
    """What every site deals: site-0 is shown a roster without site-4, the others the whole one."""
    hellos = hellos_of(cohort)
    whole = framed(encode_sites(hellos))
    del hellos["site-4"]
    told = dict.fromkeys(cohort.sites, whole) | {"site-0": framed(encode_sites(hellos))}
    dealt = {}
    for site in cohort.sites:
        dealt[site] = map_of(cohort.answer("share", site, told[site]))
    return dealt


def dealt_to(recipient, dealers, dealt):
    """The coordinator's message to a site in seal."""
    boxes = {site: dealt[site][recipient] for site in dealers if site != recipient}
    return framed(encode_sites(boxes))


@boxed_kind
def test_sites_that_are_shown_different_rosters_seal_nothing(kind):
    cohort = Cohort(plan_of(kind))
    dealt = dealt_under_split_rosters(cohort)
    with pytest.raises(MessageRefused, match=r'leg "share", site "site-1": .*Nothing was sealed'):
        cohort.answer("seal", "site-0", dealt_to("site-0", cohort.sites[:4], dealt))
    with pytest.raises(MessageRefused, match=r'leg "share", site "site-0": .*Nothing was sealed'):
        cohort.answer("seal", "site-1", dealt_to("site-1", cohort.sites[:4], dealt))


@pytest.mark.parametrize("kind", ["plain", "ckks-3-of-5"])
def test_where_nothing_is_dealt_sites_that_are_shown_different_rosters_release_nothing(kind):
    # A second sum under the same keys.
    first = Cohort(plan_of(kind))
    first.play_all()
    cohort = first.next_attempt()
    dealt = dealt_under_split_rosters(cohort)
    four = cohort.sites[:4]
    [cohort.answer("seal", site, dealt_to(site, four, dealt)) for site in four]
    signed = {site: cohort.answer("confirm", site, names(*four))[0] for site in four}
    with pytest.raises(MessageRefused, match='site "site-1": the signature is not'):
        cohort.answer("release", "site-0", signatures(signed))
    with pytest.raises(MessageRefused, match='site "site-0": the signature is not'):
        cohort.answer("release", "site-1", signatures(signed))
