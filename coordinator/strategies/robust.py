"""Robust rules: one change of the model from the mean changes of several groups, some of which may be malicious.

median            per coordinate; Flower's `aggregate_median`
trimmed-mean      per coordinate, without the f largest and f smallest; Flower's `aggregate_trimmed_avg`
geometric-median  the point with the least sum of distances, by smoothed Weiszfeld steps (Pillutla et al. 2019); ours
krum              the one change with the closest neighbours; Flower's `aggregate_krum`
multi-krum        the mean of the G - f - 2 changes with the closest neighbours; Flower's `aggregate_krum`
bulyan            Krum chooses G - 2f, then the mean of the values next to their median, per coordinate; Flower's
                  `aggregate_bulyan`, which chooses one by one as the paper does (`flwr.serverapp` chooses all at once);
                  its last choices are between pairs of closest neighbours, where the order of the groups decides

All are unweighted, also where Flower's function takes a number of examples: that number is what a group's sites say.
`coordinator.wire.robustness` says how many groups a rule needs. Not here: `mean`, which is the sum over all divided by
its weight (`coordinator.wire.contribution`).
"""

from collections.abc import Callable, Sequence

import numpy as np
from flwr.server.strategy.aggregate import (
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)
from numpy.typing import NDArray

from coordinator.wire.robustness import Rule, fewest_groups

# G groups, P weights

BLOCK = 1 << 20
"""Weights worked on at once where a rule looks at each by itself."""
MOST_STEPS = 200
"""Weiszfeld steps; a dozen is the rule."""
STEP_TOLERANCE = 1e-6
SMOOTHING = 1e-6
"""Both in units of the middle distance from the start: a change smaller than the float32 of the result."""

Changes = Sequence[NDArray[np.float32]]


def robust_change(rule: Rule, changes: Changes, *, malicious: int) -> NDArray[np.float32]:
    """The change [P] that the rule makes of the groups' mean changes G x [P].

    The bulk of its memory is one more vector; with krum, multi-krum and bulyan G more and a few of working space.

    Args:
        rule: any but `mean`.
        changes: one vector [P] for each group, finite; left as they are.
        malicious: groups among them that may be malicious.

    Raises:
        ValueError: too few groups for so many malicious ones, vectors of different lengths, or numbers that are not finite.
    """
    if rule not in RULES:
        raise ValueError(f"Expected rule={rule!r} to be one of {', '.join(RULES)}.")
    needed = fewest_groups(rule, malicious)
    if len(changes) < needed:
        raise ValueError(
            f"Expected at least {needed} groups for malicious={malicious} with {rule}, got {len(changes)}."
        )
    if len({change.shape for change in changes}) != 1 or changes[0].ndim != 1:
        raise ValueError(f"Expected flat changes of one length, got {[c.shape for c in changes]}.")
    if not all(np.isfinite(change).all() for change in changes):
        raise ValueError("Expected finite changes, got NaN or infinity in a group's mean.")
    return RULES[rule](changes, malicious)


def _median(changes: Changes, malicious: int) -> NDArray[np.float32]:
    return _blockwise(changes, aggregate_median)


def _trimmed_mean(changes: Changes, malicious: int) -> NDArray[np.float32]:
    # Flower cuts int(share * G) at either end: a quarter of a group more than f is f after that, and share stays below 1/2.
    share = (malicious + 0.25) / len(changes)
    return _blockwise(changes, lambda results: aggregate_trimmed_avg(results, share))


def _krum(changes: Changes, malicious: int) -> NDArray[np.float32]:
    (change,) = aggregate_krum(_results(changes), malicious, 0)
    return np.array(change, np.float32)


def _multi_krum(changes: Changes, malicious: int) -> NDArray[np.float32]:
    (change,) = aggregate_krum(_results(changes), malicious, len(changes) - malicious - 2)
    return np.asarray(change, np.float32)


def _bulyan(changes: Changes, malicious: int) -> NDArray[np.float32]:
    (change,) = aggregate_bulyan(_results(changes), malicious, aggregate_krum, to_keep=0)
    return np.asarray(change, np.float32)


def geometric_median(changes: Changes) -> NDArray[np.float32]:
    """The point [P] with the least sum of distances to the changes G x [P] (Pillutla et al. 2019, Alg. 2).

    Starts at the median of the coordinates, from which an outlier, however far, is a dozen steps away. Stops when a step
    is shorter than `STEP_TOLERANCE` of the middle distance.
    """
    center = _blockwise(changes, aggregate_median)
    distances = _distances(center, changes)
    unit = float(np.median(distances))
    if unit == 0.0:  # half of the changes or more are this very point
        return center
    for _ in range(MOST_STEPS):
        weights = 1.0 / np.maximum(distances, SMOOTHING * unit)
        following = _weighted_mean(changes, weights / weights.sum())
        moved = float(_distances(following, [center])[0])
        center = following
        if moved <= STEP_TOLERANCE * unit:
            break
        distances = _distances(center, changes)
    return center


RULES: dict[Rule, Callable[[Changes, int], NDArray[np.float32]]] = {
    "median": _median,
    "trimmed-mean": _trimmed_mean,
    "geometric-median": lambda changes, _: geometric_median(changes),
    "krum": _krum,
    "multi-krum": _multi_krum,
    "bulyan": _bulyan,
}


def _results(changes: Changes) -> list[tuple[list[NDArray[np.float32]], int]]:
    """The changes as Flower's functions take them: one layer each, from one example each."""
    return [([change], 1) for change in changes]


def _blockwise(
    changes: Changes,
    rule: Callable[[list[tuple[list[NDArray[np.float32]], int]]], list[NDArray[np.float32]]],
) -> NDArray[np.float32]:
    """A rule that looks at each coordinate by itself, block by block."""
    combined = np.empty_like(changes[0])
    for start in range(0, combined.size, BLOCK):
        block = slice(start, start + BLOCK)
        (combined[block],) = rule(_results([change[block] for change in changes]))
    return combined


def _distances(center: NDArray[np.float32], changes: Changes) -> NDArray[np.float64]:
    """L2 distance of every change from the center [G]; squares are added up in double precision."""
    squares = np.zeros(len(changes))
    for start in range(0, center.size, BLOCK):
        middle = center[start : start + BLOCK].astype(np.float64)
        for number, change in enumerate(changes):
            difference = change[start : start + BLOCK] - middle
            squares[number] += float(np.dot(difference, difference))
    return np.sqrt(squares)


def _weighted_mean(changes: Changes, weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sum of weight times change; the weights [G] add up to 1."""
    mean = np.empty_like(changes[0])
    for start in range(0, mean.size, BLOCK):
        block = slice(start, start + BLOCK)
        mean[block] = sum(
            weight * change[block].astype(np.float64)
            for weight, change in zip(weights, changes, strict=True)
        )
    return mean
