"""Encryption, decryption and sums, beside phe and known answers."""

import itertools

import gmpy2
import numpy as np
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.paillier.ciphertexts import (
    add_ciphertexts,
    decode_ciphertexts,
    encode_ciphertexts,
    require_ciphertexts,
    signed,
)
from privacy.paillier.decrypt import decrypt
from privacy.paillier.encrypt import (
    encrypt,
    encrypt_as_holder,
    encrypt_seconds,
    obfuscators,
    refresh,
)
from privacy.paillier.fixed_base import MOST_TABLE_BYTES, best_comb, fixed_powers, total_cost
from privacy.paillier.slots import Slots
from tests.privacy.paillier_keys import (
    ANSWERS,
    FULL,
    PAIRS,
    SMALL,
    encoding_of,
    outside_subgroup,
)

every_key = pytest.mark.parametrize("name", PAIRS)
small_key = pytest.mark.parametrize("name", SMALL)
every_way = pytest.mark.parametrize(
    "encrypted",
    [lambda plain, pair: encrypt(plain, pair.public), encrypt_as_holder],
    ids=["by anybody", "by the holder"],
)


def some_plaintexts(pair, count=4):
    edges = [0, 1, pair.public.n - 1, pair.public.n // 2]
    return [mpz(edge) for edge in itertools.islice(itertools.cycle(edges), count)]


@pytest.mark.parametrize("case", ANSWERS["ciphertexts"], ids=lambda case: case["key"])
def test_known_exponents_give_known_ciphertexts(case):
    public = PAIRS[case["key"]].public
    size = public.exponent_bits // 8
    exponent = int(case["exponent"], 16).to_bytes(size, "little")
    for_many = best_comb(60, exponent_bits=public.exponent_bits, modulus_bits=2 * public.bits)
    plaintext = mpz(case["plaintext"], 16)
    found = {
        hex((1 + plaintext * public.n) * power % public.square)
        for comb in (None, for_many)
        for power in fixed_powers([exponent], public.base, public.square, comb)
    }
    assert found == {case["ciphertext"]}


@pytest.mark.parametrize("case", ANSWERS["ciphertexts"], ids=lambda case: case["key"])
def test_known_ciphertexts_open(case):
    assert decrypt([mpz(case["ciphertext"], 16)], PAIRS[case["key"]]) == [
        mpz(case["plaintext"], 16)
    ]


@every_key
@every_way
def test_phe_decrypts_our_ciphertexts(name, encrypted):
    pair = PAIRS[name]
    plaintexts = some_plaintexts(pair)
    opened = [pair.private.raw_decrypt(int(c)) for c in encrypted(plaintexts, pair)]
    assert opened == plaintexts


@pytest.mark.parametrize("name", [name for name in PAIRS if name.startswith("djn")])
def test_we_decrypt_phes_ciphertexts(name):
    pair = PAIRS[name]
    numbers = [pair.public.phe_key.encrypt(value) for value in (0, 7, -7)]
    opened = decrypt([mpz(number.ciphertext()) for number in numbers], pair)
    assert [signed(plaintext, pair.public.n) for plaintext in opened] == [0, 7, -7]


@every_key
@every_way
def test_what_was_encrypted_opens(name, encrypted):
    pair = PAIRS[name]
    plaintexts = some_plaintexts(pair)
    assert decrypt(encrypted(plaintexts, pair), pair) == plaintexts


@small_key
@every_way
@pytest.mark.parametrize("count", [0, 1, 2, 40, 300])
def test_short_and_long_lists_open(name, encrypted, count):
    pair = PAIRS[name]
    plaintexts = some_plaintexts(pair, count)
    assert decrypt(encrypted(plaintexts, pair), pair) == plaintexts


@pytest.mark.parametrize("name", FULL)
def test_a_packed_sum_opens_exactly(name):
    pair = PAIRS[name]
    slots = Slots(dimension=200, encoding=encoding_of(), key_bits=3072)
    limit = slots.encoding.limit
    vectors = np.random.default_rng(1).integers(-limit, limit + 1, (3, 200), dtype=np.int32)
    first, second, third = (encrypt(slots.pack(vector), pair.public) for vector in vectors)
    total = add_ciphertexts(add_ciphertexts(first, second, pair.public), third, pair.public)
    opened = slots.unpack(decrypt(total, pair), addends=3)
    assert (opened == vectors.sum(axis=0)).all()


@small_key
@every_way
def test_the_same_plaintext_never_gives_the_same_ciphertext(name, encrypted):
    pair = PAIRS[name]
    assert len(set(encrypted([mpz(5)] * 50, pair))) == 50


@small_key
def test_obfuscators_are_encryptions_of_zero_that_never_repeat(name):
    pair = PAIRS[name]
    fresh = obfuscators(60, pair.public)
    assert decrypt(fresh, pair) == [0] * 60
    assert len(set(fresh)) == 60


@small_key
def test_refreshed_ciphertexts_are_others_of_the_same_plaintexts(name):
    pair = PAIRS[name]
    before = encrypt([mpz(5), mpz(6)], pair.public)
    after = refresh(before, pair.public)
    assert not set(before) & set(after)
    assert decrypt(after, pair) == [5, 6]


@small_key
@every_way
def test_the_jacobi_symbol_tells_nothing(name, encrypted):
    pair = PAIRS[name]
    symbols = {gmpy2.jacobi(c, pair.public.n) for c in encrypted([mpz(3)] * 64, pair)}
    assert symbols == {1}


@small_key
@pytest.mark.parametrize("value", [-1, "n"])
def test_a_plaintext_outside_the_range_is_refused(name, value):
    pair = PAIRS[name]
    plaintext = pair.public.n if value == "n" else mpz(value)
    with pytest.raises(ValueError, match=r"plaintexts in \[0, n\)"):
        encrypt([plaintext], pair.public)


REFUSED = "Expected ciphertexts under this key."


def no_ciphertexts(pair):
    n = pair.public.n
    return {
        "zero": mpz(0),
        "negative": mpz(-1),
        "n**2": n * n,
        "larger": n * n + 5,
        "a multiple of p": mpz(pair.private.p),
        "a multiple of n": n,
    }


@small_key
@pytest.mark.parametrize("what", no_ciphertexts(PAIRS[SMALL[0]]))
def test_what_is_no_ciphertext_is_refused_by_everybody(name, what):
    pair = PAIRS[name]
    bad = [*encrypt([mpz(1)], pair.public), no_ciphertexts(pair)[what]]
    with pytest.raises(ValueError, match="outside the group"):
        require_ciphertexts(bad, pair.public)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared as a whole
        decrypt(bad, pair)
    assert str(caught.value) == REFUSED


@pytest.mark.parametrize("name", [name for name in PAIRS if name.startswith("subgroup")])
def test_a_ciphertext_outside_the_subgroup_is_refused_in_the_same_words(name):
    pair = PAIRS[name]
    outside = outside_subgroup(pair)
    require_ciphertexts([outside], pair.public)
    assert pair.private.raw_decrypt(int(outside)) == 1
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared as a whole
        decrypt([*encrypt([mpz(1)], pair.public), outside], pair)
    assert str(caught.value) == REFUSED


def test_an_ordinary_key_opens_an_obfuscator_of_any_kind():
    pair = PAIRS["djn-half-1152"]
    assert decrypt([outside_subgroup(pair)], pair) == [1]


@small_key
def test_ciphertexts_come_back_from_bytes(name):
    public = PAIRS[name].public
    ciphertexts = [mpz(1), *encrypt([mpz(7)] * 3, public)]
    encoded = encode_ciphertexts(ciphertexts, public)
    assert len(encoded) == 4 * 288
    assert decode_ciphertexts(memoryview(encoded), public, count=4) == ciphertexts


@small_key
@pytest.mark.parametrize("count", [0, 1, 3])
def test_bytes_of_another_number_of_ciphertexts_are_refused(name, count):
    public = PAIRS[name].public
    encoded = encode_ciphertexts([mpz(1), mpz(2)], public)
    with pytest.raises(ValueError, match=f"expected {count} ciphertexts of 288"):
        decode_ciphertexts(encoded, public, count=count)


@small_key
def test_bytes_that_hold_no_ciphertext_are_refused(name):
    public = PAIRS[name].public
    with pytest.raises(ValueError, match="outside the group"):
        decode_ciphertexts(bytes(288), public, count=1)


def test_lists_of_different_lengths_are_not_added():
    public = PAIRS[SMALL[0]].public
    with pytest.raises(ValueError, match="argument 2 is longer"):
        add_ciphertexts([mpz(1)], [mpz(1), mpz(2)], public)


MODULUS = mpz(10**40 + 121)


@settings(max_examples=60, deadline=None)
@given(
    exponents=st.lists(st.integers(0, (1 << 88) - 1), min_size=1, max_size=5),
    teeth_for=st.sampled_from([1, 5, 50, 1000, 100_000]),
)
def test_powers_from_any_comb_are_those_of_python(exponents, teeth_for):
    comb = best_comb(teeth_for, exponent_bits=88, modulus_bits=133)
    encoded = [exponent.to_bytes(11, "little") for exponent in exponents]
    expected = [pow(3, exponent, int(MODULUS)) for exponent in exponents]
    assert fixed_powers(encoded, mpz(3), MODULUS, comb) == expected


@pytest.mark.parametrize("exponent_bits", [576, 1536])
def test_a_few_powers_need_no_table_and_many_a_larger_one(exponent_bits):
    combs = [
        best_comb(count, exponent_bits=exponent_bits, modulus_bits=6144)
        for count in (1, 20, 200, 20_000)
    ]
    entries = [comb.entries for comb in combs if comb]
    assert combs[0] is None
    assert len(entries) == 3
    assert entries == sorted(set(entries))
    assert entries[-1] * (6144 // 8 + 48) <= MOST_TABLE_BYTES


@pytest.mark.parametrize("count", [2, 5, 20, 200, 5000])
def test_a_comb_is_never_dearer_than_doing_without(count):
    comb = best_comb(count, exponent_bits=1536, modulus_bits=6144)
    cost = total_cost(comb, count) if comb else 0
    assert cost < count * 1536 * 1.1


def test_an_exponent_too_long_for_the_table_is_refused():
    comb = best_comb(1000, exponent_bits=88, modulus_bits=133)
    with pytest.raises(ValueError, match="fit the table"):
        fixed_powers([b"\xff" * 20], mpz(3), MODULUS, comb)


def test_more_work_is_expected_to_take_longer():
    public = PAIRS["djn-half-3072"].public
    assert 0 < encrypt_seconds(1, public) < encrypt_seconds(100, public)


@pytest.mark.parametrize(("plaintext", "value"), [(0, 0), (7, 7), (94, -7), (50, 50), (51, -50)])
def test_plaintexts_in_the_upper_half_are_negative(plaintext, value):
    assert signed(mpz(plaintext), mpz(101)) == value
