"""Bytes of secure sums against vectors that were computed without this code."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from privacy.secagg.envelopes import agree, bind, scope_of, signature, stretch, verify
from privacy.secagg.errors import MessageRefused
from privacy.secagg.masking import BLOCK_COORDINATES, apply_streams
from privacy.secagg.messages import decode_sites, encode_sites
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import SumContext


def load(name):
    return json.loads((Path(__file__).parents[1] / "vectors" / f"secagg_{name}.json").read_text())


MASKING, MAPS, BINDING = load("masking"), load("site_maps"), load("binding")
site_names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


@pytest.fixture
def scope():
    facts = BINDING["context"]
    digest = bytes.fromhex(facts["plan_digest"])
    context = SumContext(**(facts | {"plan_digest": digest}))
    return scope_of(SumPlan(**BINDING["plan"]), context)


@pytest.fixture
def roster_scope(scope):
    return scope.with_roster(bytes.fromhex(BINDING["roster_message"]))


@pytest.mark.parametrize("case", MASKING["good"])
def test_a_mask_is_the_key_stream_of_its_key(case):
    vector = np.zeros(case["first"] + 9, dtype=np.uint32)
    apply_streams(vector, plus=[bytes.fromhex(case["key"])], minus=[])
    assert vector[case["first"] :].tolist() == case["words"]


def test_the_zero_key_gives_the_published_block():
    # FIPS 197 key of zeros, block of zeros: 66e94bd4ef8a2c3b884cfa59ca342b2e.
    vector = np.zeros(4, dtype="<u4")
    apply_streams(vector, plus=[bytes(16)], minus=[])
    assert vector.tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"


def test_a_long_mask_equals_the_librarys_counter_mode():
    key, length = bytes(range(16)), 3 * BLOCK_COORDINATES + 7
    vector = np.zeros(length, dtype=np.uint32)
    apply_streams(vector, plus=[key], minus=[])
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    assert vector.astype("<u4").tobytes() == encryptor.update(bytes(4 * length))


def test_masks_that_are_added_and_taken_away_cancel():
    keys = [bytes([number]) * 16 for number in range(5)]
    vector = np.arange(BLOCK_COORDINATES + 5, dtype=np.uint32)
    apply_streams(vector, plus=keys, minus=keys[1:])
    apply_streams(vector, plus=[], minus=keys[:1])
    assert (vector == np.arange(BLOCK_COORDINATES + 5)).all()


@pytest.mark.parametrize("case", MASKING["bad"])
def test_mask_keys_of_another_size_are_refused(case):
    with pytest.raises(ValueError, match=case["why"]):
        apply_streams(np.zeros(1, np.uint32), plus=[bytes.fromhex(case["key"])], minus=[])


@pytest.mark.parametrize("case", MAPS["good"])
def test_site_maps_have_one_encoding(case):
    entries = {site: bytes.fromhex(value) for site, value in case["entries"].items()}
    assert encode_sites(entries).hex() == case["bytes"]
    assert decode_sites(bytes.fromhex(case["bytes"]), leg="share", sender="a") == entries


@pytest.mark.parametrize("case", MAPS["bad"])
def test_bytes_that_encode_no_site_map_are_refused(case):
    with pytest.raises(MessageRefused, match=f'leg "share", site "a": malformed.*{case["why"]}'):
        decode_sites(bytes.fromhex(case["bytes"]), leg="share", sender="a")


@given(entries=st.dictionaries(site_names, st.binary(max_size=50), max_size=8))
def test_a_site_map_comes_back_in_the_order_of_names(entries):
    decoded = decode_sites(encode_sites(entries), leg="share", sender="a")
    assert list(decoded.items()) == sorted(entries.items())


@given(data=st.binary(max_size=60))
def test_what_decodes_encodes_to_the_same_bytes(data):
    try:
        decoded = decode_sites(data, leg="share", sender="a")
    except MessageRefused:
        return
    assert encode_sites(decoded) == data


def test_the_scope_binds_plan_context_and_roster(scope, roster_scope):
    assert scope.sum_digest.hex() == BINDING["sum_digest"]
    assert roster_scope.roster_digest.hex() == BINDING["roster_digest"]


def test_a_signature_is_the_known_one_and_verifies(roster_scope):
    identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(BINDING["identity"]))
    body = bytes.fromhex(BINDING["body"])
    signed = signature(body, leg="share", site="a", scope=roster_scope, identity=identity)
    key = identity.public_key()
    assert signed.hex() == BINDING["signature"]
    assert verify(signed + body, leg="share", site="a", scope=roster_scope, key=key) == body


@pytest.mark.parametrize(
    ("leg", "site", "cut"), [("seal", "a", 0), ("share", "b", 0), ("share", "a", 1)]
)
def test_a_signature_serves_no_other_leg_site_or_body(roster_scope, leg, site, cut):
    identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(BINDING["identity"]))
    message = bytes.fromhex(BINDING["signature"] + BINDING["body"])
    message = message[: len(message) - cut]
    with pytest.raises(MessageRefused, match="the signature is not"):
        verify(message, leg=leg, site=site, scope=roster_scope, key=identity.public_key())


def test_a_signature_serves_no_other_roster(scope):
    identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(BINDING["identity"]))
    message = bytes.fromhex(BINDING["signature"] + BINDING["body"])
    with pytest.raises(MessageRefused, match="the signature is not"):
        verify(message, leg="share", site="a", scope=scope, key=identity.public_key())


@pytest.mark.parametrize(("own", "peer"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(
    ("label", "size", "expected"), [("pair-mask", 16, "pair_mask_key"), ("box", 32, "box_key")]
)
def test_either_side_derives_the_known_key(roster_scope, own, peer, label, size, expected):
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(BINDING[f"private_{own}"]))
    public = bytes.fromhex(BINDING[f"public_{peer}"])
    key = agree(private, public, label=label, scope=roster_scope, pair=("a", "b"), size=size)
    assert key.hex() == BINDING[expected]


def test_a_self_seed_stretches_to_the_known_key(roster_scope):
    seed = bytes.fromhex(BINDING["self_seed"])
    key = stretch(seed, label="self-mask", scope=roster_scope, site="a", size=16)
    assert key.hex() == BINDING["self_mask_key"]


def test_binding_keeps_neighbouring_parts_apart(scope):
    digests = {
        bind("x", scope, b"ab", b"c"),
        bind("x", scope, b"a", b"bc"),
        bind("x", scope, b"abc"),
    }
    assert len(digests) == 3
