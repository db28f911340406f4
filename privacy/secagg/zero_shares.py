"""Shares of zero: uniform polynomials, one at each helper of a release, whose sum over exactly these helpers is zero.

Every two helpers form a key from their channel keys, bound to the sum, its survivors and all who are asked. One of the two
adds the stream of that key to what it gives, the other takes it away (Cramer, Damgard and Ishai 2005, non-interactive
zero-sharing). Whoever misses one stream sees uniform residues; only the sum over all helpers is free of them.

Why `ckks` needs them. A helper gives w * X + f: X its share of a * (sum of keys), w its Lagrange weight, f its flooding.
Whoever knows t - 1 shares can write X as a fraction r times a * (sum of keys), plus something known. The sum of keys is
known but for a * (sum of keys) = A + E, where the errors E are what the flooding hides. It sees  w * r * E + f.  Flooding
hides E if w * r is 1, and not if w * r is a fraction: modulo q that is a huge number. With shares of zero it sees only the
sum of what the honest helpers give, and there the fractions add up to 1.
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from privacy.ckks.ring import Residues, Ring
from privacy.secagg.boxes import Channel
from privacy.secagg.envelopes import Scope, bind
from privacy.secagg.messages import encode_sites
from privacy.secagg.schemes import Roster


class ZeroShares:
    """This site's shares of zero in one release, one polynomial after another."""

    def __init__(
        self,
        ring: Ring,
        channel: Channel,
        *,
        roster: Roster,
        site: str,
        survivors: Sequence[str],
        responders: Sequence[str],
    ) -> None:
        self._ring = ring
        scope = _release_scope(roster.scope, survivors, responders)
        peers = [peer for peer in responders if peer != site]
        streams = {
            peer: _Stream(channel.agreed(peer, roster=roster, label="zero-share", scope=scope))
            for peer in peers
        }
        self._plus = [stream for peer, stream in streams.items() if site < peer]
        self._minus = [stream for peer, stream in streams.items() if peer < site]

    def added_to(self, polynomial: Residues) -> Residues:
        """The polynomial [primes, length] plus the next share of zero."""
        length = polynomial.shape[1]
        column = np.array(self._ring.primes, dtype=np.uint64)[:, None]
        # At most 64 residues of 50 bits: below 2**57.
        total = polynomial.copy()
        for stream in self._plus:
            total += self._ring.uniform(stream, length)
        for stream in self._minus:
            total += column - self._ring.uniform(stream, length)
        total %= column
        return total


class _Stream:
    """AES-256-CTR from counter 0 under a key that serves this stream only."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next 64-bit words, little endian."""
        return np.frombuffer(bytearray(self._encryptor.update(bytes(8 * count))), dtype="<u8")


def _release_scope(scope: Scope, survivors: Sequence[str], responders: Sequence[str]) -> Scope:
    """The scope of one release: streams of another survivor set, or of other helpers, are others."""
    names = (encode_sites(dict.fromkeys(sites, b"")) for sites in (survivors, responders))
    return Scope(sum_digest=bind("release", scope, *names), roster_digest=scope.roster_digest)
