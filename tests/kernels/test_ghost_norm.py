"""Ghost norms against the twin that forms every gradient, in float64."""

import pytest
import torch

from kernels.ghost_norm import grouped_outer_sum_squared_norms, outer_sum_squared_norms
from kernels.ghost_norm.reference import (
    grouped_outer_sum_squared_norms_reference,
    outer_sum_squared_norms_reference,
)

# Relative error of a squared norm. float32: rounding of the products, and what the Gram way adds on purpose, 3e-7 times
# the number of rows. Half precision is widened first, so it is no worse.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
# units, rows, inputs, outputs, groups
SIZES = [
    pytest.param(5, 1, 8, 12, 3, id="one-row"),
    pytest.param(5, 7, 64, 48, 4, id="gram"),
    pytest.param(5, 40, 16, 8, 4, id="formed"),
    pytest.param(4, 33, 7, 5, 3, id="formed-odd-sizes"),
    pytest.param(3, 9, 33, 17, 2, id="gram-odd-sizes"),
    pytest.param(40, 130, 256, 256, 2, id="formed-in-pieces"),
    pytest.param(4, 50, 8, 8, 200, id="mostly-empty-groups"),
]


def operands(units, rows, inputs, outputs, groups, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(units, rows, inputs, generator=generator).to(dtype)
    g = torch.randn(units, rows, outputs, generator=generator).to(dtype)
    return x, g, torch.randint(groups, (units, rows), generator=generator)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, as torch sees to in this mode: a result left unwritten cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("units", "rows", "inputs", "outputs", "groups"), SIZES)
def test_norms_equal_the_reference_in_float64(units, rows, inputs, outputs, groups, dtype):
    x, g, ids = operands(units, rows, inputs, outputs, groups, dtype)

    found = outer_sum_squared_norms(x, g)
    found_grouped = grouped_outer_sum_squared_norms(x, g, ids, groups)

    expected = outer_sum_squared_norms_reference(x.double(), g.double())
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=0.0)
    expected = grouped_outer_sum_squared_norms_reference(x.double(), g.double(), ids, groups)
    torch.testing.assert_close(found_grouped.double(), expected, rtol=TOLERANCE[dtype], atol=0.0)


def test_no_rows_have_norm_zero():
    x, g, ids = operands(3, 0, 8, 4, 2, torch.float32)
    assert outer_sum_squared_norms(x, g).tolist() == [0.0] * 3
    assert grouped_outer_sum_squared_norms(x, g, ids, 2).tolist() == [0.0] * 3


def test_no_units_have_no_norms():
    x, g, ids = operands(0, 40, 16, 8, 2, torch.float32)
    assert outer_sum_squared_norms(x, g).shape == (0,)
    assert grouped_outer_sum_squared_norms(x, g, ids, 2).shape == (0,)


@pytest.mark.parametrize("rows", [7, 40], ids=["gram", "formed"])
@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_shows_in_its_own_unit_alone(rows, spoilt):
    x, g, ids = operands(4, rows, 32, 32, 3, torch.float32)
    x[1, 2, 3] = spoilt

    expected = [True, False, True, True]
    assert outer_sum_squared_norms(x, g).isfinite().tolist() == expected
    assert grouped_outer_sum_squared_norms(x, g, ids, 3).isfinite().tolist() == expected


@pytest.mark.parametrize("remainder", [0.0, 1e-4, 1e-2])
def test_rows_of_one_group_that_cancel_do_not_make_a_norm_too_small(remainder):
    x, g, ids = operands(5, 8, 64, 48, 3, torch.float32)
    x[:, 4:], ids[:, 4:] = x[:, :4], ids[:, :4]
    g[:, 4:] = -(1.0 - remainder) * g[:, :4]

    found = grouped_outer_sum_squared_norms(x, g, ids, 3).double()

    expected = grouped_outer_sum_squared_norms_reference(x.double(), g.double(), ids, 3)
    assert (found >= expected * (1.0 - 1e-5)).all()


@pytest.mark.parametrize(
    ("x", "g", "ids", "message"),
    [
        ((2, 3, 4), (2, 4, 4), (2, 3), r"rows \[B, T, I\] and gradients"),
        ((2, 3), (2, 3), (2, 3), r"rows \[B, T, I\] and gradients"),
        ((2, 3, 4), (2, 3, 4), (2, 4), r"ids \(2, 3\)"),
    ],
)
def test_operands_outside_the_contract_are_refused(x, g, ids, message):
    with pytest.raises(ValueError, match=message):
        grouped_outer_sum_squared_norms(
            torch.zeros(x), torch.zeros(g), torch.zeros(ids, dtype=torch.int64), 2
        )
