"""Bytes of the scheme `paillier`: parts of sealed vectors and partial decryptions, commitments, and the key in hello."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from privacy.paillier.ciphertexts import ciphertext_bytes
from privacy.paillier.keys import PublicKey, decode_public
from privacy.paillier.partial_proof import proof_bytes
from privacy.paillier.slots import Slots
from privacy.paillier.threshold import share_bits
from privacy.secagg.boxes import KEY_BYTES, LOCK_BYTES, require_channel_key
from privacy.secagg.envelopes import Scope, bind
from privacy.secagg.errors import MessageRefused
from privacy.secagg.messages import PART_BYTES, encode_sites
from privacy.secagg.plan import MOST_SITES, SumPlan

COMMITMENT_BYTES = 32
AGREEMENT_BYTES = LOCK_BYTES
"""Of what tells one other site which commitments the sender saw: an empty box with the commitments as public bytes."""
RESERVED_BYTES = 4096
"""Of every part, for agreements with up to 63 others, or a proof."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many bytes everything takes under a plan."""

    plan: SumPlan

    @property
    def slots(self) -> Slots:
        """How a vector becomes plaintexts."""
        return Slots(
            dimension=self.plan.dimension,
            encoding=self.plan.encoding,
            key_bits=self.plan.key_bits,
        )

    @property
    def ciphertext_bytes(self) -> int:
        """Of one ciphertext, partial decryption or verification key."""
        return ciphertext_bytes(self.plan.key_bits)

    @property
    def in_part(self) -> int:
        """Ciphertexts of a part."""
        return (PART_BYTES - RESERVED_BYTES) // self.ciphertext_bytes

    @property
    def parts(self) -> int:
        """Parts of a sealed vector, and of its partial decryption."""
        return -(-self.slots.count // self.in_part)

    def part(self, index: int) -> slice:
        """Which ciphertexts are in a part."""
        return slice(index * self.in_part, min((index + 1) * self.in_part, self.slots.count))

    def part_count(self, index: int) -> int:
        """How many they are."""
        part = self.part(index)
        return int(part.stop - part.start)

    def share_bits(self, sites: int) -> int:
        """Most bits of a key share for a roster of so many sites."""
        return share_bits(key_bits=self.plan.key_bits, count=sites)

    def share_bytes(self, sites: int) -> int:
        """Of a key share."""
        return (self.share_bits(sites) + 7) // 8

    def proof_bytes(self, sites: int) -> int:
        """Of the proof behind partial decryptions."""
        return proof_bytes(self.share_bits(sites))

    def open_bytes(self, dealer: str) -> int:
        """Of the part of a box that everybody may read: a commitment, and from the key holder a verification key."""
        is_holder = dealer == self.plan.key_holder
        return COMMITMENT_BYTES + (self.ciphertext_bytes if is_holder else 0)

    def box_bytes(self, dealer: str, recipient: str, sites: int) -> int:
        """Of a box; a dealer keeps its own share."""
        if dealer == recipient:
            return self.open_bytes(dealer)
        is_holder = dealer == self.plan.key_holder
        return self.open_bytes(dealer) + LOCK_BYTES + (self.share_bytes(sites) if is_holder else 0)

    def split_sealed(
        self, part: bytes | memoryview, index: int, *, others: int
    ) -> tuple[bytes, bytes]:
        """Agreements with so many others (first part only), and ciphertexts, of one part.

        Raises:
            ValueError: another length.
        """
        ahead = others * AGREEMENT_BYTES if index == 0 else 0
        expected = ahead + self.part_count(index) * self.ciphertext_bytes
        if len(part) != expected:
            raise ValueError(
                f"part {index} of {self.parts} holds {len(part)} bytes, expected {expected}"
            )
        return bytes(part[:ahead]), bytes(part[ahead:])


def read_public(site: str, public: bytes, plan: SumPlan) -> PublicKey | None:
    """The Paillier key in the key holder's hello; None from other sites, whose hello is a channel key.

    Raises:
        MessageRefused: another length, a channel key of small order, or a key that is not as the plan says.
    """
    is_holder = site == plan.key_holder
    expected = KEY_BYTES + (3 * plan.key_bits // 8 if is_holder else 0)
    if len(public) != expected:
        raise MessageRefused(
            site=site, leg="hello", reason=f"{len(public)} bytes of keys, expected {expected}."
        )
    require_channel_key(site, public[:KEY_BYTES])
    if not is_holder:
        return None
    try:
        return decode_public(public[KEY_BYTES:], bits=plan.key_bits, obfuscation=plan.obfuscation)
    except ValueError as error:
        raise MessageRefused(site=site, leg="hello", reason=f"its Paillier key: {error}") from error


def commitment(scope: Scope, site: str, digest: bytes) -> bytes:
    """What a site says of its ciphertexts before it shows them.

    With the site's name in it nobody can commit to another's ciphertexts without having seen them.

    Args:
        scope: of the roster.
        site: whose ciphertexts they are.
        digest: SHA-256 of all of them, in order.
    """
    return bind("paillier-ciphertexts", scope, site.encode(), digest)


def agreement(scope: Scope, commitments: Mapping[str, bytes]) -> bytes:
    """What two sites compare: the commitments of all that shared, as each of them saw them."""
    return bind("paillier-commitments", scope, encode_sites(commitments))


def proof_scope(scope: Scope) -> bytes:
    """What verification keys and proofs are bound to."""
    return bind("paillier-partial", scope)


class RunningDigest:
    """SHA-256 of the ciphertexts of one site, part by part."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def after(self, ciphertexts: bytes) -> "RunningDigest":
        """The digest of these as well; this one stays as it is, for when they are refused."""
        longer = RunningDigest()
        longer._digest = self._digest.copy()
        longer._digest.update(ciphertexts)
        return longer

    def commitment(self, scope: Scope, site: str) -> bytes:
        """The commitment that belongs to them."""
        return commitment(scope, site, self._digest.digest())


def largest_box(plan: SumPlan) -> int:
    """Bytes that the key holder deals to one other at most."""
    return Layout(plan=plan).box_bytes(plan.key_holder, "", min(plan.max_sites, MOST_SITES))
