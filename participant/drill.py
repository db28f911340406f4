"""The drill: the audit of `privacy.audit` on this machine, with the code that is installed here, on made-up patients.

A hospital runs it before it joins, or whenever it doubts. It needs the consortium's published schema and nothing else:
no coordinator, no keys, no budget, and never the site's records, which it could not even find.

1. The released noise: deviation, shape, grid, and whether any output betrays a 0 or a 1.
2. The sensitivity of the clipped sum of the real model, with the loss that training uses.
3. Canaries through the real training loop: what of them can be read from the weights, against the declared epsilon.
4. Variants that are broken on purpose. Each must set off the alarm, or the drill has failed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from model.build import build_model
from model.config import TIERS, ModelConfig
from model.routing import RoutedModel
from model.schema import TableSchema, load_schema
from model.synthetic import synthetic_labels, synthetic_rows
from participant.errors import ConfigError
from participant.training import RULES, record_loss
from privacy.audit.report import AuditLine, AuditReport
from privacy.audit.subject import Batch
from privacy.audit.suite import Subject, arrange, audit, hostile, scramble
from privacy.dp.clipping import GradientSum, LossPerRecord, clipped_sum
from privacy.dp.dpsgd import train
from privacy.dp.noise import sum_grid
from privacy.randomness import OsRandom, Random

PATIENTS = 12
POOL = 24
"""Made-up patients to choose from: two that use different experts are needed."""
RECORDS_EACH = 2
OUTLIER, NOT_FINITE = 0, 5
CLIPPING_NORM = 0.5
BALANCE_LOSS = 0.01
SEED = 1
"""Of the made-up patients and weights. The noise under test has no seed."""


def drill(
    schema: TableSchema,
    config: ModelConfig,
    *,
    random: Random | None = None,
    progress: Callable[[AuditLine], None] | None = None,
) -> AuditReport:
    """Audits the installed code on the model of `config` for tables of `schema`.

    Args:
        schema: the published schema; made-up patients are drawn from its ranges.
        config: the model's sizes.
        random: the operating system's randomness by default, as in use.
        progress: told each line as soon as it is known.
    """
    return audit(_subject(schema, config), random or OsRandom(), progress=progress)


def _subject(schema: TableSchema, config: ModelConfig) -> Subject:
    # Routing noise is secret and drawn for a batch as a whole; without it the sums of two batches can be compared.
    model = RoutedModel(build_model(replace(config, gumbel_scale=0.0), schema, seed=SEED))
    scramble(model, seed=SEED)
    loss = record_loss(BALANCE_LOSS)
    batch, later = arrange(model, loss, _made_up(schema), units=PATIENTS)
    return Subject(
        train=train,
        open_sum=_open_sum,
        grid_of=lambda bound, dimension: sum_grid(bound=bound, dimension=dimension),
        model=model,
        loss_per_record=loss,
        batch=hostile(batch, outlier=OUTLIER, not_finite=NOT_FINITE),
        later=later,
        not_finite=(NOT_FINITE,),
        clipping_norm=CLIPPING_NORM,
    )


def _made_up(schema: TableSchema) -> Batch:
    generator = torch.Generator().manual_seed(SEED)
    values = synthetic_rows(schema, POOL * RECORDS_EACH, generator)
    return Batch(
        inputs=values,
        labels=synthetic_labels(values, schema, generator),
        units=torch.arange(POOL).repeat_interleave(RECORDS_EACH),
    )


def _open_sum(
    model: nn.Module, loss_per_record: LossPerRecord, /, *, clipping_norm: float
) -> AbstractContextManager[GradientSum]:
    return clipped_sum(model, loss_per_record, clipping_norm=clipping_norm, rules=RULES)


def run_drill(
    schema: Path, tier: str, *, progress: Callable[[AuditLine], None] | None = None
) -> AuditReport:
    """The drill for a schema file and a tier by name.

    Raises:
        ConfigError: the file is no schema, or no tier has that name.
    """
    if tier not in TIERS:
        raise ConfigError(
            path=schema, problem=f'cannot drill tier "{tier}": it is none of {", ".join(TIERS)}.'
        )
    try:
        table = load_schema(schema)
    except FileNotFoundError as error:
        raise ConfigError(
            path=schema,
            problem="no such file. Name the consortium's published schema with --schema.",
        ) from error
    except ValueError as error:
        raise ConfigError(path=schema, problem=f"is no schema: {error}") from error
    return drill(table, TIERS[tier], progress=progress)


def format_line(line: AuditLine) -> str:
    """One line of the table: verdict, test, figure, bound."""
    holds, breaks = ("<=", " >") if line.sense == "at most" else (">=", " <")
    return (
        f"{line.verdict.upper():7} {line.name:48} {line.measured:>12.6g} {holds if line.holds else breaks} "
        f"{line.bound:<10.7g} ({line.detail})"
    )
