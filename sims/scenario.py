"""A scenario: the run that is asked for, what every site holds, and what is held out to judge the result.

The held-out records belong to the rehearsal alone: no site trains on them and no budget pays for them, so the figures
of a rehearsal cost no privacy. They exist because a rehearsal runs on public data.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coordinator.run_spec import RunSpec, load_run_spec
from model.schema import TableSchema
from participant.config import DataSource
from participant.data import SiteData, load_table

FOLDER = Path(__file__).parent
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything that a rehearsal needs."""

    name: str
    spec: RunSpec
    schema_path: Path
    train: dict[str, pd.DataFrame] = field(repr=False)
    """Site -> table to train on, as text, in the published columns."""
    held_out: dict[str, pd.DataFrame] = field(repr=False)
    """Site -> table to judge by."""


def load_scenario(name: str, *, split_seed: int, **changes: Any) -> Scenario:
    """The scenario of that name, its tables split by `split_seed`, its run changed by `changes`.

    Raises:
        ConfigError: no such scenario, or a run that contradicts itself.
    """
    spec = load_run_spec(FOLDER / "scenarios" / f"{name}.toml", **changes)
    folder = FOLDER / "data" / name
    train, held_out = {}, {}
    for path in sorted(folder.glob("*.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        is_held_out = held_out_rows(table, spec.table, seed=split_seed)
        train[path.stem], held_out[path.stem] = table[~is_held_out], table[is_held_out]
    return Scenario(
        name=name, spec=spec, schema_path=folder / "schema.toml", train=train, held_out=held_out
    )


def held_out_rows(table: pd.DataFrame, schema: TableSchema, *, seed: int) -> np.ndarray:
    """True for a quarter of the rows, the same share of either label."""
    is_positive = table[schema.label.name].astype(float).to_numpy() > schema.label.positive_above
    rank = np.empty(len(table))
    generator = np.random.default_rng([seed, len(table)])
    for value in (False, True):
        rows = np.flatnonzero(is_positive == value)
        rank[generator.permutation(rows)] = np.arange(len(rows)) / max(1, len(rows))
    return rank < HELD_OUT_SHARE


def read_site_data(table: pd.DataFrame, schema: TableSchema, folder: Path) -> SiteData:
    """The table through the same reader that a site uses."""
    path = folder / "table.csv"
    table.to_csv(path, index=False)
    return load_table(DataSource(kind="csv", path=path), schema, minimum_patients=1)
