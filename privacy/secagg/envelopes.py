"""Signatures, key agreements and encrypted shares, each with its own label and bound to one sum.

Everything goes through `bind`: one hash over a label, the scope (which sum, which roster) and the parts, each with its
length. A signature, key or commitment made for one purpose, sum, roster or pair of sites serves no other.

Primitives: Ed25519, X25519, HKDF-SHA-256, AES-256-GCM, SHA-256, all from `cryptography` (OpenSSL).
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.secagg.errors import MessageRefused
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import SITE_NAME, SumContext

LABEL = b"concord/secure-sum/v1/"
# An identity key signs for other protocols too: their messages start with labels of their own.
SIGNATURE_LABEL = b"concord/secure-sum-message/v1\0"
SIGNATURE_BYTES = 64
NONCE_BYTES = 12


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What everything in one sum is bound to. Both are public."""

    sum_digest: bytes
    """Hash of plan and context."""
    roster_digest: bytes = bytes(32)
    """Hash of every site's signed hello; zero until the roster is known."""

    def with_roster(self, roster_message: bytes) -> "Scope":
        """The scope of everything after hello."""
        return replace(self, roster_digest=bind("roster", self, roster_message))


def bind(label: str, scope: Scope, *parts: bytes) -> bytes:
    """Hash of the parts for one purpose in one scope; no two lists of arguments give the same input."""
    digest = hashlib.sha256()
    for part in (LABEL + label.encode(), scope.sum_digest, scope.roster_digest, *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def scope_of(plan: SumPlan, context: SumContext) -> Scope:
    """The scope of one sum, before its roster is known."""
    facts = (
        context.run_id,
        str(context.round),
        str(context.attempt),
        context.model,
        str(context.group),
        plan.scheme,
        str(plan.dimension),
        str(plan.max_sites),
        str(plan.quorum),
        str(plan.threshold),
        plan.value_range.hex(),
        str(plan.value_bits),
        plan.key_holder,
        plan.obfuscation,
        str(plan.key_bits),
    )
    parts = [context.plan_digest, *(fact.encode() for fact in facts)]
    return Scope(sum_digest=bind("sum", Scope(sum_digest=bytes(32)), *parts))


def identities(keys: Mapping[str, bytes]) -> dict[str, Ed25519PublicKey]:
    """The pinned identity keys, ready for use.

    Raises:
        ValueError: a name that is not a site's, a key that is not 32 bytes, or one key under two names.
    """
    if len(set(keys.values())) != len(keys):
        raise ValueError(
            "Expected a different identity key for every site: one party under two names."
        )
    for site, key in keys.items():
        if not SITE_NAME.fullmatch(site):
            raise ValueError(f"Expected a site name of a-z, 0-9 and -, got {site!r}.")
        if len(key) != 32:
            raise ValueError(
                f'Expected 32 bytes of identity key for site "{site}", got {len(key)}.'
            )
    return {site: Ed25519PublicKey.from_public_bytes(key) for site, key in keys.items()}


def signature(
    *body: bytes | memoryview, leg: str, site: str, scope: Scope, identity: Ed25519PrivateKey
) -> bytes:
    """This site's signature over the body, in these pieces, as its message in this leg."""
    return identity.sign(_signed_bytes(*body, leg=leg, site=site, scope=scope))


def verify(
    message: bytes, *, leg: str, site: str, scope: Scope, key: Ed25519PublicKey
) -> memoryview:
    """The body, if this site signed it for this leg of this sum.

    Raises:
        MessageRefused: signed by another key, for another leg, sum, roster or site, or altered.
    """
    view = memoryview(message)
    try:
        key.verify(
            bytes(view[:SIGNATURE_BYTES]),
            _signed_bytes(view[SIGNATURE_BYTES:], leg=leg, site=site, scope=scope),
        )
    except InvalidSignature as error:
        raise MessageRefused(
            site=site,
            leg=leg,
            reason="the signature is not this site's for this run, round, attempt, plan, model and roster: "
            "altered, replayed, or sent by somebody else.",
        ) from error
    return view[SIGNATURE_BYTES:]


def _signed_bytes(*body: bytes | memoryview, leg: str, site: str, scope: Scope) -> bytes:
    # Ed25519 reads its input twice; a hash of a large body is read once.
    digest = hashlib.sha256()
    for piece in body:
        digest.update(piece)
    return SIGNATURE_LABEL + bind("message", scope, leg.encode(), site.encode(), digest.digest())


def agree(
    private: X25519PrivateKey,
    public: bytes,
    *,
    label: str,
    scope: Scope,
    pair: tuple[str, str],
    size: int,
) -> bytes:
    """A secret of `size` bytes that only the owners of these two keys can form, for one purpose and this pair.

    Raises:
        ValueError: the public key is not one, or of small order.
    """
    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    info = bind(label, scope, pair[0].encode(), pair[1].encode())
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=info).derive(shared)


def stretch(seed: bytes, *, label: str, scope: Scope, site: str, size: int) -> bytes:
    """A key from a uniformly random seed of one site."""
    info = bind(label, scope, site.encode())
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=info).derive(seed)


def encrypt(plaintext: bytes, *, key: bytes, public: bytes) -> bytes:
    """Nonce and ciphertext; `public` is authenticated with it."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, public)


def decrypt(box: bytes, *, key: bytes, public: bytes) -> bytes:
    """What was encrypted under this key together with `public`.

    Raises:
        ValueError: another key, another sum, other public bytes, or altered.
    """
    try:
        return AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], public)
    except InvalidTag as error:
        raise ValueError("the ciphertext is not authentic") from error
