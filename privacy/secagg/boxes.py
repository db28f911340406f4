"""Boxes: what one site deals to another, encrypted under a key that only the two can form.

The key comes from the two sites' channel keys (X25519, fresh for every sum) by HKDF, bound to roster, dealer and recipient.
"""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privacy.secagg.envelopes import NONCE_BYTES, agree, decrypt, encrypt
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

    def _shared(self, roster: Roster, *, peer: str, pair: tuple[str, str]) -> bytes:
        try:
            return agree(
                self._key,
                roster.public[peer][CHANNEL],
                label="box",
                scope=roster.scope,
                pair=pair,
                size=32,
            )
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
