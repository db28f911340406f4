"""Who deals with whom in the scheme `mask`: everybody in a small cohort, about a hundred sites each in a large one.

Up to NEIGHBOURS + 1 sites everybody shares and masks with everybody. Above, there are two sparse graphs:

holders  Once the roster is fixed, every site draws NEIGHBOURS others at random and deals its shares to them and to itself;
         more than two thirds of them restore a secret. Bell et al. 2020 let clients choose so against a server that lies.
pairs    Two sites mask towards each other if a number says so that only they can form, from their mask keys: each two
         with probability NEIGHBOURS / (sites - 1). The coordinator does not see which.

A graph that everybody can compute, such as a circle in the order of a hash, would not do. The coordinator and its sites
speak last in hello and could try rosters until they like the graph. And who sees it can cut it: of a circle with 50
neighbours on either side, two arcs of 50 that are said to be lost leave two sums, and 17 dishonest sites in each arc
are enough to open both. Nobody can aim at edges that are drawn later, or hidden.

`exposure` bounds the probability that chance alone undoes this, for the worst that the coordinator and c sites can do,
chosen before the sum began. Three things must not happen at any honest site; f signatures on one survivor set are needed,
and no honest site accepts a smaller set of any kind:

1. Of its holders, enough to restore a secret are dishonest: hypergeometric. The roster may have been cut down to f.
2. The honest survivors, at least f - c, fall apart: into two sets without a pair between them they would be two sums.
3. It was told of other sharers than the rest and yet survives. It then masks towards the rest only through the honest
   sites in both sets, at least 2f - n - c, and must have a pair there.

`loss` is the probability that honest drop-outs at random leave a secret with too few holders. Then nothing is opened.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

NEIGHBOURS = 100
"""Holders of a site's shares besides itself, and how many sites it masks towards on average."""
MOST_EXPOSURE = 2.0**-40
"""Largest acceptable probability, in one sum, that sites that lie together learn more than the sum."""
NUMBER_BYTES = 8
"""Of the number that decides about a pair."""


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """The rules for one roster."""

    sites: int
    """Of the roster."""
    threshold: int
    """Shares that restore a secret if everybody deals with everybody."""
    neighbours: int = NEIGHBOURS

    @property
    def is_complete(self) -> bool:
        """Whether everybody deals with everybody."""
        return self.sites <= self.neighbours + 1

    @property
    def holders(self) -> int:
        """Sites that hold shares of one site's secrets, itself included."""
        return min(self.sites, self.neighbours + 1)

    @property
    def share_threshold(self) -> int:
        """Shares that restore a secret."""
        return self.threshold if self.is_complete else holders_threshold(self.neighbours)

    @property
    def pair_bound(self) -> int:
        """Two sites mask towards each other if their number is below it."""
        return (min(self.neighbours, self.sites - 1) << 8 * NUMBER_BYTES) // (self.sites - 1)

    def draw_holders(self, site: str, roster: Sequence[str]) -> tuple[str, ...]:
        """Who will hold the site's shares, itself included, in the order of the roster; drawn anew at every call."""
        if self.is_complete:
            return tuple(roster)
        others = [other for other in roster if other != site]
        return tuple(sorted([site, *secrets.SystemRandom().sample(others, self.neighbours)]))

    def is_pair(self, number: bytes) -> bool:
        """Whether two sites whose common number this is mask towards each other."""
        return int.from_bytes(number, "big") < self.pair_bound


def holders_threshold(neighbours: int = NEIGHBOURS) -> int:
    """Shares that restore a secret in a large cohort: more than two thirds of the holders."""
    return 2 * (neighbours + 1) // 3 + 1


def exposure(sites: int, *, fewest: int, colluders: int, neighbours: int = NEIGHBOURS) -> float:
    """Probability, at most, that the coordinator and so many sites learn more than the sum; see above.

    Args:
        sites: of the cohort.
        fewest: signatures that are needed, at most `sites`.
        colluders: sites that lie together with the coordinator.
        neighbours: of one site.
    """
    if sites <= neighbours + 1:
        return 0.0
    if colluders >= fewest:
        return 1.0
    smallest = max(fewest, neighbours + 2)
    opened = hypergeometric_tail(
        smallest - 1, colluders, drawn=neighbours, least=holders_threshold(neighbours)
    )
    unpaired = 1.0 - neighbours / (sites - 1)
    shared = max(0, 2 * fewest - sites - colluders)
    bound = sites * opened + disconnection(fewest - colluders, unpaired)
    return min(1.0, bound + sites * unpaired**shared)


def loss(sites: int, *, lost: int, neighbours: int = NEIGHBOURS) -> float:
    """Probability, at most, that a sum cannot be opened after so many random sites were lost since `share`.

    Args:
        sites: that shared.
        lost: of them, fewer than the plan allows for.
        neighbours: of one site.
    """
    if sites <= neighbours + 1:
        return 0.0
    # Whoever is lost itself has no share of its own to give.
    least = neighbours + 1 - holders_threshold(neighbours)
    return min(1.0, sites * hypergeometric_tail(sites - 1, lost, drawn=neighbours, least=least))


def most_colluders(sites: int, *, fewest: int, most: int) -> int:
    """Largest number of sites, at most `most`, that may lie together with an exposure up to MOST_EXPOSURE."""
    low, high = -1, most
    while low < high:
        middle = (low + high + 1) // 2
        if exposure(sites, fewest=fewest, colluders=middle) <= MOST_EXPOSURE:
            low = middle
        else:
            high = middle - 1
    return low


def hypergeometric_tail(population: int, marked: int, *, drawn: int, least: int) -> float:
    """Probability of `least` or more marked ones among so many drawn without replacement."""
    ways = sum(
        math.comb(marked, found) * math.comb(population - marked, drawn - found)
        for found in range(max(least, 0), min(drawn, marked) + 1)
    )
    return ways / math.comb(population, drawn)


def disconnection(sites: int, unpaired: float) -> float:
    """Probability, at most, that the graph of pairs among so many sites is not connected.

    Sum over the smaller sides of all cuts, each without any pair across (Erdos and Renyi 1959).
    """
    if sites < 2:
        return 0.0
    return math.fsum(
        math.exp(_log_comb(sites, side) + side * (sites - side) * math.log(unpaired))
        for side in range(1, sites // 2 + 1)
    )


def _log_comb(sites: int, side: int) -> float:
    return math.lgamma(sites + 1) - math.lgamma(side + 1) - math.lgamma(sites - side + 1)
