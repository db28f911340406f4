"""What both ring schemes do at the coordinator: checks of what comes, and the running sum of ciphertexts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.ckks.parameters import SumSizes
from privacy.ckks.ring import Residues, Ring
from privacy.ckks.vectors import Blocks, decoded
from privacy.secagg.boxes import CHANNEL, require_channel_key, require_distinct_channels
from privacy.secagg.envelopes import bind
from privacy.secagg.errors import MessageRefused, SumImpossible
from privacy.secagg.schemes import Roster


class RingSum:
    """The running sum of ciphertexts, 8 bytes a coefficient and prime."""

    def __init__(self, blocks: Blocks, sizes: SumSizes) -> None:
        self._blocks, self._sizes = blocks, sizes
        self.sealed_parts = blocks.parts
        self._public: dict[str, bytes] = {}
        self._total = self._zeros()

    def require_part(self, site: str, index: int, part: memoryview) -> None:
        """Coefficients of the ring, as many as there must be."""
        for _ in self._read("seal", site, index, part):
            pass

    def add(self, site: str, index: int, part: memoryview) -> None:
        """Into the running sum."""
        for block, polynomial in self._read("seal", site, index, part):
            self._blocks.ring.accumulate(self._total[block], polynomial)

    def begin_release(self, confirmed: Sequence[str]) -> Sequence[str]:
        """Everybody."""
        return confirmed

    def relay(self, survivors: Sequence[str]) -> tuple[int, Iterator[bytes]]:
        """Nothing: what a site releases depends on names alone."""
        return 0, iter(())

    def evidence(self) -> dict[str, float]:
        """The sum is exact."""
        return {}

    def _zeros(self) -> list[Residues]:
        blocks = self._blocks
        return [
            np.zeros((blocks.ring.shape.primes, blocks.length(block)), dtype=np.uint64)
            for block in range(blocks.count)
        ]

    def _keep_public(self, site: str, public: bytes, *, size: int) -> None:
        require_channel_keys({**self._public, site: public}, size=size)
        require_channel_key(site, public[CHANNEL])
        self._public[site] = public

    def _read(
        self, leg: str, site: str, index: int, part: bytes | memoryview
    ) -> Iterator[tuple[int, Residues]]:
        try:
            yield from self._blocks.unpack(index, part)
        except ValueError as error:
            raise MessageRefused(site=site, leg=leg, reason=f"part {index}: {error}.") from error

    def _decoded(self, openings: Iterable[Residues]) -> NDArray[np.int32]:
        """The sum [dimension], once a times the sum of keys is added block by block."""
        ring = self._blocks.ring
        try:
            return np.concatenate(
                [
                    decoded(ring, self._sizes, ring.add(total, product))
                    for total, product in zip(self._total, openings, strict=True)
                ]
            )
        except ValueError as error:
            raise SumImpossible(
                f"The opened sum holds {error}: a site sealed, dealt or gave something wrong. It was discarded; start a new "
                "attempt, in smaller groups to find the site."
            ) from error


def require_channel_keys(publics: Mapping[str, bytes], *, size: int) -> None:
    """Raise MessageRefused for public bytes of wrong length, or a channel key that two sites use."""
    for site, public in publics.items():
        if len(public) != size:
            raise MessageRefused(
                site=site, leg="hello", reason=f"{len(public)} bytes, expected {size}."
            )
    require_distinct_channels(publics)


def read_share(ring: Ring, dealer: str, packed: bytes) -> Residues:
    """A share of a ring key that was dealt to this site.

    Raises:
        MessageRefused: another length, or outside the ring.
    """
    try:
        return ring.unpack(packed, ring.shape.degree)
    except ValueError as error:
        raise MessageRefused(
            site=dealer, leg="share", reason=f"its share is none: {error}. Nothing was sealed."
        ) from error


def sum_of_shares(ring: Ring, held: Mapping[str, Residues], survivors: Sequence[str]) -> Residues:
    """A share of the sum of the survivors' keys."""
    total = np.zeros_like(held[survivors[0]])
    for dealer in survivors:
        total = ring.add(total, held[dealer])
    return total


def polynomial_seed(roster: Roster) -> bytes:
    """What the public polynomials of this sum are made from: all that is bound into the roster, fresh keys included."""
    return bind("ckks-polynomial", roster.scope)
