"""Fixtures of the ledger's tests: each test that asks for `ledger` runs on SQLite, and on PostgreSQL as a slow test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.ledger.store import LedgerStore, open_ledger
from tests.coordinator.ledger_cases import SITES, START_MODEL, Clock, Driving, enrol
from tests.coordinator.ledger_postgres import PostgresServer, find_binaries, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg", reason="the extra `postgres` (psycopg) is not installed")
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_schema()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[LedgerStore]:
    with open_ledger(ledger_url, clock=clock) as store:
        yield store


@pytest.fixture
def driving(ledger: LedgerStore) -> Driving:
    for site in SITES:
        enrol(ledger, site)
    ledger.runs.request("heart-1", spec='{"rounds": 2}', rounds=2)
    lease = ledger.runs.take_over("heart-1", flower_run_id=2**63 + 5)
    ledger.runs.record_start_model(lease, sha256=START_MODEL, size_bytes=4096)
    return Driving(ledger=ledger, lease=lease)
