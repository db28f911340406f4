"""Frames: a message comes back whole, and nothing else than its frames, in order, is taken for it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.errors import MessageRefused
from privacy.secagg.messages import (
    FRAME_HEADER,
    MAX_MAP_BYTES,
    PART_BYTES,
    encode_sites,
    frames_of,
    parse_frame,
    read_frames,
    read_map,
    split,
)
from tests.privacy.secagg_cohort import frame_of


def read(frames):
    """The parts of a message from site a."""
    return [bytes(part) for part in read_frames(frames, leg="seal", sender="a")]


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, [0]),
        (1, [1]),
        (PART_BYTES, [PART_BYTES]),
        (PART_BYTES + 1, [PART_BYTES, 1]),
        (2 * PART_BYTES, [PART_BYTES, PART_BYTES]),
    ],
)
def test_a_message_is_cut_into_full_parts_and_a_rest(size, lengths):
    assert list(map(len, split(bytes(size)))) == lengths


def test_a_frame_is_index_and_number_and_part():
    assert list(frames_of([b"ab", b"c"])) == [
        bytes.fromhex("00000000000000026162"),
        bytes.fromhex("000000010000000263"),
    ]


@given(parts=st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5))
def test_the_parts_of_a_message_come_back(parts):
    assert read(frames_of(parts)) == parts


def test_an_empty_message_is_one_empty_frame():
    assert read([bytes.fromhex("0000000000000001")]) == [b""]


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([], "0 of 1 frames, then no more"),
        ([b""], "frame of 0 bytes"),
        ([bytes(7)], "frame of 7 bytes"),
        ([frame_of(0, 1, bytes(PART_BYTES + 1))], f"frame of {PART_BYTES + 9} bytes"),
        ([frame_of(0, 0, b"a")], "frame 0 of 0"),
        ([frame_of(1, 2, b"a")], "frame 1 of 2 is out of order, expected 0"),
        ([frame_of(0, 2, b"a")], "1 of 2 frames, then no more"),
        ([frame_of(0, 2, b"a"), frame_of(0, 2, b"a")], "frame 0 of 2 came before, expected 1"),
        ([frame_of(0, 3, b"a"), frame_of(2, 3, b"a")], "frame 2 of 3 is out of order, expected 1"),
        ([frame_of(0, 3, b"a"), frame_of(1, 2, b"a")], "frame 1 of 2, not 3"),
        ([frame_of(0, 2, b"")], "frame 0 of 2, 8 bytes"),
    ],
)
def test_frames_that_make_no_message_are_refused_with_their_sender(frames, why):
    with pytest.raises(MessageRefused, match=f'leg "seal", site "a": {why}'):
        read(frames)


def test_no_frame_behind_the_last_is_taken():
    frames = iter([*frames_of([b"a", b"b"]), b"of the next message"])
    assert read(frames) == [b"a", b"b"]
    assert next(frames) == b"of the next message"


@given(frame=st.binary(max_size=40), expected=st.integers(min_value=0, max_value=3))
def test_what_parses_as_a_frame_is_the_expected_one(frame, expected):
    try:
        total, part = parse_frame(frame, expected=expected, leg="seal", sender="a")
    except MessageRefused:
        return
    assert expected < total
    assert FRAME_HEADER.pack(expected, total) + bytes(part) == frame


def test_a_site_map_is_read_from_its_frames():
    entries = {"a": b"1" * 200_000, "b": b"", "c": b"2" * 250_000, "d": b"3" * 250_000}
    frames = list(frames_of(split(encode_sites(entries))))
    assert len(frames) == 2
    assert read_map(frames, leg="seal", sender="a") == entries


def test_a_site_map_without_an_end_is_refused_before_it_fills_the_memory():
    part = bytes(PART_BYTES)
    endless = (frame_of(index, 2**32 - 1, part) for index in itertools.count())
    with pytest.raises(MessageRefused, match=f"more than {MAX_MAP_BYTES} bytes of a site map"):
        read_map(endless, leg="seal", sender="a")
    assert FRAME_HEADER.unpack_from(next(endless))[0] == MAX_MAP_BYTES // PART_BYTES + 1


@pytest.mark.parametrize("length", [256 * 1024 + 1, 2**32 - 1])
def test_a_value_of_a_site_map_longer_than_the_bound_is_refused(length):
    message = b"\0\1\1a" + length.to_bytes(4, "big") + bytes(min(length, 300_000))
    with pytest.raises(MessageRefused, match="longer than the message or the bound"):
        read_map(frames_of(split(message)), leg="seal", sender="a")
