"""Distributed DP: each site adds a share of the noise, and only the secure sum carries all of it.

Protection at each site needs the whole noise K times in a sum of K sites; here the sum holds it once. The price is
trust: that the secure sum opens nothing but the sum, and that enough sites keep their share of the noise to themselves.

1. The plan states `target`, the noise multiplier of the sum, and `honest_sites`, the fewest sites in the sum that do not
   tell their share. Each site rounds the clipped sum of its patients to a grid, bounds every coordinate by
   `largest_value` and adds discrete Gaussian integers of `share_deviation` (`noised_contribution`).
2. The secure sum adds the integers of the survivors (`run_distributed_sum` does all of this in memory).
3. `survivors_event` is what the sum cost against somebody who knows the shares of `colluding` survivors. With fewer than
   `honest_sites` others it is refused: the sum then costs more than was planned and must not be opened.

How large a share is, and how many bits it takes: `privacy.dp.share_sizing`.
A site reserves the event of the plan, with `target`, before it sees who survives; `survivors_event` never costs more.
Why the figures of the Gaussian mechanism hold for a sum of discrete Gaussians, composed and subsampled ones too:
- Adding a discrete Gaussian of variance b to one of variance a gives that of variance a + b times the sum of a Gaussian
  of variance ab / (a + b) over a shifted integer grid, which is constant up to `_ripple` (Kairouz, Liu, Steinke 2021,
  Proposition 14). `log_sum_slack` adds the ripples up.
- A discrete Gaussian of variance s + 16 is, but for a ripple, what randomised rounding of deviation 4 makes of a
  continuous Gaussian of variance s (Peikert 2010, section 3). `share_deviation` adds those 16 steps.
Every ripple bounds the privacy loss it adds, in all events. A share of `LEAST_DEVIATION` steps or more leaves less than
2**-300 for all coordinates and steps there can be, which `SAMPLING_REMAINDER` covers.

Neighbouring tables differ by one patient, added or removed, at one site.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from privacy.dp.events import SubsampledGaussian
from privacy.dp.noise import DiscreteGaussian
from privacy.dp.share_sizing import (
    ROUNDING_VARIANCE,
    largest_noise,
    require_sites,
    scheme_problem,
    share_noise_multiplier,
)
from privacy.randomness import Random
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import SumResult
from privacy.secagg.secure_sum import run_secure_sum


def survivors_noise_multiplier(
    share: float, survivors: int, colluding: int = 0, *, honest_sites: int
) -> float:
    """Noise multiplier of a sum over `survivors` sites, seen by `colluding` of them together.

    Args:
        share: noise multiplier of one site's share.
        survivors: sites whose contributions are in the sum.
        colluding: how many of them may tell their shares to whoever sees the sum.
        honest_sites: the plan's threshold.

    Raises:
        ValueError: a number out of range, or fewer honest survivors than the plan counts on.
    """
    if not 0.0 < share < math.inf:
        raise ValueError(f"Expected share={share} > 0 and finite.")
    require_sites("survivors", survivors, least=1)
    require_sites("colluding", colluding, least=0)
    require_sites("honest_sites", honest_sites, least=1)
    if survivors - colluding < honest_sites:
        raise ValueError(
            f"Expected at least honest_sites={honest_sites} honest survivors, found survivors={survivors} of which "
            f"colluding={colluding} may tell their shares. The sum must not be opened: start a new attempt."
        )
    return share * math.sqrt(survivors - colluding)


def survivors_event(
    planned: SubsampledGaussian, survivors: int, colluding: int = 0, *, honest_sites: int
) -> SubsampledGaussian:
    """What the sums really cost, from those who stayed in all of them.

    Args:
        planned: the event of the plan, whose noise multiplier is the target of the sum.
        survivors: fewest sites in any of the sums.
        colluding: most of them that may tell their shares.
        honest_sites: the plan's threshold, for which the shares were sized.

    Raises:
        ValueError: as `survivors_noise_multiplier`.
    """
    share = share_noise_multiplier(planned.noise_multiplier, honest_sites)
    actual = survivors_noise_multiplier(share, survivors, colluding, honest_sites=honest_sites)
    # The square roots of the same number must cancel: never a last digit less than the plan.
    return SubsampledGaussian(
        sample_rate=planned.sample_rate,
        noise_multiplier=max(actual, planned.noise_multiplier),
        steps=planned.steps,
    )


def log_sum_slack(deviation: float, *, sites: int, coordinates: int) -> float:
    """Natural logarithm of the privacy loss by which a sum of shares can exceed one Gaussian, in any event.

    A probability of either neighbouring table may be off by a ripple per coordinate and addition, and by three for the
    rounding: 2 * d * (sum over k of ripple(deviation**2 * k / (k + 1)) + 3 * ripple(16)). The first part is tau * d of
    Kairouz, Liu, Steinke 2021, Proposition 14, whose tau is 10 * sum exp(-2 pi**2 deviation**2 k / (k + 1)).

    Args:
        deviation: of one share, in grid steps, >= 1/2.
        sites: shares in the sum, 1 to 64.
        coordinates: of the vector, >= 1.
    """
    if not 0.5 <= deviation < math.inf:
        raise ValueError(f"Expected deviation={deviation} >= 0.5 and finite.")
    require_sites("sites", sites, least=1)
    ripples = [_log_ripple(deviation**2 * added / (added + 1)) for added in range(1, sites)]
    ripples.append(math.log(3.0) + _log_ripple(ROUNDING_VARIANCE))
    return math.log(2.0 * coordinates) + float(np.logaddexp.reduce(ripples))


def noised_contribution(
    values: NDArray[np.int64], *, largest_value: int, deviation: float, random: Random
) -> NDArray[np.int64]:
    """What one site sends: its clipped sum in grid steps, every coordinate bounded, with its share of the noise.

    Bounding coordinates moves neighbouring sums closer together, never apart. It must come before the noise: afterwards
    it would take noise out of the sum.
    """
    bounded = np.clip(values, -largest_value, largest_value)
    return bounded + DiscreteGaussian(deviation=deviation).draw(len(values), random)


def run_distributed_sum(
    plan: SumPlan,
    sums: Mapping[str, NDArray[np.int64]],
    *,
    largest_value: int,
    deviation: float,
    honest_sites: int,
    colluding_sites: int = 0,
    randoms: Mapping[str, Random],
    drop: Mapping[str, str] | None = None,
) -> SumResult:
    """All steps in memory; the integers of the result are grid steps times its `scale`.

    Args:
        plan: of the secure sum; its range is that of a site's integers or more, in whole steps.
        sums: of each site, in grid steps.
        largest_value: bound of a coordinate before noise.
        deviation: of one share, from `share_deviation`.
        honest_sites: the threshold for which it was sized.
        colluding_sites: most sites that may tell their shares; they do not count towards the threshold.
        randoms: each site's own source.
        drop: legs of the secure sum in which sites fall silent.

    Raises:
        ValueError: the scheme or the encoding cannot carry whole grid steps, or a quorum that could leave fewer than
            `honest_sites` honest sites in the sum. Nothing has been summed.
        QuorumLost: too many sites dropped.
    """
    if plan.quorum - colluding_sites < honest_sites:
        raise ValueError(
            f"Expected quorum={plan.quorum} >= honest_sites={honest_sites} and colluding_sites={colluding_sites} together."
        )
    _require_exact(plan, largest_value=largest_value, deviation=deviation)
    return run_secure_sum(
        plan,
        {
            # float64 holds every integer below 2**53; the scale is a power of two: encoding changes nothing.
            site: noised_contribution(
                values, largest_value=largest_value, deviation=deviation, random=randoms[site]
            ).astype(np.float64)
            for site, values in sums.items()
        },
        drop=drop,
    )


def _require_exact(plan: SumPlan, *, largest_value: int, deviation: float) -> None:
    """Raises unless the scheme adds integers only, whole steps are encoded as they are and noise is not cut off."""
    if problem := scheme_problem(plan.scheme):
        raise ValueError(f"Expected another secure sum: {problem}.")
    encoding = plan.encoding
    largest = largest_value + largest_noise(
        deviation, sites=plan.max_sites, coordinates=plan.dimension
    )
    if encoding.scale < 1.0 or encoding.limit < largest * encoding.scale:
        raise ValueError(
            f"Expected value_range={plan.value_range} >= {largest}, in whole steps, with value_bits={plan.value_bits} >= "
            f"{largest.bit_length() + 1}. Take a coarser grid, more bits or a smaller largest_value."
        )


def _log_ripple(variance: float) -> float:
    """Logarithm of the most by which sums of a Gaussian over shifted integer grids differ from each other.

    Poisson summation: sum over k of exp(-(k - y)**2 / (2 v)) is sqrt(2 pi v) * (1 + 2 sum over j of
    exp(-2 pi**2 v j**2) cos(2 pi j y)). The logarithm of the ratio of two of them is at most 5 exp(-2 pi**2 v) for
    v >= 1/8, where the terms j >= 2 are below 1 % and the first is below 0.09.
    """
    return math.log(5.0) - 2.0 * math.pi**2 * variance
