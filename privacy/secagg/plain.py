"""The scheme without protection, for tests, rehearsals and measurements: sealed vectors are the encoded integers.

It speaks every leg of the protocol with nothing in it. The coordinator sees each site's vector.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.errors import MessageRefused
from privacy.secagg.integer_parts import IntegerParts
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster


class PlainSite:
    """Nothing to hide, nothing to deal."""

    disclosure_parts = 1
    asks_all = False

    def __init__(self, plan: SumPlan) -> None:
        self._parts = IntegerParts(dimension=plan.dimension, bits=plan.encoding.modulus_bits)
        self.sealed_parts = self._parts.count

    def public(self) -> bytes:
        """Nothing."""
        return b""

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        """Nothing, for everybody."""
        self._vector = integers.view(np.uint32)
        return dict.fromkeys(roster.sites, b"")

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """The vector as it is."""
        return self._parts.cut(self._vector)

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """Nothing."""
        return iter((b"",))


class PlainCoordinator:
    """Checks that nothing comes where nothing may, and that no coordinate exceeds the plan."""

    disclosure_parts = 1
    asks_all = False
    largest_box = 0

    def __init__(self, plan: SumPlan) -> None:
        self._encoding = plan.encoding
        self._parts = IntegerParts(dimension=plan.dimension, bits=self._encoding.modulus_bits)
        self.sealed_parts = self._parts.count
        self._total = np.zeros(plan.dimension, dtype=np.uint32)

    def require_public(self, site: str, public: bytes) -> None:
        """Nothing may come."""
        _require_empty(site, "hello", public)

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Nothing may come."""
        for box in boxes.values():
            _require_empty(site, "share", box)

    def require_part(self, site: str, index: int, part: memoryview) -> None:
        """Every coordinate must be one that `encode` can give."""
        integers = self._encoding.signed(self._parts.read(site, index, part).copy())
        limit = self._encoding.limit
        if integers.max() > limit or integers.min() < -limit:
            raise MessageRefused(
                site=site,
                leg="seal",
                reason=f"a coordinate exceeds the plan's limit of {limit} steps.",
            )

    def add(self, site: str, index: int, part: memoryview) -> None:
        """Into the running sum."""
        self._parts.add(self._total, site, index, part)

    def begin_release(self, confirmed: Sequence[str]) -> Sequence[str]:
        """Everybody."""
        return confirmed

    def relay(self, survivors: Sequence[str]) -> tuple[int, Iterator[bytes]]:
        """Nothing."""
        return 0, iter(())

    def require_disclosure(
        self, site: str, index: int, part: bytes, survivors: Sequence[str]
    ) -> None:
        """Nothing may come."""
        _require_empty(site, "release", part)

    def open(self, survivors: Sequence[str], responders: Sequence[str]) -> NDArray[np.int32]:
        """The sum is open already."""
        return self._encoding.signed(self._total)

    def evidence(self) -> dict[str, float]:
        """Nothing."""
        return {}


def _require_empty(site: str, leg: str, value: bytes) -> None:
    if value:
        raise MessageRefused(
            site=site, leg=leg, reason=f"{len(value)} bytes where plain sends none."
        )
