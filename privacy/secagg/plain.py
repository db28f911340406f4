"""The scheme without protection, for tests, rehearsals and measurements: sealed vectors are the encoded integers.

It speaks every leg of the protocol with nothing in it. The coordinator sees each site's vector.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.errors import MessageRefused
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster


class PlainSite:
    """Nothing to hide, nothing to deal."""

    def public(self) -> bytes:
        """Nothing."""
        return b""

    def deal(self, roster: Roster) -> dict[str, bytes]:
        """Nothing, for everybody."""
        return dict.fromkeys(roster.sites, b"")

    def protect(self, boxes: Mapping[str, bytes], vector: NDArray[np.uint32]) -> None:
        """Leave the vector as it is."""

    def disclose(self, survivors: Sequence[str]) -> bytes:
        """Nothing."""
        return b""


class PlainCoordinator:
    """Checks that nothing comes where nothing may, and that no coordinate exceeds the plan."""

    def __init__(self, plan: SumPlan) -> None:
        self._limit = plan.encoding.limit

    def require_public(self, site: str, public: bytes) -> None:
        """Nothing may come."""
        _require_empty(site, "hello", public)

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Nothing may come."""
        for box in boxes.values():
            _require_empty(site, "share", box)

    def require_chunk(self, site: str, words: NDArray[np.uint32]) -> None:
        """Every coordinate must be one that `encode` can give."""
        integers = words.view(np.int32)
        if integers.max() > self._limit or integers.min() < -self._limit:
            raise MessageRefused(
                site=site,
                leg="seal",
                reason=f"a coordinate exceeds the plan's limit of {self._limit} steps.",
            )

    def require_disclosure(self, site: str, body: bytes, survivors: Sequence[str]) -> None:
        """Nothing may come."""
        _require_empty(site, "release", body)

    def open(self, total: NDArray[np.uint32], survivors: Sequence[str]) -> None:
        """The sum is open already."""


def _require_empty(site: str, leg: str, value: bytes) -> None:
    if value:
        raise MessageRefused(
            site=site, leg=leg, reason=f"{len(value)} bytes where plain sends none."
        )
