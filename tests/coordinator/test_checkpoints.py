import hashlib
import os

import pytest

from coordinator.errors import AggregationError
from coordinator.registry.checkpoints import CheckpointStore

CONTENT = b"weights" * 1000


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "models")


def test_a_file_is_named_by_its_content(store):
    sha256 = store.write(CONTENT)
    assert sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert store.require(sha256).read_bytes() == CONTENT


def test_writing_the_same_again_changes_nothing(store):
    assert store.write(CONTENT) == store.write(CONTENT)
    assert [path.name for path in store.folder.iterdir()] == [store.path(store.write(CONTENT)).name]


def test_the_folder_and_its_files_are_the_owner_s_alone(store):
    path = store.require(store.write(CONTENT))
    assert store.folder.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"x", b"W" + CONTENT[1:]])
def test_a_damaged_file_cannot_pass_for_the_one_committed(store, damage):
    sha256 = store.write(CONTENT)
    store.path(sha256).write_bytes(damage)
    with pytest.raises(AggregationError, match=r"is damaged.*backup"):
        store.require(sha256)


def test_writing_again_repairs_a_damaged_file(store):
    sha256 = store.write(CONTENT)
    store.path(sha256).write_bytes(b"damage")
    store.write(CONTENT)
    assert store.require(sha256).read_bytes() == CONTENT


def test_a_missing_file_is_named(store):
    with pytest.raises(AggregationError, match="abababababab is not in"):
        store.require("ab" * 32)


def test_a_write_that_was_cut_off_is_written_again(store):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    store.path(sha256).with_suffix(".partial").write_bytes(CONTENT[:10])
    store.write(CONTENT)
    assert store.require(sha256).read_bytes() == CONTENT


def test_where_nothing_can_be_written_no_file_appears(store):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    # A folder in the place of the file being written: fails for root too.
    os.mkdir(store.path(sha256).with_suffix(".partial"))
    with pytest.raises(OSError, match=r"\.partial"):
        store.write(CONTENT)
    assert not store.path(sha256).exists()
