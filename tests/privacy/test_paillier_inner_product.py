"""Inner products of integer rows with an encrypted vector."""

import numpy as np
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.paillier import inner_product
from privacy.paillier.ciphertexts import signed
from privacy.paillier.decrypt import decrypt
from privacy.paillier.encrypt import encrypt
from privacy.paillier.inner_product import inner_products
from tests.privacy.paillier_keys import FULL, PAIRS, SMALL

PAIR = PAIRS["subgroup-1152"]
N = PAIR.public.n


def opened(rows, values, pair=PAIR):
    n = pair.public.n
    encrypted = encrypt([mpz(value) % n for value in values], pair.public)
    products = inner_products(np.array(rows), encrypted, pair.public)
    return [signed(plaintext, n) for plaintext in decrypt(products, pair)]


def expected(rows, values):
    return [
        sum(int(weight) * value for weight, value in zip(row, values, strict=True)) for row in rows
    ]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), terms=st.integers(1, 6), outputs=st.integers(1, 4))
def test_signed_rows_give_signed_products(data, terms, outputs):
    reach = data.draw(st.sampled_from([1, 127, 32_767, (1 << 31) - 1]))
    row = st.lists(st.integers(-reach, reach), min_size=terms, max_size=terms)
    rows = data.draw(st.lists(row, min_size=outputs, max_size=outputs))
    values = data.draw(st.lists(st.integers(-(10**9), 10**9), min_size=terms, max_size=terms))
    assert opened(rows, values) == expected(rows, values)


@pytest.mark.parametrize(
    "rows",
    [[[0, 0, 0]], [[1, 0, 0]], [[-1, -1, -1]], [[5, 6, 7]], [[-(1 << 31), (1 << 31) - 1, 0]]],
    ids=["zeros", "one", "negative", "positive", "the ends of the range"],
)
def test_rows_at_the_edges(rows):
    assert opened(rows, [3, -4, 10**12]) == expected(rows, [3, -4, 10**12])


@pytest.mark.parametrize("name", FULL)
def test_phe_opens_the_same_products_under_a_full_key(name):
    pair = PAIRS[name]
    rng = np.random.default_rng(3)
    rows = rng.integers(-(1 << 15), 1 << 15, (2, 8))
    numbers = [pair.public.phe_key.encrypt(value) for value in range(-4, 4)]
    encrypted = [mpz(number.ciphertext()) for number in numbers]
    product = inner_products(rows, encrypted, pair.public)[0]
    assert (
        pair.private.raw_decrypt(int(product))
        == expected(rows[:1], range(-4, 4))[0] % pair.public.n
    )


def test_a_vector_of_more_terms_than_fit_a_table_gives_the_same(monkeypatch):
    monkeypatch.setattr(inner_product, "MOST_TABLE_BYTES", 0)
    rng = np.random.default_rng(4)
    rows, values = rng.integers(-99, 99, (3, 35)), [int(v) for v in rng.integers(-99, 99, 35)]
    assert opened(rows, values) == expected(rows, values)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_product_leaves_under_another_obfuscator_every_time(name):
    public = PAIRS[name].public
    encrypted = encrypt([mpz(1), mpz(2)], public)
    rows = np.array([[3, 4], [3, 4]])
    products = [*inner_products(rows, encrypted, public), *inner_products(rows, encrypted, public)]
    assert len(set(products)) == 4
    assert set(decrypt(products, PAIRS[name])) == {11}


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 3), dtype=np.int64),
        np.zeros(2, dtype=np.int64),
        np.zeros((0, 2), dtype=np.int64),
        np.zeros((1, 2)),
        np.full((1, 2), 1 << 31),
        np.full((1, 2), -(1 << 31) - 1),
    ],
    ids=["too many terms", "flat", "no rows", "floats", "too large", "too small"],
)
def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(ValueError, match="Expected"):
        inner_products(rows, [mpz(1), mpz(1)], PAIR.public)
