"""What the parties of a secure sum agree on before anybody speaks.

Values are fixed-point integers of `value_bits` bits. A site's contribution is clipped to `value_range` in every
coordinate, and the modulus leaves room for `max_sites` of them, so no sum can wrap: overflow is impossible by construction.
"""

from collections.abc import Collection
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from privacy.fixed_point import FixedPoint
from privacy.secagg.neighbours import NEIGHBOURS, most_colluders

Scheme = Literal["mask", "ckks", "ckks-light", "paillier", "plain"]
Obfuscation = Literal["djn-half", "subgroup"]

MOST_SITES = 64
"""Where every site deals with every other: cost and messages grow with the square of the sites."""
MOST_MASKED_SITES = 1000
"""Of `mask`, where a site of a large cohort deals with about a hundred others."""
MOST_COORDINATES = 1 << 30
LEAST_KEY_BITS = 3072
"""Of a Paillier modulus: 128 bits of security (NIST SP 800-57 part 1, table 2)."""
MOST_KEY_BITS = 8192


def smallest_threshold(sites: int) -> int:
    """Fewest signatures, and among up to 101 sites shares, with which `mask` may open a sum of so many sites.

    More than two thirds. Two different survivor sets could each gather t signatures only if 2t <= n + c, where c dishonest
    sites sign both; with 3t > 2n that needs c > n/3 (Bonawitz et al. 2017, section 6.2). In larger cohorts four fifths: a
    site that was told of other sharers than the rest is paired with a tenth of those that both sets have in common, and
    that must not be nobody (`neighbours.exposure`).
    """
    return 2 * sites // 3 + 1 if sites <= NEIGHBOURS + 1 else sites - sites // 5


def sum_threshold(scheme: Scheme, sites: int) -> int:
    """Shares needed to open a sum of so many sites, as a plan asks for them.

    All schemes then stand against as many sites that lie together with the coordinator: c = 2 * (2n // 3 + 1) - n - 1.
    `mask` needs more shares than that for it, since a share there may be of either of two secrets.
    """
    if scheme == "plain":
        return 1
    if scheme == "mask":
        return smallest_threshold(sites)
    withstanding = 2 * smallest_threshold(sites) - sites
    # The site that made the key does not help, unless there are no others.
    return min(withstanding, max(2, sites - 1)) if scheme == "paillier" else withstanding


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SumPlan:
    """Public parameters of one secure sum."""

    scheme: Scheme
    dimension: int
    """Coordinates of every vector."""
    max_sites: int
    """Largest number of contributions that the modulus leaves room for, 1 to 64; of `mask` 2 to 1000."""
    quorum: int
    """Fewest sites whose sum may be opened, at least 2 (`plain`: 1)."""
    threshold: int
    """Shares needed to open the sum. `mask`: > 2/3 of the cohort; of more than 101 sites, >= 4/5 must sign, and > 2/3 of the
    holders of each site's shares open."""
    value_range: float
    """Largest absolute value of a coordinate; larger ones are clipped before they are sealed."""
    value_bits: int = 24
    """Bits of one site's coordinate; the sum takes ceil(log2(max_sites)) more, 32 at most."""
    key_holder: str = ""
    """`paillier`: the site that makes the key and deals it out."""
    obfuscation: Obfuscation = "djn-half"
    """`paillier`: how ciphertexts are blinded; `subgroup` is faster and rests on one more assumption."""
    key_bits: int = LEAST_KEY_BITS
    """`paillier`: bits of the modulus."""

    def __post_init__(self) -> None:
        fewest = 1 if self.scheme == "plain" else 2
        if not 1 <= self.dimension <= MOST_COORDINATES:
            raise ValueError(f"Expected 1 <= dimension={self.dimension} <= {MOST_COORDINATES}.")
        most = MOST_MASKED_SITES if self.scheme == "mask" else MOST_SITES
        if not fewest <= self.max_sites <= most:
            raise ValueError(f"Expected {fewest} <= max_sites={self.max_sites} <= {most}.")
        if not fewest <= self.quorum <= self.max_sites:
            raise ValueError(f"Expected {fewest} <= quorum={self.quorum} <= {self.max_sites}.")
        if not fewest <= self.threshold <= self.max_sites:
            raise ValueError(
                f"Expected {fewest} <= threshold={self.threshold} <= {self.max_sites}."
            )
        if (self.scheme == "paillier") != bool(self.key_holder):
            raise ValueError(
                f'Expected a key_holder exactly with scheme="paillier", found {self.key_holder!r} with {self.scheme!r}.'
            )
        if not LEAST_KEY_BITS <= self.key_bits <= MOST_KEY_BITS:
            raise ValueError(
                f"Expected {LEAST_KEY_BITS} <= key_bits={self.key_bits} <= {MOST_KEY_BITS}."
            )
        # Refuses a range without a sound scale, and more bits and sites than the modulus has room for.
        _ = self.encoding

    @property
    def encoding(self) -> FixedPoint:
        """How values become integers; its `scale` is derived, never chosen."""
        return FixedPoint(
            value_range=self.value_range, max_addends=self.max_sites, value_bits=self.value_bits
        )

    def confirmations(self, sites: int) -> int:
        """Signatures on one survivor set, of a cohort of so many sites, before anybody helps to open a sum.

        `mask` needs `threshold`: fewer could not open anything. Elsewhere two sets that both gather
        floor((n + t - 1) / 2) + 1 signatures need t sites that sign both, and t sites together can open anything anyway.
        """
        if self.scheme in ("mask", "plain"):
            return self.threshold
        return (sites + self.threshold - 1) // 2 + 1

    def fewest_survivors(self, sites: int) -> int:
        """Sites of a cohort of so many that must stay in until the vectors are sealed: for the quorum, and to open anything at all."""
        return max(self.quorum, self.confirmations(sites))

    def withstands(self, sites: int) -> int:
        """Sites of a cohort of so many that may lie together with the coordinator, and all learn only the sum.

        t sites open anything, and two survivor sets that both gather x signatures need 2x - n sites that sign both. In large
        cohorts of `mask` chance could also favour them: then up to a probability of 2**-40.
        """
        most = max(0, min(2 * self.confirmations(sites) - sites, self.threshold) - 1)
        if self.scheme != "mask":
            return most
        return max(0, most_colluders(sites, fewest=self.confirmations(sites), most=most))

    def require_cohort(self, sites: Collection[str]) -> None:
        """Raise ValueError unless this plan is safe and possible for exactly these sites."""
        count = len(sites)
        fewest = self.fewest_survivors(count)
        if not max(fewest, self.threshold) <= count <= self.max_sites:
            raise ValueError(
                f"Expected {fewest} to {self.max_sites} sites "
                f"(quorum={self.quorum}, threshold={self.threshold}), got {count}."
            )
        if self.scheme == "mask" and self.threshold < smallest_threshold(count):
            raise ValueError(
                f"Expected threshold={self.threshold} >= {smallest_threshold(count)} for {count} sites: with fewer, "
                "a dishonest coordinator could open two survivor sets and subtract them."
            )
        if self.key_holder and self.key_holder not in sites:
            raise ValueError(f"Expected key_holder={self.key_holder!r} to be a site of the cohort.")
