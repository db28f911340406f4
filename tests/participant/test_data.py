import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.schema import CategoryColumn, LabelColumn, NumericColumn, TableSchema
from participant.config import SITE_TEMPLATE, DataSource, load_site
from participant.data import SiteData, load_table
from participant.errors import DataError

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
HEADER = "chol,thal,age,num"
ROWS = tuple(f"{200 + i}.5,{(3, 6, 7)[i % 3]}.0,{40 + i},{i % 3}" for i in range(12))


def write_csv(folder: Path, *, header: str = HEADER, rows: tuple[str, ...] = ROWS) -> DataSource:
    path = folder / "patients.csv"
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return DataSource(kind="csv", path=path)


def with_row(index: int, row: str) -> tuple[str, ...]:
    return (*ROWS[:index], row, *ROWS[index + 1 :])


def assert_is_the_small_table(data: SiteData) -> None:
    np.testing.assert_array_equal(data.values_NF[:, 0], np.arange(12, dtype=np.float32) + 200.5)
    np.testing.assert_array_equal(data.values_NF[:, 1], np.arange(12) % 3)
    np.testing.assert_array_equal(data.values_NF[:, 2], np.arange(12) + 40)
    np.testing.assert_array_equal(data.labels_N, (np.arange(12) % 3 > 0).astype(np.float32))
    assert [str(data.values_NF.dtype), str(data.labels_N.dtype)] == ["float32", "float32"]


def test_csv_becomes_numbers_and_category_indices(tmp_path: Path) -> None:
    data = load_table(write_csv(tmp_path), TABLE)

    assert_is_the_small_table(data)
    assert data.ignored_columns == ()


@pytest.mark.parametrize("cell", ["", "?", "NA", "NaN", "nan", " NA ", "0", "0.0", "0.00"])
def test_spellings_of_missing_become_nan(tmp_path: Path, cell: str) -> None:
    data = load_table(write_csv(tmp_path, rows=with_row(2, f"{cell},3,50,1")), TABLE)

    assert np.argwhere(np.isnan(data.values_NF)).tolist() == [[2, 0]]


@pytest.mark.parametrize("cell", ["6", "6.0", "6.", " 6 ", "6.000"])
def test_category_codes_match_however_numbers_are_written(tmp_path: Path, cell: str) -> None:
    assert (
        load_table(write_csv(tmp_path, rows=with_row(2, f"200,{cell},50,1")), TABLE).values_NF[2, 1]
        == 1
    )


@pytest.mark.parametrize(
    ("row", "column", "value", "problem"),
    [
        ("12abc,3,50,1", "chol", "12abc", "Expected a number"),
        ('"5,2",3,50,1', "chol", "5,2", "decimal point"),
        ("inf,3,50,1", "chol", "inf", "finite"),
        ("1e400,3,50,1", "chol", "1e400", "finite"),
        ("5.2,3,50,1", "chol", "5.2", "50 to 1000 mg/dl: is the column in another unit?"),
        ("1001,3,50,1", "chol", "1001", "50 to 1000"),
        ("200,4,50,1", "thal", "4", "one of the categories ('3', '6', '7')"),
        ("200,06,50,1", "thal", "06", "categories"),
        ("200,3,,1", "age", "", "required in every row"),
        ("200,3,50,", "num", "", "required in every row"),
        ("200,3,50,yes", "num", "yes", "Expected a number"),
    ],
)
def test_bad_value_is_named_with_column_row_and_line(
    tmp_path: Path, row: str, column: str, value: str, problem: str
) -> None:
    source = write_csv(tmp_path, rows=with_row(4, row))

    with pytest.raises(DataError) as caught:
        load_table(source, TABLE)

    error = caught.value
    assert (error.column, error.row, error.line, error.value) == (column, 5, 6, value)
    assert problem in error.local_message
    assert (
        f'patients.csv, column "{column}", row 5 (line 6): found "{value}"' in error.local_message
    )


def test_what_may_leave_the_site_names_no_row_column_or_value(tmp_path: Path) -> None:
    source = write_csv(tmp_path, rows=with_row(4, "98765,3,50,1"))

    with pytest.raises(DataError) as caught:
        load_table(source, TABLE)

    assert "98765" in caught.value.local_message
    assert "98765" not in f"{caught.value!s}{caught.value!r}"
    assert "chol" not in f"{caught.value!s}{caught.value!r}"


def test_control_characters_of_a_value_do_not_reach_the_terminal(tmp_path: Path) -> None:
    source = write_csv(tmp_path, rows=with_row(4, f"\x1b[2J{'x' * 100},3,50,1"))

    with pytest.raises(DataError) as caught:
        load_table(source, TABLE)

    assert caught.value.value == "?[2J" + "x" * 36


def test_line_counts_quoted_line_ends_and_blank_lines(tmp_path: Path) -> None:
    rows = ('200,3,50,1,"two\nlines"', "", "9,3,50,1,x", *(f"{row}," for row in ROWS))

    with pytest.raises(DataError) as caught:
        load_table(write_csv(tmp_path, header=f"{HEADER},note", rows=rows), TABLE)

    assert (caught.value.row, caught.value.line) == (2, 5)


@pytest.mark.parametrize("row", ["200,3,50", "200,3,50,1,9", "   "])
def test_row_with_another_number_of_fields_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError) as caught:
        load_table(write_csv(tmp_path, rows=with_row(4, row)), TABLE)

    assert (caught.value.row, caught.value.line) == (5, 6)
    assert "where the header has 4" in caught.value.local_message


def test_missing_column_is_named_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_table(write_csv(tmp_path, header="Chol,thal,age,num"), TABLE)

    assert caught.value.column == "chol"
    assert 'found are Chol, thal, age, num. Is it "Chol"?' in caught.value.local_message


def test_header_with_semicolons_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_table(write_csv(tmp_path, header="chol;thal;age;num"), TABLE)

    assert "a comma is expected" in caught.value.local_message


def test_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    rows = tuple(f"{row},1" for row in ROWS)

    with pytest.raises(DataError) as caught:
        load_table(write_csv(tmp_path, header="chol,thal,age,num,chol", rows=rows), TABLE)

    assert "stands there 2 times" in caught.value.local_message


def test_extra_columns_are_ignored_and_listed(tmp_path: Path) -> None:
    rows = tuple(f"{row},Jane Doe" for row in ROWS)

    data = load_table(write_csv(tmp_path, header=f"{HEADER},name", rows=rows), TABLE)

    assert_is_the_small_table(data)
    assert data.ignored_columns == ("name",)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "patients.csv"
    path.write_text(text)

    with pytest.raises(DataError) as caught:
        load_table(DataSource(kind="csv", path=path), TABLE)

    assert "is empty" in caught.value.local_message


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_patients_cannot_train(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError) as caught:
        load_table(write_csv(tmp_path, rows=ROWS[:count]), TABLE)

    assert f"holds {count} patient(s); a site needs at least 10" in caught.value.local_message


def test_ten_patients_are_enough(tmp_path: Path) -> None:
    assert len(load_table(write_csv(tmp_path, rows=ROWS[:10]), TABLE).labels_N) == 10


def test_column_without_variance_and_labels_of_one_class_are_fine(tmp_path: Path) -> None:
    data = load_table(write_csv(tmp_path, rows=("200,3,50,1",) * 10), TABLE)

    assert data.labels_N.tolist() == [1.0] * 10


def test_column_that_is_missing_everywhere_is_fine(tmp_path: Path) -> None:
    data = load_table(write_csv(tmp_path, rows=("0,,50,1",) * 10), TABLE)

    assert np.isnan(data.values_NF[:, :2]).all()


def test_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_table(DataSource(kind="csv", path=tmp_path / "absent.csv"), TABLE)

    assert "cannot be read: No such file" in caught.value.local_message


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_bytes("\n".join((HEADER, *with_row(3, "200,ü,50,1"))).encode("latin-1"))

    with pytest.raises(DataError) as caught:
        load_table(DataSource(kind="csv", path=path), TABLE)

    assert "UTF-8" in caught.value.local_message


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join((HEADER, *ROWS)).encode())

    assert_is_the_small_table(load_table(DataSource(kind="csv", path=path), TABLE))


def test_repr_shows_no_record(tmp_path: Path) -> None:
    assert repr(load_table(write_csv(tmp_path), TABLE)) == "SiteData(ignored_columns=())"


def test_two_hundred_thousand_rows_are_read_in_seconds(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).uniform(60, 900, 200_000)
    rows = tuple(f"{number:.9f},7.0,{40 + index % 50},1" for index, number in enumerate(numbers))
    source = write_csv(tmp_path, rows=rows)

    start = time.process_time()
    data = load_table(source, TABLE)

    assert time.process_time() - start < 5.0
    np.testing.assert_allclose(data.values_NF[:, 0], numbers, rtol=1e-6)


PATIENT_HEADER = f"{HEADER},patient_id"


def write_patients(
    folder: Path, patients: list[str], *, rows: tuple[str, ...] = ROWS, name: str = "patient_id"
) -> DataSource:
    """Row i of the small table belongs to `patients[i]`."""
    lines = tuple(f"{row},{patient}" for row, patient in zip(rows, patients, strict=True))
    source = write_csv(folder, header=PATIENT_HEADER, rows=lines)
    return replace(source, patient_column=name)


def test_without_a_patient_column_every_row_is_a_patient(tmp_path: Path) -> None:
    data = load_table(write_csv(tmp_path), TABLE)

    assert data.units_N.tolist() == list(range(12))
    assert data.units_N.dtype == np.int64
    assert data.patients == 12


def test_rows_of_a_patient_are_put_side_by_side_in_their_order(tmp_path: Path) -> None:
    patients = ["b", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "a"]

    data = load_table(write_patients(tmp_path, patients), TABLE)

    assert data.units_N.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert data.values_NF[:, 2].tolist() == [40, 42, 41, 51, *range(43, 51)]
    assert data.labels_N.tolist() == [float(age % 3 != 1) for age in data.values_NF[:, 2]]
    assert (data.patients, data.ignored_columns) == (10, ())


def test_patients_are_told_apart_however_they_are_called(tmp_path: Path) -> None:
    patients = ["007", "7", "7.0", " 7", "Ann Lee", "ann lee", "-3", "1e3", "ü", "0", "9" * 30, "x"]

    data = load_table(write_patients(tmp_path, patients), TABLE)

    assert data.patients == 10
    assert np.bincount(data.units_N).tolist() == [1, 3, 1, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("cell", ["", "  ", "NA", "?"])
def test_row_that_is_nobodys_is_named(tmp_path: Path, cell: str) -> None:
    patients = [*"abcd", cell, *"fghijkl"]

    with pytest.raises(DataError) as caught:
        load_table(write_patients(tmp_path, patients), TABLE)

    error = caught.value
    assert (error.column, error.row, error.line) == ("patient_id", 5, 6)
    assert "whose record it is" in error.local_message


def test_bad_value_is_named_by_its_row_in_the_source_not_by_its_patient(tmp_path: Path) -> None:
    patients = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "a"]
    rows = with_row(11, "200,4,50,1")

    with pytest.raises(DataError) as caught:
        load_table(write_patients(tmp_path, patients, rows=rows), TABLE)

    assert (caught.value.column, caught.value.row) == ("thal", 12)


def test_patients_are_counted_and_not_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_table(write_patients(tmp_path, [*"abcdefghi", *"iii"]), TABLE)

    assert "holds 9 patient(s); a site needs at least 10" in caught.value.local_message


def test_patient_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_table(write_patients(tmp_path, list("abcdefghijkl"), name="pid"), TABLE)

    assert caught.value.column == "pid"
    assert "the column is missing" in caught.value.local_message


@pytest.mark.parametrize("column", ["age", "num"])
def test_patient_column_must_not_be_one_of_the_schema(tmp_path: Path, column: str) -> None:
    with pytest.raises(DataError) as caught:
        load_table(replace(write_csv(tmp_path), patient_column=column), TABLE)

    assert caught.value.column == column
    assert "is a column of the schema" in caught.value.local_message


def test_what_may_leave_the_site_does_not_name_a_patient(tmp_path: Path) -> None:
    patients = ["Jane Doe", *"bcdefghijk", ""]

    with pytest.raises(DataError) as caught:
        load_table(write_patients(tmp_path, patients), TABLE)

    assert "Jane" not in f"{caught.value!s}{caught.value!r}"
    assert "patient_id" not in f"{caught.value!s}{caught.value!r}"


def test_repr_shows_no_patient(tmp_path: Path) -> None:
    data = load_table(write_patients(tmp_path, list("abcdefghijkl")), TABLE)

    assert repr(data) == "SiteData(ignored_columns=())"


def site_data(units: list[int], *, labels: int) -> SiteData:
    return SiteData(
        values_NF=np.zeros((3, 2), np.float32),
        labels_N=np.zeros(labels, np.float32),
        units_N=np.array(units, np.int64),
        ignored_columns=(),
    )


@pytest.mark.parametrize("units", [[1, 1, 2], [0, 2, 2], [0, 1, 0], [-1, 0, 1]])
def test_units_with_gaps_or_out_of_order_are_refused(units: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending from 0 without gaps"):
        site_data(units, labels=3)


@pytest.mark.parametrize(("units", "labels"), [([0, 1], 3), ([0, 1, 2], 2)])
def test_arrays_of_unequal_length_are_refused(units: list[int], labels: int) -> None:
    with pytest.raises(ValueError, match="as many values and units as labels"):
        site_data(units, labels=labels)


def test_no_record_is_no_patient() -> None:
    empty = SiteData(
        values_NF=np.zeros((0, 2), np.float32), labels_N=np.zeros(0, np.float32), ignored_columns=()
    )

    assert empty.patients == 0


@pytest.mark.parametrize(
    ("old", "expected"), [("# patient_column", None), ("patient_column", "patient_id")]
)
def test_patient_column_of_the_site_file_is_taken_up_once_it_is_no_comment(
    tmp_path: Path, old: str, expected: str | None
) -> None:
    text = SITE_TEMPLATE.substitute(
        site="st-anna", gateway="fl.example:1", exchange="fl.example:2", data_set="heart"
    )
    (tmp_path / "site.toml").write_text(text.replace("# patient_column", old))

    assert load_site(tmp_path).data.patient_column == expected
