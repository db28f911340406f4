"""A table with narrow and wide columns of every kind, and a model small enough for any test."""

import pytest
import torch

from model.build import build_model
from model.config import ModelConfig
from model.schema import CategoryColumn, LabelColumn, NumericColumn, TableSchema


@pytest.fixture
def table():
    return TableSchema(
        name="ward",
        version=1,
        columns=(
            NumericColumn(name="age", unit="year", minimum=0, maximum=120, bins=(20, 40, 60, 80)),
            CategoryColumn(name="sex", categories=("0", "1")),
            NumericColumn(name="pressure", unit="mmHg", minimum=50, maximum=300, bins=(90, 180)),
            CategoryColumn(name="pain", categories=("1", "2", "3", "4", "9")),
        ),
        label=LabelColumn(name="disease", positive_above=0),
    )


@pytest.fixture
def config():
    return ModelConfig(width=16, layers=2, heads=4, kv_heads=2, experts=4, top_k=2, expert_width=8)


@pytest.fixture
def values():
    """Nine rows; the first has all values missing, the second one of them."""
    generator = torch.Generator().manual_seed(7)
    uniform = torch.rand(9, 4, generator=generator)
    rows = torch.stack(
        [
            uniform[:, 0] * 100,
            (uniform[:, 1] * 2).floor(),
            uniform[:, 2] * 150 + 60,
            (uniform[:, 3] * 5).floor(),
        ],
        dim=1,
    )
    rows[0] = torch.nan
    rows[1, 2] = torch.nan
    return rows


@pytest.fixture
def model(config, table):
    """A model whose head listens to the trunk, as it does after the first step of training."""
    model = build_model(config, table, seed=3)
    with torch.no_grad():
        model.head.cls.weight.fill_(0.3)
        model.head.skip.weight.fill_(0.1)
    return model
