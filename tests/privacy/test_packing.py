"""Words of a few bits: the known bytes, back again, and nothing that `pack` would not have written."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.packing import add_packed, pack, packed_bytes, unpack

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "secagg_packing.json").read_text())
all_words = st.lists(st.integers(min_value=0, max_value=2**32 - 1), min_size=1, max_size=100)
some_bits = st.integers(min_value=1, max_value=32)


@pytest.mark.parametrize("case", VECTORS["good"])
def test_known_words_pack_to_known_bytes(case):
    packed = pack(np.array(case["words"], dtype=np.uint32), case["bits"])
    assert packed.hex() == case["packed"]
    words = unpack(packed, case["bits"], len(case["words"]))
    assert words.tolist() == [word % 2 ** case["bits"] for word in case["words"]]


@pytest.mark.parametrize("case", VECTORS["bad"])
def test_bytes_that_no_words_pack_to_are_refused(case):
    with pytest.raises(ValueError, match=case["why"]):
        unpack(bytes.fromhex(case["packed"]), case["bits"], case["count"])


@given(words=all_words, bits=some_bits)
def test_the_lowest_bits_of_every_word_come_back(words, bits):
    packed = pack(np.array(words, dtype=np.uint32), bits)
    assert len(packed) == packed_bytes(len(words), bits)
    assert unpack(packed, bits, len(words)).tolist() == [word % 2**bits for word in words]


@given(bits=some_bits, count=st.integers(min_value=1, max_value=70), data=st.data())
def test_what_unpacks_packs_to_the_same_bytes(bits, count, data):
    size = packed_bytes(count, bits)
    packed = data.draw(st.binary(min_size=size, max_size=size))
    try:
        words = unpack(packed, bits, count)
    except ValueError:
        return
    assert pack(words, bits) == packed


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 104), (32, 104), (33, 208)])
def test_a_vector_takes_its_bits_rounded_up_to_32_coordinates(count, expected):
    assert packed_bytes(count, 26) == expected


def test_ten_million_words_of_26_bits_take_hardly_more_than_26_bits_each():
    assert packed_bytes(10_000_000, 26) < 10_000_000 * 26 / 8 * 1.001


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_a_width_out_of_bounds_is_refused(bits):
    with pytest.raises(ValueError, match=f"bits={bits}"):
        pack(np.zeros(1, dtype=np.uint32), bits)


@pytest.mark.parametrize("bits", [1, 7, 16, 17, 26, 31, 32])
def test_adding_packed_words_is_adding_words_modulo_the_bits(bits):
    generator = np.random.default_rng(bits)
    total, words = generator.integers(0, 1 << 32, (2, 320), dtype=np.uint64).astype(np.uint32)
    expected = total + words
    add_packed(total, pack(words, bits), bits)
    assert ((total ^ expected) & np.uint32((1 << bits) - 1) == 0).all()


@pytest.mark.parametrize("count", [31, 64])
def test_packed_words_of_another_number_are_not_added(count):
    with pytest.raises(ValueError, match=f"for {count} words of 8 bits"):
        add_packed(np.zeros(count, np.uint32), bytes(32), 8)
