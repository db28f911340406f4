"""Keys of secure sums that serve more than one sum, kept in the site folder (`privacy.secagg.key_store.KeyStore`)."""

import os
from pathlib import Path

from participant.durable import write_durably
from participant.errors import IdentityError

MAX_BYTES = 64 << 20


class StoredKeys:
    """The keys of one scheme: one file, mode 0600."""

    def __init__(self, folder: Path, scheme: str) -> None:
        self._path = folder / f"{scheme}.key"

    def load(self) -> bytes | None:
        """The bytes stored last; None if there are none.

        Raises:
            IdentityError: the file is not acceptable.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_mode & 0o077 or status.st_size > MAX_BYTES:
                    raise IdentityError(
                        f"{self._path}: mode {status.st_mode & 0o777:o} and {status.st_size} bytes; keys are mode 600 and "
                        f"at most {MAX_BYTES} bytes. Remove the file if others had access to it: new keys are made."
                    )
                return file.read()
        except FileNotFoundError:
            return None

    def store(self, secret: bytes) -> None:
        """Replace them, durably, before returning.

        Raises:
            DiskFullError: no room; the old ones stay.
        """
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._path, (secret,), replace=True)
