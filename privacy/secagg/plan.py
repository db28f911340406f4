"""What the parties of a secure sum agree on before anybody speaks.

Values are fixed-point integers modulo 2**32. A site's contribution is clipped to `value_range` in every coordinate,
and the scale leaves room for `max_sites` of them, so no sum can wrap: overflow is impossible by construction.
"""

from collections.abc import Collection
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from privacy.fixed_point import FixedPoint

MOST_SITES = 64
"""Every site shares with every other: cost and messages grow with the square of the sites."""
MOST_COORDINATES = 1 << 30


def smallest_threshold(sites: int) -> int:
    """Fewest shares that may open a secret among so many sites: more than two thirds.

    Two different survivor sets could each gather t signatures only if 2t <= n + c, where c dishonest sites sign both.
    With 3t > 2n that needs c > n/3 dishonest sites (Bonawitz et al. 2017, section 6.2).
    """
    return 2 * sites // 3 + 1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SumPlan:
    """Public parameters of one secure sum."""

    scheme: Literal["mask", "plain"]
    dimension: int
    """Coordinates of every vector."""
    max_sites: int
    """Largest number of contributions that the modulus leaves room for, 1 to 64."""
    quorum: int
    """Fewest sites whose sum may be opened, at least 2 (`plain`: 1)."""
    threshold: int
    """Shares needed to open a secret, > 2/3 of the cohort for `mask`."""
    value_range: float
    """Largest absolute value of a coordinate; larger ones are clipped before they are sealed."""

    def __post_init__(self) -> None:
        fewest = 2 if self.scheme == "mask" else 1
        if not 1 <= self.dimension <= MOST_COORDINATES:
            raise ValueError(f"Expected 1 <= dimension={self.dimension} <= {MOST_COORDINATES}.")
        if not fewest <= self.max_sites <= MOST_SITES:
            raise ValueError(f"Expected {fewest} <= max_sites={self.max_sites} <= {MOST_SITES}.")
        if not fewest <= self.quorum <= self.max_sites:
            raise ValueError(f"Expected {fewest} <= quorum={self.quorum} <= {self.max_sites}.")
        if not fewest <= self.threshold <= self.max_sites:
            raise ValueError(
                f"Expected {fewest} <= threshold={self.threshold} <= {self.max_sites}."
            )
        FixedPoint(value_range=self.value_range, max_addends=self.max_sites)

    @property
    def encoding(self) -> FixedPoint:
        """How values become integers; its `scale` is derived, never chosen."""
        return FixedPoint(value_range=self.value_range, max_addends=self.max_sites)

    @property
    def fewest_survivors(self) -> int:
        """Sites that must stay in until the vectors are sealed: for the quorum, and to open anything at all."""
        return max(self.quorum, self.threshold)

    def require_cohort(self, sites: Collection[str]) -> None:
        """Raise ValueError unless this plan is safe and possible for exactly these sites."""
        count = len(sites)
        if not self.fewest_survivors <= count <= self.max_sites:
            raise ValueError(
                f"Expected {self.fewest_survivors} to {self.max_sites} sites "
                f"(quorum={self.quorum}, threshold={self.threshold}), got {count}."
            )
        if self.scheme == "mask" and self.threshold < smallest_threshold(count):
            raise ValueError(
                f"Expected threshold={self.threshold} >= {smallest_threshold(count)} for {count} sites: with fewer, "
                "a dishonest coordinator could open two survivor sets and subtract them."
            )
