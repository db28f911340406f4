"""Model files by content: written, fsynced, read back and hash-checked before anybody may refer to them.

A file's name is the SHA-256 of its bytes, so a name in the ledger is a promise about the content, writing the same
model twice is harmless, and a damaged file cannot pass for the one that was committed.
"""

import hashlib
import os
from pathlib import Path

from coordinator.errors import AggregationError

SUFFIX = ".safetensors"
READ_BYTES = 1 << 20


class CheckpointStore:
    """A folder of content-addressed files."""

    def __init__(self, folder: Path) -> None:
        """Uses `folder`, made with mode 0700 if it is not there."""
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the file of that hash lies, or would lie."""
        return self.folder / f"{sha256}{SUFFIX}"

    def write(self, content: bytes) -> str:
        """Stores `content` durably and returns its SHA-256 in hex.

        Raises:
            OSError: the disk is full or not writable; no file of that name appears then.
            AggregationError: what was read back is not what was written.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        target = self.path(sha256)
        partial = target.with_suffix(".partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.require(sha256)
        return sha256

    def require(self, sha256: str) -> Path:
        """The path of a file whose content still has its hash.

        Raises:
            AggregationError: missing or damaged.
        """
        path = self.path(sha256)
        if not path.is_file():
            raise AggregationError(
                f"Model {sha256[:12]} is not in {self.folder}. Restore the file from a backup."
            )
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
        if digest.hexdigest() != sha256:
            raise AggregationError(
                f"Model file {path} is damaged: its content has hash {digest.hexdigest()[:12]}. Restore it from a backup."
            )
        return path
