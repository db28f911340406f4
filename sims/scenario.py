"""A scenario: the run that is asked for, what every site holds, and what is held out to judge the result.

The held-out records belong to the rehearsal alone: no site trains on them and no budget pays for them, so the figures
of a rehearsal cost no privacy. They exist because a rehearsal runs on public data, or on nobody's: the people of
`credit` are drawn from the seed (`sims/data/credit`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coordinator.errors import ConfigError
from coordinator.run_spec import RunSpec, load_run_spec
from model.schema import TableSchema
from participant.config import DataSource
from participant.data import SiteData, load_table
from sims.data.credit.population import draw_customers

FOLDER = Path(__file__).parent
HELD_OUT_SHARE = 0.25
MADE_UP = {"credit": 40_000}
"""Scenarios of made-up people, and how many: 30 000 to train on."""


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


def load_scenario(
    name: str, *, split_seed: int, people: int | None = None, **changes: Any
) -> Scenario:
    """The scenario of that name, its tables split by `split_seed`, its run changed by `changes`.

    Args:
        name: of the scenario.
        split_seed: says who is held out, and in a scenario of made-up people also who there is.
        people: how many to make up in all, held out or not; by default as many as `MADE_UP` says.
        changes: of the run, as for `load_run_spec`. With `paillier` and no `key_holder`, the first site makes the key.

    Raises:
        ConfigError: no such scenario, a run that contradicts itself, or `people` where people are not made up.
    """
    tables = _tables(name, split_seed, people)
    secure_sum = changes.get("secure_sum", {})
    if secure_sum.get("scheme") == "paillier":
        changes["secure_sum"] = {"key_holder": min(tables), **secure_sum}
    spec = load_run_spec(scenario_path(name), **changes)
    train, held_out = {}, {}
    for site, table in tables.items():
        is_held_out = held_out_rows(table, spec.table, seed=split_seed)
        train[site], held_out[site] = table[~is_held_out], table[is_held_out]
    schema_path = FOLDER / "data" / name / "schema.toml"
    return Scenario(name=name, spec=spec, schema_path=schema_path, train=train, held_out=held_out)


def scenario_path(name: str) -> Path:
    """The scenario's run."""
    return FOLDER / "scenarios" / f"{name}.toml"


def _tables(name: str, seed: int, people: int | None) -> dict[str, pd.DataFrame]:
    """Every site's table as text, in the order of the sites' names."""
    if name in MADE_UP:
        drawn = draw_customers(seed, people=people or MADE_UP[name])
        return {site: drawn[site].table for site in sorted(drawn)}
    if people is not None:
        raise ConfigError(f"people={people}: the patients of {name!r} are not made up.")
    return {
        path.stem: pd.read_csv(path, dtype=str, keep_default_na=False)
        for path in sorted((FOLDER / "data" / name).glob("*.csv"))
    }


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
