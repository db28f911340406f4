import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.wire.plan import (
    MAX_PLAN_BYTES,
    SIGNATURE_LABEL,
    PlanError,
    SignedPlan,
    sign_plan,
    verify_plan,
)
from tests.sims.small_federation import WITH_DP, small_plan, small_spec

KEY = Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return small_plan(small_spec(tmp_path_factory.mktemp("run"), **WITH_DP))


def signed(payload, key=KEY):
    return SignedPlan(payload=payload, signature=key.sign(SIGNATURE_LABEL + payload))


def changed(plan, path, value):
    """The plan's bytes with one field changed, properly signed."""
    fields = json.loads(sign_plan(plan, KEY).payload)
    place = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return signed(json.dumps(fields).encode())


def test_a_plan_arrives_as_it_was_signed(plan):
    assert verify_plan(sign_plan(plan, KEY), KEY.public_key()) == plan


def test_the_same_plan_is_always_the_same_bytes(plan):
    assert sign_plan(plan, KEY) == sign_plan(plan, KEY)


def test_a_plan_signed_by_another_key_is_refused(plan):
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(PlanError, match="not the pinned coordinator's"):
        verify_plan(sign_plan(plan, stranger), KEY.public_key())


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_plan_altered_in_one_bit_is_refused(plan, position):
    original = sign_plan(plan, KEY)
    payload = bytearray(original.payload)
    payload[position] ^= 1
    with pytest.raises(PlanError, match="altered"):
        verify_plan(
            SignedPlan(payload=bytes(payload), signature=original.signature), KEY.public_key()
        )


@pytest.mark.parametrize("signature", [b"", bytes(64), bytes(63), bytes(65)])
def test_a_signature_of_any_wrong_form_is_refused(plan, signature):
    payload = sign_plan(plan, KEY).payload
    with pytest.raises(PlanError, match="signature"):
        verify_plan(SignedPlan(payload=payload, signature=signature), KEY.public_key())


def test_a_signature_made_for_another_purpose_is_refused(plan):
    payload = sign_plan(plan, KEY).payload
    unlabelled = SignedPlan(payload=payload, signature=KEY.sign(payload))
    with pytest.raises(PlanError, match="signature"):
        verify_plan(unlabelled, KEY.public_key())


def test_an_oversized_plan_is_refused_before_its_signature_is_checked():
    big = SignedPlan(payload=bytes(MAX_PLAN_BYTES + 1), signature=bytes(64))
    with pytest.raises(PlanError, match=f"exceeds {MAX_PLAN_BYTES}"):
        verify_plan(big, KEY.public_key())


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"run_id": "x"}', b"[" * 100_000]
)
def test_signed_bytes_that_are_no_plan_are_refused(payload):
    with pytest.raises(PlanError, match="does not parse"):
        verify_plan(signed(payload), KEY.public_key())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["surprise"], 1),
        (["training", "momentum"], 0.9),
        (["secure_sum", "modulus"], 7),
        (["model", "depth"], 7),
        (["round"], "1"),
        (["round"], 1.5),
        (["round"], True),
        (["cohort"], "anna"),
        (["cohort"], {"anna": 1}),
        (["cohort", 0], 5),
        (["cohort", 0], ["anna"]),
        (["quorum"], None),
        (["deadline"], "soon"),
        (["deadline"], 1e400),
        (["privacy", "epsilon"], float("nan")),
        (["privacy", "noise_multiplier"], float("inf")),
        (["privacy", "unit"], "visit"),
        (["privacy", "adjacency"], "replace-one"),
        (["privacy", "mechanism"], "trust-me"),
        (["training", "learning_rate"], "0.1"),
        (["secure_sum", "scheme"], "rot13"),
        (["secure_sum", "value_range"], float("nan")),
        (["secure_sum", "threshold"], 1),
        (["secure_sum", "dimension"], 0),
        (["model", "width"], 10**9),
        (["table", "columns"], []),
        (["table", "columns", 0, "bins"], [3, 2, 1]),
        (["seed"], "0"),
    ],
)
def test_a_signed_plan_with_a_field_of_another_type_or_meaning_is_refused(plan, path, value):
    with pytest.raises(PlanError, match="does not parse"):
        verify_plan(changed(plan, path, value), KEY.public_key())


def test_a_missing_field_is_refused(plan):
    fields = json.loads(sign_plan(plan, KEY).payload)
    del fields["seed"]
    with pytest.raises(PlanError, match="seed"):
        verify_plan(signed(json.dumps(fields).encode()), KEY.public_key())
