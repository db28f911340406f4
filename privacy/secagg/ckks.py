"""The scheme `ckks`: threshold CKKS, every site under its own ring key, keys dealt once per epoch, releases flooded.

1. hello: a channel key; which key epoch the site holds, and how many sums were opened in it.
2. share: nothing if all sites hold the same epoch and it has openings left. Otherwise every site makes a new ring key and
   deals it t-of-n: a new epoch.
3. seal: the vector, encrypted under the site's own key with the public polynomials of this sum.
4. release: the share of the sum of the survivors' keys, weighted for exactly the sites that are asked, times the public
   polynomials, plus flooding, plus a share of zero (`zero_shares`: without it, flooding would not hide what it covers). The
   count of opened sums is stored before a byte of it leaves.

What is released is a function of the names that the sites signed: no ciphertext is ever handed to a site. The coordinator
adds what all helpers released to the sum of ciphertexts; it never learns a key or a sum of keys. A helper that does not
answer spoils weights and shares of zero, so the others are asked again, for the same survivors, which counts as one more
opening. What a helper gives cannot be checked: a wrong polynomial makes the sum wrong, mostly beyond what it could reach.

A key store that is rolled back forgets openings. Every site therefore counts on from the largest count that any site of
the roster claims. If all stores are rolled back, the flooding covers as many more sums as were forgotten, each by as many
bits as before: after k times `MOST_OPENINGS` sums, half of log2(k) bits of statistical security are lost. A store that is
rolled back to another epoch, or lost, leads to a new epoch.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from privacy.ckks import sharing
from privacy.ckks.parameters import MOST_OPENINGS, SumSizes, standard_sizes
from privacy.ckks.vectors import Blocks, encrypted, new_key, opening
from privacy.randomness import OsRandom
from privacy.secagg.boxes import LOCK_BYTES, Channel
from privacy.secagg.errors import MessageRefused
from privacy.secagg.key_epoch import (
    DIGEST_BYTES,
    KEY_BYTES,
    RING,
    KeyEpoch,
    epoch_digest,
    read_epoch,
)
from privacy.secagg.key_store import KeyStore
from privacy.secagg.messages import PART_BYTES
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import COORDINATOR
from privacy.secagg.ring_sum import (
    RingSum,
    polynomial_seed,
    read_share,
    require_channel_keys,
    sum_of_shares,
)
from privacy.secagg.schemes import Roster
from privacy.secagg.zero_shares import ZeroShares

CLAIM = struct.Struct(f">{DIGEST_BYTES}sIB")
"""Digest of the epoch that a site holds, zeros if none; sums opened in it; its threshold."""
PUBLIC_BYTES = 32 + CLAIM.size
NO_EPOCH = bytes(DIGEST_BYTES)


def _blocks(plan: SumPlan) -> Blocks:
    return Blocks(ring=RING, dimension=plan.dimension, largest_part=PART_BYTES)


def _sizes(plan: SumPlan) -> SumSizes:
    return standard_sizes(modulus_bits=plan.encoding.modulus_bits, sites=plan.max_sites)


class CkksSite:
    """One site in one sum."""

    asks_all = True

    def __init__(self, plan: SumPlan, site: str, key_store: KeyStore) -> None:
        self._plan, self._site, self._store = plan, site, key_store
        self._blocks, self._sizes = _blocks(plan), _sizes(plan)
        self.sealed_parts = self.disclosure_parts = self._blocks.parts
        self._random = OsRandom()
        self._channel = Channel(site)
        self._epoch = read_epoch(key_store.load(), member=site)

    def public(self) -> bytes:
        """The channel key, and which epoch is held here."""
        held = self._epoch
        claim = (NO_EPOCH, 0, 0) if held is None else (held.digest, held.opened, held.threshold)
        return self._channel.public + CLAIM.pack(*claim)

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        """Nothing within an epoch; a share of a new key for each site otherwise, its own stays here."""
        require_channel_keys(roster.public, size=PUBLIC_BYTES)
        self._roster, self._integers = roster, integers
        self._is_new = not epoch_continues(roster.public, self._plan.threshold)
        if not self._is_new:
            self._require_served(roster)
            self._epoch = self._held_epoch().counted_from(_most_opened(roster.public))
            return dict.fromkeys(roster.sites, b"")
        self._key = new_key(RING, self._random)
        points = [roster.point(site) for site in roster.sites]
        shares = sharing.split(
            RING, self._key, threshold=self._plan.threshold, points=points, random=self._random
        )
        self._held = {self._site: shares[roster.sites.index(self._site)]}
        return {
            recipient: b""
            if recipient == self._site
            else self._channel.lock(RING.pack(share), roster=roster, recipient=recipient)
            for recipient, share in zip(roster.sites, shares, strict=True)
        }

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """Take what the others dealt, which begins an epoch, and encrypt under the own key."""
        if self._is_new:
            self._begin_epoch(boxes)
        else:
            _require_empty(boxes)
        polynomials = encrypted(
            self._blocks,
            self._sizes,
            self._integers,
            key=self._held_epoch().key,
            seed=polynomial_seed(self._roster),
            random=self._random,
        )
        return self._blocks.pack(polynomials)

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """The weighted share of the sum of keys, times the public polynomials, flooded, plus a share of zero.

        Counted and stored before any of it is given.
        """
        epoch = self._count_once_more()
        points = epoch.points
        share = sharing.weighted(
            RING,
            sum_of_shares(RING, epoch.shares, survivors),
            point=points[self._site],
            points=[points[site] for site in responders],
        )
        zero_shares = ZeroShares(
            RING,
            self._channel,
            roster=self._roster,
            site=self._site,
            survivors=survivors,
            responders=responders,
        )
        seed = polynomial_seed(self._roster)
        openings = opening(self._blocks, self._sizes, key=share, seed=seed, random=self._random)
        return self._blocks.pack(map(zero_shares.added_to, openings))

    def _begin_epoch(self, boxes: Mapping[str, bytes]) -> None:
        for dealer, box in boxes.items():
            packed = self._channel.unlock(box, roster=self._roster, dealer=dealer)
            self._held[dealer] = read_share(RING, dealer, packed)
        members = tuple(sorted(self._held))
        self._epoch = KeyEpoch(
            digest=epoch_digest(self._roster, members),
            opened=0,
            threshold=self._plan.threshold,
            points={site: self._roster.point(site) for site in members},
            key=self._key,
            shares=self._held,
        )
        self._store.store(self._epoch.to_bytes())

    def _count_once_more(self) -> KeyEpoch:
        """The epoch with one more opening, once that is stored: beside what other sums have counted in the meantime."""
        held = self._held_epoch()
        stored = read_epoch(self._store.load(), member=self._site)
        if stored is None or stored.digest != held.digest:
            self._refuse("another sum has begun a new key epoch")
        counted = held.counted_from(stored.opened)
        if counted.opened >= MOST_OPENINGS:
            self._refuse(f"{counted.opened} sums were opened in this key epoch, and no more may be")
        self._epoch = counted.once_more()
        self._store.store(self._epoch.to_bytes())
        return self._epoch

    def _refuse(self, reason: str) -> NoReturn:
        raise MessageRefused(
            site=COORDINATOR,
            leg="release",
            reason=f'at site "{self._site}": {reason}. Nothing was released.',
        )

    def _held_epoch(self) -> KeyEpoch:
        if self._epoch is None:
            raise ValueError("Expected a key epoch before anything is encrypted or opened.")
        return self._epoch

    def _require_served(self, roster: Roster) -> None:
        """Raise if a site claims the epoch that is held here and is no member of it."""
        strangers = sorted(set(roster.sites) - set(self._held_epoch().points))
        if strangers:
            raise MessageRefused(
                site=strangers[0],
                leg="hello",
                reason="it claims a key epoch of which it is no member. Nothing was sealed.",
            )


class CkksCoordinator(RingSum):
    """Adds ciphertexts, then what the helpers release."""

    asks_all = True
    largest_box = KEY_BYTES + LOCK_BYTES

    def __init__(self, plan: SumPlan) -> None:
        super().__init__(_blocks(plan), _sizes(plan))
        self.disclosure_parts = self._blocks.parts
        self._threshold = plan.threshold

    def require_public(self, site: str, public: bytes) -> None:
        """A sound channel key that nobody else has sent, and a claim."""
        self._keep_public(site, public, size=PUBLIC_BYTES)

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Boxes of the right length: none within an epoch."""
        self._roster = roster
        is_new = not epoch_continues(roster.public, self._threshold)
        for recipient, box in boxes.items():
            expected = self.largest_box if is_new and recipient != site else 0
            if len(box) != expected:
                raise MessageRefused(
                    site=site,
                    leg="share",
                    reason=f'{len(box)} bytes for site "{recipient}", expected {expected}.',
                )

    def begin_release(self, confirmed: Sequence[str]) -> Sequence[str]:
        """Everybody; whatever was released before is forgotten."""
        self._released = self._zeros()
        return confirmed

    def require_disclosure(
        self, site: str, index: int, part: bytes, survivors: Sequence[str]
    ) -> None:
        """Coefficients of the ring, as many as there must be, into the sum of what is released."""
        # All of the part is checked before any of it is added.
        for block, polynomial in list(self._read("release", site, index, part)):
            RING.accumulate(self._released[block], polynomial)

    def open(self, survivors: Sequence[str], responders: Sequence[str]) -> NDArray[np.int32]:
        """Add what the helpers released to the sum of ciphertexts."""
        return self._decoded(self._released)

    def evidence(self) -> dict[str, float]:
        """Sums opened so far in the epoch, this one included, as the sites told it."""
        if not epoch_continues(self._roster.public, self._threshold):
            return {"key_epoch_decryptions": 1.0}
        return {"key_epoch_decryptions": 1.0 + _most_opened(self._roster.public)}


def epoch_continues(publics: Mapping[str, bytes], threshold: int) -> bool:
    """Whether all sites claim the same key epoch, of this threshold and with openings left; otherwise all deal anew.

    A sum may be opened several times, each time with fewer helpers: there must be openings left for all of them.
    """
    held = {(digest, shares) for digest, _, shares in _claims(publics)}
    if len(held) != 1 or held == {(NO_EPOCH, threshold)} or min(held)[1] != threshold:
        return False
    largest_use = len(publics) - threshold + 1
    return _most_opened(publics) + largest_use <= MOST_OPENINGS


def _most_opened(publics: Mapping[str, bytes]) -> int:
    return max(opened for _, opened, _ in _claims(publics))


def _claims(publics: Mapping[str, bytes]) -> list[tuple[bytes, int, int]]:
    """Digest, openings and threshold that each site claims."""
    return [CLAIM.unpack_from(public, 32) for public in publics.values()]


def _require_empty(boxes: Mapping[str, bytes]) -> None:
    """Raise if a site deals keys within an epoch."""
    for dealer, box in boxes.items():
        if box:
            raise MessageRefused(
                site=dealer,
                leg="share",
                reason="it deals keys although all sites hold the same key epoch. Nothing was sealed.",
            )
