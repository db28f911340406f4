import csv
from pathlib import Path

import numpy as np
import pytest

from model.schema import TableSchema, load_schema
from participant.config import DataSource
from participant.data import load_table
from sims import data as data_package

HEART = Path(data_package.__path__[0]) / "heart"


@pytest.fixture(scope="module")
def table() -> TableSchema:
    return load_schema(HEART / "schema.toml")


@pytest.mark.parametrize(
    ("hospital", "patients", "positive", "missing"),
    [
        ("cleveland", 303, 139, 6),
        ("hungarian", 294, 106, 782),
        ("switzerland", 123, 115, 396),
        ("va", 200, 149, 748),
    ],
)
def test_every_hospital_fits_the_published_schema(
    table: TableSchema, hospital: str, patients: int, positive: int, missing: int
) -> None:
    data = load_table(DataSource(kind="csv", path=HEART / f"{hospital}.csv"), table)

    assert data.values_NF.shape == (patients, 13)
    assert data.labels_N.sum() == positive
    assert np.isnan(data.values_NF).sum() == missing
    assert data.ignored_columns == ()


def test_a_cholesterol_of_zero_counts_as_not_measured(table: TableSchema) -> None:
    data = load_table(DataSource(kind="csv", path=HEART / "switzerland.csv"), table)

    assert np.isnan(data.values_NF[:, 4]).all()


def test_schema_names_the_columns_of_the_files_in_order(table: TableSchema) -> None:
    with (HEART / "cleveland.csv").open(newline="") as lines:
        header = next(csv.reader(lines))

    assert [*(column.name for column in table.columns), table.label.name] == header


def test_readme_names_origin_terms_and_principal_investigators() -> None:
    readme = (HEART / "README.md").read_text(encoding="utf-8")

    wanted = (
        "UCI",
        "CC BY 4.0",
        "Andras Janosi",
        "William Steinbrunn",
        "Matthias Pfisterer",
        "Robert Detrano",
    )
    assert [name for name in wanted if name not in readme] == []
