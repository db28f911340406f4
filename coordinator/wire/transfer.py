"""Model files over the data plane, addressed by the SHA-256 of their content.

1. The sender reads the file in chunks of `CHUNK_BYTES` and sends each with its offset and SHA-256.
2. The receiver writes checked chunks to `<sha256>.part`. After a cut, of the link or of the process, it goes on
   behind the last good chunk.
3. The whole file must have the expected size and hash; only then, and fsynced, it gets its final name
   `<sha256>.safetensors`. Whoever sees that name sees the right bytes.

Two processes that want the same file into the same folder take turns (flock); the second finds it done.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final

from coordinator.wire.channel import TransferError, require_sha256

CHUNK_BYTES: Final = 256 << 10
"""Small enough that a slow link (32 KB/s) shows a sign of life within the heartbeat's patience of 8 s."""
MODEL_SUFFIX: Final = ".safetensors"
PART_SUFFIX: Final = ".part"
_READ_BYTES: Final = 1 << 20


class LinkBrokenError(Exception):
    """The link was cut in the middle of something that can be taken up again."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a file."""

    offset: int
    payload: bytes = field(repr=False)
    sha256: bytes = field(repr=False)


def open_model(path: Path) -> FileIO:
    """Open a model file for `read_chunk`.

    Raises:
        TransferError: it is not there.
    """
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise TransferError(
            f"Model {path.stem}: the exchange has lost this file. Restore it from backup."
        ) from error


def read_chunk(file: FileIO, offset: int) -> Chunk | None:
    """The chunk of an open file that starts at `offset`; None at its end."""
    payload = os.pread(file.fileno(), CHUNK_BYTES, offset)
    if not payload:
        return None
    return Chunk(offset=offset, payload=payload, sha256=hashlib.sha256(payload).digest())


def fetch_model(
    chunks: Callable[[int], Iterator[Chunk]],
    *,
    sha256: str,
    size: int,
    into: Path,
    before_retry: Callable[[], None],
) -> Path:
    """Fetch one file; `chunks(offset)` streams it from there and raises LinkBrokenError when cut.

    Args:
        chunks: the stream of the file's chunks from an offset on.
        sha256: what the file must hash to, in hex.
        size: its bytes.
        into: folder for the part and the final file.
        before_retry: called after each cut; raises when there is no point in going on.

    Raises:
        TransferError: wrong chunk, wrong size, wrong hash, or no room on the disk.
    """
    require_sha256(sha256)
    if size <= 0:
        raise ValueError(f"Expected size={size} > 0.")
    final = into / f"{sha256}{MODEL_SUFFIX}"
    into.mkdir(parents=True, exist_ok=True)
    part_path = into / f"{sha256}{PART_SUFFIX}"
    while not _is_intact(final, sha256, size):
        with part_path.open("ab", buffering=0) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not _is_same_file(part, part_path):
                continue  # another process has finished it meanwhile
            os.fchmod(part.fileno(), 0o600)
            digest = _digest_of_part(part, size)
            while part.tell() < size:
                _require_room(into, size - part.tell())
                try:
                    _append_chunks(part, digest, chunks, sha256=sha256, size=size)
                except LinkBrokenError:
                    before_retry()
            _finish(part, digest, sha256=sha256, size=size)
            part_path.replace(final)
            _sync_folder(into)
            return final
    return final


def _append_chunks(
    part: FileIO,
    digest: "hashlib._Hash",
    chunks: Callable[[int], Iterator[Chunk]],
    *,
    sha256: str,
    size: int,
) -> None:
    for chunk in chunks(part.tell()):
        offset = part.tell()
        if chunk.offset != offset or not 0 < len(chunk.payload) <= min(CHUNK_BYTES, size - offset):
            raise TransferError(
                f"Model {sha256}: expected a chunk at byte {offset} of {size}, got {len(chunk.payload)} "
                f"bytes at {chunk.offset}. The plan and the exchange disagree; report it to the coordinator."
            )
        if hashlib.sha256(chunk.payload).digest() != chunk.sha256:
            raise TransferError(
                f"Model {sha256}: the chunk at byte {offset} does not match its hash and was refused. "
                "Fetch again; it resumes there."
            )
        try:
            _write_all(part, chunk.payload)
        except OSError as error:
            part.truncate(offset)
            raise TransferError(
                f"Model {sha256}: cannot write byte {offset} of {size}: {error.strerror}. Free space "
                "and fetch again; it resumes there."
            ) from error
        digest.update(chunk.payload)
    if part.tell() < size:
        raise TransferError(
            f"Model {sha256}: the file ends at byte {part.tell()}, expected {size}. Restore it at the "
            "coordinator."
        )


def _finish(part: FileIO, digest: "hashlib._Hash", *, sha256: str, size: int) -> None:
    """Make the part durable if it is the file that was asked for; forget it if not."""
    if digest.hexdigest() != sha256:
        part.truncate(0)
        raise TransferError(
            f"Model {sha256}: the {size} bytes received hash to {digest.hexdigest()}; they were deleted. "
            "Restore the file at the coordinator."
        )
    os.fsync(part.fileno())


def _write_all(file: FileIO, payload: bytes) -> None:
    rest = memoryview(payload)
    while rest:
        rest = rest[file.write(rest) :]


def _digest_of_part(part: FileIO, size: int) -> "hashlib._Hash":
    """Hash what an earlier call has left, and stand behind it."""
    if os.fstat(part.fileno()).st_size > size:
        part.truncate(0)
    digest = hashlib.sha256()
    length = os.fstat(part.fileno()).st_size
    with Path(part.name).open("rb") as written:
        while block := written.read(_READ_BYTES):
            digest.update(block)
    part.seek(length)
    return digest


def _is_intact(final: Path, sha256: str, size: int) -> bool:
    """Whether the final file is there and is what its name says."""
    if not final.is_file() or final.stat().st_size != size:
        return False
    with final.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _is_same_file(part: FileIO, path: Path) -> bool:
    """Whether the name still belongs to the open file; a finished part was renamed."""
    try:
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TransferError(
            f"{folder} has {free} bytes free, the model needs {needed} more. Free space and fetch again."
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
