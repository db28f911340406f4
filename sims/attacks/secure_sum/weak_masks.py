"""Weak variants of `mask`, each with one weakness that a published system has. For attacks and their tests only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg.boxes import Channel
from privacy.secagg.envelopes import Scope, agree, stretch
from privacy.secagg.key_store import KeyStore
from privacy.secagg.mask import COMMITMENTS, MaskSite
from privacy.secagg.masking import KEY_BYTES, apply_streams
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster

NOWHERE = Scope(sum_digest=bytes(32))
"""Bound to no sum and no roster."""


class RememberingMaskSite(MaskSite):
    """Gives its shares as often as it is asked, of whichever secret it is asked for."""

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """As ours; nothing is forgotten."""
        held = dict(self._held)
        disclosed = list(super().disclose(survivors, responders, relayed))
        self._held = held
        return iter(disclosed)


class LowThresholdMaskSite(MaskSite):
    """Deals shares of which one fewer than planned opens its secrets."""

    def __init__(self, plan: SumPlan, site: str) -> None:
        super().__init__(plan, site)
        self._threshold = plan.threshold - 1


class ChosenMaskSite(MaskSite):
    """Masks with streams that a subclass chooses, in place of ours."""

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """As ours, with other masks."""
        for dealer, box in boxes.items():
            self._held[dealer] = self._open_box(dealer, box)
        self._vector += self._self_mask()
        for peer in boxes:
            mask = self._mask(self._pair_key(peer))
            self._vector += mask if self._site < peer else -mask
        return self._parts.cut(self._vector)

    def _scope(self) -> Scope:
        return self._roster.scope

    def _self_mask(self) -> NDArray[np.uint32]:
        key = stretch(
            self._self_seed,
            label="self-mask",
            scope=self._scope(),
            site=self._site,
            size=KEY_BYTES,
        )
        return self._mask(key)

    def _pair_key(self, peer: str) -> bytes:
        return agree(
            self._mask_key,
            self._roster.public[peer][32:64],
            label="pair-mask",
            scope=self._scope(),
            pair=(min(self._site, peer), max(self._site, peer)),
            size=KEY_BYTES,
        )

    def _mask(self, key: bytes) -> NDArray[np.uint32]:
        """What a key's stream adds to the vector [dimension]."""
        mask = np.zeros(len(self._vector), dtype=np.uint32)
        apply_streams(mask, plus=[key], minus=[])
        return mask


class FewBitsMaskSite(ChosenMaskSite):
    """Pair streams from seeds of 16 bits, as others have seeds of 28 or 32."""

    SEED_BITS = 16

    def _pair_key(self, peer: str) -> bytes:
        return key_of_seed(int.from_bytes(super()._pair_key(peer)[:2], "big"))


def key_of_seed(seed: int) -> bytes:
    """The stream key of `FewBitsMaskSite`'s seed."""
    return seed.to_bytes(KEY_BYTES, "big")


class ScalarMaskSite(ChosenMaskSite):
    """One random number for all coordinates."""

    def _mask(self, key: bytes) -> NDArray[np.uint32]:
        mask = super()._mask(key)
        mask[:] = mask[0]
        return mask


class FloatMaskSite(ChosenMaskSite):
    """Pairwise masks that are real numbers of the size of the values, added without a modulus, and no self mask."""

    def _self_mask(self) -> NDArray[np.uint32]:
        return np.zeros(len(self._vector), dtype=np.uint32)

    def _mask(self, key: bytes) -> NDArray[np.uint32]:
        # Uniform in [-1, 1) times the range of a value: three of them and a value stay below the modulus.
        bits = self._parts.bits - 2
        return (super()._mask(key).view(np.int32) >> (32 - bits)).view(np.uint32)


class ReusedMaskSite(ChosenMaskSite):
    """Secrets that are kept from sum to sum, and streams that depend on them alone."""

    def __init__(self, plan: SumPlan, site: str, key_store: KeyStore) -> None:
        super().__init__(plan, site)
        kept = key_store.load()
        if kept is None:
            key_store.store(self._self_seed + self._mask_scalar)
        else:
            self._self_seed, self._mask_scalar = kept[:32], kept[32:]
            self._mask_key = X25519PrivateKey.from_private_bytes(self._mask_scalar)

    def _scope(self) -> Scope:
        return NOWHERE


class LastingChannel(Channel):
    """A channel key that is kept from sum to sum, and boxes that are bound to none."""

    def __init__(self, site: str, key_store: KeyStore) -> None:
        super().__init__(site)
        kept = key_store.load()
        if kept is None:
            key_store.store(self._key.private_bytes_raw())
        else:
            self._key = X25519PrivateKey.from_private_bytes(kept)
            self.public = self._key.public_key().public_bytes_raw()

    def _shared(self, roster: Roster, *, peer: str, pair: tuple[str, str]) -> bytes:
        return super()._shared(replace(roster, scope=NOWHERE), peer=peer, pair=pair)


class ReplayableMaskSite(RememberingMaskSite):
    """Boxes under lasting keys: what was dealt in one round opens in every other."""

    def __init__(self, plan: SumPlan, site: str, key_store: KeyStore) -> None:
        super().__init__(plan, site)
        self._channel = LastingChannel(site, key_store)

    def _open_box(self, dealer: str, box: bytes) -> bytes:
        return self._channel.unlock(
            box[64:], roster=self._roster, dealer=dealer, public=box[COMMITMENTS]
        )
