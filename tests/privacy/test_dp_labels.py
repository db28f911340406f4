"""Seeded tests: a distance above 5 standard deviations or a p-value below 1e-5 would be one seed in 100 000."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from privacy.dp.labels import (
    estimated_class_counts,
    keep_probability,
    randomised_response,
    unbiased_targets,
)
from privacy.randomness import OsRandom, SeededRandom

CASES = [(2, 0.5), (2, 3.0), (3, 1.0), (10, 2.0)]
each_case = pytest.mark.parametrize(("categories", "epsilon"), CASES)


def labels(categories: int, count: int) -> NDArray[np.int64]:
    """The first label is the most frequent, the last the rarest."""
    weights = np.arange(categories, 0, -1)
    chances = weights / weights.sum()
    return np.random.default_rng(1).choice(categories, size=count, p=chances).astype(np.int64)


@each_case
@pytest.mark.statistical
def test_a_label_is_kept_or_replaced_by_each_other_one_as_often_as_it_should(
    categories: int, epsilon: float
) -> None:
    given_labels = np.full(200_000, 1, dtype=np.int64)
    responses = randomised_response(
        given_labels, categories=categories, epsilon=epsilon, random=SeededRandom(1, "labels")
    )
    expected = np.ones(categories)
    expected[1] = math.exp(epsilon)
    counts = np.bincount(responses, minlength=categories)
    assert stats.chisquare(counts, len(responses) * expected / expected.sum()).pvalue > 1e-5


@given(
    categories=st.integers(min_value=2, max_value=1 << 20),
    epsilon=st.floats(min_value=1e-9, max_value=1000.0),
)
def test_a_label_is_never_kept_more_often_than_epsilon_allows(
    categories: int, epsilon: float
) -> None:
    kept = Fraction(keep_threshold(categories, epsilon), 2**64)
    other = (1 - kept) / (categories - 1)
    with mpmath.workprec(2000):
        allowed = mpmath.exp(mpmath.mpf(epsilon))
        ratio = mpmath.mpf(kept.numerator) / kept.denominator
        ratio /= mpmath.mpf(other.numerator) / other.denominator
        assert 1 / allowed <= ratio <= allowed
        exact = allowed / (allowed + categories - 1)
        assert exact * 2**64 - int(kept * 2**64) <= 2


def keep_threshold(categories: int, epsilon: float) -> int:
    """The largest word that keeps a label, plus one: found by asking with chosen words."""
    low, high = 0, 2**64 - 1
    while low < high:
        middle = (low + high) // 2
        response = randomised_response(
            np.zeros(1, dtype=np.int64),
            categories=categories,
            epsilon=epsilon,
            random=FixedWord(middle),
        )
        low, high = (middle + 1, high) if response[0] == 0 else (low, middle)
    return low


class FixedWord(SeededRandom):
    """Gives one word, then what its key stream has."""

    def __init__(self, word: int) -> None:
        super().__init__(0)
        self._word: int | None = word

    def words(self, count: int) -> NDArray[np.uint64]:
        words = super().words(count)
        if self._word is not None:
            words[:], self._word = self._word, None
        return words


def test_the_probabilities_of_two_labels_are_those_of_warner() -> None:
    kept = [keep_probability(categories=2, epsilon=epsilon) for epsilon in (0.5, 1.0, 3.0, 8.0)]
    assert kept == pytest.approx([0.62246, 0.73106, 0.95257, 0.99966], abs=1e-5)


def test_responses_leave_the_labels_as_they_were() -> None:
    given_labels = labels(3, 1000)
    before = given_labels.copy()
    responses = randomised_response(given_labels, categories=3, epsilon=0.1, random=OsRandom())
    assert (given_labels == before).all()
    assert set(responses) <= {0, 1, 2}
    assert responses.dtype == np.int64


def test_no_labels_have_no_responses() -> None:
    nothing = np.empty(0, dtype=np.int64)
    assert len(randomised_response(nothing, categories=2, epsilon=1.0, random=OsRandom())) == 0
    assert estimated_class_counts(nothing, categories=2, epsilon=1.0).tolist() == [0.0, 0.0]


@each_case
@pytest.mark.statistical
def test_class_counts_are_estimated_without_bias(categories: int, epsilon: float) -> None:
    given_labels, random = labels(categories, 2000), SeededRandom(2, "counts")
    estimates = np.array(
        [
            estimated_class_counts(
                randomised_response(
                    given_labels, categories=categories, epsilon=epsilon, random=random
                ),
                categories=categories,
                epsilon=epsilon,
            )
            for _ in range(400)
        ]
    )
    error = estimates.mean(axis=0) - np.bincount(given_labels, minlength=categories)
    assert (abs(error) < 5 * estimates.std(axis=0) / math.sqrt(400)).all()
    assert estimates.sum(axis=1) == pytest.approx(2000)


@each_case
def test_targets_are_the_true_label_on_average(categories: int, epsilon: float) -> None:
    kept = keep_probability(categories=categories, epsilon=epsilon)
    chances = np.full((categories, categories), (1 - kept) / (categories - 1))
    np.fill_diagonal(chances, kept)
    every_response = np.arange(categories, dtype=np.int64)
    targets = unbiased_targets(every_response, categories=categories, epsilon=epsilon)
    assert chances @ targets == pytest.approx(np.eye(categories), abs=1e-12)


def test_a_loss_with_such_targets_is_the_loss_on_the_true_labels_on_average() -> None:
    logits = torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    kept = keep_probability(categories=2, epsilon=1.0)
    both = unbiased_targets(np.array([0, 1]), categories=2, epsilon=1.0)[:, 1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    for_0, for_1 = (
        loss(logits, torch.full_like(logits, float(target)), reduction="none") for target in both
    )
    plain = loss(logits, torch.ones_like(logits), reduction="none")
    assert kept * for_1 + (1 - kept) * for_0 == pytest.approx(plain)


@pytest.mark.parametrize(
    ("categories", "epsilon", "name"),
    [
        (1, 1.0, "categories=1"),
        (2**21, 1.0, "categories="),
        (2, 0.0, "epsilon=0.0"),
        (2, math.inf, "epsilon=inf"),
        (2, math.nan, "epsilon=nan"),
    ],
)
def test_a_mechanism_that_promises_nothing_is_refused(
    categories: int, epsilon: float, name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        randomised_response(
            np.zeros(1, dtype=np.int64), categories=categories, epsilon=epsilon, random=OsRandom()
        )


@pytest.mark.parametrize("intruder", [-1, 3])
def test_a_label_out_of_range_is_refused_without_naming_it(intruder: int) -> None:
    wrong = np.array([0, intruder], dtype=np.int64)
    with pytest.raises(ValueError, match="from 0 to 2, found another one"):
        randomised_response(wrong, categories=3, epsilon=1.0, random=OsRandom())
    with pytest.raises(ValueError, match="from 0 to 2, found another one"):
        unbiased_targets(wrong, categories=3, epsilon=1.0)


def test_labels_that_are_no_flat_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="flat int64"):
        randomised_response(np.zeros(2), categories=2, epsilon=1.0, random=OsRandom())  # type: ignore[arg-type]
