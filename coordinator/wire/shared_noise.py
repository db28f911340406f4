"""Noise that the sites of a sum share: whether a plan with `distributed-dp` can keep what it promises, and what it takes.

1. Only a step's gradient sum adds up over sites, so a round is one plain gradient step.
2. The secure sum must add integers exactly and hide the single ones (`privacy.dp.share_sizing.scheme_problem`).
3. A sum is opened over `quorum` sites or more. Take away the `colluding_sites`, which may tell their share of the noise or
   add none: `honest_sites` must be left, for whom the shares are sized. Any drop-out after which a sum can still be
   opened then leaves the target noise or more. More colluders than the secure sum withstands could open single vectors.
4. Every site's whole grid steps must pass through the encoding of the sum as they are, with room for all of the noise.
"""

import math
from dataclasses import dataclass

from coordinator.wire.plan import PrivacyPlan, TrainingPlan
from privacy.dp.share_sizing import ShareSizing, bits_needed, scheme_problem, size_share
from privacy.fixed_point import FixedPoint
from privacy.secagg.plan import SumPlan

LARGEST_MARGIN = 1.02
"""Most by which a site raises its noise for its own arithmetic (`privacy.dp.dpsgd.NOISE_MARGINS`)."""


@dataclass(frozen=True, kw_only=True)
class SharedNoise:
    """What the shared noise of a plan takes, and what may go wrong with it."""

    noise_multiplier: float
    """Of a sum, at least."""
    honest_sites: int
    colluding_sites: int
    deviation_steps: float
    """Of one site's share, in steps of the grid."""
    rounding: float
    """Share by which rounding to the grid raises the noise."""
    value_bits: int
    """Bits of one site's coordinate in the sum."""
    bits_needed: int
    """Fewest `value_bits` that would do."""
    modulus_bits: int
    """Bits of a coordinate of the sum; it cannot wrap around."""
    clipped_noise: float
    """Probability, at most, that noise is cut off in any of the run's sums."""
    share_of_delta: float
    """What that takes of delta: times 1 + e^epsilon, over delta."""

    @property
    def words(self) -> str:
        """The same in a sentence each, for an operator."""
        return (
            f"Shared noise: a sum holds noise multiplier {self.noise_multiplier:.4g} or more if {self.honest_sites} of its sites "
            f"add their share and keep it to themselves; up to {self.colluding_sites} others are allowed for. A share has "
            f"deviation {self.deviation_steps:.4g} grid steps; rounding to the grid raises it by {self.rounding:.2%}. A site's "
            f"coordinate has {self.value_bits} bits ({self.bits_needed} would do), the sum's {self.modulus_bits}, and cannot wrap "
            f"around. Noise is cut off with probability {self.clipped_noise:.1e} at most in the whole run: "
            f"{self.share_of_delta:.1e} of delta."
        )


def shared_noise(
    privacy: PrivacyPlan,
    *,
    encoding: FixedPoint,
    parameters: int,
    update_range: float,
    sums: int,
) -> SharedNoise:
    """The facts of a plan with `distributed-dp` that `distributed_problem` has nothing against.

    Args:
        privacy: mechanism, target noise and assumptions.
        encoding: of the secure sum.
        parameters: coordinates that are noised.
        update_range: what the range of the sum stands for.
        sums: attempts of the whole run.

    Raises:
        ValueError: the noise does not fit.
    """
    sizing = _sizing(privacy, encoding, parameters, update_range)
    clipped = min(1.0, sums * sizing.clipped_noise)
    return SharedNoise(
        noise_multiplier=privacy.noise_multiplier,
        honest_sites=privacy.honest_sites,
        colluding_sites=privacy.colluding_sites,
        deviation_steps=sizing.deviation,
        rounding=sizing.rounding,
        value_bits=encoding.value_bits,
        bits_needed=bits_needed(
            privacy.noise_multiplier,
            honest_sites=privacy.honest_sites,
            sites=encoding.max_addends,
            sensitivity=privacy.clipping_norm / update_range,
            coordinates=parameters,
        ),
        modulus_bits=encoding.modulus_bits,
        clipped_noise=clipped,
        share_of_delta=clipped * (1.0 + math.exp(privacy.epsilon)) / privacy.delta,
    )


def distributed_problem(
    privacy: PrivacyPlan,
    training: TrainingPlan,
    *,
    scheme: str,
    quorum: int,
    withstood: int,
    encoding: FixedPoint,
    parameters: int,
    update_range: float,
) -> str:
    """What keeps a run with `distributed-dp` from being what it promises; empty if nothing does.

    Args:
        privacy: mechanism, target noise and assumptions.
        training: what a round computes.
        scheme: of the secure sum.
        quorum: fewest sites over whose vectors a sum is opened.
        withstood: sites that may collude with the coordinator before the secure sum hides nothing.
        encoding: of the secure sum.
        parameters: coordinates that are noised.
        update_range: what the range of the sum stands for.
    """
    if problem := _step_problem(privacy, training) or scheme_problem(scheme):
        return problem
    honest, colluding = privacy.honest_sites, privacy.colluding_sites
    if honest < 1 or colluding < 0 or honest + colluding > quorum:
        return (
            f"honest_sites={honest} and colluding_sites={colluding} must be at least 1 and 0 and together at most the quorum "
            f"of {quorum}: a sum over that many sites would hold less noise than the epsilon counts on"
        )
    if colluding > withstood:
        return (
            f"colluding_sites={colluding} must be at most {withstood}: more sites, together with the coordinator, could open "
            "the vector of a single site, which carries one share of the noise"
        )
    if encoding.scale != 1 << (encoding.value_bits - 1):
        return f"value_range={encoding.value_range:g} of the secure sum must be 1: shares of the noise come in whole steps of it"
    if not (update_range > 0 and privacy.clipping_norm > 0):
        return f"update_range={update_range:g} and clipping_norm={privacy.clipping_norm:g} must be positive"
    try:
        for margin in (1.0, LARGEST_MARGIN):
            _sizing(privacy, encoding, parameters, update_range, margin=margin)
    except ValueError as error:
        return f"update_range={update_range:g} at value_bits={encoding.value_bits} does not suit the noise: {error}"
    return ""


def colluders_withstood(total: SumPlan, sites: int) -> int:
    """Sites of a cohort of so many that may lie together with the coordinator, and learn only sums over a quorum."""
    return total.withstands(sites)


def _step_problem(privacy: PrivacyPlan, training: TrainingPlan) -> str:
    if training.local_steps != 1 or training.optimizer != "sgd" or training.proximal_mu != 0:
        return (
            f"distributed-dp needs local_steps=1, optimizer=sgd and proximal_mu=0, found {training.local_steps}, "
            f"{training.optimizer} and {training.proximal_mu:g}"
        )
    if privacy.load_noise_multiplier != 0:
        return "distributed-dp releases no expert loads: load_noise_multiplier must be 0"
    return ""


def _sizing(
    privacy: PrivacyPlan,
    encoding: FixedPoint,
    parameters: int,
    update_range: float,
    *,
    margin: float = 1.0,
) -> ShareSizing:
    """One site's share, with noise larger by `margin`."""
    return size_share(
        privacy.noise_multiplier,
        honest_sites=privacy.honest_sites,
        sites=encoding.max_addends,
        sensitivity=margin * privacy.clipping_norm / update_range,
        coordinates=parameters,
        value_bits=encoding.value_bits,
    )
