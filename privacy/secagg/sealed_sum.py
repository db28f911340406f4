"""Adds the sealed vectors of many sites, as their chunks arrive, in memory of one vector.

A site may die in the middle of its upload, and what has been added to the sum cannot be taken out again. So the chunks
of an unfinished vector wait in a temporary file without a name, and join the sum when the last one is there. They are
sealed: the file holds nothing that the network did not show. A vector of one chunk never touches the disk.
"""

import tempfile
import weakref
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.messages import CHUNK_COORDINATES, chunk_count


class SealedSum:
    """Running sum modulo 2**32 of complete vectors."""

    def __init__(self, dimension: int, *, spool_folder: Path | None) -> None:
        self.total: NDArray[np.uint32] = np.zeros(dimension, dtype=np.uint32)
        self._spool_folder = spool_folder
        self._received: dict[str, int] = {}
        self._waiting: dict[str, FileIO] = {}
        # A sum that is given up half-way frees its files as well.
        weakref.finalize(self, _close_all, self._waiting)

    def received(self, site: str) -> int:
        """Chunks that the site has delivered, which is the index of its next one."""
        return self._received.get(site, 0)

    def add(self, site: str, words: NDArray[np.uint32]) -> bool:
        """Take the site's next chunk; whether its vector is now complete and in the sum."""
        chunks = chunk_count(len(self.total))
        if chunks == 1:
            np.add(self.total, words, out=self.total)
            self._received[site] = 1
            return True
        if site not in self._waiting:
            # Closed in close() or when complete, not in this block.
            self._waiting[site] = tempfile.TemporaryFile(buffering=0, dir=self._spool_folder)  # noqa: SIM115
        rest = words.data.cast("B")
        while rest:
            rest = rest[self._waiting[site].write(rest) :]
        self._received[site] = self.received(site) + 1
        if self._received[site] < chunks:
            return False
        self._join(self._waiting.pop(site))
        return True

    def close(self) -> None:
        """Forget unfinished vectors."""
        _close_all(self._waiting)

    def _join(self, file: FileIO) -> None:
        buffer = np.empty(CHUNK_COORDINATES, dtype="<u4")
        with file:
            file.seek(0)
            for start in range(0, len(self.total), CHUNK_COORDINATES):
                block = self.total[start : start + CHUNK_COORDINATES]
                words = buffer[: len(block)]
                if file.readinto(words.data) != words.nbytes:
                    raise OSError(
                        "The spool of a sealed vector is shorter than what was written to it."
                    )
                np.add(block, words, out=block)


def _close_all(files: dict[str, FileIO]) -> None:
    for file in files.values():
        file.close()
    files.clear()
