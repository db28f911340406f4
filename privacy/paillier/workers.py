"""Worker processes for Paillier: its loops hold the interpreter's lock, so threads do not help.

What is computed is a function of items and of what all items share; a worker gets both through a pipe, never through its
arguments or environment. Random numbers are drawn before the work is cut, so results do not depend on how it is cut.
Workers are started anew (not forked) and end with their parent.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")

MOST_WORKERS = 8
WORTHWHILE_SECONDS = 10.0
"""Of work: a worker imports what the program imports, which may take seconds."""


class Workers:
    """Does work in several processes, or in this one if there are fewer than two of them."""

    def __init__(self, count: int = 0) -> None:
        if not 0 <= count <= MOST_WORKERS:
            raise ValueError(f"Expected 0 <= count={count} <= {MOST_WORKERS} workers.")
        self._count = count if count > 1 else 0
        self._pool: ProcessPoolExecutor | None = None

    @classmethod
    def for_seconds(cls, seconds: float) -> Self:
        """As many workers as this machine's processors, if so many seconds of work are worth it."""
        if seconds < WORTHWHILE_SECONDS:
            return cls()
        return cls(min(MOST_WORKERS, len(os.sched_getaffinity(0))))

    def __enter__(self) -> Self:
        if self._count:
            self._pool = ProcessPoolExecutor(
                self._count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_end_with_parent,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def spread(
        self, work: Callable[..., list[Found]], items: Sequence[Item], *shared: Any
    ) -> list[Found]:
        """work(items, *shared), item by item in order, by all workers.

        Args:
            work: a function of a module, one result for each item.
            items: cut into runs.
            shared: passed to every run.
        """
        if self._pool is None or len(items) < 2:
            return work(items, *shared)
        # Several runs for each worker, so that none waits long for the slowest; few, as each run may build tables.
        length = -(-len(items) // (2 * self._count))
        runs = [
            self._pool.submit(work, items[start : start + length], *shared)
            for start in range(0, len(items), length)
        ]
        return [found for run in runs for found in run.result()]


IN_THIS_PROCESS = Workers()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
