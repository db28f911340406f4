from typing import Any

import pytest
from pydantic import TypeAdapter

from model.schema import CategoryColumn, LabelColumn, NumericColumn, TableSchema, load_schema

AGE: dict[str, Any] = {
    "name": "age",
    "unit": "year",
    "minimum": 0.0,
    "maximum": 120.0,
    "bins": (20.0, 40.0, 60.0),
}
SEX: dict[str, Any] = {"name": "sex", "categories": ("0", "1")}
TABLE: dict[str, Any] = {
    "name": "ward",
    "version": 1,
    "columns": (NumericColumn(**AGE), CategoryColumn(**SEX)),
    "label": LabelColumn(name="disease", positive_above=0),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": (20.0,)}, "Column 'age': expected 2 to 256 bins, got 1"),
        ({"bins": tuple(float(edge) for edge in range(300))}, "got 300"),
        ({"bins": (20.0, 20.0)}, "strictly increasing bins, got 20.0 before 20.0"),
        ({"bins": (40.0, 20.0)}, "strictly increasing bins, got 40.0 before 20.0"),
        ({"bins": (20.0, 20.0 + 1e-9)}, "strictly increasing"),
        ({"bins": (-1.0, 20.0)}, "within 0.0 to 120.0"),
        ({"bins": (20.0, 121.0)}, "within 0.0 to 120.0"),
        ({"minimum": 120.0}, "minimum=120.0 below maximum=120.0"),
        ({"maximum": float("inf")}, "maximum"),
        ({"maximum": 1e31}, r"maximum=1e\+31"),
        ({"minimum": float("nan")}, "minimum"),
        ({"name": ""}, "column name=''"),
        ({"name": "a" * 65}, "column name='aaa"),
        ({"name": "a\nb"}, "column name='a"),
        ({"name": " age"}, "column name=' age'"),
        ({"unit": "y" * 2001}, "Column 'age': expected texts of at most 2000"),
        ({"missing": ("0", "0")}, "missing: expected '0' once"),
        ({"edges": (1.0, 2.0)}, "edges"),
    ],
)
def test_numeric_column_that_cannot_be_encoded_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(NumericColumn).validate_python(AGE | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": ()}, "Column 'sex': expected at least one of categories"),
        ({"categories": ("0", "0")}, "categories: expected '0' once, got it twice"),
        ({"categories": tuple(map(str, range(1025)))}, "at most 1024, got 1025"),
        ({"categories": ("x" * 65,)}, "to be shorter"),
    ],
)
def test_category_column_without_a_clear_list_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(CategoryColumn).validate_python(SEX | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ()}, "expected 1 to 1024 columns, got 0"),
        ({"columns": (CategoryColumn(**SEX), CategoryColumn(**SEX))}, "expected 'sex' once"),
        ({"label": LabelColumn(name="age", positive_above=0)}, "expected 'age' once"),
        ({"version": 0}, "version=0"),
        ({"missing_values": ("?", "?")}, r"missing_values: expected '\?' once"),
        ({"missing_values": ("1",)}, "category '1' is also a spelling of a missing value"),
        ({"description": "d" * 2001}, "Table 'ward': expected texts"),
    ],
)
def test_ambiguous_table_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TableSchema(**TABLE | change)


def test_table_too_wide_to_encode_is_refused():
    codes = tuple(map(str, range(1000)))
    columns = tuple(CategoryColumn(name=f"c{place}", categories=codes) for place in range(300))

    with pytest.raises(ValueError, match="at most 262144 encoding slots, got 300 columns of up to"):
        TableSchema(**TABLE | {"columns": columns})


def test_digest_changes_with_every_part_of_the_schema():
    table = TableSchema(**TABLE)
    moved = TableSchema(**TABLE | {"label": LabelColumn(name="disease", positive_above=1)})

    assert table.digest == TableSchema(**TABLE).digest != moved.digest


def test_schema_survives_json():
    table, adapter = TableSchema(**TABLE), TypeAdapter(TableSchema)

    assert adapter.validate_json(adapter.dump_json(table)).digest == table.digest


def test_schema_is_read_from_toml(tmp_path):
    path = tmp_path / "schema.toml"
    path.write_text(
        'name = "ward"\nversion = 1\n[label]\nname = "disease"\npositive_above = 0\n'
        '[[columns]]\nkind = "category"\nname = "sex"\ncategories = ["0", "1"]\n'
        '[[columns]]\nkind = "numeric"\nname = "age"\nunit = "year"\nminimum = 0\nmaximum = 120\n'
        "bins = [20, 40]\n",
        encoding="utf-8",
    )

    assert load_schema(path).encoding_shape == (3, 4)


def test_schema_that_is_not_toml_is_refused(tmp_path):
    path = tmp_path / "schema.toml"
    path.write_text("name = ", encoding="utf-8")

    with pytest.raises(ValueError, match="Invalid value"):
        load_schema(path)
