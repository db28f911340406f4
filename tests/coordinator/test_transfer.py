"""Model files in chunks: what is kept, what is refused, what a half-finished folder leads to."""

import hashlib
import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.wire.channel import TransferError
from coordinator.wire.transfer import (
    CHUNK_BYTES,
    Chunk,
    LinkBrokenError,
    fetch_model,
    open_model,
    read_chunk,
)

CONTENT = secrets.token_bytes(3 * CHUNK_BYTES + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Source:
    """Serves a file from a folder, and misbehaves on request."""

    def __init__(self, folder: Path, content: bytes = CONTENT) -> None:
        self.path = folder / "source"
        self.path.write_bytes(content)
        self.offsets: list[int] = []
        self.cut_after: list[int] = []
        self.spoil_at: int | None = None

    def chunks(self, offset: int) -> Iterator[Chunk]:
        self.offsets.append(offset)
        left = self.cut_after.pop(0) if self.cut_after else -1
        with open_model(self.path) as file:
            while (chunk := read_chunk(file, offset)) is not None:
                if left == 0:
                    raise LinkBrokenError("cut")
                left -= 1
                is_spoilt = chunk.offset == self.spoil_at
                yield replace(chunk, payload=bytes(len(chunk.payload))) if is_spoilt else chunk
                offset += len(chunk.payload)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def fetch(source: Source, into: Path, *, sha256: str = SHA256, size: int = len(CONTENT)) -> Path:
    return fetch_model(
        source.chunks, sha256=sha256, size=size, into=into, before_retry=lambda: None
    )


def test_whole_file_gets_its_final_name_and_no_part_stays(source: Source, tmp_path: Path) -> None:
    path = fetch(source, tmp_path / "site")

    assert path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == [f"{SHA256}.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_file_that_is_there_is_not_fetched_again(source: Source, tmp_path: Path) -> None:
    fetch(source, tmp_path / "site")
    source.offsets.clear()

    fetch(source, tmp_path / "site")

    assert source.offsets == []


def test_file_altered_on_disk_is_fetched_again(source: Source, tmp_path: Path) -> None:
    path = fetch(source, tmp_path / "site")
    path.write_bytes(bytes(len(CONTENT)))

    assert fetch(source, tmp_path / "site").read_bytes() == CONTENT


def test_cut_resumes_behind_the_last_good_chunk(source: Source, tmp_path: Path) -> None:
    source.cut_after = [1, 0, 2]

    assert fetch(source, tmp_path / "site").read_bytes() == CONTENT
    assert source.offsets == [0, CHUNK_BYTES, CHUNK_BYTES, 3 * CHUNK_BYTES]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(length=st.integers(0, len(CONTENT)))
def test_part_of_any_length_left_by_a_dead_process_is_used(length: int, tmp_path: Path) -> None:
    source, site = Source(tmp_path), tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / f"{SHA256}.safetensors").unlink(missing_ok=True)
    (site / f"{SHA256}.part").write_bytes(CONTENT[:length])

    assert fetch(source, site).read_bytes() == CONTENT
    assert source.offsets == [length][: length < len(CONTENT)]


def test_part_longer_than_the_file_is_started_afresh(source: Source, tmp_path: Path) -> None:
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT + b"more")

    assert fetch(source, tmp_path).read_bytes() == CONTENT
    assert source.offsets == [0]


def test_spoilt_chunk_is_refused_and_what_came_before_is_kept(
    source: Source, tmp_path: Path
) -> None:
    source.spoil_at = CHUNK_BYTES

    with pytest.raises(TransferError, match=f"chunk at byte {CHUNK_BYTES} does not match its hash"):
        fetch(source, tmp_path / "site")

    assert (tmp_path / "site" / f"{SHA256}.part").read_bytes() == CONTENT[:CHUNK_BYTES]
    source.spoil_at = None
    assert fetch(source, tmp_path / "site").read_bytes() == CONTENT


def test_other_content_is_refused_and_deleted(tmp_path: Path) -> None:
    other = Source(tmp_path, bytes(len(CONTENT)))

    with pytest.raises(TransferError, match="hash to"):
        fetch(other, tmp_path / "site")

    assert (tmp_path / "site" / f"{SHA256}.part").read_bytes() == b""
    assert not (tmp_path / "site" / f"{SHA256}.safetensors").exists()


def test_shorter_file_than_announced_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="ends at byte"):
        fetch(source, tmp_path / "site", size=len(CONTENT) + 1)


def test_longer_file_than_announced_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="expected a chunk"):
        fetch(source, tmp_path / "site", size=len(CONTENT) - 1)


def test_chunk_out_of_place_is_refused(source: Source, tmp_path: Path) -> None:
    def from_the_start(offset: int) -> Iterator[Chunk]:
        return source.chunks(0)

    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT[:5])
    with pytest.raises(TransferError, match="expected a chunk at byte 5"):
        fetch_model(
            from_the_start,
            sha256=SHA256,
            size=len(CONTENT),
            into=tmp_path,
            before_retry=lambda: None,
        )


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", "AB" * 32, "ab" * 33])
def test_name_that_is_no_hash_is_refused(source: Source, tmp_path: Path, sha256: str) -> None:
    with pytest.raises(ValueError, match="hex digits"):
        fetch(source, tmp_path, sha256=sha256)


def test_full_disk_is_told_before_anything_is_fetched(source: Source, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="bytes free"):
        fetch(source, tmp_path, size=1 << 60)

    assert source.offsets == []


def test_two_fetches_into_one_folder_share_the_work(source: Source, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(source, tmp_path / "site")) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert source.offsets == [0]
    assert (tmp_path / "site" / f"{SHA256}.safetensors").read_bytes() == CONTENT
    assert len(list((tmp_path / "site").iterdir())) == 1
