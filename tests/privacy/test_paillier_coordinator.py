"""What the coordinator of the scheme `paillier` refuses on arrival, with the name of its sender."""

import numpy as np
import pytest

from privacy.secagg.errors import MessageRefused
from privacy.secagg.paillier_parts import AGREEMENT_BYTES
from privacy.secagg.schemes import Roster
from tests.privacy.paillier_sum import (
    HOLDER,
    SITES,
    Dealt,
    flipped,
    new_site,
    some_ciphertext,
    sum_plan,
)

AHEAD = 2 * AGREEMENT_BYTES
"""Bytes before the ciphertexts in the first part that one of three sites seals."""


@pytest.fixture(scope="module")
def dealt():
    """Refusals change nothing, so one sum serves all tests that only see refusals."""
    return Dealt(sum_plan()).seal()


@pytest.fixture(scope="module")
def disclosed():
    """What two helpers give, in a sum of its own."""
    fresh = Dealt(sum_plan()).seal()
    coordinator = fresh.coordinator()
    parts = {
        site: list(fresh.sites[site].disclose(SITES, ("anna", "cara"), iter(fresh.relayed())))
        for site in ("anna", "cara")
    }
    return fresh, coordinator, parts


def test_two_honest_helpers_open_the_exact_sum(disclosed):
    fresh, coordinator, parts = disclosed
    for site, given in parts.items():
        coordinator.require_disclosure(site, 0, given[0], SITES)
    opened = coordinator.open(SITES, ("anna", "cara"))
    assert (opened == fresh.vectors.sum(axis=0)).all()


@pytest.mark.parametrize("place", [0, 767, 768, 790, -1])
def test_a_changed_partial_decryption_or_proof_is_refused_with_its_senders_name(disclosed, place):
    _, coordinator, parts = disclosed
    with pytest.raises(MessageRefused, match='leg "release", site "anna": partial decryptions of'):
        coordinator.require_disclosure("anna", 0, flipped(parts["anna"][0], place), SITES)


def test_another_sites_partial_decryption_is_refused(disclosed):
    _, coordinator, parts = disclosed
    with pytest.raises(MessageRefused, match="key share that was dealt to it"):
        coordinator.require_disclosure("anna", 0, parts["cara"][0], SITES)


@pytest.mark.parametrize("change", [b"", b"\0"])
def test_a_disclosure_of_another_length_is_refused(disclosed, change):
    _, coordinator, parts = disclosed
    part = parts["anna"][0]
    with pytest.raises(MessageRefused, match=r"part 0 holds \d+ bytes, expected"):
        coordinator.require_disclosure("anna", 0, part + change if change else part[:-1], SITES)


def test_a_partial_decryption_outside_the_group_is_refused(disclosed):
    _, coordinator, parts = disclosed
    with pytest.raises(MessageRefused, match="outside the group"):
        coordinator.require_disclosure("anna", 0, bytes(768) + parts["anna"][0][768:], SITES)


@pytest.mark.parametrize("site", ["cara", HOLDER])
@pytest.mark.parametrize("change", [b"", b"\0"])
def test_public_bytes_of_another_length_are_refused(dealt, site, change):
    public = dealt.roster.public[site]
    coordinator = Dealt.coordinator(dealt, until="hello")
    with pytest.raises(MessageRefused, match=rf'leg "hello", site "{site}": \d+ bytes of keys'):
        coordinator.require_public(site, public + change if change else public[:-1])


@pytest.mark.parametrize("site", ["cara", HOLDER])
def test_a_channel_key_of_small_order_is_refused(dealt, site):
    with pytest.raises(MessageRefused, match="small order"):
        Dealt.coordinator(dealt, until="hello").require_public(
            site, bytes(32) + dealt.roster.public[site][32:]
        )


def test_a_channel_key_of_another_site_is_refused_by_everybody(dealt):
    copied = dealt.roster.public["anna"]
    with pytest.raises(MessageRefused, match="another site uses"):
        Dealt.coordinator(dealt, until="hello").require_public("cara", copied)
    roster = Roster(scope=dealt.roster.scope, public={**dealt.roster.public, "cara": copied})
    with pytest.raises(MessageRefused, match="another site uses"):
        new_site(dealt.plan, "anna").deal(roster, np.zeros(5, dtype=np.int32))


@pytest.mark.parametrize("place", [32, 415, -1])
def test_a_paillier_key_that_cannot_be_one_is_refused_by_everybody(dealt, place):
    # The first bit of n, its last, and the base.
    public = bytearray(dealt.roster.public[HOLDER])
    public[place] ^= 0x80 if place == 32 else 1
    if place == -1:
        public[416:] = bytes(len(public) - 416)
    with pytest.raises(MessageRefused, match=f'site "{HOLDER}": its Paillier key'):
        Dealt.coordinator(dealt, until="hello").require_public(HOLDER, bytes(public))
    roster = Roster(scope=dealt.roster.scope, public={**dealt.roster.public, HOLDER: bytes(public)})
    with pytest.raises(MessageRefused, match=f'site "{HOLDER}": its Paillier key'):
        new_site(dealt.plan, "anna").deal(roster, np.zeros(5, dtype=np.int32))


def test_different_commitments_for_different_sites_are_refused(dealt):
    boxes = dealt.boxes["cara"] | {"anna": flipped(dealt.boxes["cara"]["anna"], 0)}
    with pytest.raises(MessageRefused, match="different commitments for different sites"):
        Dealt.coordinator(dealt, until="hello").require_boxes("cara", boxes, dealt.roster)


@pytest.mark.parametrize("site", ["cara", HOLDER])
@pytest.mark.parametrize("recipient", ["anna", HOLDER, "cara"])
def test_a_box_of_another_length_is_refused(dealt, site, recipient):
    boxes = dealt.boxes[site] | {recipient: dealt.boxes[site][recipient] + b"\0"}
    with pytest.raises(MessageRefused, match=rf'\d+ bytes for site "{recipient}", expected'):
        Dealt.coordinator(dealt, until="hello").require_boxes(site, boxes, dealt.roster)


def test_a_verification_key_outside_the_group_is_refused(dealt):
    box = dealt.boxes[HOLDER]["anna"]
    boxes = dealt.boxes[HOLDER] | {"anna": box[:32] + bytes(768) + box[800:]}
    with pytest.raises(MessageRefused, match=f'leg "share", site "{HOLDER}": a ciphertext outside'):
        Dealt.coordinator(dealt, until="hello").require_boxes(HOLDER, boxes, dealt.roster)


def test_boxes_are_as_long_as_was_announced_at_most(dealt):
    largest = max(len(box) for boxes in dealt.boxes.values() for box in boxes.values())
    assert Dealt.coordinator(dealt, until="hello").largest_box == largest


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda part, _: part[:-1], "part 0 of 1 holds 823 bytes, expected 824"),
        (lambda part, _: part + b"\0", "part 0 of 1 holds 825 bytes, expected 824"),
        (lambda part, _: part[:AHEAD] + bytes(768), "a ciphertext outside the group"),
        (lambda part, _: part[:AHEAD] + b"\xff" * 768, "a ciphertext outside the group"),
        (lambda part, other: part[:AHEAD] + other, "ciphertexts other than those it committed to"),
    ],
    ids=["short", "long", "zero", "too large", "another"],
)
def test_a_sealed_vector_that_is_not_the_committed_one_is_refused(dealt, change, why):
    part = change(dealt.sealed["cara"][0], some_ciphertext(dealt))
    with pytest.raises(MessageRefused, match=f'leg "seal", site "cara": {why}'):
        Dealt.coordinator(dealt, until="share").require_part("cara", 0, memoryview(part))


def test_ciphertexts_before_a_key_are_refused(dealt):
    coordinator = Dealt.coordinator(dealt, until="share")
    coordinator._key = None
    with pytest.raises(
        MessageRefused, match=f'site "{HOLDER}": it holds the key and said no hello'
    ):
        coordinator.require_part("cara", 0, memoryview(dealt.sealed["cara"][0]))


@pytest.mark.parametrize(
    ("confirmed", "asked"),
    [(SITES, ["anna", "cara"]), (("anna", "cara"), ["anna", "cara"]), (("anna", HOLDER), ["anna"])],
)
def test_the_key_holder_is_never_sent_what_it_could_open(dealt, confirmed, asked):
    assert list(Dealt.coordinator(dealt, until="share").begin_release(confirmed)) == asked


def test_what_is_relayed_is_what_was_sealed(dealt):
    count, parts = Dealt.coordinator(dealt).relay(("anna", "cara"))
    assert count == 2
    assert list(parts) == dealt.sealed["anna"] + dealt.sealed["cara"]
