"""The grouped product against its reference twin, outputs and every gradient, and against its own contract."""

import pytest
import torch

from kernels.grouped_mm import grouped_matmul, grouped_outer
from kernels.grouped_mm.reference import grouped_matmul_reference, grouped_outer_reference

# Largest error relative to the largest number of the float64 result, for sums of up to 130 terms: float32 gathers a few
# roundings of partial sums, the half precisions accumulate wider and round the result once (2^-8 and 2^-11, doubled).
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SIZES = [
    pytest.param([5, 0, 9, 2], 8, 16, id="empty-expert"),
    pytest.param([0, 0, 7], 32, 8, id="one-busy-expert"),
    pytest.param([0, 0, 0], 8, 8, id="no-rows"),
    pytest.param([3, 1, 4], 7, 5, id="odd-sizes"),
    pytest.param([1], 4, 4, id="one-row"),
    pytest.param([130, 3, 61, 0, 17, 0], 64, 128, id="uneven"),
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, as torch sees to in this mode: a result left unwritten cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def offsets_of(counts):
    return torch.tensor(counts).cumsum(0).to(torch.int32)


def with_gradients(product, rows, weights, offsets, upstream):
    rows, weights = rows.clone().requires_grad_(), weights.clone().requires_grad_()
    result = product(rows, weights, offsets)
    result.backward(upstream)
    return result.detach(), rows.grad, weights.grad


def limits(dtype, expected):
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return {"rtol": 0.0, "atol": TOLERANCE[dtype] * largest}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("counts", "inputs", "outputs"), SIZES)
def test_result_and_gradients_equal_the_reference_in_float64(dtype, counts, inputs, outputs):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(counts), inputs, generator=generator).to(dtype)
    weights = torch.randn(len(counts), inputs, outputs, generator=generator).to(dtype)
    upstream = torch.randn(sum(counts), outputs, generator=generator).to(dtype)
    offsets = offsets_of(counts)

    found = with_gradients(grouped_matmul, rows, weights, offsets, upstream)

    expected = with_gradients(
        grouped_matmul_reference, rows.double(), weights.double(), offsets, upstream.double()
    )
    torch.testing.assert_close(found[0].double(), expected[0], **limits(dtype, expected[0]))
    torch.testing.assert_close(found[1].double(), expected[1], **limits(dtype, expected[1]))
    torch.testing.assert_close(found[2].double(), expected[2], **limits(dtype, expected[2]))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("counts", "inputs", "outputs"), SIZES)
def test_outer_products_equal_the_reference_in_float64(dtype, counts, inputs, outputs):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(counts), inputs, generator=generator).to(dtype)
    grads = torch.randn(sum(counts), outputs, generator=generator).to(dtype)
    offsets = offsets_of(counts)

    found = grouped_outer(rows, grads, offsets)

    expected = grouped_outer_reference(rows.double(), grads.double(), offsets)
    torch.testing.assert_close(found.double(), expected, **limits(dtype, expected))


def test_autocast_reaches_the_grouped_product():
    rows, weights = torch.ones(4, 8), torch.ones(2, 8, 8, requires_grad=True)

    with torch.autocast("cpu", torch.bfloat16):
        result = grouped_matmul(rows, weights, offsets_of([1, 3]))
    (grad,) = torch.autograd.grad(result.float().sum(), [weights])

    assert result.dtype == torch.bfloat16
    assert grad.dtype == torch.float32
    assert grad[:, 0, 0].tolist() == [1.0, 3.0]


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", torch.bfloat16):
        result = grouped_matmul(
            torch.ones(4, 8).double(), torch.ones(1, 8, 8).double(), offsets_of([4])
        )
    assert result.dtype == torch.float64


@pytest.mark.parametrize(
    ("grads", "offsets", "message"),
    [
        ((3, 4), [2, 4], r"rows \[N, I\] and gradients"),
        ((4,), [2, 4], r"rows \[N, I\] and gradients"),
        ((4, 4), [2, 3], "end at 4 rows"),
        ((4, 4), [[2, 4]], "int32"),
    ],
)
def test_outer_operands_outside_the_contract_are_refused(grads, offsets, message):
    with pytest.raises(ValueError, match=message):
        grouped_outer(
            torch.zeros(4, 4), torch.zeros(grads), torch.tensor(offsets, dtype=torch.int32)
        )


def test_reference_gradients_equal_finite_differences():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(3, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)

    assert torch.autograd.gradcheck(grouped_matmul, (rows, weights, offsets_of([4, 0, 2])))


def test_expanded_gradient_is_taken():
    rows, weights = torch.ones(4, 4), torch.ones(2, 4, 4, requires_grad=True)

    result = grouped_matmul(rows, weights, offsets_of([1, 3]))
    (grad,) = torch.autograd.grad(result.sum(), [weights])

    assert grad[:, 0, 0].tolist() == [1.0, 3.0]


def test_transposed_operands_are_taken():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(8, 6, generator=generator).t()
    weights = torch.randn(2, 4, 8, generator=generator).transpose(1, 2)
    offsets = offsets_of([2, 4])

    found = grouped_matmul(rows, weights, offsets)

    torch.testing.assert_close(found, grouped_matmul_reference(rows, weights, offsets))


def test_gradient_of_the_weights_alone_is_enough():
    weights = torch.ones(2, 4, 4, requires_grad=True)

    result = grouped_matmul(torch.ones(4, 4), weights, offsets_of([0, 4]))
    (grad,) = torch.autograd.grad(result.sum(), [weights])

    assert grad[:, 0, 0].tolist() == [0.0, 4.0]


def test_fresh_memory_is_poisoned_in_these_tests():
    assert torch.empty(4).isnan().all()


@pytest.mark.parametrize(
    ("rows", "weights", "offsets", "message"),
    [
        ((4, 8), (2, 4, 4), [2, 4], r"rows \[N, I\] and weights"),
        ((4,), (2, 4, 4), [2, 4], r"rows \[N, I\] and weights"),
        ((4, 4), (2, 4, 4), [4], "offsets of 2 int32"),
        ((4, 4), (2, 4, 4), [2, 3], "end at 4 rows"),
        ((4, 4), (2, 4, 4), [2, 5], "end at 4 rows"),
        ((4, 4), (2, 4, 4), [5, 4], "never fall"),
        ((4, 4), (2, 4, 4), [-1, 4], "never fall"),
    ],
)
def test_operands_outside_the_contract_are_refused(rows, weights, offsets, message):
    with pytest.raises(ValueError, match=message):
        grouped_matmul(
            torch.zeros(rows), torch.zeros(weights), torch.tensor(offsets, dtype=torch.int32)
        )


def test_offsets_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match="int32"):
        grouped_matmul(torch.zeros(4, 4), torch.zeros(1, 4, 4), torch.tensor([4]))


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match="one dtype"):
        grouped_matmul(torch.zeros(4, 4), torch.zeros(1, 4, 4).double(), offsets_of([4]))
