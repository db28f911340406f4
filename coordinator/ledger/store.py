"""The ledger: the only place where the coordinator's truth is kept, and the only way to it.

    with open_ledger("sqlite:////srv/concord/ledger.db") as ledger:
        ledger.sites      who may take part          (coordinator.ledger.sites)
        ledger.runs       what was asked for         (coordinator.ledger.runs)
        ledger.rounds     how far it came            (coordinator.ledger.rounds)
        ledger.history(run_id), ledger.incidents()   what happened

Every method is one transaction. Several processes may hold the ledger open; who may write a run is decided by its
epoch (`coordinator.ledger.fencing`).
"""

from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from sqlalchemy import Engine, insert

from coordinator.errors import LedgerError
from coordinator.ledger.engine import address, make_engine, reading, writing
from coordinator.ledger.history import read_history, read_incidents, read_runs
from coordinator.ledger.migrate import bring_up_to_date
from coordinator.ledger.records import Incident, RunHistory
from coordinator.ledger.rounds import RoundTable
from coordinator.ledger.runs import RunTable
from coordinator.ledger.sites import SiteTable
from coordinator.ledger.tables import IncidentRow, RunRow


def utc_now() -> datetime:
    """The time that is recorded; no order depends on it."""
    return datetime.now(UTC)


def open_ledger(
    url: str, *, create: bool = True, clock: Callable[[], datetime] = utc_now
) -> "LedgerStore":
    """The ledger at an SQLAlchemy URL, its schema brought up to date.

    Args:
        url: e.g. `sqlite:////srv/concord/ledger.db` or `postgresql+psycopg://USER@HOST/DATABASE`.
        create: whether an empty database becomes a ledger.
        clock: tells the time that is recorded.

    Raises:
        ConfigError: the URL cannot be used.
        LedgerError: the database cannot be reached, or holds no ledger and `create` is false.
        LedgerVersionError: a newer Concord wrote it.
    """
    engine = make_engine(url)
    try:
        bring_up_to_date(engine, create=create)
    except BaseException:
        engine.dispose()
        raise
    return LedgerStore(engine, clock)


class LedgerStore:
    """An open ledger; close it, or use it as a context manager."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock
        self.sites = SiteTable(engine, clock)
        self.runs = RunTable(engine, clock)
        self.rounds = RoundTable(engine, clock)

    @property
    def address(self) -> str:
        """Where the ledger is, without a password."""
        return address(self._engine.url)

    def record_incident(
        self,
        kind: str,
        text: str,
        *,
        run_id: str | None = None,
        round: int | None = None,
        site: str | None = None,
    ) -> None:
        """Writes down something an operator should know of; the run, round or site need not exist."""
        with writing(self._engine) as connection:
            connection.execute(
                insert(IncidentRow).values(
                    at=self._clock(),
                    run_id=run_id,
                    round=round,
                    site=site,
                    kind=kind,
                    text=text,
                )
            )

    def incidents(self) -> tuple[Incident, ...]:
        """Every incident, oldest first."""
        with reading(self._engine) as connection:
            return read_incidents(connection)

    def history(self, run_id: str) -> RunHistory:
        """All that is known of a run, as of one moment.

        Raises:
            LedgerError: no such run.
        """
        with reading(self._engine) as connection:
            for run in read_runs(connection, RunRow.run_id == run_id):
                return read_history(connection, run)
        raise LedgerError(
            f'The ledger at {self.address} knows no run "{run_id}". See `coordinator ledger list`.'
        )

    def histories(self) -> tuple[RunHistory, ...]:
        """All that is known of every run, as of one moment, oldest run first."""
        with reading(self._engine) as connection:
            return tuple(read_history(connection, run) for run in read_runs(connection))

    def close(self) -> None:
        """Ends every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
