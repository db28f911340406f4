import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from participant.durable import write_durably
from participant.errors import DiskFullError, OutboxError
from participant.outbox import Outbox, OutboxKey, StoredSeals
from privacy.secagg.protocol import SealJournal

KEY = OutboxKey(run_id="run-1", name="update/3/abcd")
REPOSITORY = Path(__file__).parents[2]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_stored_bytes_come_back_after_a_restart(tmp_path: Path) -> None:
    Outbox(tmp_path / "outbox").put(KEY, b"\x00\x01payload\n\n")

    assert Outbox(tmp_path / "outbox").get(KEY) == b"\x00\x01payload\n\n"


def test_unknown_key_is_none(tmp_path: Path) -> None:
    assert Outbox(tmp_path).get(KEY) is None
    assert Outbox(tmp_path).find(KEY) is None


def test_storing_the_same_bytes_again_changes_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    first = outbox.put(KEY, b"payload")
    before = files(tmp_path)

    assert outbox.put(KEY, memoryview(b"payload")) == first
    assert files(tmp_path) == before


def test_other_bytes_under_the_same_key_are_refused(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(KEY, b"payload")

    with pytest.raises(OutboxError, match="other bytes were stored"):
        outbox.put(KEY, b"payloae")

    assert outbox.get(KEY) == b"payload"


def test_empty_payload_and_names_with_slashes_and_dots_are_stored(tmp_path: Path) -> None:
    key = OutboxKey(run_id="../..", name="/etc/passwd\n\x00")
    outbox = Outbox(tmp_path / "outbox")
    outbox.put(key, b"")

    assert outbox.get(key) == b""
    assert all(path.is_relative_to(tmp_path / "outbox") for path in files(tmp_path))


def test_files_are_private(tmp_path: Path) -> None:
    Outbox(tmp_path / "outbox").put(KEY, b"payload")

    assert [path.stat().st_mode & 0o777 for path in files(tmp_path)] == [0o600]
    assert (tmp_path / "outbox").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("position", [-1, 0, 30])
def test_damaged_entry_is_never_sent(tmp_path: Path, position: int) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(KEY, b"payload")
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

    with pytest.raises(OutboxError, match="damaged"):
        outbox.get(KEY)


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_truncated_entry_is_never_sent(tmp_path: Path, cut: int) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(KEY, b"payload")
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(OutboxError, match="damaged"):
        outbox.get(KEY)


def test_entry_moved_to_another_key_is_refused(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(KEY, b"payload")
    (path,) = files(tmp_path)
    other = OutboxKey(run_id="run-1", name="reply/3/1")
    outbox.put(other, b"reply")
    (other_path,) = set(files(tmp_path)) - {path}
    other_path.write_bytes(path.read_bytes())

    with pytest.raises(OutboxError, match="damaged"):
        outbox.get(other)


def test_forgotten_entry_frees_its_payload_and_keeps_its_digest(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(KEY, b"x" * 100_000)
    outbox.put(OutboxKey(run_id="run-2", name="update"), b"stays")

    outbox.forget(KEY)
    outbox.forget(KEY)

    assert sum(path.stat().st_size for path in files(tmp_path)) < 1000
    entry = outbox.find(KEY)
    assert entry is not None
    assert (entry.is_forgotten, entry.size) == (True, 100_000)
    assert outbox.get(OutboxKey(run_id="run-2", name="update")) == b"stays"


def test_forgotten_entry_still_refuses_other_bytes(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(KEY, b"payload")
    outbox.forget(KEY)

    assert outbox.put(KEY, b"payload").is_forgotten
    with pytest.raises(OutboxError, match="other bytes"):
        outbox.put(KEY, b"another")
    with pytest.raises(OutboxError, match="forgotten"):
        outbox.get(KEY)


def test_seal_is_recorded_once_and_survives_a_restart(tmp_path: Path) -> None:
    seals: SealJournal = StoredSeals(tmp_path)
    seals.record("run/3/1", b"\x01" * 32)

    again = StoredSeals(tmp_path)
    again.record("run/3/1", b"\x01" * 32)
    with pytest.raises(OutboxError, match="already sealed another vector"):
        again.record("run/3/1", b"\x02" * 32)
    again.record("run/3/2", b"\x02" * 32)
    assert (again.was_sealed("run/3/1"), again.was_sealed("run/4/1")) == (True, False)


def test_abandoned_temporary_files_are_removed_and_young_ones_are_not(tmp_path: Path) -> None:
    Outbox(tmp_path).put(KEY, b"payload")
    run_folder = files(tmp_path)[0].parent
    old, young = run_folder / ".x.entry.aa.part", run_folder / ".y.entry.bb.part"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (1, 1))

    Outbox(tmp_path)

    assert (old.exists(), young.exists()) == (False, True)


def run_child(
    script: str, *arguments: str, max_file_bytes: int | None = None
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from participant.outbox import Outbox, OutboxKey
step = getattr(os, sys.argv[2])
def killed(*arguments):
    if sys.argv[3] == "after":
        step(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], killed)
outbox = Outbox.__new__(Outbox)
outbox.folder = Path(sys.argv[1])
outbox.put(OutboxKey(run_id="run-1", name="update/3/abcd"), b"payload" * 10000)
"""


@pytest.mark.parametrize(
    ("function", "when", "stored"),
    [("fsync", "before", False), ("link", "before", False), ("link", "after", True)],
)
def test_killed_writer_leaves_all_or_nothing(
    tmp_path: Path, function: str, when: str, stored: bool
) -> None:
    child = run_child(KILLED_WHILE_WRITING, str(tmp_path), function, when)

    assert child.returncode == -signal.SIGKILL
    outbox = Outbox(tmp_path)
    assert outbox.get(KEY) == (b"payload" * 10_000 if stored else None)
    outbox.put(KEY, b"payload" * 10_000)
    assert outbox.get(KEY) == b"payload" * 10_000


def test_full_disk_stores_nothing_and_says_so(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from participant.outbox import Outbox, OutboxKey
from participant.errors import DiskFullError
try:
    Outbox(Path(sys.argv[1])).put(OutboxKey(run_id="run-1", name="update/3/abcd"), b"x" * 100_000)
except DiskFullError as error:
    print(error)
"""
    child = run_child(script, str(tmp_path), max_file_bytes=4096)

    assert "No room on the site's disk" in child.stdout, child.stderr
    assert files(tmp_path) == []
    assert Outbox(tmp_path).put(KEY, b"x" * 100_000).size == 100_000


def test_seal_on_a_full_disk_is_not_recorded(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from participant.outbox import StoredSeals
StoredSeals(Path(sys.argv[1])).record("run/3/1", b"x" * 32)
"""
    child = run_child(script, str(tmp_path), max_file_bytes=10)

    assert "DiskFullError" in child.stderr
    assert not StoredSeals(tmp_path).was_sealed("run/3/1")


def test_write_without_replace_leaves_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")

    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "x", (b"new",), replace=False)

    assert [(path.name, path.read_bytes()) for path in files(tmp_path)] == [("x", b"old")]


def test_disk_full_error_names_the_path_only_locally(tmp_path: Path) -> None:
    error = DiskFullError(path=tmp_path / "x", attempted="a charge")

    assert str(tmp_path) not in str(error)
    assert str(tmp_path) in error.local_message
