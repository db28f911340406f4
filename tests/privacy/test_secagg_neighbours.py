"""Who deals with whom in large cohorts of `mask`, and the odds of what must not happen."""

import hashlib
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from privacy.secagg.envelopes import Scope
from privacy.secagg.mask import pair_stream
from privacy.secagg.neighbours import (
    MOST_EXPOSURE,
    NEIGHBOURS,
    Neighbourhoods,
    disconnection,
    exposure,
    holders_threshold,
    hypergeometric_tail,
    loss,
    most_colluders,
)
from privacy.secagg.plan import smallest_threshold, sum_threshold
from privacy.secagg.schemes import Roster
from tests.privacy.secagg_cohort import make_plan

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "secagg_pairs.json").read_text())
LARGE = [102, 103, 128, 150, 200, 300, 500, 700, 1000]


def rules_for(sites, *, threshold=50):
    return Neighbourhoods(sites=sites, threshold=threshold)


def names(count):
    return tuple(f"site-{number:03d}" for number in range(count))


def roster_of(keys, *, sum_digest=bytes(32), roster_digest=bytes(32)):
    """A roster in which every site's mask key is known."""
    public = {
        site: bytes(32) + key.public_key().public_bytes_raw() + bytes(32)
        for site, key in keys.items()
    }
    scope = Scope(sum_digest=sum_digest, roster_digest=roster_digest)
    return Roster(scope=scope, public=public)


def keys_of(sites):
    return {
        site: X25519PrivateKey.from_private_bytes(hashlib.sha256(site.encode()).digest())
        for site in sites
    }


def pairs_of(keys, *, neighbours, roster_digest=bytes(32)):
    """Adjacency of the graph of pairs, from the keys of the site with the earlier name."""
    roster = roster_of(keys, roster_digest=roster_digest)
    rules = Neighbourhoods(sites=len(keys), threshold=1, neighbours=neighbours)
    graph = np.zeros((len(keys), len(keys)), dtype=bool)
    for (row, own), (column, peer) in itertools.combinations(enumerate(keys), 2):
        stream = pair_stream(keys[own], roster, rules, own=own, peer=peer)
        graph[row, column] = graph[column, row] = stream is not None
    return graph


@pytest.mark.parametrize("sites", [2, 3, 64, 65, 100, 101])
def test_up_to_101_sites_everybody_deals_with_everybody(sites):
    rules = rules_for(sites, threshold=2)
    assert rules.is_complete
    assert rules.draw_holders("site-001", names(sites)) == names(sites)
    assert (rules.holders, rules.share_threshold) == (sites, 2)
    assert rules.is_pair(b"\xff" * 8)


@pytest.mark.parametrize("sites", LARGE)
def test_a_site_of_a_large_cohort_draws_a_hundred_others_and_itself_in_order(sites):
    rules, roster = rules_for(sites), names(sites)
    holders = rules.draw_holders("site-007", roster)
    assert len(holders) == len(set(holders)) == rules.holders == NEIGHBOURS + 1
    assert "site-007" in holders
    assert list(holders) == sorted(holders)
    assert set(holders) <= set(roster)


def test_holders_are_drawn_anew_at_every_call():
    # Two draws agree with a probability of 1 / comb(299, 100), below 2**-270.
    rules, roster = rules_for(300), names(300)
    assert rules.draw_holders("site-000", roster) != rules.draw_holders("site-000", roster)


@pytest.mark.parametrize("neighbours", [2, 14, 99, 100])
def test_more_than_two_thirds_of_the_holders_restore_a_secret_and_no_fewer(neighbours):
    threshold = holders_threshold(neighbours)
    assert 3 * threshold > 2 * (neighbours + 1) >= 3 * (threshold - 1)


@pytest.mark.parametrize("sites", LARGE)
def test_the_bound_on_a_pairs_number_gives_a_hundred_pairs_a_site(sites):
    expected = Fraction(rules_for(sites).pair_bound, 1 << 64) * (sites - 1)
    assert NEIGHBOURS - Fraction(sites, 1 << 64) < expected <= NEIGHBOURS


@pytest.mark.parametrize(("shift", "is_pair"), [(-1, True), (0, False)])
def test_a_pair_is_one_whose_number_is_below_the_bound(shift, is_pair):
    rules = rules_for(200)
    assert rules.is_pair((rules.pair_bound + shift).to_bytes(8, "big")) is is_pair


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("case", VECTOR["pairs"])
def test_either_side_finds_the_known_stream_or_that_there_is_none(case, is_swapped):
    own, peer = case["sites"][::-1] if is_swapped else case["sites"]
    private = {site: bytes.fromhex(key) for site, key in VECTOR["private_keys"].items()}
    keys = {site: X25519PrivateKey.from_private_bytes(key) for site, key in private.items()}
    roster = roster_of(
        keys,
        sum_digest=bytes.fromhex(VECTOR["sum_digest"]),
        roster_digest=bytes.fromhex(VECTOR["roster_digest"]),
    )
    rules = rules_for(VECTOR["roster_size"])
    stream = pair_stream(keys[own], roster, rules, own=own, peer=peer)
    assert (stream and stream.hex()) == case["key"]


def test_pairs_of_known_keys_form_one_graph_of_the_degree_that_was_asked_for():
    graph = pairs_of(keys_of(names(90)), neighbours=30)
    degrees = graph.sum(axis=0)
    # Of fixed keys, so of a fixed graph: the mean of 90 sites is within a pair or two of 30.
    assert abs(degrees.mean() - 30) < 2
    assert degrees.min() >= 15
    assert connected_components(graph)[0] == 1


def test_another_roster_has_other_pairs_between_the_same_keys():
    keys = keys_of(names(30))
    first = pairs_of(keys, neighbours=15)
    second = pairs_of(keys, neighbours=15, roster_digest=b"\1" * 32)
    # Independent graphs of density 1/2 agree in about half of all pairs.
    assert 0.3 < (first == second).mean() < 0.7


@given(st.data())
@settings(max_examples=50)
def test_the_hypergeometric_tail_counts_draws(data):
    population = data.draw(st.integers(1, 9))
    marked = data.draw(st.integers(0, population))
    drawn = data.draw(st.integers(0, population))
    least = data.draw(st.integers(-1, population + 1))
    draws = list(itertools.combinations(range(population), drawn))
    found = sum(sum(one < marked for one in draw) >= least for draw in draws)
    tail = hypergeometric_tail(population, marked, drawn=drawn, least=least)
    assert tail == pytest.approx(found / len(draws))


@pytest.mark.parametrize("unpaired", [0.05, 0.1, 0.3, 0.7])
def test_the_bound_on_disconnection_holds_for_all_graphs_of_five_sites(unpaired):
    # Connected graphs on five named points by number of edges (OEIS A062734).
    graphs = {4: 125, 5: 222, 6: 205, 7: 120, 8: 45, 9: 10, 10: 1}
    connected = sum(
        count * (1 - unpaired) ** edges * unpaired ** (10 - edges)
        for edges, count in graphs.items()
    )
    assert 1.0 - connected <= disconnection(5, unpaired)


def test_the_bound_on_disconnection_is_close_where_edges_are_likely():
    assert disconnection(5, 0.05) == pytest.approx(5 * 0.05**4, rel=0.01)


@pytest.mark.parametrize(
    ("sites", "colluders"),
    [(102, 54), (150, 60), (200, 71), (300, 92), (500, 137), (700, 183), (1000, 251)],
)
def test_large_cohorts_withstand_the_known_numbers_of_colluders_and_not_one_more(sites, colluders):
    fewest = smallest_threshold(sites)
    plan = make_plan(max_sites=sites, threshold=fewest, quorum=2, value_bits=20)
    assert plan.withstands(sites) == colluders
    assert exposure(sites, fewest=fewest, colluders=colluders) <= MOST_EXPOSURE
    assert exposure(sites, fewest=fewest, colluders=colluders + 1) > MOST_EXPOSURE


@pytest.mark.parametrize("quorum", [2, 161, 200])
def test_what_a_cohort_withstands_rests_on_signatures_not_on_the_quorum(quorum):
    plan = make_plan(max_sites=200, threshold=160, quorum=quorum, value_bits=20)
    assert plan.withstands(200) == 71


def test_two_thirds_of_a_large_cohort_would_withstand_hardly_anybody():
    assert most_colluders(1000, fewest=667, most=333) == 5


@pytest.mark.parametrize("sites", [101, 65, 5, 2])
def test_chance_plays_no_part_where_everybody_deals_with_everybody(sites):
    assert exposure(sites, fewest=sites, colluders=sites - 1) == 0.0
    assert loss(sites, lost=sites - 1) == 0.0


@pytest.mark.parametrize("sites", LARGE)
def test_exposure_grows_with_the_colluders_up_to_certainty(sites):
    fewest = smallest_threshold(sites)
    bounds = [exposure(sites, fewest=fewest, colluders=count) for count in range(fewest + 1)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == 1.0


@pytest.mark.parametrize(
    ("sites", "lost", "expected"), [(300, 45, 8.9e-7), (1000, 100, 1.1e-8), (1000, 150, 1.3e-3)]
)
def test_the_odds_that_drop_outs_leave_a_secret_closed_are_the_known_ones(sites, lost, expected):
    assert loss(sites, lost=lost) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("sites", range(2, 65))
def test_small_cohorts_of_mask_withstand_as_many_as_cannot_sign_two_survivor_sets(sites):
    threshold = sum_threshold("mask", sites)
    plan = make_plan(max_sites=sites, threshold=threshold, quorum=2)
    assert plan.withstands(sites) == 2 * threshold - sites - 1


@pytest.mark.parametrize(
    ("scheme", "sites", "withstood"),
    [
        ("ckks", 2, 1),
        ("ckks", 3, 2),
        ("ckks", 4, 1),
        ("ckks-light", 60, 21),
        ("paillier", 5, 2),
        ("paillier", 60, 21),
        ("plain", 60, 0),
    ],
)
def test_other_schemes_withstand_one_fewer_than_the_shares_that_open(scheme, sites, withstood):
    threshold = sum_threshold(scheme, sites)
    holder = {"key_holder": "site-0"} if scheme == "paillier" else {}
    plan = make_plan(scheme=scheme, max_sites=sites, quorum=2, threshold=threshold, **holder)
    assert plan.withstands(sites) == withstood


@pytest.mark.parametrize(
    ("sites", "threshold"), [(64, 43), (101, 68), (102, 82), (103, 83), (200, 160), (1000, 800)]
)
def test_above_101_sites_four_fifths_must_sign(sites, threshold):
    assert smallest_threshold(sites) == sum_threshold("mask", sites) == threshold
    low = make_plan(max_sites=sites, threshold=threshold - 1, quorum=2, value_bits=20)
    with pytest.raises(ValueError, match=f"threshold={threshold - 1} >= {threshold}"):
        low.require_cohort(names(sites))
    make_plan(max_sites=sites, threshold=threshold, value_bits=20).require_cohort(names(sites))


@pytest.mark.parametrize("scheme", ["ckks", "ckks-light", "paillier", "plain"])
def test_only_mask_takes_more_than_64_sites(scheme):
    holder = {"key_holder": "site-0"} if scheme == "paillier" else {}
    with pytest.raises(ValueError, match="max_sites=65 <= 64"):
        make_plan(scheme=scheme, max_sites=65, value_bits=20, **holder)


def test_mask_takes_a_thousand_sites_if_the_modulus_has_room_for_them():
    assert make_plan(max_sites=1000, value_bits=22).encoding.modulus_bits == 32
    with pytest.raises(ValueError, match="value_bits=23 of at most 22"):
        make_plan(max_sites=1000, value_bits=23)
    with pytest.raises(ValueError, match="max_sites=1001 <= 1000"):
        make_plan(max_sites=1001, value_bits=20)


def test_the_odds_are_below_the_bound_by_what_a_union_costs():
    # All terms of one bound, formed in another way: exact fractions and logarithms.
    sites, fewest, colluders = 200, 160, 71
    unpaired = 1 - Fraction(100, 199)
    opened = sum(
        Fraction(math.comb(71, found) * math.comb(88, 100 - found), math.comb(159, 100))
        for found in range(68, 72)
    )
    honest = fewest - colluders
    cuts = sum(
        math.comb(honest, side) * unpaired ** (side * (honest - side))
        for side in range(1, honest // 2 + 1)
    )
    stray = sites * unpaired ** (2 * fewest - sites - colluders)
    found = exposure(sites, fewest=fewest, colluders=colluders)
    assert found == pytest.approx(float(sites * opened + cuts + stray), rel=1e-9)
