"""Packed slots: sums of the largest values never carry, and come back exactly."""

import numpy as np
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.fixed_point import FixedPoint
from privacy.paillier.slots import Slots
from tests.privacy.paillier_keys import ANSWERS, encoding_of


def slots_of(dimension, value_bits=22, max_addends=4, key_bits=3072):
    return Slots(
        dimension=dimension, encoding=encoding_of(value_bits, max_addends), key_bits=key_bits
    )


@pytest.mark.parametrize("case", ANSWERS["slots"])
def test_known_integers_give_known_plaintexts(case):
    integers = np.array(case["integers"], dtype=np.int32)
    slots = slots_of(len(integers), case["value_bits"], case["max_addends"], case["key_bits"])
    plaintexts = slots.pack(integers)
    assert [hex(plaintext) for plaintext in plaintexts] == case["plaintexts"]
    assert slots.unpack(plaintexts, addends=1).tolist() == case["integers"]


@st.composite
def vectors(draw):
    value_bits = draw(st.integers(2, 26))
    max_addends = draw(st.integers(1, 64))
    dimension = draw(st.integers(1, 60))
    slots = slots_of(dimension, value_bits, max_addends, key_bits=draw(st.integers(64, 600)))
    limit = slots.encoding.limit
    addends = draw(st.integers(1, max_addends))
    seed = draw(st.integers(0, 1 << 30))
    # All at one end, at the other, or anywhere: carries show first where every value is extreme.
    low, high = draw(st.sampled_from([(-limit, -limit), (limit, limit), (-limit, limit)]))
    integers = np.random.default_rng(seed).integers(low, high + 1, (addends, dimension))
    return slots, integers.astype(np.int32)


@settings(max_examples=150, deadline=None)
@given(vectors())
def test_sums_of_any_vectors_never_carry_into_the_next_slot(drawn):
    slots, integers = drawn
    packed = [slots.pack(vector) for vector in integers]
    sums = [sum(column, mpz(0)) for column in zip(*packed, strict=True)]
    assert all(total < 1 << (slots.key_bits - 1) for total in sums)
    assert (slots.unpack(sums, addends=len(integers)) == integers.sum(axis=0)).all()


@pytest.mark.parametrize("addends", [1, 2, 64])
@pytest.mark.parametrize("end", [-1, 1])
def test_as_many_extreme_values_as_planned_fill_the_slots_exactly(addends, end):
    slots = slots_of(200, value_bits=26, max_addends=64)
    vector = np.full(200, end * slots.encoding.limit, dtype=np.int32)
    sums = [addends * plaintext for plaintext in slots.pack(vector)]
    assert slots.encoding.modulus_bits == 32
    assert (slots.unpack(sums, addends=addends) == addends * vector.astype(np.int64)).all()


@pytest.mark.parametrize(("modulus_bits", "in_plaintext"), [(24, 127), (32, 95), (3, 1023)])
def test_as_many_slots_as_fit_are_used(modulus_bits, in_plaintext):
    slots = slots_of(10_000, value_bits=modulus_bits - 1, max_addends=2)
    assert slots.in_plaintext == in_plaintext
    assert slots.count == -(-10_000 // in_plaintext)


def test_values_of_24_bits_take_at_most_6_1_bytes_of_a_ciphertext_of_3072_bits():
    assert 768 * slots_of(1_000_000).count <= 6.1 * 1_000_000


@pytest.mark.parametrize("value", [1 << 21, -(1 << 21)])
def test_an_integer_beyond_the_limit_is_not_packed(value):
    with pytest.raises(ValueError, match="integers from -2097151 to 2097151"):
        slots_of(3).pack(np.array([0, value, 0], dtype=np.int32))


@pytest.mark.parametrize(
    "integers",
    [np.zeros(4, dtype=np.int32), np.zeros(3, dtype=np.int64), np.zeros((3, 1), dtype=np.int32)],
)
def test_another_shape_or_type_is_not_packed(integers):
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        slots_of(3).pack(integers)


def test_a_sum_beyond_the_reach_of_its_addends_is_refused():
    slots = slots_of(3)
    sums = [2 * plaintext for plaintext in slots.pack(np.full(3, slots.encoding.limit, np.int32))]
    with pytest.raises(ValueError, match="vectors within the limit can reach"):
        slots.unpack(sums, addends=1)


def test_a_value_behind_the_last_slot_of_the_vector_is_refused():
    slots = slots_of(3)
    (plaintext,) = slots.pack(np.zeros(3, dtype=np.int32))
    with pytest.raises(ValueError, match="vectors within the limit can reach"):
        slots.unpack([plaintext + (1 << 3 * 24)], addends=1)


def test_a_plaintext_longer_than_all_slots_is_refused():
    slots = slots_of(3)
    with pytest.raises(ValueError, match="fit their slots"):
        slots.unpack([mpz(1) << (127 * 24)], addends=1)


@pytest.mark.parametrize(("plaintexts", "addends"), [(0, 1), (2, 1), (1, 0), (1, 5)])
def test_another_number_of_plaintexts_or_addends_is_refused(plaintexts, addends):
    with pytest.raises(ValueError, match="Expected 1 plaintexts of 1 to 4 addends"):
        slots_of(3).unpack([mpz(0)] * plaintexts, addends=addends)


@pytest.mark.parametrize(("dimension", "key_bits"), [(0, 3072), (1, 24)])
def test_a_layout_without_room_is_refused(dimension, key_bits):
    with pytest.raises(ValueError, match="Expected"):
        slots_of(dimension, key_bits=key_bits)


def test_a_modulus_of_one_addend_has_no_headroom_to_waste():
    encoding = FixedPoint(value_range=1.0, max_addends=1, value_bits=32)
    slots = Slots(dimension=5, encoding=encoding, key_bits=200)
    vector = np.array([encoding.limit, -encoding.limit, 0, 1, -1], dtype=np.int32)
    assert (slots.unpack(slots.pack(vector), addends=1) == vector).all()
