"""What the helpers of `ckks` release: flooded, useless one by one, and good for exactly the helpers that were asked."""

import functools
import itertools

import numpy as np
import pytest

from privacy.ckks.parameters import LIGHT, STANDARD
from privacy.ckks.ring import Residues, ring_of
from privacy.ckks.vectors import opening
from privacy.secagg.boxes import Channel
from privacy.secagg.envelopes import Scope
from privacy.secagg.errors import MessageRefused, SumImpossible
from privacy.secagg.ring_sum import polynomial_seed, sum_of_shares
from privacy.secagg.schemes import Roster
from privacy.secagg.zero_shares import ZeroShares
from tests.privacy.secagg_cohort import HEAD, Cohort, plan_of, signatures

SITES = ("anna", "bert", "cleo", "dora")
CHANNELS = {site: Channel(site) for site in SITES}
ROSTER = Roster(
    scope=Scope(sum_digest=bytes(32), roster_digest=b"r" * 32),
    public={site: CHANNELS[site].public for site in SITES},
)
RING = ring_of(STANDARD)
DIMENSION = 100


def zero_share(
    site: str,
    *,
    asked: tuple[str, ...] = SITES,
    survivors: tuple[str, ...] = SITES,
    length: int = 50,
    shape=STANDARD,
) -> Residues:
    ring = ring_of(shape)
    shares = ZeroShares(
        ring, CHANNELS[site], roster=ROSTER, site=site, survivors=survivors, responders=asked
    )
    return shares.added_to(np.zeros((shape.primes, length), dtype=np.uint64))


@pytest.mark.parametrize("shape", [STANDARD, LIGHT], ids=["standard", "light"])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 8192])
def test_shares_of_zero_add_up_to_zero_over_exactly_those_who_are_asked(shape, count, length):
    ring, asked = ring_of(shape), SITES[:count]
    shares = [zero_share(site, asked=asked, length=length, shape=shape) for site in asked]
    assert not functools.reduce(ring.add, shares).any()
    assert functools.reduce(ring.add, shares[:-1], np.zeros_like(shares[0])).any()


@pytest.mark.parametrize(
    "other",
    [{"asked": SITES[:3]}, {"survivors": SITES[1:]}],
    ids=["other helpers", "other survivors"],
)
def test_shares_of_zero_are_others_for_every_release(other):
    assert not (zero_share("anna") == zero_share("anna", **other)).any()


def test_shares_of_zero_of_consecutive_blocks_differ_and_cancel_each():
    streams = [
        ZeroShares(
            RING, CHANNELS[site], roster=ROSTER, site=site, survivors=SITES, responders=SITES
        )
        for site in SITES
    ]
    empty = np.zeros((2, 50), dtype=np.uint64)
    blocks = [[stream.added_to(empty) for stream in streams] for _ in range(3)]
    assert not any(functools.reduce(RING.add, block).any() for block in blocks)
    assert not (blocks[0][0] == blocks[1][0]).any()


def test_whoever_is_asked_alone_adds_nothing():
    assert not zero_share("anna", asked=("anna",)).any()


def test_a_share_of_zero_is_the_same_stream_at_both_ends():
    one, other = (zero_share(site, asked=SITES[:2]) for site in SITES[:2])
    assert (RING.add(one, other) == 0).all()
    assert not (one == other).any()


def cohort_in_release() -> Cohort:
    cohort: Cohort = Cohort(plan_of("ckks-3-of-5", dimension=DIMENSION)).play_before("release")
    return cohort


def released(cohort: Cohort, site: str, asked: tuple[str, ...]) -> Residues:
    """The polynomial that the site releases when it is told that these are asked."""
    confirmed = {name: frame for leg, name, frame in cohort.received if leg == "confirm"}
    told = signatures(confirmed, asked)
    (frame,) = cohort.answer("release", site, told)
    return RING.unpack(frame[HEAD:], DIMENSION)


def leftover(cohort: Cohort, parts: list[Residues]) -> float:
    """How far the largest coefficient of the sum of these parts is from a * (sum of the survivors' keys)."""
    scheme = cohort.parts["site-0"]._scheme
    keys = [cohort.parts[site]._scheme._epoch.key for site in cohort.sites]
    (product,) = opening(
        scheme._blocks,
        scheme._sizes,
        key=functools.reduce(RING.add, keys),
        seed=polynomial_seed(scheme._roster),
        random=None,
    )
    found = RING.lifted(RING.subtract(functools.reduce(RING.add, parts), product))
    return float(np.abs(found).max())


@pytest.mark.parametrize("asked", list(itertools.combinations(range(5), 3)), ids=str)
def test_any_threshold_of_helpers_give_the_product_of_the_sum_of_keys_and_flooding(asked):
    cohort = cohort_in_release()
    helpers = tuple(f"site-{number}" for number in asked)
    parts = [released(cohort, site, helpers) for site in helpers]
    flooding = 2.0 ** cohort.parts["site-0"]._scheme._sizes.flooding_exponent
    assert flooding / 2 < leftover(cohort, parts) < 3 * flooding


def test_fewer_than_were_asked_give_noise():
    cohort = cohort_in_release()
    parts = [released(cohort, site, cohort.sites) for site in cohort.sites[:4]]
    assert leftover(cohort, parts) > RING.modulus / 16


def test_parts_that_were_asked_of_different_sets_give_noise():
    cohort = cohort_in_release()
    few, more = cohort.sites[:3], cohort.sites[:4]
    parts = [
        released(cohort, "site-0", few),
        released(cohort, "site-1", few),
        released(cohort, "site-2", more),
    ]
    assert leftover(cohort, parts) > RING.modulus / 16


def test_what_one_helper_gives_is_noise_even_to_whoever_knows_its_share():
    # Without the share of zero, the difference would be the helper's flooding, below 2**-30 of the modulus.
    cohort = cohort_in_release()
    scheme = cohort.parts["site-0"]._scheme
    share = sum_of_shares(RING, scheme._epoch.shares, cohort.sites)
    part = released(cohort, "site-0", cohort.sites)
    weight = 5  # Lagrange, over the points 1 to 5
    (product,) = opening(
        scheme._blocks,
        scheme._sizes,
        key=RING.scaled(share, weight),
        seed=polynomial_seed(scheme._roster),
        random=None,
    )
    assert np.abs(RING.lifted(RING.subtract(part, product))).max() > RING.modulus / 16


def test_two_releases_of_one_helper_have_nothing_in_common():
    cohort = cohort_in_release()
    first = released(cohort, "site-0", cohort.sites)
    second = released(cohort, "site-0", cohort.sites[:4])
    assert not (first == second).any()


def test_the_same_set_is_not_asked_twice():
    cohort = cohort_in_release()
    released(cohort, "site-0", cohort.sites)
    with pytest.raises(MessageRefused, match="not with fewer sites than before"):
        released(cohort, "site-0", cohort.sites)


def test_a_residue_outside_the_ring_is_refused_on_arrival():
    cohort = cohort_in_release()
    (frame,) = cohort.answer("release", "site-0")
    part = bytearray(frame[HEAD:])
    part[:4], part[-4:] = b"\xff" * 4, b"\xff" * 4
    with pytest.raises(MessageRefused, match='leg "release", site "site-0": part 0:'):
        cohort.deliver_signed("release", "site-0", bytes(part))


def test_a_helper_that_releases_something_else_is_noticed():
    cohort = Cohort(plan_of("ckks-3-of-5", dimension=5000)).play_before("release")
    wrong = RING.pack(RING.uniform(cohort.parts["site-2"]._scheme._random, 5000))
    cohort.deliver_signed("release", "site-2", wrong)
    with pytest.raises(SumImpossible, match="discarded"):
        cohort.play("release", silent=["site-2"])


@pytest.mark.parametrize("surplus", ["site-3", "site-4"])
def test_a_wrong_surplus_share_of_ckks_light_is_noticed(surplus):
    cohort = Cohort(plan_of("ckks-light")).play_before("release")
    ring = ring_of(LIGHT)
    cohort.deliver_signed("release", surplus, ring.pack(np.ones((1, LIGHT.degree), np.uint64)))
    with pytest.raises(SumImpossible, match="do not lie on one polynomial"):
        cohort.play("release", silent=[surplus])
