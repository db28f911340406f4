"""The scheme `paillier` with dishonest sites and a dishonest coordinator; the contract suite runs honest ones."""

import numpy as np
import pytest
from gmpy2 import mpz

from privacy.paillier.ciphertexts import encode_ciphertexts
from privacy.paillier.encrypt import encrypt
from privacy.paillier.keys import decode_key_pair
from privacy.secagg.boxes import Channel
from privacy.secagg.errors import MessageRefused, SumImpossible
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.paillier import PaillierSite
from privacy.secagg.paillier_parts import AGREEMENT_BYTES, Layout
from privacy.secagg.schemes import Roster
from tests.privacy.paillier_keys import PAIRS, STORED
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


# The coordinator lies to those who decrypt.


def alone(dealt):
    return dealt.sealed["cara"] * 3


def left_out(dealt):
    return dealt.sealed["anna"] + dealt.sealed["cara"]


def swapped(dealt):
    return dealt.relayed(bern=dealt.sealed["cara"], cara=dealt.sealed["bern"])


def twice(dealt):
    return dealt.relayed(bern=dealt.sealed["cara"])


def replaced_by_zero(dealt):
    (part,) = dealt.sealed["bern"]
    return dealt.relayed(bern=[part[:AHEAD] + some_ciphertext(dealt)])


def multiplied_by_the_others_inverse(dealt):
    """What would leave nothing but the victim's vector in the product."""
    public = dealt.sites["anna"]._key
    parts = {site: mpz.from_bytes(dealt.sealed[site][0][AHEAD:], "big") for site in SITES}
    inverse = pow(parts["anna"], -1, public.square)
    forged = inverse.to_bytes(768, "big")
    return dealt.relayed(bern=[dealt.sealed["bern"][0][:AHEAD] + forged])


def shortened(dealt):
    return dealt.relayed(cara=[dealt.sealed["cara"][0][:-1]])


def outside_the_group(dealt):
    return dealt.relayed(cara=[dealt.sealed["cara"][0][:AHEAD] + bytes(768)])


def nothing(_):
    return []


def one_more(dealt):
    return dealt.relayed() + dealt.sealed["cara"]


@pytest.mark.parametrize("helper", ["anna", HOLDER])
@pytest.mark.parametrize(
    "lie",
    [
        alone,
        left_out,
        swapped,
        twice,
        replaced_by_zero,
        multiplied_by_the_others_inverse,
        shortened,
        outside_the_group,
        nothing,
        one_more,
    ],
    ids=lambda lie: lie.__name__,
)
def test_nobody_decrypts_anything_but_what_the_survivors_committed_to(dealt, lie, helper):
    with pytest.raises(MessageRefused, match=r"Nothing was released\.$") as caught:
        dealt.sites[helper].disclose(SITES, SITES, iter(lie(dealt)))
    assert caught.value.leg == "release"


def test_a_ciphertext_that_is_not_the_committed_one_is_laid_at_the_coordinators_door(dealt):
    with pytest.raises(
        MessageRefused, match=r'site "coordinator": what it passed on from site "bern" is not'
    ):
        dealt.sites["anna"].disclose(SITES, SITES, iter(replaced_by_zero(dealt)))


def test_an_altered_agreement_is_refused(dealt):
    # The agreement for "anna" comes first in what "cara" sealed.
    altered = [flipped(dealt.sealed["cara"][0], AGREEMENT_BYTES - 1)]
    with pytest.raises(MessageRefused, match='site "cara": it sealed under other commitments'):
        dealt.sites["anna"].disclose(SITES, SITES, iter(dealt.relayed(cara=altered)))


def test_an_agreement_for_another_site_is_refused(dealt):
    (part,) = dealt.sealed["cara"]
    swapped_agreements = part[AGREEMENT_BYTES:AHEAD] + part[:AGREEMENT_BYTES] + part[AHEAD:]
    with pytest.raises(MessageRefused, match='site "cara": it sealed under other commitments'):
        dealt.sites["anna"].disclose(SITES, SITES, iter(dealt.relayed(cara=[swapped_agreements])))


def test_a_site_that_shows_different_sites_different_commitments_gets_nothing_decrypted():
    # With the coordinator's help, which would refuse its boxes otherwise. Its second commitment may answer what it saw.
    dealt = Dealt(sum_plan())
    other = dealt.sites["cara"].deal(dealt.roster, np.zeros(5, dtype=np.int32))
    for name in ("anna", "cara"):
        dealt.sealed[name] = list(dealt.sites[name].protect(dealt.dealt_to(name)))
    late = dealt.dealt_to("bern", cara=other["bern"])
    dealt.sealed["bern"] = list(dealt.sites["bern"].protect(late))
    with pytest.raises(MessageRefused, match='site "bern": it sealed under other commitments'):
        dealt.sites["anna"].disclose(SITES, SITES, iter(dealt.relayed()))
    with pytest.raises(MessageRefused, match='site "anna": it sealed under other commitments'):
        dealt.sites["bern"].disclose(SITES, SITES, iter(dealt.relayed()))


def test_a_commitment_cannot_be_copied_from_another_site(dealt):
    commitments = {dealt.boxes[site][site][:32] for site in SITES}
    layout = Layout(plan=dealt.plan)
    ciphertexts = layout.split_sealed(dealt.sealed["anna"][0], 0, others=2)[1]
    coordinator = Dealt.coordinator(dealt, until="share")
    copied = dealt.sealed["cara"][0][:AHEAD] + ciphertexts
    assert len(commitments) == 3
    with pytest.raises(MessageRefused, match='site "cara": ciphertexts other than those'):
        coordinator.require_part("cara", 0, memoryview(copied))


def test_a_site_helps_once():
    fresh = Dealt(sum_plan()).seal()
    fresh.sites["anna"].disclose(SITES, SITES, iter(fresh.relayed()))
    with pytest.raises(ValueError, match="once"):
        fresh.sites["anna"].disclose(SITES, SITES, iter(fresh.relayed()))


# The key holder lies.


class LyingHolder(PaillierSite):
    """Deals every site the share of the next one."""

    def _dealt_shares(self):
        shown, hidden = super()._dealt_shares()
        return shown, dict(
            zip(hidden, [*list(hidden.values())[1:], *list(hidden.values())[:1]], strict=True)
        )


def test_a_key_share_that_is_not_the_announced_one_is_refused_with_the_dealers_name():
    dealt = Dealt(sum_plan(), schemes={HOLDER: LyingHolder})
    with pytest.raises(
        MessageRefused, match=f'leg "share", site "{HOLDER}": the key share .*Nothing was sealed'
    ):
        dealt.sites["anna"].protect(dealt.dealt_to("anna"))


class ShortBoxHolder(PaillierSite):
    """Deals shares of which a byte is missing."""

    def _dealt_shares(self):
        shown, hidden = super()._dealt_shares()
        return shown, {site: share[1:] for site, share in hidden.items()}


def test_a_key_share_of_another_length_is_refused():
    dealt = Dealt(sum_plan(), schemes={HOLDER: ShortBoxHolder})
    with pytest.raises(MessageRefused, match=f'site "{HOLDER}": a box of another length'):
        dealt.sites["anna"].protect(dealt.dealt_to("anna"))


def test_without_the_key_holder_nothing_is_encrypted(dealt):
    public = {site: key for site, key in dealt.roster.public.items() if site != HOLDER}
    with pytest.raises(
        MessageRefused, match=f'site "{HOLDER}": it holds the key and is not in the'
    ):
        new_site(dealt.plan, "anna").deal(
            Roster(scope=dealt.roster.scope, public=public), np.zeros(5, dtype=np.int32)
        )


def test_without_the_key_holders_box_nothing_is_sealed():
    dealt = Dealt(sum_plan())
    with pytest.raises(MessageRefused, match=f'site "{HOLDER}": it holds the key and did not deal'):
        dealt.sites["anna"].protect({"cara": dealt.boxes["cara"]["anna"]})


def test_the_key_holder_forgets_key_and_shares_when_it_has_dealt(dealt):
    holder = dealt.sites[HOLDER]
    kept = [value for value in vars(holder).values() if isinstance(value, type(mpz(0)))]
    assert holder._pair is None
    # Its own share and the public key of it.
    assert len(kept) == 2


def test_no_secret_is_shown(dealt):
    holder = new_site(dealt.plan, HOLDER)
    assert str(int(holder._pair.private.p)) not in f"{holder!r} {vars(holder)!r}"


# The key is kept.


def test_the_key_holder_uses_the_key_that_it_keeps():
    store = MemoryKeyStore(STORED["subgroup-3072"])
    public = PaillierSite(sum_plan(), HOLDER, store).public()
    assert int.from_bytes(public[32:416], "big") == PAIRS["subgroup-3072"].public.n
    assert store.load() == STORED["subgroup-3072"]


@pytest.mark.parametrize("stored", [None, STORED["subgroup-3072"]], ids=["none", "another kind"])
def test_a_key_of_the_plans_kind_is_made_and_kept(stored):
    store = MemoryKeyStore(stored)
    public = PaillierSite(sum_plan(obfuscation="djn-half"), HOLDER, store).public()
    kept = decode_key_pair(store.load() or b"")
    assert kept.public.obfuscation == "djn-half"
    assert int.from_bytes(public[32:416], "big") == kept.public.n


@pytest.mark.parametrize("stored", [STORED["subgroup-3072"][:-1], STORED["subgroup-1152"], b""])
def test_a_damaged_or_small_stored_key_is_refused(stored):
    with pytest.raises(ValueError, match="Expected"):
        PaillierSite(sum_plan(), HOLDER, MemoryKeyStore(stored))


def test_other_sites_keep_nothing():
    store = MemoryKeyStore()
    PaillierSite(sum_plan(), "anna", store).public()
    assert store.load() is None


# Vectors.


class GreedySite(PaillierSite):
    """Encrypts more than fits the slots."""

    def _encrypted(self, integers):
        return [encode_ciphertexts(encrypt([(mpz(1) << 3071) - 1], self._key), self._key)]


def test_a_sum_that_carries_over_slots_is_discarded():
    dealt = Dealt(sum_plan(), schemes={"cara": GreedySite}).seal()
    coordinator = dealt.coordinator()
    for site in ("anna", "cara"):
        (part,) = dealt.sites[site].disclose(SITES, SITES, iter(dealt.relayed()))
        coordinator.require_disclosure(site, 0, part, SITES)
    with pytest.raises(SumImpossible, match="at least one sealed something else"):
        coordinator.open(SITES, ("anna", "cara"))


def test_vectors_of_several_parts_open_exactly(monkeypatch):
    monkeypatch.setattr(Layout, "in_part", 2)
    dealt = Dealt(sum_plan(dimension=300)).seal()
    coordinator = dealt.coordinator()
    for site in ("anna", "cara"):
        parts = dealt.sites[site].disclose(SITES, SITES, iter(dealt.relayed()))
        for index, part in enumerate(parts):
            coordinator.require_disclosure(site, index, part, SITES)
    assert coordinator.sealed_parts == 2
    assert (coordinator.open(SITES, ("anna", "cara")) == dealt.vectors.sum(axis=0)).all()


def test_parts_that_a_survivor_sealed_in_another_order_are_refused(monkeypatch):
    monkeypatch.setattr(Layout, "in_part", 1)
    dealt = Dealt(sum_plan(dimension=300)).seal()
    first, second, third = dealt.sealed["cara"]
    exchanged = [first, third, second]
    with pytest.raises(MessageRefused, match="is not what that site committed to"):
        dealt.sites["anna"].disclose(SITES, SITES, iter(dealt.relayed(cara=exchanged)))


@pytest.mark.parametrize(("dimension", "sealed"), [(1, 768), (127, 768), (128, 1536), (1270, 7680)])
def test_a_sealed_vector_takes_six_bytes_a_value(dimension, sealed):
    layout = Layout(plan=sum_plan(dimension=dimension, value_bits=22))
    assert layout.slots.count * layout.ciphertext_bytes == sealed


@pytest.mark.parametrize("key_bits", [3072, 8192])
def test_every_part_fits_a_frame_with_agreements_of_sixty_three_or_a_proof(key_bits):
    plan = sum_plan(key_bits=key_bits, max_sites=64, dimension=10_000_000)
    layout = Layout(plan=plan)
    ciphertexts = layout.part_count(0) * layout.ciphertext_bytes
    assert ciphertexts + 63 * AGREEMENT_BYTES <= 480 * 1024
    assert ciphertexts + layout.proof_bytes(64) <= 480 * 1024
    assert sum(layout.part_count(index) for index in range(layout.parts)) == layout.slots.count


def test_a_box_of_a_stranger_does_not_open(dealt):
    stranger = Channel("cara").lock(
        b"", roster=dealt.roster, recipient="anna", public=dealt.boxes["cara"]["anna"][:32]
    )
    boxes = dealt.dealt_to("anna", cara=dealt.boxes["cara"]["anna"][:32] + stranger)
    with pytest.raises(MessageRefused, match='leg "share", site "cara": its box does not open'):
        dealt.sites["anna"].protect(boxes)
