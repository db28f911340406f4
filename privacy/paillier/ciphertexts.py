"""Lists of ciphertexts: bytes and back with every check, sums, and one more obfuscation.

A ciphertext is a unit modulo n**2, written big endian in twice the length of n.
"""

from collections.abc import Sequence

import gmpy2
from gmpy2 import mpz

from privacy.paillier.keys import PublicKey


def ciphertext_bytes(bits: int) -> int:
    """Bytes of a ciphertext under a key of so many bits."""
    return bits // 4


def encode_ciphertexts(ciphertexts: Sequence[mpz], public: PublicKey) -> bytes:
    """One behind the other."""
    size = ciphertext_bytes(public.bits)
    return b"".join(ciphertext.to_bytes(size, "big") for ciphertext in ciphertexts)


def decode_ciphertexts(encoded: bytes | memoryview, public: PublicKey, *, count: int) -> list[mpz]:
    """The ciphertexts that were encoded.

    Raises:
        ValueError: another length, or one of them is not a unit modulo n**2.
    """
    size = ciphertext_bytes(public.bits)
    if len(encoded) != count * size:
        raise ValueError(f"{len(encoded)} bytes, expected {count} ciphertexts of {size}")
    encoded = bytes(encoded)
    ciphertexts = [
        mpz.from_bytes(encoded[start : start + size], "big")
        for start in range(0, len(encoded), size)
    ]
    require_ciphertexts(ciphertexts, public)
    return ciphertexts


def require_ciphertexts(ciphertexts: Sequence[mpz], public: PublicKey) -> None:
    """Raise ValueError unless all are units modulo n**2.

    One greatest common divisor for all: it takes as long as ten multiplications, and a product is a unit exactly if all
    its factors are.
    """
    n, square = public.n, public.square
    product = mpz(1)
    for ciphertext in ciphertexts:
        if not 0 < ciphertext < square:
            raise ValueError("a ciphertext outside the group")
        product = product * ciphertext % n
    if gmpy2.gcd(product, n) != 1:
        raise ValueError("a ciphertext outside the group")


def add_ciphertexts(left: Sequence[mpz], right: Sequence[mpz], public: PublicKey) -> list[mpz]:
    """Ciphertexts of the sums, pair by pair. Not fresh: whoever knows the addends recognises the sum."""
    square = public.square
    return [one * other % square for one, other in zip(left, right, strict=True)]


def signed(plaintext: mpz, n: mpz) -> int:
    """The integer of absolute value below n / 2 behind a plaintext modulo n."""
    return int(plaintext if 2 * plaintext < n else plaintext - n)
