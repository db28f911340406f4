"""The published schema of a table: what every site's columns mean, agreed before anybody trains.

Everything the model needs to know about the data comes from here: names, units, ranges, bin edges and categories.
It is public and the same at every site, so no constant of the preprocessing depends on a private record.
A missing value is a state of a column of its own, never a dropped row.
"""

import hashlib
import itertools
import struct
import tomllib
from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

# A schema comes over the network and decides how much memory a model takes: these bounds hold before anything is built.
MAX_NAME_LENGTH = 64
MAX_TEXT_LENGTH = 2000
MAX_COLUMNS = 1024
MAX_BINS = 256
MAX_CATEGORIES = 1024
MAX_SPELLINGS = 64
MAX_MAGNITUDE = 1e30
MAX_ENCODING_SLOTS = 1 << 18


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NumericColumn:
    """A measured quantity."""

    name: str
    unit: str
    minimum: float
    """Smallest plausible value, in `unit`; a smaller one is an error of the data, not an outlier."""
    maximum: float
    """Largest plausible value, in `unit`."""
    bins: tuple[float, ...]
    """Strictly increasing edges of the piecewise-linear encoding, in `unit`, at least two."""
    description: str = ""
    nullable: bool = True
    missing: tuple[str, ...] = ()
    """Spellings of "not measured" in this column only, beside those of the table."""
    kind: Literal["numeric"] = "numeric"

    def __post_init__(self) -> None:
        """Refuses edges that are not a grid inside the range, in single precision too."""
        where = f"Column {self.name!r}"
        _require_name(self.name, "column name")
        _require_text(where, self.unit, self.description)
        _require_distinct(f"{where}: missing", self.missing, MAX_SPELLINGS)
        for name, value in (("minimum", self.minimum), ("maximum", self.maximum)):
            if abs(value) > MAX_MAGNITUDE:
                raise ValueError(f"{where}: expected {name}={value} within {MAX_MAGNITUDE:g} of 0.")
        if not self.minimum < self.maximum:
            raise ValueError(
                f"{where}: expected minimum={self.minimum} below maximum={self.maximum}."
            )
        if not 2 <= len(self.bins) <= MAX_BINS:
            raise ValueError(f"{where}: expected 2 to {MAX_BINS} bins, got {len(self.bins)}.")
        if self.bins[0] < self.minimum or self.bins[-1] > self.maximum:
            raise ValueError(
                f"{where}: expected bins={self.bins} within {self.minimum} to {self.maximum}."
            )
        for lower, upper in itertools.pairwise(self.bins):
            if not _single(lower) < _single(upper):
                raise ValueError(
                    f"{where}: expected strictly increasing bins, got {lower} before {upper}."
                )

    @property
    def encoding_slots(self) -> int:
        """Numbers of its encoding, without the constant and the missing slot: one per bin."""
        return len(self.bins) - 1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CategoryColumn:
    """One of a closed list of codes."""

    name: str
    categories: tuple[str, ...]
    """Codes as they stand in the table, numbers written without a trailing `.0`."""
    description: str = ""
    nullable: bool = True
    kind: Literal["category"] = "category"

    def __post_init__(self) -> None:
        """Refuses a list in which a code has no single place."""
        where = f"Column {self.name!r}"
        _require_name(self.name, "column name")
        _require_text(where, self.description)
        _require_distinct(f"{where}: categories", self.categories, MAX_CATEGORIES)
        if not self.categories:
            raise ValueError(f"{where}: expected at least one of categories, got none.")

    @property
    def encoding_slots(self) -> int:
        """Numbers of its encoding, without the constant and the missing slot: one per category."""
        return len(self.categories)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelColumn:
    """What the model learns to predict: 1 where the value is above `positive_above`."""

    name: str
    positive_above: float
    description: str = ""

    def __post_init__(self) -> None:
        """Refuses a label that no table could have."""
        _require_name(self.name, "label name")
        _require_text(f"Label {self.name!r}", self.description)


Column = NumericColumn | CategoryColumn


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TableSchema:
    """A table of records, each of one patient or customer."""

    name: str
    version: int
    columns: tuple[Column, ...]
    label: LabelColumn
    missing_values: tuple[str, ...] = ("", "?", "NA", "NaN", "nan")
    """Spellings of "not measured" in text tables."""
    description: str = field(default="")

    def __post_init__(self) -> None:
        """Refuses ambiguous tables, and tables too wide to encode."""
        where = f"Table {self.name!r}"
        _require_name(self.name, "table name")
        _require_text(where, self.description)
        if self.version < 1:
            raise ValueError(f"{where}: expected version={self.version} >= 1.")
        if not 1 <= len(self.columns) <= MAX_COLUMNS:
            raise ValueError(
                f"{where}: expected 1 to {MAX_COLUMNS} columns, got {len(self.columns)}."
            )
        names = (*(column.name for column in self.columns), self.label.name)
        _require_distinct(f"{where}: names of columns and label", names, MAX_COLUMNS + 1)
        _require_distinct(f"{where}: missing_values", self.missing_values, MAX_SPELLINGS)
        for column in self.columns:
            if isinstance(column, CategoryColumn):
                _require_unambiguous(column, self.missing_values)
        widest = max(column.encoding_slots for column in self.columns)
        if len(self.columns) * widest > MAX_ENCODING_SLOTS:
            raise ValueError(
                f"{where}: expected at most {MAX_ENCODING_SLOTS} encoding slots, got {len(self.columns)} "
                f"columns of up to {widest}."
            )

    @property
    def encoding_shape(self) -> tuple[int, int]:
        """Tokens of a row (CLS and one per column) and slots per token (constant, missing, widest column)."""
        return 1 + len(self.columns), 2 + max(column.encoding_slots for column in self.columns)

    @property
    def flat_encoding_width(self) -> int:
        """Numbers of a row without constants and padding: missing and value slots of each column."""
        return sum(1 + column.encoding_slots for column in self.columns)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of the schema: what two parties compare."""
        return hashlib.sha256(TypeAdapter(TableSchema).dump_json(self)).hexdigest()


def _require_name(name: str, what: str) -> None:
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise ValueError(
            f"Expected {what}={name[:MAX_NAME_LENGTH]!r} of 1 to {MAX_NAME_LENGTH} printable characters, "
            "no space at either end."
        )


def _require_text(where: str, *texts: str) -> None:
    if any(len(text) > MAX_TEXT_LENGTH for text in texts):
        raise ValueError(f"{where}: expected texts of at most {MAX_TEXT_LENGTH} characters.")


def _require_distinct(where: str, values: tuple[str, ...], most: int) -> None:
    if len(values) > most:
        raise ValueError(f"{where}: expected at most {most}, got {len(values)}.")
    seen: set[str] = set()
    for value in values:
        if len(value) > MAX_NAME_LENGTH:
            raise ValueError(f"{where}: expected {value[:MAX_NAME_LENGTH]!r}... to be shorter.")
        if value in seen:
            raise ValueError(f"{where}: expected {value!r} once, got it twice.")
        seen.add(value)


def _require_unambiguous(column: CategoryColumn, missing_values: tuple[str, ...]) -> None:
    for code in column.categories:
        if code in missing_values:
            raise ValueError(
                f"Column {column.name!r}: category {code!r} is also a spelling of a missing value."
            )


def _single(value: float) -> float:
    """The value in the single precision in which the model sees it."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def load_schema(path: Path) -> TableSchema:
    """Reads a schema from TOML.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not TOML or not a schema; the message names the field.
    """
    return TypeAdapter(TableSchema).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
