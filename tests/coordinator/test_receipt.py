import json
from dataclasses import replace

import pytest

from coordinator.wire.receipt import (
    MAX_RECEIPT_BYTES,
    RoundReceipt,
    decode_receipt,
    encode_receipt,
)

GOOD = RoundReceipt(
    epsilon_spent=1.5,
    epsilon_limit=8.0,
    delta=1e-5,
    unit="patient",
    adjacency="add-or-remove-one",
    events="[]",
    training_seconds=0.25,
)


def changed(**fields):
    return json.dumps(json.loads(encode_receipt(GOOD)) | fields).encode()


def test_a_receipt_arrives_as_it_was_sent():
    assert decode_receipt(encode_receipt(GOOD)) == GOOD


def test_long_events_still_fit():
    longest = replace(GOOD, events="x" * (MAX_RECEIPT_BYTES // 2))
    assert decode_receipt(encode_receipt(longest)) == longest


@pytest.mark.parametrize(
    "fields",
    [
        {"epsilon_spent": -0.1},
        {"epsilon_spent": float("nan")},
        {"epsilon_spent": float("inf")},
        {"epsilon_spent": "1.5"},
        {"epsilon_spent": None},
        {"epsilon_spent": True},
        {"epsilon_limit": -1},
        {"delta": 1.0},
        {"delta": -1e-9},
        {"unit": "x" * 33},
        {"unit": ["patient"]},
        {"events": "x" * (MAX_RECEIPT_BYTES // 2 + 1)},
        {"events": []},
        {"training_seconds": float("nan")},
        {"patients": 303},
    ],
)
def test_a_receipt_with_an_impossible_or_unknown_field_is_refused(fields):
    with pytest.raises(ValueError, match="receipt does not parse"):
        decode_receipt(changed(**fields))


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 50_000])
def test_bytes_that_are_no_receipt_are_refused(payload):
    with pytest.raises(ValueError, match="receipt does not parse"):
        decode_receipt(payload)


def test_an_oversized_receipt_is_refused_unread():
    with pytest.raises(ValueError, match=f"exceeds {MAX_RECEIPT_BYTES}"):
        decode_receipt(b" " * (MAX_RECEIPT_BYTES + 1))
