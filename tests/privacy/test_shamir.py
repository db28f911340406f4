"""Shamir: any threshold of shares restores the secret, fewer say nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg.shamir import PRIME, combine, evaluate, split, weights_at_zero

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "secagg_shamir.json").read_text())
secrets = st.integers(min_value=0, max_value=PRIME - 1)


@pytest.mark.parametrize("case", VECTORS["good"])
def test_known_polynomials_give_known_shares(case):
    coefficients = [int(value, 16) for value in case["coefficients"]]
    shares = evaluate(int(case["secret"], 16), coefficients, count=len(case["shares"]))
    assert [hex(share) for share in shares] == case["shares"]


@pytest.mark.parametrize("case", VECTORS["good"])
def test_known_shares_restore_the_secret_from_the_last_points(case):
    count, threshold = len(case["shares"]), case["threshold"]
    points = list(range(count - threshold + 1, count + 1))
    shares = [int(case["shares"][point - 1], 16) for point in points]
    assert combine(shares, weights_at_zero(points)) == int(case["secret"], 16)


@pytest.mark.parametrize("case", VECTORS["bad"])
def test_points_that_define_no_polynomial_are_refused(case):
    with pytest.raises(ValueError, match=case["why"]):
        weights_at_zero(case["points"])


@settings(max_examples=50)
@given(secret=secrets, count=st.integers(1, 64), data=st.data())
def test_any_threshold_of_shares_restores_the_secret(secret, count, data):
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.permutations(range(1, count + 1)))[:threshold]
    shares = split(secret, threshold=threshold, count=count)
    chosen = [shares[point - 1] for point in points]
    assert combine(chosen, weights_at_zero(points)) == secret


@settings(max_examples=50)
@given(secret=secrets, threshold=st.integers(2, 20))
def test_one_share_less_does_not_restore_it(secret, threshold):
    # Error rate 2**-255: the result is uniform.
    shares = split(secret, threshold=threshold, count=threshold)
    points = list(range(1, threshold))
    assert combine(shares[:-1], weights_at_zero(points)) != secret


@given(secret=secrets, other=secrets, shift=st.integers(1, PRIME - 1))
def test_shares_below_the_threshold_fit_every_secret(secret, other, shift):
    # With threshold 2, one share s at point 1 lies on the line of any secret: coefficient = s - secret.
    share = evaluate(secret, [shift], count=1)[0]
    assert evaluate(other, [(share - other) % PRIME], count=1)[0] == share


@given(secret=secrets, error=st.integers(1, PRIME - 1))
def test_a_wrong_share_gives_a_wrong_secret(secret, error):
    shares = list(split(secret, threshold=3, count=3))
    shares[1] = (shares[1] + error) % PRIME
    assert combine(shares, weights_at_zero([1, 2, 3])) != secret


def test_two_splits_of_one_secret_share_nothing():
    first, second = (split(5, threshold=3, count=4) for _ in range(2))
    assert not set(first) & set(second)


@pytest.mark.statistical
def test_the_bits_of_shares_are_balanced():
    # 255 bits x 400 shares; the count of ones is normal with standard deviation 160: |z| > 5 has probability 6e-7.
    shares = [split(0, threshold=2, count=1 + 1)[0] for _ in range(400)]
    ones = np.array([share.bit_count() for share in shares]).sum()
    assert abs(ones - 400 * 255 / 2) < 5 * np.sqrt(400 * 255) / 2


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (-1, 0)])
def test_impossible_thresholds_are_refused(threshold, count):
    with pytest.raises(ValueError, match="threshold"):
        split(1, threshold=threshold, count=count)


@pytest.mark.parametrize("secret", [-1, PRIME, 2**256])
def test_secrets_outside_the_field_are_refused(secret):
    with pytest.raises(ValueError, match="secret"):
        split(secret, threshold=1, count=1)


def test_shares_outside_the_field_are_refused():
    with pytest.raises(ValueError, match="share"):
        combine([PRIME, 1], weights_at_zero([1, 2]))
