"""Proofs that partial decryptions were made with the share that was dealt (Chaum, Pedersen 1992, over the integers).

The dealer publishes v**share for every share, where v is a square modulo n**2 that nobody chose. A proof shows that many
partial decryptions c**(2 * share) have the same exponent:

1. Challenges turn all ciphertexts into one, C = product of c_k**(2 * rho_k), and all partial decryptions into one, D.
2. commit to v**w and C**w for a random w, hash everything to a challenge e, answer z = w + e * share.
3. A verifier restores v**z / (v**share)**e and C**z / D**e, and the challenge must come out again.

All challenges are hashes (Fiat, Shamir 1986) of 128 bits. w is 2**128 times larger than e * share, and hides it. Not
excluded: a factor of small order, such as -1, in a partial decryption. Combined plaintexts are right all the same or
refused, as (1 + n)**x has no small order and `combine` wants 1 modulo n.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

import gmpy2
from gmpy2 import mpz

from privacy.paillier.keys import KeyPair, PublicKey

LABEL = b"concord/paillier-partial/v1/"
CHALLENGE_BYTES = 16
HIDING_BITS = 128


def proof_bytes(share_bits: int) -> int:
    """Length of a proof."""
    return CHALLENGE_BYTES + _answer_bytes(share_bits)


def verification_base(public: PublicKey, scope: bytes) -> mpz:
    """v: a square that follows from key and scope alone."""
    size = public.bits // 4 + 16
    stream = hashlib.shake_256(
        LABEL + b"base\0" + scope + public.n.to_bytes(public.bits // 8, "big")
    )
    root = mpz.from_bytes(stream.digest(size), "big") % public.square
    return root * root % public.square


def verification_keys(shares: Sequence[mpz], pair: KeyPair, scope: bytes) -> list[mpz]:
    """v**share for every share; the dealer knows the factors and is faster."""
    base = verification_base(pair.public, scope)
    primes = (mpz(pair.private.p), mpz(pair.private.q))
    halves = []
    for prime in primes:
        square, order = prime * prime, prime * (prime - 1)
        halves.append([gmpy2.powmod_sec(base % square, share % order, square) for share in shares])
    p_square, q_square = (prime * prime for prime in primes)
    inverse = gmpy2.invert(p_square, q_square)
    return [
        one + (other - one) * inverse % q_square * p_square
        for one, other in zip(*halves, strict=True)
    ]


def is_own_share(share: mpz, key: mpz, public: PublicKey, scope: bytes) -> bool:
    """Whether the dealer published this share's key."""
    return bool(
        share > 0
        and gmpy2.powmod_sec(verification_base(public, scope), share, public.square) == key
    )


def prove(
    ciphertexts: Sequence[mpz],
    partials: Sequence[mpz],
    *,
    share: mpz,
    key: mpz,
    public: PublicKey,
    scope: bytes,
    share_bits: int,
) -> bytes:
    """A proof that all partial decryptions were made with this share; bound to `scope`."""
    base = verification_base(public, scope)
    statement = _statement(ciphertexts, partials, key, public, scope)
    joint, _ = _joined(ciphertexts, partials, statement, public)
    blind = mpz(secrets.randbits(share_bits + 8 * CHALLENGE_BYTES + HIDING_BITS)) + 1
    commitments = [gmpy2.powmod_sec(base, blind, public.square)]
    commitments.append(gmpy2.powmod_sec(joint, blind, public.square))
    challenge = _challenge(statement, commitments, public)
    answer = blind + mpz.from_bytes(challenge, "big") * share
    return challenge + bytes(answer.to_bytes(_answer_bytes(share_bits), "big"))


def is_proved(
    proof: bytes,
    ciphertexts: Sequence[mpz],
    partials: Sequence[mpz],
    *,
    key: mpz,
    public: PublicKey,
    scope: bytes,
    share_bits: int,
) -> bool:
    """Whether the proof shows it. Ciphertexts, partial decryptions and key must be units modulo n**2."""
    if len(proof) != proof_bytes(share_bits) or len(ciphertexts) != len(partials):
        return False
    challenge = proof[:CHALLENGE_BYTES]
    exponent = -mpz.from_bytes(challenge, "big")
    answer = mpz.from_bytes(proof[CHALLENGE_BYTES:], "big")
    square = public.square
    statement = _statement(ciphertexts, partials, key, public, scope)
    joint, joint_partial = _joined(ciphertexts, partials, statement, public)
    commitments = [
        gmpy2.powmod(base, answer, square) * gmpy2.powmod(power, exponent, square) % square
        for base, power in (
            (verification_base(public, scope), key),
            (joint, joint_partial),
        )
    ]
    return hmac.compare_digest(_challenge(statement, commitments, public), challenge)


def _joined(
    ciphertexts: Sequence[mpz], partials: Sequence[mpz], statement: bytes, public: PublicKey
) -> tuple[mpz, mpz]:
    """C and D."""
    square = public.square
    stream = hashlib.shake_256(LABEL + b"join\0" + statement)
    weights = stream.digest(CHALLENGE_BYTES * len(ciphertexts))
    joint, joint_partial = mpz(1), mpz(1)
    for index, (ciphertext, partial) in enumerate(zip(ciphertexts, partials, strict=True)):
        start = index * CHALLENGE_BYTES
        weight = mpz.from_bytes(weights[start : start + CHALLENGE_BYTES], "big")
        joint = joint * gmpy2.powmod(ciphertext, 2 * weight, square) % square
        joint_partial = joint_partial * gmpy2.powmod(partial, weight, square) % square
    return joint, joint_partial


def _statement(
    ciphertexts: Sequence[mpz],
    partials: Sequence[mpz],
    key: mpz,
    public: PublicKey,
    scope: bytes,
) -> bytes:
    size = public.bits // 4
    digest = hashlib.sha256(LABEL + b"statement\0" + hashlib.sha256(scope).digest())
    # n and the count come first: what follows has lengths that they fix.
    digest.update(public.bits.to_bytes(2, "big") + public.n.to_bytes(public.bits // 8, "big"))
    digest.update(len(ciphertexts).to_bytes(8, "big"))
    for number in (key, *ciphertexts, *partials):
        digest.update(number.to_bytes(size, "big"))
    return digest.digest()


def _challenge(statement: bytes, commitments: Sequence[mpz], public: PublicKey) -> bytes:
    size = public.bits // 4
    digest = hashlib.sha256(LABEL + b"challenge\0" + statement)
    for commitment in commitments:
        digest.update(commitment.to_bytes(size, "big"))
    return digest.digest()[:CHALLENGE_BYTES]


def _answer_bytes(share_bits: int) -> int:
    return (share_bits + 8 * CHALLENGE_BYTES + HIDING_BITS + 1 + 7) // 8
