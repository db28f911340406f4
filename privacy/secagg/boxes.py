"""Boxes: what one site deals to another, encrypted under a key that only the two can form.

The key comes from the two sites' channel keys (X25519, fresh for every sum) by HKDF, bound to roster, dealer and recipient.
"""

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privacy.secagg.envelopes import NONCE_BYTES, Scope, agree, decrypt, encrypt
from privacy.secagg.errors import MessageRefused
from privacy.secagg.schemes import Roster

KEY_BYTES = 32
CHANNEL = slice(0, KEY_BYTES)
"""Where a site's public bytes hold its channel key."""
LOCK_BYTES = NONCE_BYTES + 16
"""By how much a box is longer than what is in it."""
FIELD = 2**255 - 19


class Channel:
    """One site's end of its channels to all others, in one sum."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._key = X25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()
        """32 bytes; every scheme that uses boxes begins its public bytes with them."""

    def lock(
        self, plaintext: bytes, *, roster: Roster, recipient: str, public: bytes = b""
    ) -> bytes:
        """A box for the recipient; `public` is authenticated with it.

        Raises:
            MessageRefused: naming the recipient, whose channel key is unusable.
        """
        key = self._shared(roster, peer=recipient, pair=(self._site, recipient))
        return encrypt(plaintext, key=key, public=public)

    def unlock(self, box: bytes, *, roster: Roster, dealer: str, public: bytes = b"") -> bytes:
        """What the dealer put into a box for this site.

        Raises:
            MessageRefused: naming the dealer: the box does not open.
        """
        key = self._shared(roster, peer=dealer, pair=(dealer, self._site))
        try:
            return decrypt(box, key=key, public=public)
        except ValueError as error:
            raise MessageRefused(
                site=dealer,
                leg="share",
                reason="its box does not open here: altered, replayed, meant for somebody else, or dealt under another "
                "roster. Nothing was sealed.",
            ) from error

    def agreed(self, peer: str, *, roster: Roster, label: str, scope: Scope) -> bytes:
        """32 secret bytes that this site and the peer form alike, for one purpose in one scope.

        Raises:
            MessageRefused: naming the peer, whose channel key is unusable.
        """
        pair = (min(self._site, peer), max(self._site, peer))
        return self._agreed(roster.public[peer], peer=peer, label=label, scope=scope, pair=pair)

    def _shared(self, roster: Roster, *, peer: str, pair: tuple[str, str]) -> bytes:
        return self._agreed(
            roster.public[peer], peer=peer, label="box", scope=roster.scope, pair=pair
        )

    def _agreed(
        self, public: bytes, *, peer: str, label: str, scope: Scope, pair: tuple[str, str]
    ) -> bytes:
        try:
            return agree(self._key, public[CHANNEL], label=label, scope=scope, pair=pair, size=32)
        except ValueError as error:
            raise MessageRefused(
                site=peer, leg="hello", reason="its channel key is unusable."
            ) from error


def require_channel_key(site: str, key: bytes) -> None:
    """Raise MessageRefused unless the key is one, in its only encoding (RFC 7748, section 5), and not of small order."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError as error:
        raise MessageRefused(site=site, leg="hello", reason="a key of small order.") from error
    if int.from_bytes(key, "little") >= FIELD:
        raise MessageRefused(
            site=site, leg="hello", reason="a key that is not in its only encoding."
        )


def require_distinct_channels(publics: Mapping[str, bytes]) -> None:
    """Raise MessageRefused for a channel key that two sites use: its owner would count twice."""
    seen: set[bytes] = set()
    for site, public in publics.items():
        if public[CHANNEL] in seen:
            raise MessageRefused(
                site=site, leg="hello", reason="a channel key that another site uses."
            )
        seen.add(public[CHANNEL])
