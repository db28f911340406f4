"""Fixed point: exact but for the rounding, which is unbiased; never wraps."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.fixed_point import BLOCK_COORDINATES, FixedPoint
from privacy.randomness import OsRandom, SeededRandom

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "secagg_fixed_point.json").read_text()
)
ranges = st.floats(min_value=1e-6, max_value=1e6)
addends = st.integers(min_value=1, max_value=64)
value_bits = st.integers(min_value=2, max_value=26)
finite = st.floats(allow_nan=False, allow_infinity=False)


def encoding_of(**changes):
    return FixedPoint(**({"value_range": 1.0, "max_addends": 4, "value_bits": 24} | changes))


@pytest.mark.parametrize("case", VECTORS["good"])
def test_known_values_and_coins_encode_to_known_integers(case):
    encoding = FixedPoint(
        value_range=case["value_range"],
        max_addends=case["max_addends"],
        value_bits=case["value_bits"],
    )
    values = np.array([float.fromhex(value) for value in case["values"]])
    integers = encoding.encode(values, SeededRandom(case["seed"]))
    assert (encoding.scale, encoding.limit) == (case["scale"], case["limit"])
    assert encoding.modulus_bits == case["modulus_bits"]
    assert integers.dtype == np.int32
    assert integers.tolist() == case["integers"]


@pytest.mark.parametrize("case", VECTORS["bad"])
def test_values_that_are_not_finite_are_refused(case):
    values = np.array([float.fromhex(value) for value in case["values"]])
    with pytest.raises(ValueError, match=case["why"]):
        encoding_of().encode(values, OsRandom())


def test_a_value_that_is_not_finite_is_found_in_every_block():
    values = np.zeros(2 * BLOCK_COORDINATES + 3, dtype=np.float32)
    values[-1] = np.inf
    with pytest.raises(ValueError, match=f"coordinate {len(values) - 1} "):
        encoding_of().encode(values, OsRandom())


@pytest.mark.parametrize(
    "values", [np.zeros((2, 2)), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.float16)]
)
def test_only_flat_vectors_of_floats_are_encoded(values):
    with pytest.raises(ValueError, match="Expected a flat float32 or float64 vector"):
        encoding_of().encode(values, OsRandom())


@pytest.mark.parametrize("value_range", [0.0, -1.0, np.nan, np.inf, 1e-13, 1e13])
def test_a_range_that_gives_no_sound_scale_is_refused(value_range):
    with pytest.raises(ValueError, match="value_range"):
        encoding_of(value_range=value_range)


@pytest.mark.parametrize("max_addends", [0, -1, 65_537])
def test_a_number_of_addends_out_of_bounds_is_refused(max_addends):
    with pytest.raises(ValueError, match="max_addends"):
        encoding_of(max_addends=max_addends, value_bits=8)


@pytest.mark.parametrize(("max_addends", "most"), [(1, 32), (2, 31), (3, 30), (60, 26), (64, 26)])
def test_bits_are_refused_as_soon_as_a_sum_could_wrap(max_addends, most):
    assert encoding_of(max_addends=max_addends, value_bits=most).modulus_bits == 32
    with pytest.raises(ValueError, match=f"of at most {most}: the sum of {max_addends} sites"):
        encoding_of(max_addends=max_addends, value_bits=most + 1)


@pytest.mark.parametrize("bits", [1, 0, -3])
def test_fewer_than_two_bits_hold_no_value(bits):
    with pytest.raises(ValueError, match=f"value_bits={bits}"):
        encoding_of(value_bits=bits)


@given(value_range=ranges, max_addends=addends, bits=value_bits)
def test_the_largest_possible_sum_fits_the_modulus_and_its_half_would_not(
    value_range, max_addends, bits
):
    encoding = FixedPoint(value_range=value_range, max_addends=max_addends, value_bits=bits)
    assert max_addends * encoding.limit < 2 ** (encoding.modulus_bits - 1)
    assert max_addends * 2 ** (bits - 1) > 2 ** (encoding.modulus_bits - 2)


@given(value_range=ranges, bits=value_bits)
def test_the_scale_is_the_largest_power_of_two_that_keeps_values_in_their_bits(value_range, bits):
    scale = encoding_of(value_range=value_range, value_bits=bits).scale
    assert np.frexp(scale)[0] == 0.5
    assert value_range * scale <= 2 ** (bits - 1) < 2 * value_range * scale


@given(value_range=ranges, bits=value_bits, data=st.data())
def test_a_value_is_rounded_to_one_of_its_two_neighbours(value_range, bits, data):
    encoding = encoding_of(value_range=value_range, value_bits=bits)
    end = min(value_range, encoding.limit / encoding.scale)
    inside = st.floats(min_value=-end, max_value=end)
    values = np.array(data.draw(st.lists(inside, min_size=1, max_size=20)))
    integers = encoding.encode(values, OsRandom())
    steps = values * encoding.scale
    assert ((integers == np.floor(steps)) | (integers == np.ceil(steps))).all()


@given(value_range=ranges, values=st.lists(finite))
def test_no_finite_value_encodes_beyond_the_limit(value_range, values):
    encoding = encoding_of(value_range=value_range)
    integers = encoding.encode(np.array(values, dtype=np.float64), OsRandom())
    assert (np.abs(integers.astype(np.int64)) <= encoding.limit).all()


def test_the_end_of_a_range_that_is_a_power_of_two_loses_one_step():
    encoding = encoding_of()
    integers = encoding.encode(np.array([1.0, -1.0, 1e300, -1e300]), OsRandom())
    assert integers.tolist() == [2**23 - 1, 1 - 2**23, 2**23 - 1, 1 - 2**23]


@given(integers=st.lists(st.integers(min_value=1 - 2**23, max_value=2**23 - 1), min_size=1))
def test_decoded_integers_encode_to_themselves(integers):
    encoding = encoding_of()
    expected = np.array(integers, dtype=np.int32)
    assert (encoding.encode(encoding.decode(expected), OsRandom()) == expected).all()


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float64])
def test_only_signed_integers_of_32_bits_are_decoded(dtype):
    with pytest.raises(ValueError, match="Expected int32"):
        encoding_of().decode(np.zeros(3, dtype=dtype))


@given(
    columns=st.lists(
        st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5), min_size=1, max_size=7
    ),
    bits=st.integers(min_value=2, max_value=29),
)
def test_sums_modulo_the_modulus_are_sums_of_integers(columns, bits):
    encoding = encoding_of(value_range=1.5, max_addends=7, value_bits=bits)
    encoded = [
        encoding.encode(np.array(column, dtype=np.float32), OsRandom()) for column in columns
    ]
    total = np.sum([part.view(np.uint32) for part in encoded], axis=0, dtype=np.uint32)
    total &= np.uint32(2**encoding.modulus_bits - 1)
    assert encoding.signed(total).tolist() == sum(part.astype(object) for part in encoded).tolist()


def test_bits_above_the_modulus_do_not_count():
    encoding = encoding_of(max_addends=4, value_bits=6)
    words = np.array([0xFF, 0x7F, 0x80, 0xFFFFFF01, 0xABCDEF80], dtype=np.uint32)
    assert encoding.signed(words).tolist() == [-1, 127, -128, 1, -128]


def test_float32_and_float64_of_the_same_numbers_encode_alike():
    values = np.random.default_rng(7).uniform(-2, 2, 10_001).astype(np.float32)
    encoding = encoding_of(value_range=1.1)
    narrow, wide = (
        encoding.encode(part, SeededRandom(3)) for part in (values, values.astype(np.float64))
    )
    assert (narrow == wide).all()
    assert np.abs(narrow).max() == encoding.limit


def test_an_empty_vector_encodes_to_an_empty_vector():
    assert len(encoding_of().encode(np.zeros(0), OsRandom())) == 0


@pytest.mark.statistical
@pytest.mark.parametrize("fraction", [0.5, 0.25, 1 / 3, 0.9, 0.01, -0.5, -0.2, 1000.125])
def test_rounding_is_unbiased(fraction):
    # The mean of n roundings has standard deviation sqrt(p (1 - p) / n) around the value itself. Six of them are
    # exceeded with probability 2e-9.
    count = 400_000
    encoding = encoding_of()
    values = np.full(count, fraction / encoding.scale)
    integers = encoding.encode(values, SeededRandom(11))
    up = fraction % 1
    assert abs(integers.mean() - fraction) < 6 * np.sqrt(up * (1 - up) / count)


@pytest.mark.statistical
@pytest.mark.parametrize("lag", [1, 2, BLOCK_COORDINATES, 2 * BLOCK_COORDINATES])
def test_coordinates_are_rounded_independently(lag):
    # Halves go up or down like fair coins: agreements of n pairs are binomial. Six standard deviations, 2e-9.
    encoding = encoding_of()
    values = np.full(4 * BLOCK_COORDINATES, 0.5 / encoding.scale)
    went_up = encoding.encode(values, SeededRandom(12)) == 1
    agreements = (went_up[lag:] == went_up[:-lag]).mean()
    assert abs(agreements - 0.5) < 6 * np.sqrt(0.25 / (len(values) - lag))


def test_the_same_values_are_rounded_differently_every_time():
    encoding = encoding_of()
    values = np.full(1000, 0.5 / encoding.scale)
    first, second = encoding.encode(values, OsRandom()), encoding.encode(values, OsRandom())
    assert (first != second).any()
