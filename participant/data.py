"""Reads a site's table against the published schema, and stops at the first thing that does not fit.

1. `participant/tables.py` reads the columns that the schema names, as they stand, and no others.
2. Every column becomes numbers: a quantity in its unit, the index of a category, or NaN for "not measured".
3. Anything else (wrong type, unit, code, a missing label) is a `DataError` that names column, row and value; it is
   raised before a plan is looked at, so before any budget is spent.
4. Rows of one patient are put side by side: the patient is the unit of privacy, however many rows there are.

No constant of the preprocessing comes from the records: ranges, codes and spellings of missing values are the
schema's. No row is dropped. Of the column that says whose a row is, only "the same or another" is kept.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from model.schema import MAX_MAGNITUDE, CategoryColumn, Column, NumericColumn, TableSchema
from participant.config import DataSource
from participant.errors import DataError
from participant.tables import RawTable, read_raw_table

# N records, F columns of the schema, D distinct values of a column
MINIMUM_PATIENTS = 10
"""Fewer cannot train: the noise that hides one of so few leaves nothing to learn, and 1/(10 N) is no delta."""
MAX_VALUE_CHARACTERS = 40
LARGEST_EXACT_NUMBER = 2.0**53
"""Floating-point numbers from here on are no longer all whole numbers: two patients could share one."""
WHOLE_NUMBER = re.compile(r"^(-?\d+)\.0*$")

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteData:
    """The records of a site in the model's form. `repr` shows none of them."""

    values_NF: Float32 = field(repr=False)  # noqa: N815 - shape suffix
    """A quantity in the unit of its column, the index of a category, or NaN where nothing was measured."""
    labels_N: Float32 = field(repr=False)  # noqa: N815 - shape suffix
    """1.0 where the label is above `positive_above`, else 0.0."""
    ignored_columns: tuple[str, ...]
    """Columns of the source that nobody asked for; they were not read."""
    units_N: Int64 = field(default=None, repr=False)  # type: ignore[arg-type]  # noqa: N815 - shape suffix
    """Which patient each record belongs to, ascending from 0 without gaps; one patient per record where not given."""

    def __post_init__(self) -> None:
        """Refuses arrays that do not fit together.

        Raises:
            ValueError: unequal lengths, or units that are not ascending from 0 without gaps.
        """
        count = len(self.labels_N)
        if self.units_N is None:
            object.__setattr__(self, "units_N", np.arange(count, dtype=np.int64))
        if not len(self.values_NF) == len(self.units_N) == count:
            raise ValueError(
                f"Expected as many values and units as labels, got {len(self.values_NF)}, {len(self.units_N)} "
                f"and {count}."
            )
        steps = np.diff(self.units_N, prepend=-1)
        if count > 0 and not (steps[0] == 1 and np.isin(steps, (0, 1)).all()):
            raise ValueError("Expected units_N ascending from 0 without gaps.")

    @property
    def patients(self) -> int:
        """Number of patients, which are the units of privacy."""
        return int(self.units_N[-1]) + 1 if len(self.units_N) > 0 else 0


def load_table(
    source: DataSource, table: TableSchema, *, minimum_patients: int = MINIMUM_PATIENTS
) -> SiteData:
    """The site's table, checked and encoded in the order of the schema's columns.

    Records stand in the order of the source, but for those of one patient, which follow the patient's first.

    Raises:
        DataError: unreadable source, missing or doubled column, a value of the wrong type or out of range, an unknown
            category, a non-finite number, a missing value where none is allowed, a row of which nobody says whose it
            is, or fewer than `minimum_patients` patients.
    """
    names = (*(column.name for column in table.columns), table.label.name)
    patient_column = source.patient_column
    if patient_column in names:
        raise DataError(
            source=str(source.path or source.table or "query"),
            column=patient_column,
            problem="is named as patient_column in site.toml, but is a column of the schema: the model would read whom "
            "a row belongs to.",
        )
    raw = read_raw_table(source, names, identifier=patient_column)
    units_N = _units(raw, patient_column, table.missing_values)
    patients = len(np.unique(units_N))
    if patients < minimum_patients:
        raise DataError(
            source=raw.source,
            problem=f"holds {patients} patient(s); a site needs at least {minimum_patients} to train. With so few, "
            "noise that hides one patient hides everything.",
        )
    values_NF = np.empty((len(raw.columns), len(table.columns)), dtype=np.float32)
    for index, column in enumerate(table.columns):
        values_NF[:, index] = _encode_column(raw, column, table.missing_values)
    label = NumericColumn(
        name=table.label.name,
        unit="",
        minimum=-MAX_MAGNITUDE,
        maximum=MAX_MAGNITUDE,
        bins=(0.0, 1.0),
        nullable=False,
    )
    labels_N = _encode_column(raw, label, table.missing_values) > table.label.positive_above
    order_N = np.argsort(units_N, stable=True)
    return SiteData(
        values_NF=values_NF[order_N],
        labels_N=labels_N[order_N].astype(np.float32),
        units_N=units_N[order_N],
        ignored_columns=raw.ignored_columns,
    )


def canonical_code(text: str) -> str:
    """A code as the schema writes it: surrounding blanks gone, and a whole number without its trailing `.0`."""
    stripped = text.strip()
    whole = WHOLE_NUMBER.match(stripped)
    return whole.group(1) if whole else stripped


def _units(raw: RawTable, column: str | None, missing_values: tuple[str, ...]) -> Int64:
    """Number of the patient of each row of the source, in the order of their first rows.

    Raises:
        DataError: a row does not say whose it is, or not exactly enough.
    """
    if column is None:
        return np.arange(len(raw.columns), dtype=np.int64)
    codes_N, distinct = pd.factorize(raw.columns[column])
    distinct_D = np.asarray(distinct)
    names = _as_text(distinct_D).map(canonical_code)
    is_missing_D = names.isin(("", *missing_values)).to_numpy(dtype=np.bool_)
    problem = "Every row must say whose record it is; this one does not."
    _require_none(raw, column, codes_N, is_missing_D, distinct_D, problem, nulls_are_wrong=True)
    if distinct_D.dtype.kind == "f":
        is_inexact_D = np.abs(distinct_D.astype(np.float64)) >= LARGEST_EXACT_NUMBER
        problem = "This number is too large to tell patients apart: store the column as text or as whole numbers."
        _require_none(raw, column, codes_N, is_inexact_D, distinct_D, problem)
    unit_D, _ = pd.factorize(names)
    return unit_D[codes_N].astype(np.int64)


def _encode_column(raw: RawTable, column: Column, missing_values: tuple[str, ...]) -> Float64:
    """The column as numbers. Work is done once per distinct value, which makes a million rows cheap."""
    codes_N, distinct = pd.factorize(raw.columns[column.name])
    distinct_D = np.asarray(distinct)
    if isinstance(column, CategoryColumn):
        encoded_D, problems = _encode_categories(distinct_D, column, missing_values)
    else:
        encoded_D, problems = _encode_numbers(distinct_D, column, missing_values)
    is_missing_D = np.isnan(encoded_D)
    for is_wrong_D, problem in problems:
        _require_none(raw, column.name, codes_N, is_wrong_D, distinct_D, problem)
    if not column.nullable:
        problem = "A value is required in every row; this one is missing."
        _require_none(
            raw, column.name, codes_N, is_missing_D, distinct_D, problem, nulls_are_wrong=True
        )
    return np.append(encoded_D, np.nan)[
        codes_N
    ]  # code -1, a null of the source, finds the NaN at the end


def _encode_numbers(
    distinct_D: npt.NDArray[np.generic], column: NumericColumn, missing_values: tuple[str, ...]
) -> tuple[Float64, list[tuple[Mask, str]]]:
    """Numbers with NaN for missing, and what is wrong with which of them."""
    spellings = (*missing_values, *column.missing)
    if distinct_D.dtype.kind in "iufb":
        numbers_D = distinct_D.astype(np.float64)
        is_missing_D = np.zeros(len(numbers_D), dtype=np.bool_)
    else:
        text = _as_text(distinct_D)
        numbers_D = _float64(pd.to_numeric(text, errors="coerce"))
        is_missing_D = text.isin(spellings).to_numpy(dtype=np.bool_)
    numbers = [number for number in map(_number, spellings) if number is not None]
    is_missing_D = is_missing_D | np.isin(numbers_D, numbers)
    is_text_D = np.isnan(numbers_D) & ~is_missing_D
    is_infinite_D = np.isinf(numbers_D) & ~is_missing_D
    numbers_D[is_missing_D] = np.nan
    with np.errstate(invalid="ignore"):
        is_outside_D = (numbers_D < column.minimum) | (numbers_D > column.maximum)
    expected = f"{column.minimum:g} to {column.maximum:g} {column.unit}".rstrip()
    return numbers_D, [
        (is_text_D, f"Expected a number ({expected}) with a decimal point, or one of {spellings}."),
        (is_infinite_D, f"Expected a finite number ({expected})."),
        (is_outside_D, f"Expected {expected}: is the column in another unit?"),
    ]


def _encode_categories(
    distinct_D: npt.NDArray[np.generic], column: CategoryColumn, missing_values: tuple[str, ...]
) -> tuple[Float64, list[tuple[Mask, str]]]:
    """Indices into the column's categories with NaN for missing, and which values are no category."""
    if distinct_D.dtype.kind == "b":
        distinct_D = distinct_D.astype(np.int8)  # true and false are written 1 and 0
    codes = _as_text(distinct_D).map(canonical_code)
    index_of = {canonical_code(code): index for index, code in enumerate(column.categories)}
    indices_D = _float64(codes.map(index_of))
    spellings = {canonical_code(spelling) for spelling in missing_values}
    is_missing_D = codes.isin(spellings).to_numpy(dtype=np.bool_) & np.isnan(indices_D)
    is_unknown_D = np.isnan(indices_D) & ~is_missing_D
    return indices_D, [(is_unknown_D, f"Expected one of the categories {column.categories}.")]


def _require_none(
    raw: RawTable,
    column: str,
    codes_N: npt.NDArray[np.intp],
    is_wrong_D: Mask,
    distinct_D: npt.NDArray[np.generic],
    problem: str,
    *,
    nulls_are_wrong: bool = False,
) -> None:
    """Raises for the first row whose value is wrong."""
    if not is_wrong_D.any() and not nulls_are_wrong:
        return
    is_wrong_N = np.append(is_wrong_D, nulls_are_wrong)[codes_N]
    if not is_wrong_N.any():
        return
    row = int(np.argmax(is_wrong_N)) + 1
    code = int(codes_N[row - 1])
    value = str(distinct_D[code]) if code >= 0 else ""
    printable = "".join(c if c.isprintable() else "?" for c in value)[:MAX_VALUE_CHARACTERS]
    raise DataError(
        source=raw.source,
        problem=problem,
        column=column,
        row=row,
        line=raw.line_of_row(row),
        value=printable,
    )


def _as_text(distinct_D: npt.NDArray[np.generic]) -> "pd.Series[str]":
    return pd.Series([str(value).strip() for value in distinct_D.tolist()], dtype="str")


def _float64(series: "pd.Series[float]") -> Float64:
    return np.array(series, dtype=np.float64)


def _number(text: str) -> float | None:
    """The number that a spelling of "missing" stands for, if it is one ("-9" also covers "-9.0")."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
