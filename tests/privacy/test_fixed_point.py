"""Fixed point: exact, deterministic, and never wraps."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.fixed_point import BLOCK_COORDINATES, LARGEST_SUM, FixedPoint

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "secagg_fixed_point.json").read_text()
)
ranges = st.floats(min_value=1e-6, max_value=1e6)
addends = st.integers(min_value=1, max_value=64)


@pytest.mark.parametrize("case", VECTORS["good"])
def test_known_values_encode_to_known_integers(case):
    encoding = FixedPoint(value_range=case["value_range"], max_addends=case["max_addends"])
    words = encoding.encode(np.array([float.fromhex(value) for value in case["values"]]))
    assert (encoding.scale, encoding.limit) == (case["scale"], case["limit"])
    assert words.view(np.int32).tolist() == case["integers"]
    assert words.tolist() == case["words"]


@pytest.mark.parametrize("case", VECTORS["bad"])
def test_values_that_are_not_finite_are_refused(case):
    values = np.array([float.fromhex(value) for value in case["values"]])
    with pytest.raises(ValueError, match=case["why"]):
        FixedPoint(value_range=1.0, max_addends=4).encode(values)


def test_a_value_that_is_not_finite_is_found_in_every_block():
    values = np.zeros(2 * BLOCK_COORDINATES + 3, dtype=np.float32)
    values[-1] = np.inf
    with pytest.raises(ValueError, match=f"coordinate {len(values) - 1} "):
        FixedPoint(value_range=1.0, max_addends=4).encode(values)


@pytest.mark.parametrize(
    "values", [np.zeros((2, 2)), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.float16)]
)
def test_only_flat_vectors_of_floats_are_encoded(values):
    with pytest.raises(ValueError, match="Expected a flat float32 or float64 vector"):
        FixedPoint(value_range=1.0, max_addends=4).encode(values)


@pytest.mark.parametrize("value_range", [0.0, -1.0, np.nan, np.inf, 1e-13, 1e13])
def test_a_range_that_gives_no_sound_scale_is_refused(value_range):
    with pytest.raises(ValueError, match="value_range"):
        FixedPoint(value_range=value_range, max_addends=4)


@given(value_range=ranges, max_addends=addends)
def test_the_largest_possible_sum_fits_32_bits(value_range, max_addends):
    encoding = FixedPoint(value_range=value_range, max_addends=max_addends)
    assert max_addends * encoding.limit <= LARGEST_SUM
    assert 2.5 * max_addends * encoding.limit > LARGEST_SUM - max_addends * 3
    assert np.frexp(encoding.scale)[0] == 0.5


@given(value_range=ranges, max_addends=addends, data=st.data())
def test_encoding_is_within_half_a_step_and_odd(value_range, max_addends, data):
    encoding = FixedPoint(value_range=value_range, max_addends=max_addends)
    inside = st.floats(min_value=-value_range, max_value=value_range)
    values = np.array(data.draw(st.lists(inside, min_size=1, max_size=20)))
    decoded = encoding.decode(encoding.encode(values).view(np.int32))
    assert np.abs(decoded - values).max() <= 0.5 / encoding.scale
    assert (encoding.encode(-values) == -encoding.encode(values)).all()


@given(value_range=ranges, values=st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_no_finite_value_encodes_beyond_the_limit(value_range, values):
    encoding = FixedPoint(value_range=value_range, max_addends=3)
    integers = encoding.encode(np.array(values, dtype=np.float64)).view(np.int32)
    assert (np.abs(integers.astype(np.int64)) <= encoding.limit).all()


@given(integers=st.lists(st.integers(min_value=-(2**29), max_value=2**29), min_size=1))
def test_decoded_integers_encode_to_themselves(integers):
    encoding = FixedPoint(value_range=1.0, max_addends=2)
    expected = np.array(integers, dtype=np.int32)
    assert (encoding.encode(encoding.decode(expected)).view(np.int32) == expected).all()


@given(
    columns=st.lists(
        st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5), min_size=1, max_size=7
    )
)
def test_sums_modulo_2_to_the_32_are_sums_of_integers(columns):
    encoding = FixedPoint(value_range=1.5, max_addends=7)
    encoded = [encoding.encode(np.array(column, dtype=np.float32)) for column in columns]
    total = np.sum(encoded, axis=0, dtype=np.uint32)
    exact = sum(words.view(np.int32).astype(object) for words in encoded)
    assert (total.view(np.int32).astype(object) == exact).all()


def test_float32_and_float64_of_the_same_numbers_encode_alike():
    values = np.random.default_rng(7).uniform(-2, 2, 10_001).astype(np.float32)
    encoding = FixedPoint(value_range=1.1, max_addends=1)
    assert (encoding.encode(values) == encoding.encode(values.astype(np.float64))).all()
    assert np.abs(encoding.encode(values).view(np.int32)).max() == encoding.limit


def test_an_empty_vector_encodes_to_an_empty_vector():
    assert len(FixedPoint(value_range=1.0, max_addends=4).encode(np.zeros(0))) == 0
