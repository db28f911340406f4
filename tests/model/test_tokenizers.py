import pytest
import torch

from model.tokenizers import FeatureLinear, TabularEncoder

NAN = float("nan")


def encoded(table, age=50.0, sex=0.0, pressure=120.0, pain=0.0):
    return TabularEncoder(table).encode(torch.tensor([[age, sex, pressure, pain]]))[0]


def test_encoding_has_a_token_for_cls_and_for_each_column(table):
    assert encoded(table).shape == (5, 7) == table.encoding_shape


def test_cls_token_holds_only_the_constant(table):
    assert encoded(table)[0].tolist() == [1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("age", "bins"),
    [
        (30.0, [0.5, 0, 0]),
        (40.0, [1, 0, 0]),
        (55.0, [1, 0.75, 0]),
        (80.0, [1, 1, 1]),
        (90.0, [1, 1, 1.5]),
        (10.0, [-0.5, 0, 0]),
    ],
)
def test_quantity_fills_its_bins_piecewise_linearly(table, age, bins):
    assert encoded(table, age=age)[1].tolist() == [1, 0, *bins, 0, 0]


def test_column_of_one_bin_is_linear_on_both_sides(table):
    high, low = encoded(table, pressure=270.0), encoded(table, pressure=45.0)

    assert (high[3, 2].item(), low[3, 2].item()) == (2.0, pytest.approx(-40 / 90))


def test_category_is_one_hot(table):
    assert encoded(table, pain=4.0)[4].tolist() == [1, 0, 0, 0, 0, 0, 1]


def test_missing_values_have_a_slot_of_their_own(table):
    tokens = encoded(table, age=NAN, pain=NAN)

    assert tokens[1].tolist() == tokens[4].tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_infinite_values_count_as_the_ends_of_the_range(table):
    torch.testing.assert_close(
        encoded(table, age=float("inf"), pressure=float("-inf")),
        encoded(table, age=120.0, pressure=50.0),
    )


def test_encoding_does_not_depend_on_other_rows(table, values):
    encoder = TabularEncoder(table)

    torch.testing.assert_close(encoder.encode(values)[3:4], encoder.encode(values[3:4]))


def test_empty_batch_is_encoded(table):
    encoder = TabularEncoder(table)

    flat = encoder.flatten(encoder.encode(torch.zeros(0, 4)))

    assert flat.shape == (0, table.flat_encoding_width)


def test_flat_encoding_holds_missing_and_value_slots_in_order(table):
    encoder = TabularEncoder(table)

    flat = encoder.flatten(encoder.encode(torch.tensor([[55.0, NAN, 135.0, 1.0]])))

    assert flat[0].tolist() == [0, 1, 0.75, 0, 1, 0, 0, 0, 0.5, 0, 0, 1, 0, 0, 0]


def test_wrong_number_of_columns_is_refused(table):
    with pytest.raises(ValueError, match=r"Expected values \[B, 4\], got \(2, 5\)"):
        TabularEncoder(table).encode(torch.zeros(2, 5))


def test_feature_linear_is_a_matrix_per_token():
    layer = FeatureLinear(3, 4, 8)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(layer.weight, generator=generator)
    encoding = torch.randn(5, 3, 4, generator=generator)

    torch.testing.assert_close(
        layer(encoding), torch.einsum("bfw,fwd->bfd", encoding, layer.weight)
    )
