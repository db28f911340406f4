"""Encrypted vectors: exact sums, errors and flooding as large as the sizes say, and SEAL's own decryption of them."""

import functools
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as seal

from privacy.ckks.parameters import (
    ERROR_DEVIATION,
    LARGEST_ERROR,
    LIGHT,
    NEEDED_FLOODING_BITS,
    STANDARD,
    SumSizes,
    light_sizes,
    standard_sizes,
)
from privacy.ckks.ring import SMALL_BITS, Residues, RingShape, Words, ring_of
from privacy.ckks.seal import Layout
from privacy.ckks.vectors import SMALL, Blocks, decoded, encrypted, new_key, opening
from privacy.randomness import OsRandom, Random, SeededRandom

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ckks_sum.json").read_text())
PART_BYTES = 480 * 1024
SEED = b"a public seed"
SIZES = {STANDARD: standard_sizes, LIGHT: light_sizes}
every_shape = pytest.mark.parametrize("shape", [STANDARD, LIGHT], ids=["standard", "light"])


def blocks_of(shape: RingShape, dimension: int) -> Blocks:
    return Blocks(ring=ring_of(shape), dimension=dimension, largest_part=PART_BYTES)


def integers_of(sites: int, dimension: int, *, bits: int) -> list[np.ndarray]:
    limit = 2 ** (bits - 1) - 1
    generator = np.random.default_rng(sites)
    return [generator.integers(-limit, limit + 1, dimension).astype(np.int32) for _ in range(sites)]


def added(blocks: Blocks, polynomials: list[list[Residues]]) -> list[Residues]:
    """The sum of several vectors of polynomials."""
    return [functools.reduce(blocks.ring.add, block) for block in zip(*polynomials, strict=True)]


def encrypted_by_all(
    blocks: Blocks, sizes: SumSizes, vectors: list[np.ndarray], random: Random
) -> tuple[list[Residues], list[Residues]]:
    """Every party's key, and the sum of all ciphertexts."""
    keys = [new_key(blocks.ring, random) for _ in vectors]
    sealed = [
        list(encrypted(blocks, sizes, vector, key=key, seed=SEED, random=random))
        for key, vector in zip(keys, vectors, strict=True)
    ]
    return keys, added(blocks, sealed)


def opened(
    blocks: Blocks, sizes: SumSizes, total: list[Residues], keys: list[Residues], random: Words
) -> np.ndarray:
    """What the sum opens to if every party gives its key's product, flooded where the ring is flooded."""
    source = random if sizes.flooding_exponent else None
    products = [list(opening(blocks, sizes, key=key, seed=SEED, random=source)) for key in keys]
    whole = added(blocks, [total, *products])
    return np.concatenate([decoded(blocks.ring, sizes, block) for block in whole])


@every_shape
@pytest.mark.parametrize("sites", [1, 2, 60])
def test_the_sum_of_parties_opens_exactly(shape, sites):
    degree = shape.degree
    blocks = blocks_of(shape, 2 * degree + 5)
    sizes = SIZES[shape](modulus_bits=24 + math.ceil(math.log2(sites)), sites=sites)
    vectors = integers_of(sites, blocks.dimension, bits=24)
    keys, total = encrypted_by_all(blocks, sizes, vectors, OsRandom())
    assert (opened(blocks, sizes, total, keys, OsRandom()) == np.sum(vectors, axis=0)).all()


@every_shape
@pytest.mark.parametrize("change", [-1, 0, 1])
@pytest.mark.parametrize("whole_blocks", [0, 1, 2, 65])
def test_a_vector_of_any_length_opens_exactly(shape, change, whole_blocks):
    dimension = max(1, whole_blocks * shape.degree + change)
    blocks = blocks_of(shape, dimension)
    sizes = SIZES[shape](modulus_bits=26, sites=4)
    (vector,) = integers_of(1, dimension, bits=26)
    (key,), total = encrypted_by_all(blocks, sizes, [vector], OsRandom())
    assert [len(polynomial[0]) for polynomial in total] == list(
        map(blocks.length, range(len(total)))
    )
    assert (opened(blocks, sizes, total, [key], OsRandom()) == vector).all()


class Extreme:
    """Words of ones or zeros only: the largest or the smallest flooding in every coefficient."""

    def __init__(self, bit: int) -> None:
        self._word = np.uint64(bit * (2**64 - 1))

    def words(self, count: int) -> np.ndarray:
        return np.full(count, self._word)


@pytest.mark.parametrize("bit", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_64_sites_at_the_end_of_the_range_open_exactly_under_the_largest_flooding(bit, sign):
    blocks = blocks_of(STANDARD, 64)
    sizes = standard_sizes(modulus_bits=32, sites=64)
    reach = sign * (2**25 - 1)
    vectors = [np.full(64, reach, dtype=np.int32)] * 64
    keys, total = encrypted_by_all(blocks, sizes, vectors, OsRandom())
    assert (opened(blocks, sizes, total, keys, Extreme(bit)) == 64 * reach).all()


def whole_errors(shape: RingShape, sites: int, dimension: int) -> tuple[np.ndarray, SumSizes]:
    """The errors of a sum of zeros, opened without flooding, as whole numbers."""
    blocks = blocks_of(shape, dimension)
    sizes = SIZES[shape](modulus_bits=30, sites=sites)
    vectors = [np.zeros(dimension, dtype=np.int32)] * sites
    random = SeededRandom(5, "errors")
    keys, total = encrypted_by_all(blocks, sizes, vectors, random)
    key = functools.reduce(blocks.ring.add, keys)
    whole = added(blocks, [total, list(opening(blocks, sizes, key=key, seed=SEED, random=None))])
    # Small numbers are the same modulo every prime.
    prime = blocks.ring.primes[0]
    residues = np.concatenate([block[0] for block in whole]).astype(np.int64)
    return np.where(residues > prime // 2, residues - prime, residues), sizes


@pytest.mark.statistical
@every_shape
def test_errors_measured_in_a_sum_are_those_that_the_flooding_is_derived_from(shape):
    # Seeded. The deviation of 5 * 8192 draws is within 2 % of the true one but for 1e-8.
    errors, _ = whole_errors(shape, 16, 5 * 8192)
    assert np.std(errors) == pytest.approx(4 * ERROR_DEVIATION, rel=0.02)
    assert np.abs(errors).max() <= 16 * LARGEST_ERROR


def test_flooding_covers_measured_errors_by_the_bits_that_are_stated():
    errors, sizes = whole_errors(STANDARD, 64, 8192)
    assert sizes.flooding_bits >= NEEDED_FLOODING_BITS
    assert sizes.flooding_exponent - math.log2(np.abs(errors).max()) >= sizes.flooding_bits


def flooding_of(sizes: SumSizes, random: Random, dimension: int) -> list[int]:
    """What one helper adds, from its release with and without flooding."""
    blocks = blocks_of(STANDARD, dimension)
    ring, key = blocks.ring, new_key(blocks.ring, random)
    flooded = opening(blocks, sizes, key=key, seed=SEED, random=random)
    bare = opening(blocks, sizes, key=key, seed=SEED, random=None)
    differences = [ring.subtract(one, other) for one, other in zip(flooded, bare, strict=True)]
    residues = np.concatenate(differences, axis=1)
    p_0, p_1 = ring.primes
    digit = (residues[1].astype(object) - residues[0].astype(object)) * pow(p_0, -1, p_1) % p_1
    found = residues[0].astype(object) + p_0 * digit
    return [int(number) - ring.modulus * (number > ring.modulus // 2) for number in found]


@pytest.mark.statistical
def test_every_bit_of_the_flooding_is_a_fair_coin():
    # Seeded. Of 60 bits, none is off by 5.5 deviations but with probability 60 * 4e-8.
    sizes = standard_sizes(modulus_bits=32, sites=64)
    flooding = flooding_of(sizes, SeededRandom(6, "flooding"), 4 * 8192)
    bound = 1 << sizes.flooding_exponent
    assert -bound <= min(flooding)
    assert max(flooding) < bound
    bits = np.array([[int(b) for b in format(number + bound, "060b")] for number in flooding])
    assert bits.shape[1] == sizes.flooding_exponent + 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5.5 * 0.5 / math.sqrt(len(flooding))


def test_flooding_never_repeats():
    sizes = standard_sizes(modulus_bits=32, sites=64)
    flooding = flooding_of(sizes, OsRandom(), 3 * 8192)
    # Two of 24576 numbers of 60 bits agree with probability 3e-10.
    assert len(set(flooding)) == len(flooding)


@every_shape
def test_with_another_key_the_sum_is_noise(shape):
    blocks = blocks_of(shape, shape.degree)
    sizes = SIZES[shape](modulus_bits=30, sites=4)
    vectors = integers_of(3, blocks.dimension, bits=16)
    keys, total = encrypted_by_all(blocks, sizes, vectors, OsRandom())
    guesses = opened(blocks, sizes, total, keys[:2], OsRandom())
    # Uniform over the modulus: about one coefficient in 2**30 is right by chance.
    assert (guesses == np.sum(vectors, axis=0)).sum() <= 1
    assert np.abs(guesses).mean() > 2**27


@every_shape
def test_equal_vectors_under_one_key_never_look_alike(shape):
    blocks = blocks_of(shape, 100)
    sizes = SIZES[shape](modulus_bits=30, sites=4)
    key, vector = new_key(blocks.ring, OsRandom()), np.arange(100, dtype=np.int32)
    one, other = (
        next(encrypted(blocks, sizes, vector, key=key, seed=seed, random=OsRandom()))
        for seed in (b"one sum", b"another sum")
    )
    assert not (one == other).any()


def test_a_coefficient_beyond_32_bits_is_refused():
    ring, sizes = ring_of(STANDARD), standard_sizes(modulus_bits=32, sites=2)
    total = ring.scaled(ring.residues(np.array([5, 2**31])), 1 << sizes.delta_exponent)
    with pytest.raises(ValueError, match="outside the range"):
        decoded(ring, sizes, total)


@every_shape
def test_parts_hold_whole_blocks_and_say_which(shape):
    blocks = blocks_of(shape, 60 * shape.degree + 7)
    polynomials = [
        blocks.ring.uniform(OsRandom(), blocks.length(block)) for block in range(blocks.count)
    ]
    parts = list(blocks.pack(polynomials))
    assert len(parts) == blocks.parts
    assert max(map(len, parts)) <= PART_BYTES
    found = [pair for index, part in enumerate(parts) for pair in blocks.unpack(index, part)]
    assert [number for number, _ in found] == list(range(blocks.count))
    assert all((one == other).all() for (_, one), other in zip(found, polynomials, strict=True))


@every_shape
@pytest.mark.parametrize("index", [0, 1, 2])
def test_parts_of_wrong_length_are_refused(shape, index):
    blocks = blocks_of(shape, 10 * shape.degree)
    part = b"".join(blocks.pack([blocks.ring.uniform(OsRandom())] * 3))
    with pytest.raises(ValueError, match="bytes, expected"):
        list(blocks.unpack(index, part))


@every_shape
def test_a_value_takes_as_many_bytes_as_the_ring_has_bits(shape):
    blocks = blocks_of(shape, 30 * shape.degree)
    parts = blocks.pack([blocks.ring.uniform(OsRandom())] * 30)
    assert sum(map(len, parts)) / blocks.dimension == 6.25 * shape.primes


def test_seal_decrypts_and_decodes_the_sum_with_the_sum_of_keys():
    blocks = blocks_of(STANDARD, STANDARD.degree)
    ring, sizes = blocks.ring, standard_sizes(modulus_bits=30, sites=3)
    vectors = integers_of(3, blocks.dimension, bits=24)
    small_keys = [SMALL.draw(STANDARD.degree, OsRandom()) for _ in vectors]
    sealed = [
        list(
            encrypted(blocks, sizes, vector, key=ring.transform(key), seed=SEED, random=OsRandom())
        )
        for key, vector in zip(small_keys, vectors, strict=True)
    ]
    (total,) = added(blocks, sealed)
    public = ring.public_polynomial(SEED + bytes(4))
    message = seal_decrypted(total, public, np.sum(small_keys, axis=0), sizes)
    expected = np.sum(vectors, axis=0)
    coefficients, _ = ring.coefficients(message.residues, message.residues)
    assert (decoded(ring, sizes, coefficients) == expected).all()
    # Slot k of SEAL's encoder is the polynomial's value at the root of unity with exponent 3**k.
    powers = np.exp(1j * np.pi * pow(3, 11, 2 * STANDARD.degree) / STANDARD.degree) ** np.arange(
        STANDARD.degree
    )
    assert message.slots[11] == pytest.approx((expected * powers).sum().real, abs=1.0)


class SealMessage:
    """What SEAL decrypted: residues in transformed form, and its decoder's slots."""

    def __init__(self, plaintext: "seal.Plaintext", context: "seal.SEALContext") -> None:
        layout = Layout(plaintext, words=STANDARD.primes * STANDARD.degree)
        self.residues = layout.read(plaintext).reshape(STANDARD.primes, -1)
        self.slots = seal.CKKSEncoder(context).decode_double(plaintext)


def seal_decrypted(
    total: Residues, public: Residues, key: np.ndarray, sizes: SumSizes
) -> SealMessage:
    """SEAL's Decryptor on the ciphertext (total, public), with a secret key of these coefficients."""
    ring = ring_of(STANDARD)
    context, degree = ring._ckks, STANDARD.degree
    # SEAL keeps keys modulo one more prime than ciphertexts: its own transform takes the key there.
    polynomial = seal.Plaintext()
    ring._small.fill(polynomial, ring._bfv, np.mod(key, 2 << SMALL_BITS).view(np.uint64))
    ring._to_ntt.transform_to_ntt_inplace(polynomial, ring._bfv.key_parms_id())
    words = (STANDARD.primes + 1) * degree
    secret = seal.KeyGenerator(context).secret_key()
    Layout(secret, words=words).fill(
        secret, context, Layout(polynomial, words=words).read(polynomial)
    )
    ciphertext = seal.Ciphertext(context)
    pair = np.concatenate([transformed(total).ravel(), public.ravel()])
    ring._pair.fill(ciphertext, context, pair)
    ciphertext.scale = 2.0**sizes.delta_exponent
    plaintext = seal.Plaintext()
    seal.Decryptor(context, secret).decrypt(ciphertext, plaintext)
    return SealMessage(plaintext, context)


def transformed(coefficients: Residues) -> Residues:
    """The transformed form of any polynomial: of its digits to the base 2**25, which are small."""
    ring = ring_of(STANDARD)
    p_0, p_1 = ring.primes
    digit = (coefficients[1].astype(object) - coefficients[0].astype(object)) * pow(p_0, -1, p_1)
    whole = coefficients[0].astype(object) + p_0 * (digit % p_1)
    total = np.zeros_like(coefficients)
    for place in range(0, 100, 25):
        small = ((whole >> place) % (1 << 25)).astype(np.int64)
        total = ring.add(total, ring.scaled(ring.transform(small), 1 << place))
    return total


@pytest.mark.parametrize("vector", VECTORS["sums"], ids=lambda vector: vector["name"])
def test_known_answer_of_a_whole_sum(vector):
    shape = {"standard": STANDARD, "light": LIGHT}[vector["name"]]
    blocks = blocks_of(shape, vector["dimension"])
    sizes = SIZES[shape](modulus_bits=vector["modulus_bits"], sites=vector["sites"])
    assert (sizes.delta_exponent, sizes.flooding_exponent) == tuple(vector["exponents"])
    vectors = integers_of(vector["sites"], blocks.dimension, bits=20)
    random = SeededRandom(vector["random_seed"], "ckks")
    keys, total = encrypted_by_all(blocks, sizes, vectors, random)
    assert [digest([key]) for key in keys] == vector["key_digests"]
    assert digest(total) == vector["sealed_digest"]
    source = random if sizes.flooding_exponent else None
    released = list(opening(blocks, sizes, key=keys[0], seed=SEED, random=source))
    assert digest(released) == vector["released_digest"]
    integers = opened(blocks, sizes, total, keys, random)
    assert hashlib.sha256(integers.astype("<i4").tobytes()).hexdigest() == vector["opened_digest"]
    assert (integers == np.sum(vectors, axis=0)).all()


def digest(polynomials: list[Residues]) -> str:
    hashed = hashlib.sha256()
    for polynomial in polynomials:
        hashed.update(polynomial.astype("<u8").tobytes())
    return hashed.hexdigest()
