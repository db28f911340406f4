"""Plans, contexts and keys with which no part is started."""

import pytest

from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.plan import sum_threshold
from privacy.secagg.secure_sum import MemoryJournal, coordinator_part, site_part
from tests.privacy.secagg_cohort import (
    IDENTITIES,
    make_context,
    make_plan,
    public_keys,
)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_cohort_that_the_plan_does_not_fit_is_refused(count):
    with pytest.raises(ValueError, match="Expected 4 to 5 sites"):
        coordinator_part(
            make_plan(), context=make_context(), keys=public_keys(list(IDENTITIES)[:count])
        )


def test_a_threshold_of_two_thirds_is_refused_by_both_sides():
    keys = public_keys(list(IDENTITIES)[:6])
    plan = make_plan(max_sites=6, threshold=4)
    with pytest.raises(ValueError, match="threshold=4 >= 5 for 6 sites"):
        coordinator_part(plan, context=make_context(), keys=keys)
    with pytest.raises(ValueError, match="threshold=4 >= 5 for 6 sites"):
        site_part(
            plan,
            site="site-0",
            context=make_context(),
            identity=IDENTITIES["site-0"],
            keys=keys,
            journal=MemoryJournal(),
            key_store=MemoryKeyStore(),
        )


def test_a_site_refuses_keys_that_do_not_hold_its_own():
    keys = public_keys(list(IDENTITIES)[:5]) | {"site-0": bytes(32)}
    with pytest.raises(ValueError, match='own identity key under "site-0"'):
        site_part(
            make_plan(),
            site="site-0",
            context=make_context(),
            identity=IDENTITIES["site-0"],
            keys=keys,
            journal=MemoryJournal(),
            key_store=MemoryKeyStore(),
        )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"site-1": IDENTITIES["site-0"].public_key().public_bytes_raw()}, "under two names"),
        ({"site-1": bytes(31)}, 'site "site-1", got 31'),
        ({"Site 1": bytes(32)}, "'Site 1'"),
    ],
)
def test_identity_keys_that_are_not_sound_are_refused(change, why):
    keys = public_keys(list(IDENTITIES)[:4]) | change
    with pytest.raises(ValueError, match=why):
        coordinator_part(make_plan(), context=make_context(), keys=keys)


@pytest.mark.parametrize(
    "change",
    [
        {"max_sites": 1001},
        {"max_sites": 1},
        {"quorum": 1},
        {"quorum": 6},
        {"threshold": 1},
        {"threshold": 6},
        {"dimension": 0},
        {"dimension": 2**30 + 1},
        {"value_range": float("nan")},
        {"value_range": 0.0},
        {"value_range": float("inf")},
        {"scheme": "trust-me"},
        {"value_bits": 1},
        {"value_bits": 30},
        {"key_holder": "site-0"},
        {"key_bits": 2048},
        {"key_bits": 10_000},
    ],
)
def test_a_plan_out_of_bounds_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        make_plan(**change)


@pytest.mark.parametrize(
    "change", [{"run_id": ""}, {"round": -1}, {"attempt": -1}, {"plan_digest": b"x"}]
)
def test_a_context_out_of_bounds_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        make_context(**change)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("mask", [2, 3, 3, 4, 5, 41, 43]),
        ("ckks", [2, 3, 2, 3, 4, 22, 22]),
        ("ckks-light", [2, 3, 2, 3, 4, 22, 22]),
        ("paillier", [2, 2, 2, 3, 4, 22, 22]),
        ("plain", [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_thresholds_that_a_coordinator_asks_for_are_the_known_ones(scheme, expected):
    assert [sum_threshold(scheme, sites) for sites in (2, 3, 4, 5, 6, 60, 64)] == expected


@pytest.mark.parametrize("scheme", ["mask", "ckks", "ckks-light", "paillier"])
@pytest.mark.parametrize("sites", range(2, 65))
def test_two_survivor_sets_are_both_confirmed_only_by_as_many_liars_as_a_cohort_stands(
    scheme, sites
):
    threshold = sum_threshold(scheme, sites)
    holder = {"key_holder": "site-0"} if scheme == "paillier" else {}
    plan = make_plan(
        scheme=scheme, max_sites=sites, quorum=2, threshold=threshold, value_bits=24, **holder
    )
    confirmations = plan.confirmations(sites)
    liars = 2 * confirmations - sites
    assert threshold <= sites
    assert confirmations <= sites
    # So many sites sign both sets. Below a third of all, they get no two sets signed.
    assert liars > (sites - 1) // 3
    # Whoever could sign both could open everything anyway, or there are too few shares for both secrets of a site.
    assert scheme == "mask" or liars >= threshold
    assert scheme != "mask" or 2 * threshold - sites >= liars


@pytest.mark.parametrize(
    "change", [{"scheme": "paillier"}, {"scheme": "ckks", "key_holder": "site-0"}]
)
def test_a_key_holder_is_named_exactly_where_there_is_one(change):
    with pytest.raises(ValueError, match="key_holder"):
        make_plan(**change)


def test_a_key_holder_outside_the_cohort_is_refused():
    plan = make_plan(scheme="paillier", threshold=3, key_holder="site-7")
    with pytest.raises(ValueError, match="key_holder='site-7' to be a site of the cohort"):
        plan.require_cohort(list(IDENTITIES)[:5])


@pytest.mark.parametrize("scheme", ["ckks", "ckks-light"])
def test_a_cohort_too_small_for_the_threshold_is_refused(scheme):
    plan = make_plan(scheme=scheme, quorum=2, threshold=4)
    with pytest.raises(ValueError, match=r"threshold=4\), got 3"):
        plan.require_cohort(list(IDENTITIES)[:3])
