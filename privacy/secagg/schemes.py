"""What a scheme adds to the common legs: how a vector is protected, and how the sum of protected vectors is opened.

The legs, signatures, rosters and survivor sets are the same for every scheme (`site`, `coordinator`). A scheme only
decides what travels in them. Its methods are called in this order, once each.
"""

from collections.abc import Mapping, Sequence
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

    def public(self) -> bytes:
        """Give what everybody may know, in hello."""

    def deal(self, roster: Roster) -> dict[str, bytes]:
        """Give, in share, something for every site of the roster, itself included, that only it can read.

        Raises:
            MessageRefused: public bytes of a site that are not acceptable.
        """

    def protect(self, boxes: Mapping[str, bytes], vector: NDArray[np.uint32]) -> None:
        """Open, in seal, what the others dealt to this site, and seal the vector in place, for them and itself.

        Raises:
            MessageRefused: something dealt does not open.
        """

    def disclose(self, survivors: Sequence[str]) -> bytes:
        """Give, in release, what the coordinator needs to open the sum over these survivors, and nothing more."""


class CoordinatorScheme(Protocol):
    """A scheme at the coordinator. The `require` methods check one site's bytes and raise MessageRefused."""

    def require_public(self, site: str, public: bytes) -> None:
        """Check what came in hello."""

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Check what came in share."""

    def require_chunk(self, site: str, words: NDArray[np.uint32]) -> None:
        """Check one chunk that came in seal."""

    def require_disclosure(self, site: str, body: bytes, survivors: Sequence[str]) -> None:
        """Check what came in release."""

    def open(self, total: NDArray[np.uint32], survivors: Sequence[str]) -> None:
        """Turn the sum of sealed vectors into the sum of vectors, in place, at the end.

        Raises:
            MessageRefused: what a site dealt contradicts its public bytes.
        """
