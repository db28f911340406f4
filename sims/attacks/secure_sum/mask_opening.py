"""Opens one site's masked vector from what the attacker has gathered: its mask key and its self seed, or guesses at them.

Written from the protocol's description and not by calling the sites' code: an attacker has its own.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg import shamir
from privacy.secagg.envelopes import agree, stretch
from privacy.secagg.integer_parts import IntegerParts
from privacy.secagg.mask import SCALAR_BYTES
from privacy.secagg.masking import KEY_BYTES, apply_streams
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster

SEED, KEY = slice(0, SCALAR_BYTES), slice(SCALAR_BYTES, 2 * SCALAR_BYTES)
"""Where each share stands in the pair that a site deals to another."""


def masked_words(parts: Sequence[bytes], plan: SumPlan) -> NDArray[np.uint32]:
    """The words [dimension] of a sealed vector, of which the plan's modulus bits count."""
    cut = IntegerParts(dimension=plan.dimension, bits=plan.encoding.modulus_bits)
    return np.concatenate(
        [cut.read("", index, memoryview(part)) for index, part in enumerate(parts)]
    )


def signed(words: NDArray[np.uint32], plan: SumPlan) -> NDArray[np.int32]:
    """Words as signed integers modulo 2**modulus_bits."""
    return plan.encoding.signed(words.copy())


def secret_of(shares: Mapping[str, bytes], roster: Roster) -> int:
    """What these shares of one secret interpolate to: the secret, if they are enough."""
    weights = shamir.weights_at_zero([roster.point(site) for site in shares])
    return shamir.combine([int.from_bytes(share, "big") for share in shares.values()], weights)


def mask_key(secret: int) -> X25519PrivateKey:
    """The mask key whose scalar was shared."""
    return X25519PrivateKey.from_private_bytes(secret.to_bytes(SCALAR_BYTES, "little"))


def is_mask_key_of(secret: int, site: str, roster: Roster) -> bool:
    """Whether a guess at the scalar gives the public key that the site announced: what tells a hit from a miss."""
    return mask_key(secret).public_key().public_bytes_raw() == roster.public[site][32:64]


def pair_key(own: X25519PrivateKey, site: str, peer: str, roster: Roster) -> bytes:
    """Key of the stream between two sites, from the mask key of `site`."""
    return agree(
        own,
        roster.public[peer][32:64],
        label="pair-mask",
        scope=roster.scope,
        pair=(min(site, peer), max(site, peer)),
        size=KEY_BYTES,
    )


def self_key(seed: int, site: str, roster: Roster) -> bytes:
    """Key of a site's own stream."""
    return stretch(
        seed.to_bytes(SCALAR_BYTES, "big"),
        label="self-mask",
        scope=roster.scope,
        site=site,
        size=KEY_BYTES,
    )


def unmask(
    words: NDArray[np.uint32],
    site: str,
    *,
    self_stream: bytes | None,
    pair_streams: Mapping[str, bytes],
) -> NDArray[np.uint32]:
    """A site's masked words [dimension] without the streams of these keys, by peer; a site adds towards later names."""
    opened = words.copy()
    added = [key for peer, key in pair_streams.items() if site < peer]
    taken = [key for peer, key in pair_streams.items() if site > peer]
    apply_streams(
        opened, plus=taken, minus=added + ([self_stream] if self_stream is not None else [])
    )
    return opened


def open_with_secrets(
    words: NDArray[np.uint32], site: str, *, seed: int, key: int, roster: Roster, plan: SumPlan
) -> NDArray[np.int32]:
    """A site's vector [dimension], from both of its secrets and nothing else."""
    own = mask_key(key)
    pairs = {peer: pair_key(own, site, peer, roster) for peer in roster.sites if peer != site}
    stream = self_key(seed, site, roster)
    return signed(unmask(words, site, self_stream=stream, pair_streams=pairs), plan)


def shares_disclosed(
    disclosed: Mapping[str, bytes], dealers: Sequence[str], dealer: str
) -> dict[str, bytes]:
    """By site that disclosed, its share of one dealer's secret; shares stand in the order of the dealers' names."""
    place = sorted(dealers).index(dealer) * SCALAR_BYTES
    return {site: shares[place : place + SCALAR_BYTES] for site, shares in disclosed.items()}
