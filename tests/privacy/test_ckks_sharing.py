"""Shares of ring elements: any threshold of them restore, fewer say nothing, and they are linear."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.ckks.parameters import LIGHT, STANDARD
from privacy.ckks.ring import Residues, Ring, ring_of
from privacy.ckks.sharing import split, weighted
from privacy.randomness import OsRandom, SeededRandom

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ckks_sharing.json").read_text())
RINGS = [ring_of(STANDARD), ring_of(LIGHT)]
every_ring = pytest.mark.parametrize("ring", RINGS, ids=["standard", "light"])


def restored(ring: Ring, shares: dict[int, Residues], points: list[int]) -> Residues:
    total = np.zeros_like(shares[points[0]])
    for point in points:
        total = ring.add(total, weighted(ring, shares[point], point=point, points=points))
    return total


def dealt(
    ring: Ring, secret: Residues, *, threshold: int, points: list[int]
) -> dict[int, Residues]:
    shares = split(ring, secret, threshold=threshold, points=points, random=OsRandom())
    return dict(zip(points, shares, strict=True))


@every_ring
@pytest.mark.parametrize("asked", list(itertools.combinations(range(1, 6), 3)), ids=str)
def test_any_three_of_five_restore_the_secret(ring, asked):
    secret = ring.uniform(OsRandom())
    shares = dealt(ring, secret, threshold=3, points=[1, 2, 3, 4, 5])
    assert (restored(ring, shares, list(asked)) == secret).all()


@every_ring
@settings(max_examples=20, deadline=None)
@given(
    points=st.lists(st.integers(1, 64), min_size=1, max_size=64, unique=True),
    data=st.data(),
)
def test_any_subset_of_any_points_restores_from_the_threshold_on(ring, points, data):
    threshold = data.draw(st.integers(1, min(len(points), 30)))
    asked = data.draw(st.permutations(points).map(lambda order: order[threshold // 2 :]))
    asked = asked if len(asked) >= threshold else points
    secret = ring.uniform(OsRandom(), 5)
    secret[:, 0], secret[:, 1] = 0, np.array(ring.primes) - 1
    coefficients = split_few(ring, secret, threshold, points)
    assert (restored(ring, coefficients, asked) == secret).all()


def split_few(
    ring: Ring, secret: Residues, threshold: int, points: list[int]
) -> dict[int, Residues]:
    """Shares of a few residues, by the whole polynomial that holds them at its beginning."""
    whole = np.zeros((ring.shape.primes, ring.shape.degree), dtype=np.uint64)
    whole[:, : secret.shape[1]] = secret
    shares = dealt(ring, whole, threshold=threshold, points=points)
    return {point: share[:, : secret.shape[1]] for point, share in shares.items()}


@every_ring
def test_sums_of_shares_are_shares_of_the_sum(ring):
    secrets = [ring.uniform(OsRandom()) for _ in range(3)]
    all_shares = [dealt(ring, secret, threshold=2, points=[1, 2, 3]) for secret in secrets]
    sums = {
        point: ring.add(
            ring.add(*(shares[point] for shares in all_shares[:2])), all_shares[2][point]
        )
        for point in (1, 2, 3)
    }
    expected = ring.add(ring.add(secrets[0], secrets[1]), secrets[2])
    assert (restored(ring, sums, [3, 1]) == expected).all()


@every_ring
def test_fewer_than_the_threshold_give_noise(ring):
    secret = ring.transform(np.ones(ring.shape.degree, dtype=np.int64))
    shares = dealt(ring, secret, threshold=3, points=[1, 2, 3, 4, 5])
    assert (restored(ring, shares, [2, 5]) == secret).sum() <= 1


@every_ring
def test_two_shares_of_the_same_secret_are_as_random_as_of_any_other(ring):
    # The coefficients that hide a secret are fresh: for every other secret some would give the same two shares.
    secret = ring.uniform(OsRandom())
    first, second = (dealt(ring, secret, threshold=3, points=[1, 2, 3]) for _ in range(2))
    assert (first[1] == second[1]).sum() <= 1
    assert (first[2] == second[2]).sum() <= 1


@pytest.mark.parametrize(
    ("threshold", "points"),
    [(1, [1, 1]), (1, [0, 1]), (1, [1, 65]), (3, [1, 2]), (0, [1, 2])],
)
def test_points_and_thresholds_that_make_no_sense_are_refused(threshold, points):
    ring = ring_of(LIGHT)
    with pytest.raises(ValueError, match="Expected"):
        split(ring, ring.uniform(OsRandom()), threshold=threshold, points=points, random=OsRandom())


@pytest.mark.parametrize(("point", "points"), [(4, [1, 2, 3]), (1, [1, 1, 2]), (0, [0, 1])])
def test_weights_for_points_that_make_no_sense_are_refused(point, points):
    ring = ring_of(LIGHT)
    with pytest.raises(ValueError, match="Expected"):
        weighted(ring, ring.uniform(OsRandom()), point=point, points=points)


@pytest.mark.parametrize("vector", VECTORS["sharings"], ids=lambda vector: vector["name"])
def test_known_answers_of_shares_and_weights(vector):
    ring = ring_of({"standard": STANDARD, "light": LIGHT}[vector["name"]])
    random = SeededRandom(vector["random_seed"], "sharing")
    secret = ring.residues(np.arange(ring.shape.degree))
    shares = split(
        ring, secret, threshold=vector["threshold"], points=vector["points"], random=random
    )
    assert [share[:, :3].tolist() for share in shares] == vector["first_shares"]
    first = weighted(ring, shares[0], point=vector["points"][0], points=vector["asked"])
    assert first[:, :3].tolist() == vector["first_weighted"]
