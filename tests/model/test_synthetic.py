import dataclasses

import pytest
import torch

from model.schema import NumericColumn
from model.synthetic import synthetic_labels, synthetic_rows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rows(table):
    return synthetic_rows(table, 2000, generator())


def test_rows_have_the_form_that_the_model_takes(rows, model):
    assert rows.shape == (2000, 4)
    assert rows.dtype == torch.float32
    assert model.eval()(rows).isfinite().all()


def test_quantities_fill_the_published_range(rows):
    age = rows[:, 0][~rows[:, 0].isnan()]

    assert 0 <= age.min() < 5
    assert 115 < age.max() <= 120


def test_categories_are_all_codes_of_the_column_and_no_other_number(rows):
    assert rows[:, 3][~rows[:, 3].isnan()].unique().tolist() == [0, 1, 2, 3, 4]


def test_a_tenth_of_the_values_is_missing(rows):
    # 8000 draws: standard error 0.0034.
    assert abs(rows.isnan().float().mean().item() - 0.1) < 0.015


def test_column_that_may_not_be_missing_never_is(table):
    whole = NumericColumn(
        name="height", unit="cm", minimum=50, maximum=250, bins=(100, 200), nullable=False
    )
    wider = dataclasses.replace(table, columns=(*table.columns, whole))

    assert not synthetic_rows(wider, 500, generator())[:, 4].isnan().any()


def test_rows_follow_their_generator(table):
    first, second = (synthetic_rows(table, 20, generator(seed)) for seed in (1, 2))

    assert torch.equal(first.nan_to_num(), synthetic_rows(table, 20, generator(1)).nan_to_num())
    assert not torch.equal(first.nan_to_num(), second.nan_to_num())


def test_no_row_is_possible(table):
    rows = synthetic_rows(table, 0, generator())

    assert rows.shape == (0, 4)
    assert synthetic_labels(rows, table, generator()).shape == (0,)


def test_negative_count_is_refused(table):
    with pytest.raises(ValueError, match="count=-1"):
        synthetic_rows(table, -1, generator())


def test_labels_are_of_both_classes(rows, table):
    labels = synthetic_labels(rows, table, generator(4))

    assert labels.unique().tolist() == [0.0, 1.0]
    assert 0.4 < labels.mean().item() < 0.6


def test_labels_can_be_learnt_from_the_rows(rows, table):
    labels = synthetic_labels(rows, table, generator(4))
    places = (rows / torch.tensor([120.0, 2.0, 300.0, 5.0]) - 0.5).nan_to_num(nan=0.0)

    solution = torch.linalg.lstsq(places, labels - 0.5).solution

    assert ((places @ solution > 0) == labels.bool()).float().mean() > 0.75
