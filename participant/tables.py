"""Reads named columns, as they stand, from a text file, a Parquet file or a database. Checks shape, not meaning.

Columns that were not asked for are never read. A file is parsed strictly: a row with one field too many or too few is
an error, not a guess. A database is only read from, in a transaction that is rolled back; give it an account that may
do nothing else.
"""

import csv
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import sqlalchemy

from participant.config import DataSource
from participant.errors import DataError

MAX_URL_BYTES = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class RawTable:
    """The columns asked for, in any type, and how to point at a row of them. `repr` shows no record."""

    source: str
    columns: pd.DataFrame = field(repr=False)
    ignored_columns: tuple[str, ...]
    text_file: Path | None = None

    def line_of_row(self, row: int) -> int | None:
        """Line of a text file on which data row `row` (from 1) ends; None for other sources."""
        if self.text_file is None:
            return None
        with self.text_file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            records = (reader.line_num for fields in reader if fields)
            for index, line in enumerate(records):
                if index == row:
                    return line
        return None


def read_raw_table(
    source: DataSource, names: Sequence[str], *, identifier: str | None = None
) -> RawTable:
    """The columns `names` of the source, and the column `identifier`, which is read without rounding its numbers.

    Raises:
        DataError: the source cannot be read, is empty, or a column is missing or stands there twice.
    """
    if source.path is None:
        return _read_database(source, names, identifier)
    names = _with_identifier(names, identifier)
    try:
        if source.kind == "csv":
            return _read_csv(source.path, names)
        return _read_parquet(source.path, names)
    except OSError as error:
        raise DataError(
            source=str(source.path), problem=f"cannot be read: {error.strerror or error}."
        ) from None


def _read_csv(path: Path, names: Sequence[str]) -> RawTable:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            found = next((fields for fields in csv.reader(lines) if fields), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(source=str(path), problem=f"is not a UTF-8 text table: {error}") from None
    if not found:
        raise DataError(
            source=str(path), problem="is empty: a header line with the column names is expected."
        )
    ignored = _require_columns(str(path), found, names)
    wrong_rows: list[Any] = []

    def keep_wrong_row(row: Any) -> str:
        wrong_rows.append(row)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False
            ),  # with threads, rows have no numbers
            parse_options=pyarrow.csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=keep_wrong_row
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pyarrow.string() for name in names},
                include_columns=list(names),
                strings_can_be_null=False,
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise DataError(
            source=str(path), problem=f"cannot be parsed as CSV in UTF-8: {error}"
        ) from None
    raw = RawTable(
        source=str(path), columns=table.to_pandas(), ignored_columns=ignored, text_file=path
    )
    if wrong_rows:
        row, first = wrong_rows[0].number - 1, wrong_rows[0]
        raise DataError(
            source=raw.source,
            row=row,
            line=raw.line_of_row(row),
            problem=f"has {first.actual_columns} fields where the header has {first.expected_columns}.",
        )
    return raw


def _read_parquet(path: Path, names: Sequence[str]) -> RawTable:
    try:
        schema = pyarrow.parquet.read_schema(path)
        ignored = _require_columns(str(path), schema.names, names)
        for name in names:
            if pyarrow.types.is_nested(schema.field(name).type):
                problem = f"has the type {schema.field(name).type}; a number or text per patient is expected."
                raise DataError(source=str(path), column=name, problem=problem)
        table = pyarrow.parquet.read_table(path, columns=list(names))
    except pyarrow.ArrowException as error:
        raise DataError(
            source=str(path), problem=f"is not a readable Parquet file: {error}"
        ) from None
    return RawTable(source=str(path), columns=table.to_pandas(), ignored_columns=ignored)


def _read_database(source: DataSource, names: Sequence[str], identifier: str | None) -> RawTable:
    asked = _with_identifier(names, identifier)
    where = f"{source.table or 'query'} of the database"
    try:
        url = sqlalchemy.make_url(source.url or _read_url(source.url_file or Path()))
        where = f"{source.table or 'query'} of {url.render_as_string(hide_password=True)}"
        engine = sqlalchemy.create_engine(_read_only(url, where), poolclass=sqlalchemy.NullPool)
    except (sqlalchemy.exc.ArgumentError, ImportError):
        raise DataError(
            source=where,
            problem="is no URL that SQLAlchemy understands, or its driver is not installed.",
        ) from None
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.execution_options(postgresql_readonly=True)
            elif engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            result = connection.execute(_statement(source))
            ignored = _require_columns(where, list(result.keys()), asked)
            rows = result.columns(*asked).all()
            connection.rollback()
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise DataError(source=where, problem=f"cannot be read: {cause}") from None
    finally:
        engine.dispose()
    columns = pd.DataFrame.from_records(
        [tuple(row)[: len(names)] for row in rows], columns=list(names), coerce_float=True
    )
    if identifier is not None:
        # Left as the driver gave it: a float would make one patient of two whose long numbers are close.
        columns[identifier] = pd.Series([row[-1] for row in rows], dtype="object")
    return RawTable(source=where, columns=columns, ignored_columns=ignored)


def _with_identifier(names: Sequence[str], identifier: str | None) -> Sequence[str]:
    return names if identifier is None else (*names, identifier)


def _statement(source: DataSource) -> sqlalchemy.Executable:
    if source.query is not None:
        query = source.query.rstrip("; \t\r\n")
        return sqlalchemy.text(query.replace(":", r"\:"))  # a colon is no bind parameter here
    schema, _, name = (source.table or "").rpartition(".")
    table = sqlalchemy.table(name, schema=schema or None)
    return sqlalchemy.select(sqlalchemy.literal_column("*")).select_from(table)


def _read_only(url: sqlalchemy.URL, where: str) -> sqlalchemy.URL:
    """The URL, for SQLite opened read-only, so that a misspelt path is an error and not a new empty database."""
    if url.get_backend_name() != "sqlite":
        return url
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise DataError(source=where, problem="names no database file.")
    if not Path(url.database).is_file():
        raise DataError(source=where, problem="the database file does not exist.")
    location = quote(str(Path(url.database).absolute()))
    return url.set(database=f"file:{location}", query={"mode": "ro", "uri": "true"})


def _read_url(path: Path) -> str:
    """The database URL of a file that nobody else may read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid():
                raise DataError(
                    source=str(path),
                    problem=f"holds a password, but others may read it: chmod 600 {path} and own it.",
                )
            return file.read(MAX_URL_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            source=str(path), problem=f"the file named by url_file cannot be read: {error}"
        ) from None


def _require_columns(source: str, found: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The columns found that nobody asked for; raises where one asked for is absent or doubled."""
    counts = Counter(found)
    for name in names:
        if counts[name] == 0:
            near = [other for other in counts if other.strip().lower() == name.lower()]
            hint = f' Is it "{near[0]}"?' if near else ""
            joined = (
                ' The header looks like one separated by ";": a comma is expected.'
                if ";" in found[0]
                else ""
            )
            raise DataError(
                source=source,
                column=name,
                problem=f"the column is missing; found are {', '.join(found)[:400]}.{hint}{joined}",
            )
        if counts[name] > 1:
            raise DataError(
                source=source, column=name, problem=f"the column stands there {counts[name]} times."
            )
    return tuple(name for name in counts if name not in set(names))
