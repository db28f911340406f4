"""Paillier keys: sizes, kinds, and what is refused of stored and received ones."""

import gmpy2
import pytest
from gmpy2 import mpz
from phe import PaillierPrivateKey, PaillierPublicKey

from privacy.paillier.keys import (
    ORDER_BITS,
    decode_key_pair,
    decode_public,
    encode_key_pair,
    encode_public,
    generate_key_pair,
)
from privacy.paillier.primes import blum_prime, subgroup_prime
from tests.privacy.paillier_keys import FULL, PAIRS, SMALL, STORED

every_key = pytest.mark.parametrize("name", PAIRS)


@pytest.mark.parametrize("obfuscation", ["djn-half", "subgroup"])
def test_a_new_key_has_its_length_and_two_primes_that_are_3_modulo_4(obfuscation):
    pair = generate_key_pair(bits=1152, obfuscation=obfuscation, is_for_tests=True)
    p, q = mpz(pair.private.p), mpz(pair.private.q)
    assert pair.public.bits == 1152
    assert p < q
    assert p % 4 == q % 4 == 3
    assert gmpy2.is_prime(p)
    assert gmpy2.is_prime(q)


def test_two_keys_differ():
    first, second = (generate_key_pair(bits=1152, is_for_tests=True) for _ in range(2))
    assert first.public.n != second.public.n


@pytest.mark.parametrize("bits", [1152, 2048, 3056, 3080, 8208])
def test_a_key_of_another_size_than_those_allowed_is_refused(bits):
    with pytest.raises(ValueError, match=r"Expected 3072 <= bits=\d+ <= 8192, a multiple of 16"):
        generate_key_pair(bits=bits)


def test_even_tests_get_no_key_without_room_for_a_subgroup():
    with pytest.raises(ValueError, match="1152 <= bits=1136"):
        generate_key_pair(bits=1136, is_for_tests=True)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_stored_key_is_refused(name):
    with pytest.raises(ValueError, match="3072 <= bits=1152"):
        decode_key_pair(STORED[name])


@pytest.mark.parametrize("name", SMALL)
def test_a_small_received_key_is_refused(name):
    public = PAIRS[name].public
    with pytest.raises(ValueError, match="3072 <= bits=1152"):
        decode_public(encode_public(public), bits=1152, obfuscation=public.obfuscation)


@every_key
def test_keys_are_those_of_phe(name):
    assert type(PAIRS[name].public.phe_key) is PaillierPublicKey
    assert type(PAIRS[name].private) is PaillierPrivateKey


@every_key
def test_a_stored_key_comes_back(name):
    assert encode_key_pair(PAIRS[name]) == STORED[name]


@every_key
def test_a_public_key_comes_back(name):
    public = PAIRS[name].public
    decoded = decode_public(
        encode_public(public), bits=public.bits, obfuscation=public.obfuscation, is_for_tests=True
    )
    assert decoded == public


@every_key
def test_the_base_is_an_nth_power_with_jacobi_symbol_one(name):
    pair = PAIRS[name]
    p, q, base = mpz(pair.private.p), mpz(pair.private.q), pair.public.base
    assert pow(base, (p - 1) * (q - 1), pair.public.square) == 1
    assert gmpy2.jacobi(base, pair.public.n) == 1


@pytest.mark.parametrize("name", [name for name in PAIRS if name.startswith("subgroup")])
def test_the_base_of_a_subgroup_key_has_twice_the_product_of_the_orders_as_its_order(name):
    pair = PAIRS[name]
    assert pair.orders is not None
    p_order, q_order = pair.orders
    square, base = pair.public.square, pair.public.base
    whole = 2 * p_order * q_order
    assert p_order.bit_length() == q_order.bit_length() == ORDER_BITS
    assert pow(base, whole, square) == 1
    assert 1 not in {pow(base, whole // factor, square) for factor in (2, p_order, q_order)}


def test_a_subgroup_prime_is_twice_two_primes_plus_one():
    told: list[str] = []
    prime, order = subgroup_prime(576, order_bits=256, progress=told.append)
    cofactor = (prime - 1) // (2 * order)
    assert prime == 2 * order * cofactor + 1
    assert prime.bit_length() == 576
    assert all(gmpy2.is_prime(number) for number in (prime, order, cofactor))
    assert all("candidates" in line for line in told)


def test_a_prime_has_its_two_highest_bits_set():
    assert blum_prime(128) >> 126 == 3


@every_key
def test_nothing_secret_is_shown(name):
    pair = PAIRS[name]
    shown = repr(pair)
    secrets = [pair.private.p, pair.private.q, *(pair.orders or ())]
    assert "private" not in shown
    assert "orders" not in shown
    assert not any(str(int(secret)) in shown for secret in secrets)


@every_key
@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_a_shortened_stored_key_is_refused(name, length):
    with pytest.raises(ValueError, match="Expected"):
        decode_key_pair(STORED[name][:length], is_for_tests=True)


@every_key
def test_bytes_behind_a_stored_key_are_refused(name):
    with pytest.raises(ValueError, match="bytes of a key"):
        decode_key_pair(STORED[name] + b"\0", is_for_tests=True)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("place", [40, 250, 400])
def test_a_stored_key_with_one_bit_changed_is_refused_without_being_shown(name, place):
    damaged = bytearray(STORED[name])
    damaged[place] ^= 1
    with pytest.raises(ValueError, match=r"^Expected") as caught:
        decode_key_pair(bytes(damaged))
    assert len(str(caught.value)) < 80


def test_a_stored_key_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="stored Paillier key"):
        decode_key_pair(b"concord/other-key/v1\0" + STORED[FULL[0]])


def public_bytes(n, base, bits=1152):
    return int(n).to_bytes(bits // 8, "big") + int(base).to_bytes(bits // 4, "big")


PUBLIC = PAIRS["djn-half-1152"].public
N, BASE, P = PUBLIC.n, PUBLIC.base, mpz(PAIRS["djn-half-1152"].private.p)
BAD_PUBLIC = {
    "a short modulus": (N >> 8, BASE, "modulus of 1152 bits"),
    "an even modulus": (N + 1, BASE, "without small factors"),
    "a modulus with a small factor": (N - N % 3, BASE, "without small factors"),
    "a prime": (gmpy2.prev_prime(mpz(1) << 1152), BASE, "two different prime factors"),
    "a square": (gmpy2.next_prime(mpz(3) << 574) ** 2, BASE, "two different prime factors"),
    "base 0": (N, 0, "can blind"),
    "base 1": (N, 1, "can blind"),
    "base n**2 - 1": (N, N * N - 1, "can blind"),
    "base n + 1, which is 1 modulo n": (N, N + 1, "can blind"),
    "a base with a common factor": (N, 4 * P, "can blind"),
    "a base that is n**2 or more": (N, N * N + BASE, "can blind"),
    "a base with Jacobi symbol -1": (
        N,
        next(mpz(k) for k in range(2, 99) if gmpy2.jacobi(k, N) == -1),
        "can blind",
    ),
}


@pytest.mark.parametrize(("n", "base", "why"), BAD_PUBLIC.values(), ids=BAD_PUBLIC)
def test_a_public_key_that_cannot_be_one_is_refused(n, base, why):
    with pytest.raises(ValueError, match=why):
        decode_public(public_bytes(n, base), bits=1152, obfuscation="djn-half", is_for_tests=True)


@pytest.mark.parametrize("change", [b"", b"\0"])
def test_a_public_key_of_another_length_is_refused(change):
    encoded = encode_public(PUBLIC)
    with pytest.raises(ValueError, match="Expected 432 bytes of a public key"):
        decode_public(
            encoded + change if change else encoded[:-1],
            bits=1152,
            obfuscation="djn-half",
            is_for_tests=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize("obfuscation", ["djn-half", "subgroup"])
def test_a_new_key_of_3072_bits_opens_its_own_storage(obfuscation):
    pair = generate_key_pair(obfuscation=obfuscation)
    assert pair.public.bits == 3072
    assert decode_key_pair(encode_key_pair(pair)) == pair
