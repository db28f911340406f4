"""The scheme `mask`: pairwise and self masks with recovery of drop-outs (Bonawitz et al. 2017, figure 4).

Every site draws, for one sum: a channel key pair and a mask key pair (X25519), and a random self seed.

1. hello: both public keys and a commitment to the self seed.
2. share: the self seed and the private mask key, each split t-of-n; every site gets its pair of shares encrypted under
   a key that only dealer and recipient can form, with commitments to both shares.
3. seal: the vector plus a stream from the self seed, plus (towards later names) or minus (towards earlier names) one
   stream per other site that shared, from HKDF of the two mask keys. Pairwise streams cancel in the sum.
4. release: for every survivor the share of its self seed, for everybody else the share of its mask key.

The coordinator restores the survivors' self seeds and takes their streams off; it restores the mask keys of those who
shared but did not seal, and takes off the streams that did not cancel. It never holds both secrets of one site: then it
could open that site's vector. Commitments tell who gave a wrong share, and who dealt wrong ones.

Not hidden: which sites took part. Not checked: what is in a vector; only the sum's size is.
"""

import hmac
import secrets
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg import shamir
from privacy.secagg.boxes import LOCK_BYTES, Channel, require_channel_key
from privacy.secagg.envelopes import Scope, agree, bind, stretch
from privacy.secagg.errors import MessageRefused
from privacy.secagg.integer_parts import IntegerParts
from privacy.secagg.masking import KEY_BYTES, apply_streams
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

    def __init__(self, plan: SumPlan, site: str) -> None:
        self._parts = IntegerParts(dimension=plan.dimension, bits=plan.encoding.modulus_bits)
        self.sealed_parts = self._parts.count
        self._threshold = plan.threshold
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
        """Shares of both secrets, encrypted for each site; for itself only the commitments, the shares stay here."""
        _require_distinct_keys(roster.public)
        self._roster = roster
        self._vector = integers.view(np.uint32)
        split = [
            shamir.split(secret, threshold=self._threshold, count=len(roster.sites))
            for secret in (
                int.from_bytes(self._self_seed, "big"),
                int.from_bytes(self._mask_scalar, "little"),
            )
        ]
        boxes = {}
        for recipient, seed_share, key_share in zip(roster.sites, *split, strict=True):
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
        """Keep the shares that the others dealt, and mask the vector for exactly those others."""
        for dealer, box in boxes.items():
            self._held[dealer] = self._open_box(dealer, box)
        plus = [_self_stream(self._self_seed, self._roster.scope, self._site)]
        minus: list[bytes] = []
        for peer in boxes:
            key = _pair_stream(self._mask_key, self._roster, own=self._site, peer=peer)
            (plus if self._site < peer else minus).append(key)
        apply_streams(self._vector, plus=plus, minus=minus)
        return self._parts.cut(self._vector)

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """One share of every site that shared, in the order of names: self seed of a survivor, else mask key."""
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
    """Checks what sites send, and opens the sum from t disclosures."""

    disclosure_parts = 1
    asks_all = False
    largest_box = BOX_BYTES

    def __init__(self, plan: SumPlan) -> None:
        self._encoding = plan.encoding
        self._parts = IntegerParts(dimension=plan.dimension, bits=self._encoding.modulus_bits)
        self.sealed_parts = self._parts.count
        self._total = np.zeros(plan.dimension, dtype=np.uint32)
        self._threshold = plan.threshold
        self._public: dict[str, bytes] = {}
        self._commitments: dict[tuple[str, str], bytes] = {}
        self._disclosures: dict[str, dict[str, bytes]] = {}

    def require_public(self, site: str, public: bytes) -> None:
        """Two sound keys and a commitment that nobody else has sent: one bad hello would stop every site."""
        _require_distinct_keys({**self._public, site: public})
        for key in (public[:32], public[32:64]):
            require_channel_key(site, key)
        self._public[site] = public

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Boxes of the right length; their commitments are kept."""
        for recipient, box in boxes.items():
            expected = 64 if recipient == site else BOX_BYTES
            if len(box) != expected:
                raise MessageRefused(
                    site=site,
                    leg="share",
                    reason=f'{len(box)} bytes for site "{recipient}", expected {expected}.',
                )
        for recipient, box in boxes.items():
            self._commitments[site, recipient] = box[COMMITMENTS]
        self._roster = roster

    def require_part(self, site: str, index: int, part: memoryview) -> None:
        """Masked coordinates are uniform: nothing but their number can be checked."""
        self._parts.read(site, index, part)

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
        """One share of every dealer, each the one that was committed to."""
        dealers = sorted({dealer for dealer, _ in self._commitments})
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
            if not hmac.compare_digest(found, self._commitments[dealer, site][where]):
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
        """Take off the survivors' self streams and the pair streams of those who shared but did not seal."""
        helpers = responders[: self._threshold]
        weights = shamir.weights_at_zero([self._roster.point(site) for site in helpers])
        plus: list[bytes] = []
        minus: list[bytes] = []
        for dealer in self._disclosures[helpers[0]]:
            shares = [int.from_bytes(self._disclosures[site][dealer], "big") for site in helpers]
            secret = shamir.combine(shares, weights)
            if dealer in survivors:
                seed = secret.to_bytes(SCALAR_BYTES, "big")
                _require_dealt(_seed_commitment(seed) == self._roster.public[dealer][64:], dealer)
                minus.append(_self_stream(seed, self._roster.scope, dealer))
                continue
            key = X25519PrivateKey.from_private_bytes(secret.to_bytes(SCALAR_BYTES, "little"))
            found = key.public_key().public_bytes_raw()
            _require_dealt(found == self._roster.public[dealer][32:64], dealer)
            for peer in survivors:
                stream = _pair_stream(key, self._roster, own=dealer, peer=peer)
                # The survivor added it if its name comes first.
                (minus if peer < dealer else plus).append(stream)
        apply_streams(self._total, plus=plus, minus=minus)
        return self._encoding.signed(self._total)

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


def _pair_stream(own_key: X25519PrivateKey, roster: Roster, *, own: str, peer: str) -> bytes:
    """Key of the stream between two sites; the same from either side."""
    pair = (min(own, peer), max(own, peer))
    try:
        return agree(
            own_key,
            roster.public[peer][32:64],
            label="pair-mask",
            scope=roster.scope,
            pair=pair,
            size=KEY_BYTES,
        )
    except ValueError as error:
        raise MessageRefused(site=peer, leg="hello", reason="its mask key is unusable.") from error


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
        if len(public) != PUBLIC_BYTES:
            raise MessageRefused(
                site=site,
                leg="hello",
                reason=f"{len(public)} bytes of keys, expected {PUBLIC_BYTES}.",
            )
        for key in (public[:32], public[32:64], public[64:]):
            if key in seen:
                raise MessageRefused(
                    site=site, leg="hello", reason="a key that another site or purpose uses."
                )
            seen.add(key)


def _require_dealt(holds: bool, dealer: str) -> None:
    if not holds:
        raise MessageRefused(
            site=dealer,
            leg="share",
            reason="the shares it dealt do not restore the secret it announced in hello. Nothing was opened; start a "
            "new attempt without this site.",
        )
