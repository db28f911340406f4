"""Encryption: c = (1 + m * n) * obfuscator modulo n**2, with obfuscators that are powers of the key's base.

1. Random exponents are drawn here, in this process.
2. Their powers, nearly all of the work, may be formed by workers. Plaintexts never leave this process.
3. One more multiplication encrypts.

The holder of the key forms the powers modulo p**2 and q**2, with exponents below the base's order there. Integers only:
phe's floats publish an exponent that tells of their size.
"""

import secrets
from collections.abc import Sequence

from gmpy2 import mpz

from privacy.paillier.fixed_base import PLAIN_COST, Comb, best_comb, fixed_powers, total_cost
from privacy.paillier.keys import KeyPair, PublicKey
from privacy.paillier.workers import IN_THIS_PROCESS, Workers

MULTIPLICATION_SECONDS = 8e-6
"""Of two numbers of 6144 bits, modulo a third; only to judge whether workers pay."""


def encrypt(
    plaintexts: Sequence[mpz], public: PublicKey, workers: Workers = IN_THIS_PROCESS
) -> list[mpz]:
    """Fresh ciphertexts of integers in [0, n)."""
    return _blinded(plaintexts, obfuscators(len(plaintexts), public, workers), public)


def encrypt_as_holder(
    plaintexts: Sequence[mpz], pair: KeyPair, workers: Workers = IN_THIS_PROCESS
) -> list[mpz]:
    """Fresh ciphertexts under one's own key, in less time."""
    return _blinded(plaintexts, holder_obfuscators(len(plaintexts), pair, workers), pair.public)


def refresh(
    ciphertexts: Sequence[mpz], public: PublicKey, workers: Workers = IN_THIS_PROCESS
) -> list[mpz]:
    """The same plaintexts under fresh obfuscators: what leaves a party after it computed must tell nothing of how."""
    fresh = obfuscators(len(ciphertexts), public, workers)
    square = public.square
    return [one * other % square for one, other in zip(ciphertexts, fresh, strict=True)]


def encrypt_seconds(count: int, public: PublicKey) -> float:
    """About how long so many encryptions take in one process."""
    comb = _comb(count, public)
    cost = total_cost(comb, count) if comb else count * public.exponent_bits * PLAIN_COST
    return float(cost * MULTIPLICATION_SECONDS * (public.bits / 3072) ** 1.6)


def obfuscators(count: int, public: PublicKey, workers: Workers = IN_THIS_PROCESS) -> list[mpz]:
    """Encryptions of zero. Secret, and each for one ciphertext only; they may be made before they are needed."""
    # Exponent lengths are multiples of 8.
    exponents = [secrets.token_bytes(public.exponent_bits // 8) for _ in range(count)]
    return workers.spread(
        fixed_powers,
        exponents,
        public.base,
        public.square,
        _comb(count, public),
    )


def holder_obfuscators(count: int, pair: KeyPair, workers: Workers = IN_THIS_PROCESS) -> list[mpz]:
    """Encryptions of zero, by Chinese remainders."""
    primes = (mpz(pair.private.p), mpz(pair.private.q))
    orders = [2 * order for order in pair.orders] if pair.orders else [p - 1 for p in primes]
    # Both exponents odd or both even, as those of one power are: else the Jacobi symbol would tell who encrypted.
    parities = [secrets.randbits(1) for _ in range(count)]
    halves = []
    for prime, order in zip(primes, orders, strict=True):
        size = (order.bit_length() + 7) // 8
        exponents = [
            int(2 * secrets.randbelow(int(order // 2)) + parity).to_bytes(size, "little")
            for parity in parities
        ]
        square = prime * prime
        comb = best_comb(count, exponent_bits=8 * size, modulus_bits=square.bit_length())
        halves.append(
            workers.spread(fixed_powers, exponents, pair.public.base % square, square, comb)
        )
    p_square, q_square = (prime * prime for prime in primes)
    inverse = pow(q_square, -1, p_square)
    return [
        other + (one - other) * inverse % p_square * q_square
        for one, other in zip(*halves, strict=True)
    ]


def _blinded(plaintexts: Sequence[mpz], fresh: Sequence[mpz], public: PublicKey) -> list[mpz]:
    n, square = public.n, public.square
    if not all(0 <= plaintext < n for plaintext in plaintexts):
        raise ValueError("Expected plaintexts in [0, n).")
    return [
        (1 + plaintext * n) * obfuscator % square
        for plaintext, obfuscator in zip(plaintexts, fresh, strict=True)
    ]


def _comb(count: int, public: PublicKey) -> Comb | None:
    return best_comb(count, exponent_bits=public.exponent_bits, modulus_bits=2 * public.bits)
