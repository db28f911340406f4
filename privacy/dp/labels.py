"""Label differential privacy by randomised response (Warner 1965), once for every label.

1. The holder of the labels keeps each with probability e**epsilon / (e**epsilon + categories - 1) and otherwise puts
   another one in its place, all others equally likely. The responses are stored and used for everything that follows.
2. Counts and losses from the responses are made unbiased with the known probabilities: post-processing, free.

Neighbouring tables differ in the label of one record. Who has a record, how many there are and all features are not
protected. The event is `privacy.dp.events.RandomisedResponse`. Answering again for the same labels costs again.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.dp.sampling_tables import WORD_BITS, exp_bounds
from privacy.randomness import Random

# N records, K categories

LEAST_EPSILON = 1e-9
MOST_CATEGORIES = 1 << 20


def randomised_response(
    labels_N: NDArray[np.int64], *, categories: int, epsilon: float, random: Random
) -> NDArray[np.int64]:
    """Each label, or one of the others: epsilon-DP for every label by itself.

    The choice compares 64 random bits with a threshold, which is rounded so that a label is kept less often.

    Args:
        labels_N: integers from 0 to `categories` - 1.
        categories: 2 to 2**20, a public number.
        epsilon: pure epsilon of one label, >= 1e-9 and finite.
        random: `OsRandom` for a real release.
    """
    threshold = _keep_threshold(categories, epsilon)
    _require_labels(labels_N, categories)
    is_replaced_N = random.words(len(labels_N)) >= np.uint64(threshold)
    responses_N = labels_N.copy()
    steps = 1 + _uniform_below(categories - 1, int(is_replaced_N.sum()), random)
    responses_N[is_replaced_N] = (labels_N[is_replaced_N] + steps) % categories
    return responses_N


def keep_probability(*, categories: int, epsilon: float) -> float:
    """Probability with which `randomised_response` keeps a label."""
    return _keep_threshold(categories, epsilon) / 2.0**WORD_BITS


def estimated_class_counts(
    responses_N: NDArray[np.int64], *, categories: int, epsilon: float
) -> NDArray[np.float64]:
    """Unbiased estimate of how often each label occurs [K]; an estimate can be negative."""
    kept, other = _response_probabilities(categories, epsilon)
    _require_labels(responses_N, categories)
    counts_K = np.bincount(responses_N, minlength=categories).astype(np.float64)
    return (counts_K - other * len(responses_N)) / (kept - other)


def unbiased_targets(
    responses_N: NDArray[np.int64], *, categories: int, epsilon: float
) -> NDArray[np.float64]:
    """Targets [N, K] whose expectation is the true label as a one-hot row (Natarajan et al. 2013, lemma 1).

    A loss that is linear in its target, such as cross-entropy, is with them an unbiased estimate of the loss on the true
    labels. With two categories column 1 is the target of a binary loss. Targets lie outside [0, 1], the further the
    smaller epsilon is.
    """
    kept, other = _response_probabilities(categories, epsilon)
    _require_labels(responses_N, categories)
    targets_NK = np.full((len(responses_N), categories), -other / (kept - other))
    targets_NK[np.arange(len(responses_N)), responses_N] = (1.0 - other) / (kept - other)
    return targets_NK


def _response_probabilities(categories: int, epsilon: float) -> tuple[float, float]:
    """Of the true label, and of each other one."""
    kept = keep_probability(categories=categories, epsilon=epsilon)
    return kept, (1.0 - kept) / (categories - 1)


def _keep_threshold(categories: int, epsilon: float) -> int:
    """floor(2**64 / (1 + (categories - 1) * e**-epsilon)), or one less; at most 2**64 - 1."""
    if not 2 <= categories <= MOST_CATEGORIES:
        raise ValueError(f"Expected categories={categories} in [2, {MOST_CATEGORIES}].")
    if not LEAST_EPSILON <= epsilon < math.inf:
        raise ValueError(f"Expected epsilon={epsilon} >= {LEAST_EPSILON} and finite.")
    bits = 2 * WORD_BITS
    at_most = exp_bounds(Fraction(epsilon), bits)[1]
    threshold = (1 << (WORD_BITS + bits)) // ((1 << bits) + (categories - 1) * at_most)
    return min(threshold, (1 << WORD_BITS) - 1)


def _uniform_below(bound: int, count: int, random: Random) -> NDArray[np.int64]:
    """`count` uniform integers in [0, bound): words below the largest multiple of `bound`, reduced."""
    largest = np.uint64((1 << WORD_BITS) // bound * bound - 1)
    words = random.words(count)
    missing = np.flatnonzero(words > largest)
    while len(missing) > 0:
        words[missing] = random.words(len(missing))
        missing = missing[words[missing] > largest]
    return (words % np.uint64(bound)).astype(np.int64)


def _require_labels(labels_N: NDArray[np.int64], categories: int) -> None:
    if labels_N.ndim != 1 or labels_N.dtype != np.int64:
        raise ValueError(f"Expected flat int64 labels, got {labels_N.dtype} {labels_N.shape}.")
    if ((labels_N < 0) | (labels_N >= categories)).any():
        raise ValueError(f"Expected labels from 0 to {categories - 1}, found another one.")
