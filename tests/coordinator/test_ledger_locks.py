"""The ledger's file under several connections and processes at once."""

import multiprocessing
from pathlib import Path

from coordinator.ledger.engine import reading
from coordinator.ledger.store import open_ledger


def record_incident(url: str, text: str) -> None:
    with open_ledger(url) as ledger:
        ledger.record_incident("test", text)


def test_a_second_connection_does_not_release_the_locks_of_the_first(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with open_ledger(url) as ledger:
        ledger.record_incident("test", "before")
        with reading(ledger._engine), reading(ledger._engine):  # two connections of this process
            pass
        other = multiprocessing.get_context("spawn").Process(
            target=record_incident, args=(url, "from another process")
        )
        other.start()
        other.join()
        # A process that believes itself the last one removes the log, under the feet of this one.
        assert (tmp_path / "ledger.db-wal").exists()
        ledger.record_incident("test", "after")

        with open_ledger(url) as again:
            texts = [incident.text for incident in again.incidents()]
    assert sorted(texts) == ["after", "before", "from another process"]
