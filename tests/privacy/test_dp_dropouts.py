"""Whatever drop-out a sum survives, the noise of those who are left and do not collude is the target or more.

Every pattern of the drop-outs that a plan allows, in every leg before and after sealing, is rehearsed in memory.
"""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.dp.distributed import (
    noised_contribution,
    run_distributed_sum,
    survivors_noise_multiplier,
)
from privacy.dp.share_sizing import share_deviation, share_noise_multiplier
from privacy.randomness import SeededRandom
from privacy.secagg.plan import SumPlan, smallest_threshold

TARGET = 0.8
SENSITIVITY = 2000.0
LARGEST = 1000
DIMENSION = 4000
STANDARD_ERROR = math.sqrt(2.0 / DIMENSION)
"""Of a variance that is estimated from so many draws, relative."""
COHORTS = {4: (2, 1), 5: (4, 0), 7: (3, 2)}
"""Sites -> honest and colluding sites; the quorum is both together."""
LEGS = ("hello", "seal", "release")

Pattern = tuple[int, dict[str, str]]


def site_names(count: int) -> tuple[str, ...]:
    return tuple(f"site-{number}" for number in range(count))


def patterns(count: int) -> list[Pattern]:
    """Nobody, and every choice of droppers that leaves quorum and threshold, each in every leg."""
    allowed = count - max(sum(COHORTS[count]), smallest_threshold(count))
    return [
        (count, dict(zip(droppers, legs, strict=True)))
        for size in range(allowed + 1)
        for droppers in itertools.combinations(site_names(count), size)
        for legs in itertools.product(LEGS, repeat=size)
    ]


ALL_PATTERNS = [pattern for count in COHORTS for pattern in patterns(count)]


def named(pattern: Pattern) -> str:
    count, drop = pattern
    return f"{count}:" + (",".join(f"{site[5:]}-{leg}" for site, leg in drop.items()) or "all stay")


def vectors(count: int) -> dict[str, NDArray[np.int64]]:
    generator = np.random.default_rng(count)
    return {
        site: generator.integers(-LARGEST, LARGEST + 1, DIMENSION) for site in site_names(count)
    }


def test_the_patterns_are_all_there_are() -> None:
    # One of 4 sites may drop, one of 5, two of 7; three legs each.
    assert len(ALL_PATTERNS) == (1 + 4 * 3) + (1 + 5 * 3) + (1 + 7 * 3 + 21 * 9)


@pytest.mark.statistical
@pytest.mark.parametrize("pattern", ALL_PATTERNS, ids=named)
def test_every_drop_out_leaves_the_target_noise_besides_that_of_colluders(
    pattern: Pattern,
) -> None:
    """Seeded. A variance of 4000 draws is within 5 standard errors but for 6e-7; over all patterns 1.5e-4 in all."""
    count, drop = pattern
    honest, colluding = COHORTS[count]
    deviation = share_deviation(TARGET, honest_sites=honest, sensitivity=SENSITIVITY)
    sums = vectors(count)
    plan = SumPlan(
        scheme="mask",
        dimension=DIMENSION,
        max_sites=count,
        quorum=honest + colluding,
        threshold=smallest_threshold(count),
        value_range=float(1 << 17),
    )
    result = run_distributed_sum(
        plan,
        sums,
        largest_value=LARGEST,
        deviation=deviation,
        honest_sites=honest,
        colluding_sites=colluding,
        randoms={site: SeededRandom(17, named(pattern), site) for site in sums},
        drop=drop,
    )
    # What colluders in the sum sent is known to whoever they tell.
    left = result.values - np.sum([sums[site] for site in result.sites[colluding:]], axis=0)
    for site in result.sites[:colluding]:
        known = SeededRandom(17, named(pattern), site)
        left -= noised_contribution(
            sums[site], largest_value=LARGEST, deviation=deviation, random=known
        )

    measured = float(left.std()) / SENSITIVITY
    stated = survivors_noise_multiplier(
        share_noise_multiplier(TARGET, honest), len(result.sites), colluding, honest_sites=honest
    )
    assert measured**2 >= TARGET**2 * (1.0 - 5.0 * STANDARD_ERROR)
    assert measured**2 == pytest.approx(stated**2, rel=5.0 * STANDARD_ERROR + 0.005)
