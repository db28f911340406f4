"""What a site may send, kept as exact bytes: send only from the outbox.

1. Whatever was computed from records is stored here before the first byte of it leaves.
2. A retry sends the stored bytes again. Computing them anew would release a second noised answer under one charge.
3. The same key with other bytes is refused, for ever: also after the payload of a finished run was forgotten, because
   its digest stays (about 300 bytes an entry).

An entry is one file: a line of JSON, then the payload. Nothing is ever rewritten. The payloads are protected values
or noised updates; the folder is readable by the site alone.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from participant.durable import Payload, remove_abandoned, sync_folder, write_durably
from participant.errors import OutboxError

FORMAT = 1
MAX_HEADER_BYTES = 4096
MAX_NAME_CHARACTERS = 500
ENTRY, DIGEST = ".entry", ".digest"


@dataclass(frozen=True, kw_only=True)
class OutboxKey:
    """Which bytes: one key, one payload."""

    run_id: str
    """Run in the coordinator's ledger; a run is forgotten as a whole."""
    name: str
    """What it is within the run, for instance "update/3/<hash of the base model>" or "reply/3/1"."""

    def __post_init__(self) -> None:
        for part, value in (("run_id", self.run_id), ("name", self.name)):
            if not 1 <= len(value) <= MAX_NAME_CHARACTERS:
                raise ValueError(
                    f"Expected {part} of 1 to {MAX_NAME_CHARACTERS} characters, got {len(value)}."
                )

    def __str__(self) -> str:
        return f"{self.run_id}:{self.name}"


@dataclass(frozen=True, kw_only=True)
class StoredEntry:
    """What is known of an entry without its payload."""

    key: OutboxKey
    sha256: str
    size: int
    is_forgotten: bool
    """The payload is gone, the digest stays."""


class Outbox:
    """The outbox in one folder; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        for run_folder in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            remove_abandoned(run_folder)

    def put(self, key: OutboxKey, payload: Payload) -> StoredEntry:
        """Stores the payload durably; storing the same again changes nothing.

        Raises:
            OutboxError: other bytes were stored under this key before, or the folder cannot be written.
            DiskFullError: no room; nothing was stored.
        """
        view = memoryview(payload).cast("B")
        entry = StoredEntry(
            key=key, sha256=hashlib.sha256(view).hexdigest(), size=view.nbytes, is_forgotten=False
        )
        known = self.find(key)
        if known is None:
            try:
                self._run_folder(key).mkdir(mode=0o700, exist_ok=True)
                sync_folder(self.folder)
                write_durably(self._path(key, ENTRY), (_header(entry), view), replace=False)
                return entry
            except FileExistsError:
                known = self.find(key)
            except OSError as error:
                raise OutboxError(
                    f"{key} cannot be stored in the outbox: {error.strerror}."
                ) from error
        if known is None or known.sha256 != entry.sha256:
            raise OutboxError(
                f"{key}: other bytes were stored under this key before, and may have been sent. Nothing was stored. "
                "Send what is stored, or ask the coordinator for a new attempt."
            )
        return known

    def get(self, key: OutboxKey) -> bytes | None:
        """The stored bytes, checked against their digest; None where nothing was ever stored.

        Raises:
            OutboxError: the entry is damaged, or its payload was forgotten with its run.
        """
        try:
            with self._path(key, ENTRY).open("rb") as file:
                entry = _read_header(file, key, is_forgotten=False)
                payload = file.read(entry.size + 1)
        except FileNotFoundError:
            if self.find(key) is not None:
                raise OutboxError(
                    f"{key}: the run is finished at this site and its payload was forgotten."
                ) from None
            return None
        if len(payload) != entry.size or hashlib.sha256(payload).hexdigest() != entry.sha256:
            raise OutboxError(
                f"{key}: the stored bytes do not match their digest: the file is damaged. Nothing is sent; restore the "
                "outbox from a backup or ask the coordinator for a new attempt."
            )
        return payload

    def find(self, key: OutboxKey) -> StoredEntry | None:
        """What is known of the entry, without reading its payload.

        Raises:
            OutboxError: its header is damaged.
        """
        for suffix in (ENTRY, DIGEST):
            try:
                with self._path(key, suffix).open("rb") as file:
                    return _read_header(file, key, is_forgotten=suffix == DIGEST)
            except FileNotFoundError:
                continue
        return None

    def forget(self, key: OutboxKey) -> None:
        """Removes the payload of an entry that will not be sent again and keeps its digest. Safe to repeat."""
        path = self._path(key, ENTRY)
        if not path.exists():
            return
        with path.open("rb") as file:
            header = file.readline(MAX_HEADER_BYTES)
        digest_path = path.with_suffix(DIGEST)
        if not digest_path.exists():
            write_durably(digest_path, (header,), replace=False)
        path.unlink(missing_ok=True)
        sync_folder(path.parent)

    def _run_folder(self, key: OutboxKey) -> Path:
        return self.folder / _file_name(key.run_id)

    def _path(self, key: OutboxKey, suffix: str) -> Path:
        return self._run_folder(key) / f"{_file_name(key.name)}{suffix}"


class StoredSeals:
    """Durable memory of what was sealed in a secure sum (`privacy.secagg.protocol.SealJournal`). Never forgotten.

    Sealing two vectors under one context would let a coordinator subtract them; the second is refused here.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        remove_abandoned(folder)

    def was_sealed(self, key: str) -> bool:
        """Whether a vector was sealed under this key, and may have been seen."""
        return self._path(key).exists()

    def record(self, key: str, digest: bytes) -> None:
        """Remembers that `key` was sealed with bytes of this digest, before they are sent.

        Raises:
            OutboxError: it was sealed with other bytes before, or the record is damaged.
            DiskFullError: no room; not recorded, so nothing may be sent.
        """
        path = self._path(key)
        text = json.dumps({"format": FORMAT, "key": key, "digest": digest.hex()}).encode()
        try:
            write_durably(path, (text,), replace=False)
        except FileExistsError:
            if path.read_bytes() != text:
                raise OutboxError(
                    f"{key}: this site has already sealed another vector in this secure sum. A second one is never "
                    "sent; ask the coordinator for a new attempt."
                ) from None
        except OSError as error:
            raise OutboxError(f"{key}: the seal cannot be recorded: {error.strerror}.") from error

    def _path(self, key: str) -> Path:
        return self.folder / f"{_file_name(key)}.seal"


def _file_name(text: str) -> str:
    """A name that any text maps to, of fixed length, so that no key can leave the folder."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _header(entry: StoredEntry) -> bytes:
    fields = {
        "format": FORMAT,
        "run_id": entry.key.run_id,
        "name": entry.key.name,
        "sha256": entry.sha256,
        "size": entry.size,
    }
    return json.dumps(fields).encode() + b"\n"


def _read_header(file: BinaryIO, key: OutboxKey, *, is_forgotten: bool) -> StoredEntry:
    line = file.readline(MAX_HEADER_BYTES)
    try:
        fields = json.loads(line)
        found = (fields["format"], fields["run_id"], fields["name"])
        if not line.endswith(b"\n") or found != (FORMAT, key.run_id, key.name):
            raise ValueError("another format or another key")
        return StoredEntry(
            key=key,
            sha256=str(fields["sha256"]),
            size=int(fields["size"]),
            is_forgotten=is_forgotten,
        )
    except (ValueError, KeyError, TypeError):
        raise OutboxError(
            f"{key}: the entry's first line is damaged or was written by a newer version. Nothing is sent; restore the "
            "outbox from a backup or ask the coordinator for a new attempt."
        ) from None
