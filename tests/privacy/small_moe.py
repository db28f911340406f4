"""The real model, small, with records; and clipped sums made one unit at a time."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from model.build import TabularModel, build_model
from model.config import ModelConfig
from model.gradient_rules import MODEL_RULES
from model.schema import CategoryColumn, LabelColumn, NumericColumn, TableSchema
from privacy.dp.clipping import LossPerRecord, PlainSum, trainable_parameters
from privacy.dp.rules import STANDARD_RULES, LayerRule

RULES: Mapping[type[nn.Module], LayerRule] = {**STANDARD_RULES, **MODEL_RULES}
RECORDS = 9
TABLE = TableSchema(
    name="small",
    version=1,
    columns=(
        NumericColumn(name="age", unit="a", minimum=0.0, maximum=1.0, bins=(0.0, 0.5, 1.0)),
        NumericColumn(name="pulse", unit="1", minimum=0.0, maximum=1.0, bins=(0.0, 1.0)),
        CategoryColumn(name="ward", categories=("a", "b", "c")),
    ),
    label=LabelColumn(name="ill", positive_above=0.5),
)
CONFIG = ModelConfig(
    width=16, layers=2, heads=2, kv_heads=1, experts=8, top_k=2, expert_width=8, gumbel_scale=0.0
)


def moe_model() -> TabularModel:
    """With every trained weight away from zero, so that every layer has a gradient."""
    model = build_model(CONFIG, TABLE, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def records(count: int = RECORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(count, 3, generator=generator)
    values[:, 2] = torch.randint(3, (count,), generator=generator)
    values[1:2, 0] = torch.nan
    return values, (values[:, 1] > 0.5).float()


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def flat(model: nn.Module, sums: Sequence[Tensor | None]) -> Tensor:
    parameters = trainable_parameters(model).values()
    pieces = [
        torch.zeros_like(parameter).flatten() if total is None else total.flatten()
        for parameter, total in zip(parameters, sums, strict=True)
    ]
    return torch.cat(pieces).detach()


def one_by_one(
    model: nn.Module, values: Tensor, labels: Tensor, loss_per_record: LossPerRecord = loss
) -> Tensor:
    """Each record's gradient [N, P] in float64."""
    alone = PlainSum(model, loss_per_record)
    rows = [alone(values[i : i + 1], labels[i : i + 1]).gradients for i in range(len(values))]
    return torch.stack([flat(model, row) for row in rows]).double()


def clipped_rows(gradients_UP: Tensor, bound: float) -> Tensor:
    """Sum of gradients, each clipped [P]."""
    norms_U = gradients_UP.square().sum(1).sqrt()
    return (gradients_UP * (bound / norms_U).clamp(max=1.0).unsqueeze(1)).sum(0)


def median_norm(gradients_UP: Tensor) -> float:
    return float(gradients_UP.square().sum(1).sqrt().median())
