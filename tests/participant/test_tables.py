import os
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from pydantic import ValidationError

from model.schema import CategoryColumn, LabelColumn, NumericColumn, TableSchema
from participant.config import DataSource
from participant.data import SiteData, load_table
from participant.errors import DataError
from participant.tables import read_raw_table

TABLE = TableSchema(
    name="small",
    version=1,
    columns=(
        NumericColumn(
            name="chol",
            unit="mg/dl",
            minimum=50,
            maximum=1000,
            bins=(100, 200, 300),
            missing=("0",),
        ),
        CategoryColumn(name="thal", categories=("3", "6", "7")),
        NumericColumn(
            name="age", unit="year", minimum=18, maximum=120, bins=(40, 60), nullable=False
        ),
    ),
    label=LabelColumn(name="num", positive_above=0),
)


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "chol": [200.5 + i for i in range(12)],
            "thal": [(3, 6, 7)[i % 3] for i in range(12)],
            "age": [40 + i for i in range(12)],
            "num": [i % 3 for i in range(12)],
            "name": ["secret"] * 12,
        }
    )


def write_sqlite(folder: Path, table: pd.DataFrame) -> Path:
    path = folder / "patients.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        table.to_sql("patients", connection, index=False)
    engine.dispose()
    return path


def assert_is_the_small_table(data: SiteData) -> None:
    np.testing.assert_array_equal(data.values_NF[:, 0], np.arange(12, dtype=np.float32) + 200.5)
    np.testing.assert_array_equal(data.values_NF[:, 1], np.arange(12) % 3)
    np.testing.assert_array_equal(data.values_NF[:, 2], np.arange(12) + 40)
    np.testing.assert_array_equal(data.labels_N, (np.arange(12) % 3 > 0).astype(np.float32))
    assert [str(data.values_NF.dtype), str(data.labels_N.dtype)] == ["float32", "float32"]


def test_parquet_gives_the_same_as_csv(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "patients.parquet")

    data = load_table(DataSource(kind="parquet", path=tmp_path / "patients.parquet"), TABLE)

    assert_is_the_small_table(data)
    assert data.ignored_columns == ("name",)


def test_parquet_of_text_columns_gives_the_same(tmp_path: Path) -> None:
    frame().astype("str").to_parquet(tmp_path / "patients.parquet")

    assert_is_the_small_table(
        load_table(DataSource(kind="parquet", path=tmp_path / "patients.parquet"), TABLE)
    )


def test_database_table_gives_the_same_as_csv(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path, frame())

    data = load_table(DataSource(kind="database", url=f"sqlite:///{path}", table="patients"), TABLE)

    assert_is_the_small_table(data)
    assert data.ignored_columns == ("name",)


def test_database_query_with_a_colon_and_a_semicolon_is_read(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path, frame())
    query = "SELECT chol, thal, age, num FROM patients WHERE name <> ':x';"

    assert_is_the_small_table(
        load_table(DataSource(kind="database", url=f"sqlite:///{path}", query=query), TABLE)
    )


def test_database_nulls_are_missing_values(tmp_path: Path) -> None:
    table = frame().astype({"thal": "object"})
    table.loc[3, "chol"] = None
    table.loc[4, "thal"] = None
    path = write_sqlite(tmp_path, table)

    data = load_table(DataSource(kind="database", url=f"sqlite:///{path}", table="patients"), TABLE)

    assert np.argwhere(np.isnan(data.values_NF)).tolist() == [[3, 0], [4, 1]]


def test_database_is_not_changed_by_a_query_that_writes(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path, frame())
    before = path.read_bytes()
    query = "WITH x AS (SELECT 1) DELETE FROM patients RETURNING chol, thal, age, num"

    with pytest.raises(DataError) as caught:
        load_table(DataSource(kind="database", url=f"sqlite:///{path}", query=query), TABLE)

    assert "readonly" in caught.value.local_message
    assert path.read_bytes() == before


def test_missing_database_file_is_not_created(tmp_path: Path) -> None:
    source = DataSource(kind="database", url=f"sqlite:///{tmp_path / 'typo.db'}", table="patients")

    with pytest.raises(DataError) as caught:
        load_table(source, TABLE)

    assert "does not exist" in caught.value.local_message
    assert not (tmp_path / "typo.db").exists()


def test_database_url_comes_from_a_private_file(tmp_path: Path) -> None:
    path = write_sqlite(tmp_path, frame())
    secret = tmp_path / "database.url"
    secret.write_text(f"sqlite:///{path}\n")
    secret.chmod(0o600)

    assert_is_the_small_table(
        load_table(DataSource(kind="database", url_file=secret, table="patients"), TABLE)
    )


def test_database_url_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "database.url"
    secret.write_text("postgresql://site:hunter2@localhost/x")
    secret.chmod(0o640)

    with pytest.raises(DataError) as caught:
        load_table(DataSource(kind="database", url_file=secret, table="patients"), TABLE)

    assert "chmod 600" in caught.value.local_message
    assert "hunter2" not in caught.value.local_message


def test_password_in_the_configured_url_is_refused() -> None:
    with pytest.raises(ValidationError, match="url_file"):
        DataSource(kind="database", url="postgresql://site:hunter2@localhost/x", table="patients")


@pytest.mark.parametrize(
    "query", ["DROP TABLE patients", "SELECT 1; DROP TABLE patients", "selection"]
)
def test_query_that_is_not_one_select_is_refused(query: str) -> None:
    with pytest.raises(ValidationError, match="one SELECT"):
        DataSource(kind="database", url="sqlite:///x.db", query=query)


def test_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "patients.parquet"
    path.write_bytes(os.urandom(100))

    with pytest.raises(DataError) as caught:
        load_table(DataSource(kind="parquet", path=path), TABLE)

    assert "not a readable Parquet file" in caught.value.local_message


def test_parquet_infinity_is_refused(tmp_path: Path) -> None:
    table = frame()
    table.loc[6, "chol"] = np.inf
    table.to_parquet(tmp_path / "patients.parquet")

    with pytest.raises(DataError) as caught:
        load_table(DataSource(kind="parquet", path=tmp_path / "patients.parquet"), TABLE)

    assert (caught.value.column, caught.value.row, caught.value.line) == ("chol", 7, None)


def test_parquet_booleans_are_the_codes_0_and_1(tmp_path: Path) -> None:
    table = TableSchema(
        name="flags",
        version=1,
        columns=(CategoryColumn(name="exang", categories=("0", "1")),),
        label=LabelColumn(name="num", positive_above=0),
    )
    pd.DataFrame({"exang": [True, False] * 5, "num": [False, True] * 5}).to_parquet(
        tmp_path / "p.parquet"
    )

    data = load_table(DataSource(kind="parquet", path=tmp_path / "p.parquet"), table)

    assert data.values_NF[:2, 0].tolist() == [1.0, 0.0]
    assert data.labels_N[:2].tolist() == [0.0, 1.0]


PATIENTS = [*range(10), 0, 1]


def test_parquet_patients_may_be_numbers(tmp_path: Path) -> None:
    frame().assign(pid=PATIENTS).to_parquet(tmp_path / "p.parquet")
    source = DataSource(kind="parquet", path=tmp_path / "p.parquet", patient_column="pid")

    data = load_table(source, TABLE)

    assert data.units_N.tolist() == [0, 0, 1, 1, *range(2, 10)]
    assert data.values_NF[:4, 2].tolist() == [40, 50, 41, 51]


def test_parquet_patient_without_a_number_is_named(tmp_path: Path) -> None:
    frame().assign(pid=pd.array([None, *PATIENTS[1:]], dtype="Int64")).to_parquet(
        tmp_path / "p.parquet"
    )

    with pytest.raises(DataError) as caught:
        load_table(
            DataSource(kind="parquet", path=tmp_path / "p.parquet", patient_column="pid"), TABLE
        )

    assert (caught.value.column, caught.value.row) == ("pid", 1)


def test_floating_point_patients_too_large_to_tell_apart_are_refused(tmp_path: Path) -> None:
    frame().assign(pid=[*map(float, PATIENTS[:11]), 2.0**53]).to_parquet(tmp_path / "p.parquet")

    with pytest.raises(DataError) as caught:
        load_table(
            DataSource(kind="parquet", path=tmp_path / "p.parquet", patient_column="pid"), TABLE
        )

    assert (caught.value.column, caught.value.row) == ("pid", 12)
    assert "too large to tell patients apart" in caught.value.local_message


def test_parquet_integers_are_told_apart_however_large(tmp_path: Path) -> None:
    frame().assign(pid=[2**62 + number for number in PATIENTS]).to_parquet(tmp_path / "p.parquet")
    source = DataSource(kind="parquet", path=tmp_path / "p.parquet", patient_column="pid")

    assert load_table(source, TABLE).patients == 10


@pytest.mark.parametrize("start", [0, 2**62])
def test_database_patients_are_told_apart_however_large_their_numbers(
    tmp_path: Path, start: int
) -> None:
    path = write_sqlite(tmp_path, frame().assign(pid=[start + number for number in PATIENTS]))

    data = load_table(
        DataSource(
            kind="database", url=f"sqlite:///{path}", table="patients", patient_column="pid"
        ),
        TABLE,
    )

    assert data.units_N.tolist() == [0, 0, 1, 1, *range(2, 10)]
    assert data.ignored_columns == ("name",)


def test_database_patients_are_left_as_the_driver_gave_them(tmp_path: Path) -> None:
    # Among missing values pandas would make floats of them, and one number of the first two.
    numbers = [2**53, 2**53 + 1, None, *range(9)]
    table = frame().assign(pid=pd.array(numbers, dtype="Int64"))
    url = f"sqlite:///{write_sqlite(tmp_path, table)}"

    raw = read_raw_table(
        DataSource(kind="database", url=url, table="patients"), ("chol",), identifier="pid"
    )

    assert raw.columns["pid"].tolist() == numbers


def test_parquet_decimals_are_not_rounded_to_one_patient(tmp_path: Path) -> None:
    exact = np.array([Decimal(2**60 + number) for number in PATIENTS], dtype=object)
    frame().assign(pid=exact).to_parquet(tmp_path / "p.parquet")
    source = DataSource(kind="parquet", path=tmp_path / "p.parquet", patient_column="pid")

    assert load_table(source, TABLE).patients == 10


def test_database_null_patient_is_named(tmp_path: Path) -> None:
    table = frame().assign(pid=pd.array([*PATIENTS[:11], None], dtype="Int64"))
    path = write_sqlite(tmp_path, table)

    with pytest.raises(DataError) as caught:
        load_table(
            DataSource(
                kind="database", url=f"sqlite:///{path}", table="patients", patient_column="pid"
            ),
            TABLE,
        )

    assert (caught.value.column, caught.value.row) == ("pid", 12)
