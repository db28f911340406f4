"""The scheme `ckks-light`: every site encrypts under a ring key made for this sum, and the sum of the keys is opened.

1. hello: a channel key. The public polynomials of the sum follow from the roster.
2. share: the site's ring key, split t-of-n, a share for every site.
3. seal: the vector, encrypted under the site's own key.
4. release: the sum of the shares, over the survivors: a share of the sum of their keys.

The coordinator restores the sum of the survivors' keys, which opens the sum of their vectors and nothing else: keys are
fresh, and of two keys whose sum is known each stays as uncertain as a ring key must be (`ERROR_DEVIATION`). What is released
depends on the survivors' names, which the sites signed, and not on any ciphertext.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.ckks import sharing
from privacy.ckks.parameters import LIGHT, SumSizes, light_sizes
from privacy.ckks.ring import Residues, ring_of
from privacy.ckks.vectors import Blocks, encrypted, new_key, opening
from privacy.randomness import OsRandom
from privacy.secagg.boxes import LOCK_BYTES, Channel
from privacy.secagg.errors import MessageRefused, SumImpossible
from privacy.secagg.messages import PART_BYTES
from privacy.secagg.plan import SumPlan
from privacy.secagg.ring_sum import (
    RingSum,
    polynomial_seed,
    read_share,
    require_channel_keys,
    sum_of_shares,
)
from privacy.secagg.schemes import Roster

RING = ring_of(LIGHT)
SHARE_BYTES = RING.packed_bytes(LIGHT.degree)


def light_blocks(plan: SumPlan) -> Blocks:
    """How a vector is cut."""
    return Blocks(ring=RING, dimension=plan.dimension, largest_part=PART_BYTES)


def light_sizes_of(plan: SumPlan) -> SumSizes:
    """Where the integers stand."""
    return light_sizes(modulus_bits=plan.encoding.modulus_bits, sites=plan.max_sites)


class CkksLightSite:
    """Keys of one site in one sum."""

    disclosure_parts = 1
    asks_all = False

    def __init__(self, plan: SumPlan, site: str) -> None:
        self._plan, self._site = plan, site
        self._blocks, self._sizes = light_blocks(plan), light_sizes_of(plan)
        self.sealed_parts = self._blocks.parts
        self._random = OsRandom()
        self._channel = Channel(site)
        self._key = new_key(RING, self._random)
        self._held: dict[str, Residues] = {}

    def public(self) -> bytes:
        """The channel key."""
        return self._channel.public

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        """A share of the ring key for each site; its own stays here."""
        require_channel_keys(roster.public, size=len(self._channel.public))
        self._roster, self._integers = roster, integers
        points = [roster.point(site) for site in roster.sites]
        shares = sharing.split(
            RING, self._key, threshold=self._plan.threshold, points=points, random=self._random
        )
        boxes = {}
        for recipient, share in zip(roster.sites, shares, strict=True):
            if recipient == self._site:
                self._held[recipient] = share
                boxes[recipient] = b""
            else:
                boxes[recipient] = self._channel.lock(
                    RING.pack(share), roster=roster, recipient=recipient
                )
        return boxes

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """Keep what the others dealt, and encrypt."""
        for dealer, box in boxes.items():
            packed = self._channel.unlock(box, roster=self._roster, dealer=dealer)
            self._held[dealer] = read_share(RING, dealer, packed)
        polynomials = encrypted(
            self._blocks,
            self._sizes,
            self._integers,
            key=self._key,
            seed=polynomial_seed(self._roster),
            random=self._random,
        )
        return self._blocks.pack(polynomials)

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """This site's share of the sum of the survivors' keys."""
        total = sum_of_shares(RING, self._held, survivors)
        self._held.clear()
        return iter((RING.pack(total),))


class CkksLightCoordinator(RingSum):
    """Adds ciphertexts, and opens the sum with the sum of keys."""

    disclosure_parts = 1
    asks_all = False
    largest_box = SHARE_BYTES + LOCK_BYTES

    def __init__(self, plan: SumPlan) -> None:
        super().__init__(light_blocks(plan), light_sizes_of(plan))
        self._threshold = plan.threshold
        self._shares: dict[str, Residues] = {}

    def require_public(self, site: str, public: bytes) -> None:
        """A sound channel key that nobody else has sent."""
        self._keep_public(site, public, size=32)

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Boxes of the right length."""
        self._roster = roster
        for recipient, box in boxes.items():
            expected = 0 if recipient == site else self.largest_box
            if len(box) != expected:
                raise MessageRefused(
                    site=site,
                    leg="share",
                    reason=f'{len(box)} bytes for site "{recipient}", expected {expected}.',
                )

    def require_disclosure(
        self, site: str, index: int, part: bytes, survivors: Sequence[str]
    ) -> None:
        """A share of the sum of keys."""
        try:
            self._shares[site] = RING.unpack(part, LIGHT.degree)
        except ValueError as error:
            raise MessageRefused(site=site, leg="release", reason=f"{error}.") from error

    def open(self, survivors: Sequence[str], responders: Sequence[str]) -> NDArray[np.int32]:
        """Restore the sum of keys from the first shares, check the others against it, decrypt."""
        key = self._restored(responders[: self._threshold])
        for extra in responders[self._threshold :]:
            if (self._restored([*responders[: self._threshold - 1], extra]) != key).any():
                raise SumImpossible(
                    f"The shares of the sum of keys from {', '.join(responders)} do not lie on one polynomial: at least one "
                    "site gave, or dealt, a wrong one. Nothing was opened; start a new attempt, in smaller groups to find it."
                )
        products = opening(
            self._blocks, self._sizes, key=key, seed=polynomial_seed(self._roster), random=None
        )
        return self._decoded(products)

    def _restored(self, sites: Sequence[str]) -> Residues:
        points = [self._roster.point(site) for site in sites]
        key = np.zeros_like(self._shares[sites[0]])
        for site, point in zip(sites, points, strict=True):
            weighted = sharing.weighted(RING, self._shares[site], point=point, points=points)
            key = RING.add(key, weighted)
        return key
