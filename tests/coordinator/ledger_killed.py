"""A process that dies in the middle of a commit; run by the tests with the ledger's URL and an instant.

before   killed when the commit's transaction has written everything and is about to end
after    killed just after it has ended, before the caller learns of it
"""

import os
import signal
import sys

from sqlalchemy import Engine, event

from coordinator.ledger.records import Lease
from coordinator.ledger.store import open_ledger
from tests.coordinator.ledger_cases import outcome


def die(*_: object) -> None:
    """As if the machine had lost its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Commits round 1 of the run "heart-1" and dies on the way."""
    url, instant = sys.argv[1:]
    with open_ledger(url, create=False) as ledger:
        if instant == "before":
            event.listen(Engine, "commit", die)
        ledger.rounds.commit_round(Lease(run_id="heart-1", epoch=1), outcome(), round=1, attempt=1)
        die()


if __name__ == "__main__":
    main()
