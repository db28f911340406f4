"""What a site refuses from a coordinator that shows it other keys, sharers or survivors than it should."""

import numpy as np
import pytest

from privacy.secagg.envelopes import Scope
from privacy.secagg.errors import MessageRefused
from privacy.secagg.mask import MaskSite
from privacy.secagg.messages import decode_sites, encode_sites
from privacy.secagg.schemes import Roster
from tests.privacy.secagg_cohort import (
    HEAD,
    IDENTITIES,
    Cohort,
    framed,
    hellos_of,
    make_plan,
    names,
    signatures,
)


def test_a_stranger_in_the_roster_is_refused():
    here, wider = Cohort(), Cohort(make_plan(max_sites=6, threshold=5), count=6)
    roster = encode_sites(hellos_of(here) | {"site-5": wider.answer("hello", "site-5")[0]})
    with pytest.raises(MessageRefused, match="'site-5', whose key is not pinned"):
        here.answer("share", "site-0", framed(roster))


def test_a_roster_without_this_sites_own_hello_is_refused():
    cohort = Cohort()
    hellos = hellos_of(cohort)
    del hellos["site-0"]
    with pytest.raises(MessageRefused, match="this site's own hello unchanged"):
        cohort.answer("share", "site-0", framed(encode_sites(hellos)))


def test_a_roster_with_an_older_hello_of_this_site_is_refused():
    cohort, restarted = Cohort(), Cohort()
    hellos = hellos_of(cohort) | {"site-0": restarted.answer("hello", "site-0")[0]}
    with pytest.raises(MessageRefused, match="this site's own hello unchanged"):
        cohort.answer("share", "site-0", framed(encode_sites(hellos)))


def test_a_roster_below_the_quorum_is_refused():
    cohort = Cohort()
    hellos = hellos_of(cohort)
    few = {site: hellos[site] for site in ("site-0", "site-1", "site-2")}
    with pytest.raises(MessageRefused, match="3 sites, 4 are needed"):
        cohort.answer("share", "site-0", framed(encode_sites(few)))


def test_a_site_that_copies_another_sites_keys_is_refused():
    cohort = Cohort()
    hellos = hellos_of(cohort)
    hellos["site-3"] = cohort.sign("hello", "site-3", hellos["site-2"][HEAD:])
    with pytest.raises(MessageRefused, match='site "site-3": a key that another site'):
        cohort.answer("share", "site-0", framed(encode_sites(hellos)))


def test_a_channel_key_of_small_order_is_refused_by_the_sites():
    cohort = Cohort()
    hellos = hellos_of(cohort)
    hellos["site-3"] = cohort.sign("hello", "site-3", bytes(32) + hellos["site-3"][HEAD + 32 :])
    with pytest.raises(MessageRefused, match='site "site-3": its channel key is unusable'):
        cohort.answer("share", "site-0", framed(encode_sites(hellos)))


def test_a_mask_key_of_small_order_is_refused_by_the_sites():
    plan = make_plan()
    schemes = {site: MaskSite(plan, site) for site in list(IDENTITIES)[:5]}
    public = {site: schemes[site].public() for site in sorted(schemes)}
    public["site-3"] = public["site-3"][:32] + bytes(32) + public["site-3"][64:]
    roster = Roster(scope=Scope(sum_digest=bytes(32)), public=public)
    vector = np.zeros(10, dtype=np.int32)
    boxes = {site: schemes[site].deal(roster, vector)["site-0"] for site in public}
    schemes["site-0"].deal(roster, vector)
    del boxes["site-0"]
    with pytest.raises(MessageRefused, match='site "site-3": its mask key is unusable'):
        schemes["site-0"].protect(boxes)


def test_different_rosters_for_different_sites_end_before_anything_is_sealed():
    cohort = Cohort()
    hellos = hellos_of(cohort)
    full = framed(encode_sites(hellos))
    lacking = framed(
        encode_sites({site: hellos[site] for site in cohort.sites if site != "site-4"})
    )
    from_misled = cohort.answer("share", "site-0", lacking)[0]
    others = [cohort.answer("share", site, full)[0] for site in ("site-1", "site-2", "site-3")]
    boxes = {
        site: box_for(message, "site-0")
        for site, message in zip(("site-1", "site-2", "site-3"), others, strict=True)
    }
    assert box_for(from_misled, "site-1")
    with pytest.raises(MessageRefused, match=r"dealt under another roster\. Nothing was sealed"):
        cohort.answer("seal", "site-0", framed(encode_sites(boxes)))


def box_for(share_message, recipient):
    return decode_sites(share_message[HEAD:], leg="share", sender="test")[recipient]


@pytest.mark.parametrize(
    ("survivors", "why"),
    [
        (("site-1", "site-2", "site-3", "site-4"), "this site sealed but is not among"),
        (("site-0", "site-1", "site-2"), "3 sites, 4 are needed"),
        (("site-0", "site-1", "site-2", "site-7"), "a site that did not share"),
    ],
)
def test_a_survivor_set_that_would_endanger_this_site_is_not_signed(survivors, why):
    cohort = Cohort().play_before("confirm")
    with pytest.raises(MessageRefused, match=why):
        cohort.answer("confirm", "site-0", names(*survivors))


def test_a_site_that_did_not_share_is_not_signed_as_a_survivor():
    cohort = Cohort().play_before("confirm", drop={"share": ["site-4"]})
    with pytest.raises(MessageRefused, match="a site that did not share"):
        cohort.answer("confirm", "site-0", names(*cohort.sites))


def test_a_second_survivor_set_is_not_signed():
    cohort = Cohort().play_before("confirm")
    cohort.answer("confirm", "site-0")
    with pytest.raises(MessageRefused, match="for the second time"):
        cohort.answer("confirm", "site-0", names("site-0", "site-1", "site-2", "site-3"))


def test_different_survivor_sets_for_different_sites_release_nothing():
    cohort = Cohort().play_before("confirm")
    without_4 = names("site-0", "site-1", "site-2", "site-3")
    without_3 = names("site-0", "site-1", "site-2", "site-4")
    told = dict(
        zip(cohort.sites, (without_4, without_3, without_4, without_4, without_3), strict=True)
    )
    signed = {site: cohort.answer("confirm", site, told[site])[0] for site in cohort.sites}
    first = {site: signed[site] for site in ("site-0", "site-1", "site-2", "site-3")}
    with pytest.raises(MessageRefused, match=r"shows different sites different sets\. Nothing was"):
        cohort.answer("release", "site-0", signatures(first))
    second = {site: signed[site] for site in ("site-0", "site-1", "site-2", "site-4")}
    with pytest.raises(MessageRefused, match=r"shows different sites different sets\. Nothing was"):
        cohort.answer("release", "site-1", signatures(second))


def test_different_sets_of_sharers_for_different_sites_release_nothing():
    cohort = Cohort().play_before("seal")
    boxes = cohort.boxes("site-0")
    del boxes["site-4"]
    cohort.answer("seal", "site-0", framed(encode_sites(boxes)))
    [cohort.answer("seal", site) for site in cohort.sites[1:]]
    survivors = names("site-0", "site-1", "site-2", "site-3")
    signed = {site: cohort.answer("confirm", site, survivors)[0] for site in cohort.sites[:4]}
    with pytest.raises(MessageRefused, match="other sharers than this site"):
        cohort.answer("release", "site-1", signatures(signed))


@pytest.mark.parametrize(
    "confirmed", [(), ("site-0", "site-1", "site-2"), ("site-1", "site-2", "site-3", "site-4")]
)
def test_too_few_confirmations_or_none_of_its_own_release_nothing(confirmed):
    cohort = Cohort().play_before("release")
    signed = {site: message for leg, site, message in cohort.received if leg == "confirm"}
    with pytest.raises(MessageRefused, match="4 are needed, this site's among them"):
        cohort.answer("release", "site-0", signatures({site: signed[site] for site in confirmed}))


def test_a_confirmation_by_a_site_that_did_not_survive_releases_nothing():
    cohort = Cohort().play_before("release", drop={"seal": ["site-4"]})
    signed = {site: message for leg, site, message in cohort.received if leg == "confirm"}
    with pytest.raises(MessageRefused, match="'site-4' confirmed but is not among the survivors"):
        cohort.answer("release", "site-0", signatures(signed | {"site-4": signed["site-3"]}))


def test_a_forged_confirmation_releases_nothing():
    cohort = Cohort().play_before("release")
    signed = {site: message for leg, site, message in cohort.received if leg == "confirm"}
    signed["site-3"] = cohort.sign("confirm", "site-3", signed["site-3"][HEAD:], signer="site-4")
    with pytest.raises(MessageRefused, match='site "site-3": the signature is not'):
        cohort.answer("release", "site-0", signatures(signed))


def test_asking_for_both_secrets_of_a_site_is_refused():
    # After the release for all five as survivors, the coordinator claims that site-4 had dropped out.
    cohort = Cohort().play_before("release")
    confirmations = cohort.inbox["site-0"]
    cohort.answer("release", "site-0")
    with pytest.raises(MessageRefused, match="for the second time"):
        cohort.answer("confirm", "site-0", names(*cohort.sites[:4]))
    with pytest.raises(MessageRefused, match="for the second time"):
        cohort.answer("release", "site-0", confirmations)


def test_a_refused_release_is_not_tried_again():
    cohort = Cohort().play_before("release")
    with pytest.raises(MessageRefused, match="0 confirmations"):
        cohort.answer("release", "site-0", signatures({}))
    with pytest.raises(MessageRefused, match="for the second time"):
        cohort.answer("release", "site-0")
