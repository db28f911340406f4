"""The high-water mark beside a budget file: number and hash of the newest entry that was seen.

It is written after each commit, so it may lag behind the file by what was under way in a crash, and is never ahead of
it. A file with fewer entries than the mark, or with another entry in that place, was restored from an old copy or
rewritten.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from participant.budget_entries import History
from participant.durable import write_durably
from participant.errors import BudgetError

MARK_NAME = "budget.high-water"
MAX_MARK_BYTES = 4096
RESTORE = "Restore budget.db and budget.high-water together from the newest backup; nothing is trained until then."


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The newest entry that was seen; number 0 stands for the identity of an empty file."""

    number: int
    chain: bytes


def read_mark(path: Path) -> Mark | None:
    """The mark beside the budget file `path`; None without one.

    Raises:
        BudgetError: the mark cannot be read.
    """
    try:
        with path.with_name(MARK_NAME).open("rb") as file:
            fields = json.loads(file.read(MAX_MARK_BYTES))
        return Mark(number=int(fields["entries"]), chain=bytes.fromhex(fields["chain"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BudgetError(
            path=path.with_name(MARK_NAME), problem=f"cannot be read. {RESTORE}"
        ) from error


def write_mark(path: Path, mark: Mark) -> None:
    """Remembers the newest entry; only under the lock of the budget file, which keeps it from going down.

    Raises:
        DiskFullError: no room; the mark stays where it was.
    """
    text = json.dumps({"entries": mark.number, "chain": mark.chain.hex()}).encode()
    write_durably(path.with_name(MARK_NAME), (text,), replace=True)


def require_mark(path: Path, history: History) -> Mark:
    """The mark, if the history reaches it.

    Raises:
        BudgetError: no mark, or one that this history does not contain.
    """
    mark = read_mark(path)
    if mark is None:
        raise BudgetError(path=path, problem=f"its high-water mark is gone. {RESTORE}")
    held = len(history.rows)
    if mark.number > held:
        raise BudgetError(
            path=path,
            problem=f"holds {held} entries, but {mark.number} were made: it was rolled back to an old copy. {RESTORE}",
        )
    chain = history.rows[mark.number - 1].chain if mark.number else history.identity.chain
    if chain != mark.chain:
        raise BudgetError(
            path=path, problem=f"entry {mark.number} is not the one that was made. {RESTORE}"
        )
    return mark
