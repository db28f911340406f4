"""Holds what has come of a sealed vector until its last part is there.

A site may die in the middle of its upload, and what has been added to a sum cannot be taken out again. So the parts of an
unfinished vector wait in a temporary file without a name, and are handed on when the last one is there. They are sealed:
the file holds nothing that the network did not show. A vector of one part never touches the disk.
"""

import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path


@dataclass
class _Upload:
    """The parts of one site so far: their lengths, and the file that they are in."""

    file: FileIO
    lengths: list[int] = field(default_factory=list)


class Spool:
    """Unfinished uploads of all sites, each of the same number of parts."""

    def __init__(self, parts: int, *, folder: Path | None) -> None:
        self._parts = parts
        self._folder = folder
        self._finished: set[str] = set()
        self._uploads: dict[str, _Upload] = {}
        # A sum that is given up half-way frees its files as well.
        weakref.finalize(self, _close_all, self._uploads)

    def received(self, site: str) -> int:
        """Parts that the site has delivered, which is the index of its next one."""
        if site in self._finished:
            return self._parts
        return len(self._uploads[site].lengths) if site in self._uploads else 0

    def put(self, site: str, part: memoryview) -> Iterator[memoryview] | None:
        """Take the site's next part; once all are there, give all of them, in order.

        Raises:
            OSError: no room.
        """
        if self._parts == 1:
            self._finished.add(site)
            return iter((part,))
        if site not in self._uploads:
            # Closed when its parts were handed on or in close(), not in this block.
            file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
            self._uploads[site] = _Upload(file=file)
        upload = self._uploads[site]
        rest = part
        while rest:
            rest = rest[upload.file.write(rest) :]
        upload.lengths.append(len(part))
        if len(upload.lengths) < self._parts:
            return None
        self._finished.add(site)
        return _read_back(self._uploads.pop(site))

    def close(self) -> None:
        """Forget unfinished uploads."""
        _close_all(self._uploads)


def _read_back(upload: _Upload) -> Iterator[memoryview]:
    with upload.file as file:
        file.seek(0)
        for length in upload.lengths:
            part = bytearray(length)
            if file.readinto(part) != length:
                raise OSError(
                    "The spool of a sealed vector is shorter than what was written to it."
                )
            yield memoryview(part)


def _close_all(uploads: dict[str, _Upload]) -> None:
    for upload in uploads.values():
        upload.file.close()
    uploads.clear()
