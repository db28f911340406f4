"""Paillier keys: phe's objects, and what fast obfuscation needs besides (Damgard, Jurik, Nielsen 2010, section 4.3).

A ciphertext is (1 + n)**m * r modulo n**2, where r, the obfuscator, must look like a random n-th power. We take
r = base**a with base = h**n modulo n**2, published with the key, and a random exponent a:

- `djn-half`, the conservative one: h = -y**2 for a random y, and a has half the bits of n. That short a are as good as
  long ones modulo n is the assumption of Damgard, Jurik and Nielsen; without short exponents it is Paillier's alone.
- `subgroup`, the fast one: p - 1 = 2 * a_p * t_p and q - 1 = 2 * a_q * t_q with primes a_p and a_q of 256 bits, and
  h = -y**(2 * t_p * t_q) has order 2 * a_p * a_q. Exponents of 576 bits are within 2**-63 of uniform in that subgroup.
  The assumption added: n-th powers from this subgroup look like any others (Paillier 1999, scheme 3; Jost, Ha, Maurer
  2015), and n with such factors is as hard to factor. Finding a_p by collisions takes 2**128 steps. The holder decrypts
  with exponents of 257 bits; a ciphertext outside the subgroup must be refused, without saying why (`decrypt`).

In both, p = q = 3 modulo 4. Whoever makes a key can choose a bad base that hides nothing: it could read everything
anyway. The key is as strong as factoring n; 3072 bits stand for 128 bits of security.
"""

import secrets
from dataclasses import dataclass, field

import gmpy2
from gmpy2 import mpz
from phe import PaillierPrivateKey, PaillierPublicKey

from privacy.paillier.primes import Progress, blum_prime, subgroup_prime
from privacy.secagg.plan import LEAST_KEY_BITS, MOST_KEY_BITS, Obfuscation

ORDER_BITS = 256
"""Of the primes a_p and a_q."""
SUBGROUP_EXPONENT_BITS = 2 * ORDER_BITS + 64


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """What everybody may know: enough to encrypt, to add and to multiply."""

    phe_key: PaillierPublicKey
    obfuscation: Obfuscation
    base: mpz
    """h**n modulo n**2."""

    @property
    def n(self) -> mpz:
        """The modulus."""
        return mpz(self.phe_key.n)

    @property
    def square(self) -> mpz:
        """n**2: ciphertexts are numbers below it."""
        return mpz(self.phe_key.nsquare)

    @property
    def bits(self) -> int:
        """Of n."""
        return int(self.phe_key.n.bit_length())

    @property
    def exponent_bits(self) -> int:
        """Of a random exponent of the base."""
        return self.bits // 2 if self.obfuscation == "djn-half" else SUBGROUP_EXPONENT_BITS


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A key with its secret part."""

    public: PublicKey
    private: PaillierPrivateKey = field(repr=False)
    """phe's; p < q."""
    orders: tuple[mpz, mpz] | None = field(default=None, repr=False)
    """With `subgroup`: a_p and a_q, in the order of phe's p and q."""


def generate_key_pair(
    *,
    bits: int = LEAST_KEY_BITS,
    obfuscation: Obfuscation = "djn-half",
    progress: Progress = lambda _: None,
    is_for_tests: bool = False,
) -> KeyPair:
    """A fresh key; at 3072 bits a second of processor time, with `subgroup` several.

    Args:
        bits: of n, even.
        obfuscation: how ciphertexts are blinded.
        progress: is told of the search from time to time.
        is_for_tests: allows keys that protect nothing, from 1152 bits.

    Raises:
        ValueError: fewer than 3072 bits, more than 8192, or a number that is not a multiple of 16.
    """
    _require_bits(bits, is_for_tests=is_for_tests)
    if obfuscation == "djn-half":
        found = [(blum_prime(bits // 2), mpz(0)) for _ in range(2)]
    else:
        found = [
            subgroup_prime(bits // 2, order_bits=ORDER_BITS, progress=progress) for _ in range(2)
        ]
    (p, p_order), (q, q_order) = sorted(found)
    if p == q or gmpy2.gcd(p * q, (p - 1) * (q - 1)) != 1:
        return generate_key_pair(
            bits=bits, obfuscation=obfuscation, progress=progress, is_for_tests=is_for_tests
        )
    orders = None if obfuscation == "djn-half" else (p_order, q_order)
    return _key_pair(p, q, orders=orders, base=_new_base(p, q, orders))


def encode_public(public: PublicKey) -> bytes:
    """The modulus and the base: 3/8 byte for each bit of n."""
    size = public.bits // 8
    return bytes(public.n.to_bytes(size, "big") + public.base.to_bytes(2 * size, "big"))


def decode_public(
    encoded: bytes, *, bits: int, obfuscation: Obfuscation, is_for_tests: bool = False
) -> PublicKey:
    """The key that was encoded, of exactly this many bits.

    Whether n has two large primes, and the base is an n-th power, cannot be seen from outside: its maker is trusted.

    Raises:
        ValueError: another length, n of another size or with a small factor, or a base that cannot blind.
    """
    _require_bits(bits, is_for_tests=is_for_tests)
    size = bits // 8
    if len(encoded) != 3 * size:
        raise ValueError(f"Expected {3 * size} bytes of a public key, got {len(encoded)}.")
    n = mpz.from_bytes(encoded[:size], "big")
    base = mpz.from_bytes(encoded[size:], "big")
    if n.bit_length() != bits or gmpy2.gcd(n, SMALL_FACTORS) != 1:
        raise ValueError(f"Expected a modulus of {bits} bits without small factors.")
    if gmpy2.is_prime(n) or gmpy2.is_square(n):
        raise ValueError("Expected a modulus with two different prime factors.")
    _require_base(base, n)
    return PublicKey(phe_key=PaillierPublicKey(int(n)), obfuscation=obfuscation, base=base)


MAGIC: dict[Obfuscation, bytes] = {
    "djn-half": b"concord/paillier-key/v1/djn-half\0",
    "subgroup": b"concord/paillier-key/v1/subgroup\0",
}


def encode_key_pair(pair: KeyPair) -> bytes:
    """Everything of a key pair, for a file that only its owner can read."""
    half = pair.public.bits // 16
    numbers = [(pair.private.p, half), (pair.private.q, half), (pair.public.base, 4 * half)]
    numbers += [(order, ORDER_BITS // 8) for order in pair.orders or ()]
    body = b"".join(int(number).to_bytes(size, "big") for number, size in numbers)
    return MAGIC[pair.public.obfuscation] + pair.public.bits.to_bytes(2, "big") + body


def decode_key_pair(encoded: bytes, *, is_for_tests: bool = False) -> KeyPair:
    """The key pair that was encoded.

    Raises:
        ValueError: not what `encode_key_pair` writes, or not a sound key. The text tells nothing of the key.
    """
    for obfuscation, magic in MAGIC.items():
        if encoded.startswith(magic):
            return _parse_key_pair(encoded[len(magic) :], obfuscation, is_for_tests)
    raise ValueError("Expected a stored Paillier key.")


def _parse_key_pair(body: bytes, obfuscation: Obfuscation, is_for_tests: bool) -> KeyPair:
    bits = int.from_bytes(body[:2], "big")
    _require_bits(bits, is_for_tests=is_for_tests)
    half, order = bits // 16, ORDER_BITS // 8 if obfuscation == "subgroup" else 0
    sizes = (half, half, 4 * half, order, order)
    if len(body) != 2 + sum(sizes):
        raise ValueError(f"Expected {2 + sum(sizes)} bytes of a key, got {len(body)}.")
    numbers, position = [], 2
    for size in sizes:
        numbers.append(mpz.from_bytes(body[position : position + size], "big"))
        position += size
    p, q, base, p_order, q_order = numbers
    is_sound = p < q and (p * q).bit_length() == bits and p % 4 == q % 4 == 3
    if not is_sound or not all(gmpy2.is_prime(prime) for prime in (p, q)):
        raise ValueError("Expected two primes of half the key's length.")
    if obfuscation == "djn-half":
        return _key_pair(p, q, orders=None, base=base)
    for prime, prime_order in ((p, p_order), (q, q_order)):
        if prime_order < 3 or (prime - 1) % (2 * prime_order) or not gmpy2.is_prime(prime_order):
            raise ValueError("Expected the orders of both subgroups.")
        if gmpy2.powmod(base, 2 * prime_order, prime**2) != 1:
            raise ValueError("Expected a base in the subgroup.")
    return _key_pair(p, q, orders=(p_order, q_order), base=base)


def _key_pair(p: mpz, q: mpz, *, orders: tuple[mpz, mpz] | None, base: mpz) -> KeyPair:
    _require_base(base, p * q)
    if any(gmpy2.powmod(base, prime - 1, prime**2) != 1 for prime in (p, q)):
        raise ValueError("Expected a base that is an n-th power.")
    public = PaillierPublicKey(int(p * q))
    return KeyPair(
        public=PublicKey(
            phe_key=public, obfuscation="subgroup" if orders else "djn-half", base=base
        ),
        private=PaillierPrivateKey(public, int(p), int(q)),
        orders=orders,
    )


def _new_base(p: mpz, q: mpz, orders: tuple[mpz, mpz] | None) -> mpz:
    """h**n modulo n**2 for a random h of the largest order that the kind of key allows."""
    n = p * q
    exponent = mpz(2)
    if orders:
        exponent = 2 * ((p - 1) // (2 * orders[0])) * ((q - 1) // (2 * orders[1]))
    while True:
        y = mpz(secrets.randbelow(int(n - 2)) + 2)
        square = gmpy2.powmod(y, exponent, n)
        # Neither 0 nor 1 modulo a factor: with `subgroup` its order is then exactly a_p * a_q.
        if gmpy2.gcd(square * (square - 1), n) == 1:
            return gmpy2.powmod(n - square, n, n * n)


def _require_base(base: mpz, n: mpz) -> None:
    is_unit = 1 < base < n * n - 1 and gmpy2.gcd(base, n) == 1
    # -y**2 has Jacobi symbol 1, as n has two factors that are 3 modulo 4; an obfuscator of -1 would mark a ciphertext.
    if not is_unit or base % n in (1, n - 1) or gmpy2.jacobi(base, n) != 1:
        raise ValueError("Expected a base that can blind ciphertexts.")


def _require_bits(bits: int, *, is_for_tests: bool) -> None:
    # Below 1152 bits there is no room for the subgroup and its cofactor.
    least = 1152 if is_for_tests else LEAST_KEY_BITS
    if not least <= bits <= MOST_KEY_BITS or bits % 16:
        raise ValueError(f"Expected {least} <= bits={bits} <= {MOST_KEY_BITS}, a multiple of 16.")


SMALL_FACTORS = gmpy2.primorial(1 << 12)
