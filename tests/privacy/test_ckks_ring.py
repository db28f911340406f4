"""Residues against Python's integers, the transform against the definition of the ring, and SEAL as a second opinion."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.ckks.parameters import LIGHT, STANDARD
from privacy.ckks.ring import PRIME_BITS, SMALL_BITS, Residues, ring_of
from privacy.ckks.seal import context, primes
from privacy.randomness import OsRandom, SeededRandom

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ckks_ring.json").read_text())
RINGS = [ring_of(STANDARD), ring_of(LIGHT)]
every_ring = pytest.mark.parametrize("ring", RINGS, ids=["standard", "light"])
WORDS = st.integers(0, 2**64 - 1)


def columns(ring, *numbers: int) -> Residues:
    """The same few numbers modulo every prime."""
    return np.array([[number % prime for number in numbers] for prime in ring.primes], np.uint64)


def whole(ring, residues: Residues) -> list[int]:
    """Chinese remainders in Python's integers, from -q/2 to q/2."""
    q = ring.modulus
    total = np.zeros(residues.shape[1], dtype=object)
    for prime, row in zip(ring.primes, residues, strict=True):
        rest = q // prime
        total = (total + row.astype(object) * (rest * pow(rest, -1, prime))) % q
    return [number - q if number > q // 2 else number for number in total.tolist()]


@every_ring
@settings(max_examples=200, deadline=None)
@given(one=WORDS, other=WORDS)
def test_arithmetic_of_residues_is_that_of_integers(ring, one, other):
    first, second = columns(ring, one), columns(ring, other)
    assert (ring.multiply(first, second) == columns(ring, one * other)).all()
    assert (ring.add(first, second) == columns(ring, one + other)).all()
    assert (ring.subtract(first, second) == columns(ring, one - other)).all()
    assert (ring.scaled(first, other << 64) == columns(ring, one * (other << 64))).all()


@every_ring
def test_arithmetic_at_the_ends_of_the_range(ring):
    edges = [
        edge % prime
        for prime in ring.primes
        for edge in (0, 1, 2, prime // 2, prime - 2, prime - 1)
    ]
    pairs = list(itertools.product(edges, repeat=2))
    first = columns(ring, *(one for one, _ in pairs))
    second = columns(ring, *(other for _, other in pairs))
    assert (ring.multiply(first, second) == columns(ring, *(a * b for a, b in pairs))).all()
    assert (ring.add(first, second) == columns(ring, *(a + b for a, b in pairs))).all()
    assert (ring.subtract(first, second) == columns(ring, *(a - b for a, b in pairs))).all()


@every_ring
def test_a_million_random_products_are_exact(ring):
    random = SeededRandom(1)
    first, second = (ring.uniform(random, 1 << 18) for _ in range(2))
    product = ring.multiply(first, second)
    for prime, one, other, found in zip(ring.primes, first, second, product, strict=True):
        assert (found.astype(object) == one.astype(object) * other.astype(object) % prime).all()


@every_ring
def test_a_running_sum_is_the_sum(ring):
    addends = [ring.uniform(SeededRandom(number), 100) for number in range(9)]
    total = np.zeros_like(addends[0])
    for addend in addends:
        ring.accumulate(total, addend)
    expected = np.sum([addend.astype(object) for addend in addends], axis=0)
    assert (total.astype(object) == expected % np.array(ring.primes, dtype=object)[:, None]).all()


@every_ring
def test_the_transform_is_undone_by_its_inverse(ring):
    edges = [0, 1, -1, 2**SMALL_BITS - 1, 1 - 2**SMALL_BITS]
    integers = np.resize(np.array(edges), ring.shape.degree).astype(np.int64)
    backwards = integers[::-1].copy()
    found = ring.coefficients(ring.transform(integers), ring.transform(backwards))
    assert (found[0] == ring.residues(integers)).all()
    assert (found[1] == ring.residues(backwards)).all()


@every_ring
def test_products_in_transformed_form_are_products_modulo_x_to_the_n_plus_one(ring):
    degree = ring.shape.degree
    small = np.random.default_rng(1).integers(-100, 101, degree)
    sparse = np.zeros(degree, dtype=np.int64)
    places, factors = [0, 1, degree // 2, degree - 1], [3, -5, 7, -11]
    sparse[places] = factors
    product = ring.multiply(ring.transform(small), ring.transform(sparse))
    # X**n = -1: what is shifted out at the top comes in at the bottom with the other sign.
    expected = np.zeros(degree, dtype=np.int64)
    for place, factor in zip(places, factors, strict=True):
        expected += factor * np.concatenate([-small[degree - place :], small[: degree - place]])
    assert (ring.coefficients(product, product)[0] == ring.residues(expected)).all()


@every_ring
@pytest.mark.parametrize("number", [2**SMALL_BITS, -(2**SMALL_BITS)])
def test_integers_that_are_not_small_are_not_transformed(ring, number):
    integers = np.zeros(ring.shape.degree, dtype=np.int64)
    integers[7] = number
    with pytest.raises(ValueError, match="below 2\\*\\*30"):
        ring.transform(integers)


@every_ring
def test_coefficients_are_lifted_within_a_small_part_of_the_modulus(ring):
    q = ring.modulus
    end = q // 2 - q // 2**49
    numbers = [0, 1, -1, end, -end, q // 3, -q // 3, q // 2**30, -(q // 2**30)]
    numbers += whole(ring, ring.uniform(SeededRandom(3), 2000))
    lifted = ring.lifted(columns(ring, *numbers))
    allowed = q * 2**-51 if ring.shape.primes > 1 else 0
    assert all(
        abs(int(found) - number) <= allowed for found, number in zip(lifted, numbers, strict=True)
    )


@every_ring
def test_the_security_check_of_seal_covers_the_modulus(ring):
    assert (
        seal.CoeffModulus.MaxBitCount(ring.shape.degree, seal.SEC_LEVEL_TYPE.TC128)
        >= (ring.shape.primes + 1) * PRIME_BITS
    )
    assert all(prime % (2 * ring.shape.degree) == 1 for prime in ring.primes)
    assert ring.modulus.bit_length() == ring.shape.primes * PRIME_BITS


def test_a_modulus_that_is_too_long_for_its_degree_is_refused():
    moduli = primes(4096, [50, 50, 50])
    with pytest.raises(ValueError, match=r"SEAL refuses a ring of degree=4096: .*security"):
        context(seal.SCHEME_TYPE.CKKS, 4096, moduli)


@every_ring
def test_polynomials_pass_through_memory_and_leave_no_file_open(ring):
    before = sorted(os.listdir("/proc/self/fd"))
    key = ring.transform(np.arange(ring.shape.degree))
    ring.coefficients(key, key)
    assert sorted(os.listdir("/proc/self/fd")) == before


@every_ring
def test_what_is_packed_is_unpacked(ring):
    counts = [1, 2, 31, 32, 33, 1000, ring.shape.degree]
    polynomials = [ring.uniform(OsRandom(), count) for count in counts]
    packed = [ring.pack(polynomial) for polynomial in polynomials]
    assert list(map(len, packed)) == list(map(ring.packed_bytes, counts))
    for polynomial, part, count in zip(polynomials, packed, counts, strict=True):
        assert (ring.unpack(part, count) == polynomial).all()


@every_ring
def test_a_whole_polynomial_takes_fifty_bits_a_residue(ring):
    assert ring.packed_bytes(ring.shape.degree) * 8 == 50 * ring.shape.primes * ring.shape.degree


@every_ring
def test_residues_that_are_not_below_their_prime_are_refused(ring):
    polynomial = ring.uniform(SeededRandom(4), 40)
    polynomial[-1, 17] = ring.primes[-1]
    with pytest.raises(ValueError, match="not below its prime"):
        ring.unpack(ring.pack(polynomial), 40)


@every_ring
@pytest.mark.parametrize("change", [-1, 1])
def test_polynomials_of_wrong_length_are_refused(ring, change):
    packed = ring.pack(ring.uniform(SeededRandom(4), 40)) + b"\0"
    with pytest.raises(ValueError, match="bytes of a polynomial, expected"):
        ring.unpack(packed[: ring.packed_bytes(40) + change], 40)


@every_ring
def test_bits_behind_the_last_coefficient_are_refused(ring):
    packed = bytearray(ring.pack(np.zeros((ring.shape.primes, 40), dtype=np.uint64)))
    packed[-1] = 0x80
    with pytest.raises(ValueError, match="behind the last word"):
        ring.unpack(packed, 40)


class ScriptedWords:
    """Words that a test chose."""

    def __init__(self, words: list[int]) -> None:
        self._words = words

    def words(self, count: int) -> np.ndarray:
        given, self._words = self._words[:count], self._words[count:]
        return np.array(given, dtype=np.uint64)


def test_uniform_residues_leave_out_candidates_that_are_not_below_the_prime():
    ring = ring_of(LIGHT)
    (prime,) = ring.primes
    high = 0xABC << PRIME_BITS
    found = ring.uniform(ScriptedWords([5 | high, prime, prime - 1, 2**50 - 1, prime + 1, 9, 8]), 4)
    assert found.tolist() == [[5, 8, prime - 1, 9]]


@every_ring
def test_public_polynomials_differ_with_every_seed_and_prime(ring):
    polynomials = [ring.public_polynomial(seed) for seed in (b"", b"a", b"a\0", b"\0a")]
    rows = [row.tobytes() for polynomial in polynomials for row in polynomial]
    assert len(set(rows)) == len(rows)
    assert all((polynomial < np.array(ring.primes)[:, None]).all() for polynomial in polynomials)


@pytest.mark.parametrize("vector", VECTORS["rings"], ids=lambda vector: vector["name"])
def test_known_answers_of_ring_public_polynomial_transform_and_packing(vector):
    ring = ring_of({"standard": STANDARD, "light": LIGHT}[vector["name"]])
    assert list(ring.primes) == vector["primes"]
    public = ring.public_polynomial(bytes.fromhex(vector["seed"]))
    assert public[:, :4].tolist() == vector["first_public_residues"]
    assert digest(public) == vector["public_digest"]
    ramp = ring.transform(np.arange(ring.shape.degree))
    assert digest(ramp) == vector["transformed_ramp_digest"]
    assert ring.pack(public[:, :3]).hex() == vector["packed_first_three"]
    assert digest(ring.uniform(SeededRandom(7, "ckks"))) == vector["uniform_digest"]


def digest(residues: Residues) -> str:
    return hashlib.sha256(residues.astype("<u8").tobytes()).hexdigest()
