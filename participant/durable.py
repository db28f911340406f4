"""Writes a file so that it is there, whole, or not at all, whatever is killed and whenever the power goes.

Temporary file beside the target, write, fsync, rename or link, fsync of the folder. A reader never sees half a file.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from participant.errors import DiskFullError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PART_SUFFIX = ".part"
ABANDONED_SECONDS = 3600.0

Payload = bytes | memoryview


def write_durably(path: Path, chunks: Iterable[Payload], *, replace: bool) -> None:
    """Writes `chunks` as the file `path`, mode 0600.

    Raises:
        FileExistsError: `replace` is false and the file is there already; it is left as it is.
        DiskFullError: no room; nothing is left behind.
        OSError: the folder cannot be written for another reason.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART_SUFFIX}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(part, path)
        else:
            os.link(part, path)  # unlike a rename, fails where the file exists
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(path=path, attempted=path.name) from error
        raise
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Removes temporary files of writers that were killed; a file younger than an hour may still have one."""
    oldest = time.time() - ABANDONED_SECONDS
    for part in folder.glob(f".*{PART_SUFFIX}"):
        if part.stat().st_mtime < oldest:
            part.unlink(missing_ok=True)
