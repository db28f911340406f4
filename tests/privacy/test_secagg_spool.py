"""Unfinished uploads: whole ones come back as they were, unfinished ones leave nothing behind."""

import gc
import os
import stat
import tracemalloc

import pytest

from privacy.secagg.spool import Spool


def open_files():
    return len(os.listdir("/proc/self/fd"))


def files_with_bytes(folder):
    """Descriptors of this process that point into the folder, deleted files included."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.realpath(link).startswith(str(folder))]


def parts_of(spool, site, parts):
    """What the spool gives after the last of these parts."""
    *before, last = parts
    assert [spool.put(site, memoryview(part)) for part in before] == [None] * len(before)
    return [bytes(part) for part in spool.put(site, memoryview(last))]


@pytest.mark.parametrize(
    "parts",
    [[b"only"], [b""], [b"first", b"", b"third"], [bytes(480 * 1024), b"\1" * 480 * 1024, b"2"]],
)
def test_a_whole_upload_comes_back_in_order_and_in_its_parts(tmp_path, parts):
    assert parts_of(Spool(len(parts), folder=tmp_path), "a", parts) == parts


def test_uploads_that_come_at_the_same_time_do_not_mix(tmp_path):
    spool = Spool(2, folder=tmp_path)
    assert spool.put("a", memoryview(b"a0")) is None
    assert parts_of(spool, "b", [b"b0", b"b1"]) == [b"b0", b"b1"]
    whole = spool.put("a", memoryview(b"a1"))
    assert whole is not None
    assert [bytes(part) for part in whole] == [b"a0", b"a1"]


def test_the_spool_says_which_part_comes_next(tmp_path):
    spool = Spool(2, folder=tmp_path)
    assert spool.received("a") == 0
    spool.put("a", memoryview(b"0"))
    assert spool.received("a") == 1
    assert len(list(spool.put("a", memoryview(b"1")) or ())) == 2
    assert spool.received("a") == 2


def test_an_upload_of_one_part_touches_no_disk(tmp_path):
    spool = Spool(1, folder=tmp_path / "gone")
    assert parts_of(spool, "a", [b"part"]) == [b"part"]
    assert spool.received("a") == 1


def test_an_unfinished_upload_has_no_name_that_others_could_open(tmp_path):
    spool = Spool(2, folder=tmp_path)
    spool.put("a", memoryview(b"sealed"))
    assert list(tmp_path.iterdir()) == []
    (file,) = files_with_bytes(tmp_path)
    assert stat.S_IMODE(os.stat(file).st_mode) & 0o077 == 0


def test_without_room_the_upload_fails_and_others_are_not_touched(tmp_path):
    spool = Spool(2, folder=tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        spool.put("a", memoryview(b"0"))
    assert spool.received("a") == 0


@pytest.mark.parametrize("give_up", [lambda spool: spool.close(), lambda spool: None])
def test_unfinished_uploads_are_forgotten_when_the_spool_is_closed_or_lost(tmp_path, give_up):
    before = open_files()
    spool = Spool(3, folder=tmp_path)
    spool.put("a", memoryview(b"0"))
    spool.put("b", memoryview(b"0"))
    assert open_files() == before + 2
    give_up(spool)
    del spool
    gc.collect()
    assert open_files() == before


def test_a_closed_spool_begins_an_upload_anew(tmp_path):
    spool = Spool(2, folder=tmp_path)
    spool.put("a", memoryview(b"0"))
    spool.close()
    assert spool.received("a") == 0
    assert parts_of(spool, "a", [b"x", b"y"]) == [b"x", b"y"]


def test_a_finished_upload_frees_its_file(tmp_path):
    before = open_files()
    parts_of(Spool(2, folder=tmp_path), "a", [b"0", b"1"])
    assert open_files() == before


def test_an_upload_is_read_back_one_part_at_a_time(tmp_path):
    spool = Spool(64, folder=tmp_path)
    part = memoryview(bytes(256 * 1024))
    [spool.put("a", part) for _ in range(63)]
    tracemalloc.start()
    lengths = [len(read) for read in spool.put("a", part) or ()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lengths == [len(part)] * 64
    assert peak < 4 * len(part)
