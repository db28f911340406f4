"""What a scheme adds to the common legs: how a vector is protected, and how the sum of protected vectors is opened.

The legs, signatures, rosters and survivor sets are the same for every scheme (`site`, `coordinator`). A scheme only
decides what travels in them. What is large travels in parts of at most PART_BYTES. Methods are called in this order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.envelopes import Scope


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The sites that said hello, with the public bytes of each; names in rising order."""

    scope: Scope
    public: Mapping[str, bytes]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names in rising order."""
        return tuple(self.public)

    def point(self, site: str) -> int:
        """Where the polynomials are evaluated for this site: 1, 2, ..."""
        return self.sites.index(site) + 1


class SiteScheme(Protocol):
    """A scheme at one site. It holds the site's secrets of one sum."""

    sealed_parts: int
    """Parts of a sealed vector."""
    disclosure_parts: int
    """Parts of what `disclose` gives."""
    asks_all: bool
    """Whether a sum opens only if every site that is asked answers; then fewer may be asked again."""

    def public(self) -> bytes:
        """Give what everybody may know, in hello."""

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        """Give, in share, something for every site of the roster, itself included, that only it can read.

        Args:
            roster: the sites that said hello.
            integers: this site's encoded vector [dimension], the scheme's own from now on.

        Raises:
            MessageRefused: public bytes of a site that are not acceptable.
        """

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """Open, in seal, what the others dealt to this site, and give the vector, sealed for them and itself, in parts.

        Raises:
            MessageRefused: something dealt does not open.
        """

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """Give, in release, what the coordinator needs to open the sum over these survivors, and nothing more.

        Args:
            survivors: whose vectors are in the sum, as enough sites have signed.
            responders: who is asked, this site included.
            relayed: parts that the coordinator passes on from the survivors; nothing for most schemes.

        Raises:
            MessageRefused: what is relayed is not what the survivors sealed.
        """


class CoordinatorScheme(Protocol):
    """A scheme at the coordinator. The `require` methods check one site's bytes and raise MessageRefused."""

    sealed_parts: int
    disclosure_parts: int
    asks_all: bool
    largest_box: int
    """Bytes that a site may deal to one other."""

    def require_public(self, site: str, public: bytes) -> None:
        """Check what came in hello."""

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Check what came in share."""

    def require_part(self, site: str, index: int, part: memoryview) -> None:
        """Check one part that came in seal."""

    def add(self, site: str, index: int, part: memoryview) -> None:
        """Take into the sum one part of a vector of which all parts have come."""

    def begin_release(self, confirmed: Sequence[str]) -> Sequence[str]:
        """Give who is asked to help: of those who signed the survivors, or who answered when they were asked before."""

    def relay(self, survivors: Sequence[str]) -> tuple[int, Iterator[bytes]]:
        """Give how many parts, and which, every site that is asked in release must see; 0 if none."""

    def require_disclosure(
        self, site: str, index: int, part: bytes, survivors: Sequence[str]
    ) -> None:
        """Check one part of what came in release, and keep it."""

    def open(self, survivors: Sequence[str], responders: Sequence[str]) -> NDArray[np.int32]:
        """Turn the sum of sealed vectors into the sum of vectors [dimension], from what the responders disclosed.

        Raises:
            MessageRefused: what a site dealt contradicts its public bytes.
            SumImpossible: what was disclosed does not fit together.
        """

    def evidence(self) -> dict[str, float]:
        """Give, once the sum is open, what the ledger should know of it: uses of a key."""
