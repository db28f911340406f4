"""Decryption by the holder of the whole key, by Chinese remainders (Paillier 1999, section 7).

With a subgroup key the exponents are short: c**(2 * a_p) modulo p**2 is 1 + (something) * p exactly if c is in the
subgroup modulo p. A ciphertext from elsewhere would decrypt to something that depends on the key's factors, so nothing
is decrypted then, and the refusal is the same as for what is no ciphertext at all.

The exponents are secret and `powmod_base_list` takes a time that depends on them, the same for every ciphertext; it
lets other threads run. What answers the network decrypts with `threshold`, whose powers take constant time.
"""

from collections.abc import Sequence

import gmpy2
from gmpy2 import mpz

from privacy.paillier.ciphertexts import require_ciphertexts
from privacy.paillier.keys import KeyPair
from privacy.paillier.workers import IN_THIS_PROCESS, Workers


def decrypt(
    ciphertexts: Sequence[mpz], pair: KeyPair, workers: Workers = IN_THIS_PROCESS
) -> list[mpz]:
    """The plaintexts, in [0, n).

    Raises:
        ValueError: at least one is not a ciphertext under this key; none was decrypted.
    """
    primes = (mpz(pair.private.p), mpz(pair.private.q))
    orders = [2 * order for order in pair.orders] if pair.orders else [p - 1 for p in primes]
    residues = [
        workers.spread(_residues, ciphertexts, prime, order)
        for prime, order in zip(primes, orders, strict=True)
    ]
    is_sound = all(residue >= 0 for half in residues for residue in half)
    try:
        require_ciphertexts(ciphertexts, pair.public)
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ValueError("Expected ciphertexts under this key.")
    p, q = primes
    halves = []
    for half, prime, order in zip(residues, primes, orders, strict=True):
        # (1 + n)**(m * order) = 1 + m * order * n modulo p**2, and n / p is the other prime.
        inverse = gmpy2.invert(order * (p * q // prime), prime)
        halves.append([residue * inverse % prime for residue in half])
    inverse = gmpy2.invert(p, q)
    return [one + (other - one) * inverse % q * p for one, other in zip(*halves, strict=True)]


def _residues(ciphertexts: Sequence[mpz], prime: mpz, order: mpz) -> list[mpz]:
    """(c**order modulo prime**2 - 1) / prime; -1 where that is no integer."""
    square = prime * prime
    powers = gmpy2.powmod_base_list([c % square for c in ciphertexts], order, square)
    found = []
    for power in powers:
        quotient, remainder = gmpy2.f_divmod(power - 1, prime)
        found.append(quotient if remainder == 0 else mpz(-1))
    return found
