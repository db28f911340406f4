"""The scheme `mask`: pairwise and self masks with recovery of drop-outs (Bonawitz et al. 2017, figure 4).

Every site draws, for one sum: a channel key pair and a mask key pair (X25519), and a random self seed.

1. hello: both public keys and a commitment to the self seed.
2. share: the self seed and the private mask key, each split; every holder gets its pair of shares encrypted under a key
   that only dealer and recipient can form, with commitments to both shares.
3. seal: the vector plus a stream from the self seed, plus (towards later names) or minus (towards earlier names) one
   stream per pair with another site that shared, from HKDF of the two mask keys. Pairwise streams cancel in the sum.
4. release: of every survivor whose shares it holds, the share of its self seed; of everybody else, of its mask key.

Holders and pairs are all sites, or about a hundred for each in a large cohort (`neighbours`). If too few holders of one
site's shares are left, the attempt ends and nothing is opened.

The coordinator restores the survivors' self seeds and takes their streams off; it restores the mask keys of those who
shared but did not seal, and takes off the streams that did not cancel. It never holds both secrets of one site: then it
could open that site's vector. Commitments tell who gave a wrong share, and who dealt wrong ones.

Not hidden: which sites took part. Not checked: what is in a vector; only the sum's size is.
"""

import hmac
import secrets
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg import shamir
from privacy.secagg.boxes import LOCK_BYTES, Channel, require_channel_key
from privacy.secagg.envelopes import Scope, agree, bind, stretch
from privacy.secagg.errors import MessageRefused, QuorumLost
from privacy.secagg.integer_parts import IntegerParts
from privacy.secagg.masking import KEY_BYTES, apply_streams
from privacy.secagg.neighbours import NEIGHBOURS, NUMBER_BYTES, Neighbourhoods
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster

SCALAR_BYTES = 32
PUBLIC_BYTES = 3 * 32
COMMITMENTS = slice(0, 64)
BOX_BYTES = 64 + LOCK_BYTES + 2 * SCALAR_BYTES


class MaskSite:
    """Secrets and masks of one site in one sum."""

    disclosure_parts = 1
    asks_all = False

    def __init__(self, plan: SumPlan, site: str, *, neighbours: int = NEIGHBOURS) -> None:
        self._parts = IntegerParts(dimension=plan.dimension, bits=plan.encoding.modulus_bits)
        self.sealed_parts = self._parts.count
        self._threshold = plan.threshold
        self._neighbours = neighbours
        self._site = site
        self._channel = Channel(site)
        self._mask_scalar = _new_scalar()
        self._mask_key = X25519PrivateKey.from_private_bytes(self._mask_scalar)
        self._self_seed = secrets.randbelow(shamir.PRIME).to_bytes(SCALAR_BYTES, "big")
        self._held: dict[str, bytes] = {}

    def public(self) -> bytes:
        """Channel key, mask key, commitment to the self seed."""
        return b"".join(
            (
                self._channel.public,
                self._mask_key.public_key().public_bytes_raw(),
                _seed_commitment(self._self_seed),
            )
        )

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        """Shares of both secrets, encrypted for each holder; for itself only the commitments, the shares stay here."""
        _require_distinct_keys(roster.public)
        self._roster = roster
        self._vector = integers.view(np.uint32)
        self._rules = Neighbourhoods(
            sites=len(roster.public), threshold=self._threshold, neighbours=self._neighbours
        )
        holders = self._rules.draw_holders(self._site, roster.sites)
        split = [
            shamir.split(secret, threshold=self._rules.share_threshold, count=len(holders))
            for secret in (
                int.from_bytes(self._self_seed, "big"),
                int.from_bytes(self._mask_scalar, "little"),
            )
        ]
        boxes = dict.fromkeys(roster.sites, b"")
        for recipient, seed_share, key_share in zip(holders, *split, strict=True):
            shares = seed_share.to_bytes(SCALAR_BYTES, "big") + key_share.to_bytes(
                SCALAR_BYTES, "big"
            )
            commitments = _share_commitments(roster.scope, self._site, recipient, shares)
            if recipient == self._site:
                self._held[recipient] = shares
                boxes[recipient] = commitments
            else:
                boxes[recipient] = commitments + self._channel.lock(
                    shares, roster=roster, recipient=recipient, public=commitments
                )
        return boxes

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """Keep the shares that others dealt to this site, and mask the vector for its pairs among all who shared."""
        for dealer, box in boxes.items():
            if box or self._rules.is_complete:
                self._held[dealer] = self._open_box(dealer, box)
        plus = [_self_stream(self._self_seed, self._roster.scope, self._site)]
        minus: list[bytes] = []
        for peer in boxes:
            key = pair_stream(self._mask_key, self._roster, self._rules, own=self._site, peer=peer)
            if key is not None:
                (plus if self._site < peer else minus).append(key)
        apply_streams(self._vector, plus=plus, minus=minus)
        return self._parts.cut(self._vector)

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """One share of every site whose shares it holds, in the order of names: self seed of a survivor, else mask key."""
        shares = [
            self._held[dealer][:SCALAR_BYTES]
            if dealer in survivors
            else self._held[dealer][SCALAR_BYTES:]
            for dealer in sorted(self._held)
        ]
        self._held.clear()
        return iter((b"".join(shares),))

    def _open_box(self, dealer: str, box: bytes) -> bytes:
        commitments = box[COMMITMENTS]
        shares = self._channel.unlock(
            box[64:], roster=self._roster, dealer=dealer, public=commitments
        )
        expected = _share_commitments(self._roster.scope, dealer, self._site, shares)
        if len(shares) != 2 * SCALAR_BYTES or not hmac.compare_digest(expected, commitments):
            raise MessageRefused(
                site=dealer,
                leg="share",
                reason="its shares are not those it committed to. Nothing was sealed.",
            )
        if any(share >= shamir.PRIME for share in _shares_of(shares)):
            raise MessageRefused(
                site=dealer,
                leg="share",
                reason="its shares are outside the field. Nothing was sealed.",
            )
        return shares


class MaskCoordinator:
    """Checks what sites send, and opens the sum from the disclosures."""

    disclosure_parts = 1
    asks_all = False
    largest_box = BOX_BYTES

    def __init__(self, plan: SumPlan, *, neighbours: int = NEIGHBOURS) -> None:
        self._encoding = plan.encoding
        self._parts = IntegerParts(dimension=plan.dimension, bits=self._encoding.modulus_bits)
        self.sealed_parts = self._parts.count
        self._total = np.zeros(plan.dimension, dtype=np.uint32)
        self._threshold = plan.threshold
        self._neighbours = neighbours
        self._keys: set[bytes] = set()
        # Commitments by dealer and holder, holders in the order in which their shares were made.
        self._dealt: dict[str, dict[str, bytes]] = {}
        self._disclosures: dict[str, dict[str, bytes]] = {}

    def require_public(self, site: str, public: bytes) -> None:
        """Two sound keys and a commitment that nobody else has sent: one bad hello would stop every site."""
        keys = _distinct_keys(site, public, self._keys)
        for key in keys[:2]:
            require_channel_key(site, key)
        self._keys.update(keys)

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """As many boxes as there are holders, of the right length; their commitments are kept."""
        self._roster = roster
        self._rules = Neighbourhoods(
            sites=len(roster.public), threshold=self._threshold, neighbours=self._neighbours
        )
        for recipient, box in boxes.items():
            expected = COMMITMENTS.stop if recipient == site else BOX_BYTES
            is_spared = not (box or recipient == site or self._rules.is_complete)
            if len(box) != expected and not is_spared:
                raise MessageRefused(
                    site=site,
                    leg="share",
                    reason=f'{len(box)} bytes for site "{recipient}", expected {expected}.',
                )
        dealt = {recipient: box[COMMITMENTS] for recipient, box in boxes.items() if box}
        if len(dealt) != self._rules.holders:
            raise MessageRefused(
                site=site,
                leg="share",
                reason=f"shares for {len(dealt)} sites, expected {self._rules.holders}.",
            )
        self._dealt[site] = dealt

    def require_part(self, site: str, index: int, part: memoryview) -> None:
        """Masked coordinates are uniform: nothing but their number can be checked."""
        self._parts.require(site, index, part)

    def add(self, site: str, index: int, part: memoryview) -> None:
        """Into the running sum."""
        self._parts.add(self._total, site, index, part)

    def begin_release(self, confirmed: Sequence[str]) -> Sequence[str]:
        """Everybody, if enough holders of every site's shares are left.

        Raises:
            QuorumLost: of one site's, too few are. Nobody has been asked for a share yet.
        """
        for dealer in self._dealt:
            self._helping(dealer, set(confirmed))
        return confirmed

    def relay(self, survivors: Sequence[str]) -> tuple[int, Iterator[bytes]]:
        """Nothing."""
        return 0, iter(())

    def require_disclosure(
        self, site: str, index: int, part: bytes, survivors: Sequence[str]
    ) -> None:
        """One share of every dealer of which the site holds some, each the one that was committed to."""
        dealers = [dealer for dealer in sorted(self._dealt) if site in self._dealt[dealer]]
        if len(part) != SCALAR_BYTES * len(dealers):
            raise MessageRefused(
                site=site,
                leg="release",
                reason=f"{len(part)} bytes of shares, expected {SCALAR_BYTES * len(dealers)}.",
            )
        shares = {}
        for position, dealer in enumerate(dealers):
            share = part[position * SCALAR_BYTES : (position + 1) * SCALAR_BYTES]
            kind, where = ("seed", slice(0, 32)) if dealer in survivors else ("key", slice(32, 64))
            found = _commitment(self._roster.scope, dealer, site, kind, share)
            if not hmac.compare_digest(found, self._dealt[dealer][site][where]):
                raise MessageRefused(
                    site=site,
                    leg="release",
                    reason=f'its {kind} share of site "{dealer}" is not the one that was dealt to it.',
                )
            if int.from_bytes(share, "big") >= shamir.PRIME:
                raise MessageRefused(
                    site=dealer,
                    leg="share",
                    reason=f'the share that it dealt to site "{site}" is outside the field.',
                )
            shares[dealer] = share
        self._disclosures[site] = shares

    def open(self, survivors: Sequence[str], responders: Sequence[str]) -> NDArray[np.int32]:
        """Take off the survivors' self streams and the pair streams of those who shared but did not seal.

        Raises:
            QuorumLost: too few responders hold shares of one site.
        """
        plus: list[bytes] = []
        minus: list[bytes] = []
        for dealer, secret in self._secrets(set(responders)):
            if dealer in survivors:
                seed = secret.to_bytes(SCALAR_BYTES, "big")
                _require_dealt(_seed_commitment(seed) == self._roster.public[dealer][64:], dealer)
                minus.append(_self_stream(seed, self._roster.scope, dealer))
                continue
            key = X25519PrivateKey.from_private_bytes(secret.to_bytes(SCALAR_BYTES, "little"))
            found = key.public_key().public_bytes_raw()
            _require_dealt(found == self._roster.public[dealer][32:64], dealer)
            for peer in survivors:
                stream = pair_stream(key, self._roster, self._rules, own=dealer, peer=peer)
                if stream is not None:
                    # The survivor added it if its name comes first.
                    (minus if peer < dealer else plus).append(stream)
        apply_streams(self._total, plus=plus, minus=minus)
        return self._encoding.signed(self._total)

    def _secrets(self, responders: Set[str]) -> Iterator[tuple[str, int]]:
        """Of every site that shared, the one secret of which shares were disclosed."""
        weights: dict[tuple[int, ...], tuple[int, ...]] = {}
        for dealer in sorted(self._dealt):
            helping = self._helping(dealer, responders)
            points = tuple(helping.values())
            if points not in weights:
                weights[points] = shamir.weights_at_zero(points)
            shares = [int.from_bytes(self._disclosures[site][dealer], "big") for site in helping]
            yield dealer, shamir.combine(shares, weights[points])

    def _helping(self, dealer: str, present: Set[str]) -> dict[str, int]:
        """Holders of the dealer's shares that are present, as many as it takes, and the points of their shares."""
        helping = {
            site: point
            for point, site in enumerate(self._dealt[dealer], start=1)
            if site in present
        }
        needed = self._rules.share_threshold
        if len(helping) < needed:
            raise QuorumLost(leg="release", present=tuple(helping), needed=needed, dealer=dealer)
        return dict(islice(helping.items(), needed))

    def evidence(self) -> dict[str, float]:
        """Nothing."""
        return {}


def _new_scalar() -> bytes:
    """A private X25519 key, clamped (RFC 7748, section 5) and below the field's prime, so that it can be shared."""
    while True:
        scalar = bytearray(secrets.token_bytes(SCALAR_BYTES))
        scalar[0] &= 248
        scalar[31] = scalar[31] & 127 | 64
        if int.from_bytes(scalar, "little") < shamir.PRIME:
            return bytes(scalar)


def pair_stream(
    own_key: X25519PrivateKey, roster: Roster, rules: Neighbourhoods, *, own: str, peer: str
) -> bytes | None:
    """Key of the stream between two sites, None if they have none; the same from either side."""
    pair = (min(own, peer), max(own, peer))
    try:
        agreed = agree(
            own_key,
            roster.public[peer][32:64],
            label="pair-mask",
            scope=roster.scope,
            pair=pair,
            size=KEY_BYTES + NUMBER_BYTES,
        )
    except ValueError as error:
        raise MessageRefused(site=peer, leg="hello", reason="its mask key is unusable.") from error
    return agreed[:KEY_BYTES] if rules.is_pair(agreed[KEY_BYTES:]) else None


def _self_stream(seed: bytes, scope: Scope, site: str) -> bytes:
    return stretch(seed, label="self-mask", scope=scope, site=site, size=KEY_BYTES)


def _shares_of(shares: bytes) -> tuple[int, int]:
    return (
        int.from_bytes(shares[:SCALAR_BYTES], "big"),
        int.from_bytes(shares[SCALAR_BYTES:], "big"),
    )


def _seed_commitment(seed: bytes) -> bytes:
    # Part of hello, which is signed for one sum and one site; the seed has 255 random bits, so it stays hidden.
    return bind("self-seed", Scope(sum_digest=bytes(32)), seed)


def _commitment(scope: Scope, dealer: str, recipient: str, kind: str, share: bytes) -> bytes:
    return bind("share", scope, dealer.encode(), recipient.encode(), kind.encode(), share)


def _share_commitments(scope: Scope, dealer: str, recipient: str, shares: bytes) -> bytes:
    seed_share, key_share = shares[:SCALAR_BYTES], shares[SCALAR_BYTES:]
    return _commitment(scope, dealer, recipient, "seed", seed_share) + _commitment(
        scope, dealer, recipient, "key", key_share
    )


def _require_distinct_keys(publics: Mapping[str, bytes]) -> None:
    """Refuse public bytes of wrong length, and a key that appears twice: its owner would count twice."""
    seen: set[bytes] = set()
    for site, public in publics.items():
        seen.update(_distinct_keys(site, public, seen))


def _distinct_keys(site: str, public: bytes, seen: Set[bytes]) -> tuple[bytes, bytes, bytes]:
    """Channel key, mask key and commitment of one site, none of them seen before."""
    if len(public) != PUBLIC_BYTES:
        raise MessageRefused(
            site=site,
            leg="hello",
            reason=f"{len(public)} bytes of keys, expected {PUBLIC_BYTES}.",
        )
    keys = (public[:32], public[32:64], public[64:])
    if len(set(keys)) < len(keys) or not seen.isdisjoint(keys):
        raise MessageRefused(
            site=site, leg="hello", reason="a key that another site or purpose uses."
        )
    return keys


def _require_dealt(holds: bool, dealer: str) -> None:
    if not holds:
        raise MessageRefused(
            site=dealer,
            leg="share",
            reason="the shares it dealt do not restore the secret it announced in hello. Nothing was opened; start a "
            "new attempt without this site.",
        )
