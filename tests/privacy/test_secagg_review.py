"""What a dishonest site, or a coordinator that goes on after a refusal, may not achieve."""

from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg import mask
from privacy.secagg.errors import MessageRefused, SealedTwice
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.mask import SCALAR_BYTES, MaskCoordinator, MaskSite
from privacy.secagg.messages import FRAME_HEADER, decode_sites, encode_sites, frames_of
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import CoordinatorPart, SitePart, SumContext
from privacy.secagg.schemes import Roster
from privacy.secagg.secure_sum import MemoryJournal, answer_of, coordinator_part, site_part
from privacy.secagg.site import NOT_ASKED, Site

SITES = ("anna", "berta", "clara", "dora")
IDENTITIES = {site: Ed25519PrivateKey.generate() for site in SITES}
KEYS = {site: key.public_key().public_bytes_raw() for site, key in IDENTITIES.items()}
PLAN = SumPlan(scheme="mask", dimension=8, max_sites=4, quorum=3, threshold=3, value_range=1.0)
CONTEXT = SumContext(run_id="run", round=1, attempt=1, plan_digest=bytes(32), model="m")
VALUES = np.linspace(-1.0, 1.0, 8)


class OutsizedShares(MaskSite):
    """Deals, well committed to, shares that are no elements of the field."""

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        boxes = super().deal(roster, integers)
        shares = b"\xff" * (2 * SCALAR_BYTES)
        for recipient in roster.sites:
            commitments = mask._share_commitments(roster.scope, self._site, recipient, shares)
            boxes[recipient] = commitments
            if recipient == self._site:
                self._held[recipient] = shares
            else:
                boxes[recipient] += self._channel.lock(
                    shares, roster=roster, recipient=recipient, public=commitments
                )
        return boxes


class AskedAgain(MaskSite):
    """Opens only if all who are asked answer, so fewer may be asked again."""

    asks_all = True


def honest_part(site: str, *, journal: MemoryJournal | None = None) -> SitePart:
    return site_part(
        PLAN,
        site=site,
        context=CONTEXT,
        identity=IDENTITIES[site],
        keys=KEYS,
        journal=journal or MemoryJournal(),
        key_store=MemoryKeyStore(),
    )


def dishonest_part(site: str, scheme: MaskSite) -> SitePart:
    part = honest_part(site)
    assert isinstance(part, Site)
    part._scheme = scheme
    return part


def coordinator() -> CoordinatorPart:
    return coordinator_part(PLAN, context=CONTEXT, keys=KEYS)


def play(
    part: CoordinatorPart,
    sites: dict[str, SitePart],
    inbox: dict[str, Iterator[bytes]],
    leg: str,
) -> dict[str, Iterator[bytes]]:
    """Everybody who was told something answers; the leg is closed."""
    for site, frames in inbox.items():
        for frame in answer_of(sites[site], leg, frames, VALUES):
            part.absorb(leg, site, frame)
    return part.close_leg(leg)


def play_the_rest(
    part: CoordinatorPart, sites: dict[str, SitePart], inbox: dict[str, Iterator[bytes]]
) -> None:
    for leg in ("seal", "confirm", "release"):
        inbox = play(part, sites, inbox, leg)


def hello_inbox() -> dict[str, Iterator[bytes]]:
    return {site: iter(()) for site in SITES}


def test_shares_outside_the_field_are_refused_with_the_name_of_who_dealt_them() -> None:
    # An error of another kind ends the run instead of the attempt, and names nobody.
    sites = {site: honest_part(site) for site in SITES}
    sites["dora"] = dishonest_part("dora", OutsizedShares(PLAN, "dora"))
    part = coordinator()
    inbox = hello_inbox()
    for leg in ("hello", "share"):
        inbox = play(part, sites, inbox, leg)
    with pytest.raises(MessageRefused) as caught:
        play_the_rest(part, sites, inbox)
    assert caught.value.site == "dora"


def test_a_site_that_may_not_seal_neither_confirms_nor_releases() -> None:
    # Started twice in one attempt: the first part seals, the second must be over.
    journal = MemoryJournal()
    journal.record("secure-sum/run/1/1/seal", b"other bytes")
    sites = {site: honest_part(site) for site in SITES}
    sites["anna"] = honest_part("anna", journal=journal)
    part = coordinator()
    inbox = play(part, sites, play(part, sites, hello_inbox(), "hello"), "share")
    with pytest.raises(SealedTwice):
        sites["anna"].seal(inbox["anna"])
    survivors = frames_of([encode_sites(dict.fromkeys(SITES, b""))])
    with pytest.raises(MessageRefused):
        list(sites["anna"].confirm(survivors))


def test_a_site_that_refused_what_was_dealt_neither_confirms_nor_releases() -> None:
    sites = {site: honest_part(site) for site in SITES}
    part = coordinator()
    inbox = play(part, sites, play(part, sites, hello_inbox(), "hello"), "share")
    damaged = [frame[:-1] + bytes([frame[-1] ^ 1]) for frame in inbox["anna"]]
    with pytest.raises(MessageRefused):
        sites["anna"].seal(iter(damaged))
    survivors = frames_of([encode_sites(dict.fromkeys(SITES, b""))])
    with pytest.raises(MessageRefused):
        list(sites["anna"].confirm(survivors))


def test_a_second_request_for_help_that_was_refused_is_not_followed_by_a_third() -> None:
    sites = {site: honest_part(site) for site in SITES}
    sites["anna"] = dishonest_part("anna", AskedAgain(PLAN, "anna"))
    part = coordinator()
    inbox = hello_inbox()
    for leg in ("hello", "share", "seal", "confirm"):
        inbox = play(part, sites, inbox, leg)
    (first,) = inbox["anna"]
    entries = decode_sites(first[FRAME_HEADER.size :], leg="release", sender="coordinator")
    fewer = entries | {"dora": NOT_ASKED + entries["dora"][1:]}
    damaged = fewer | {"dora": fewer["dora"][:-1] + bytes([fewer["dora"][-1] ^ 1])}

    list(sites["anna"].release(iter((first,))))
    with pytest.raises(MessageRefused, match="signature"):
        list(sites["anna"].release(frames_of([encode_sites(damaged)])))
    with pytest.raises(MessageRefused, match="second time"):
        list(sites["anna"].release(frames_of([encode_sites(fewer)])))


@pytest.mark.parametrize("start", [0, 32], ids=["channel key", "mask key"])
def test_another_encoding_of_somebody_s_key_counts_as_the_same_key(start: int) -> None:
    # X25519 ignores the highest bit (RFC 7748, section 5).
    anna, dora = MaskSite(PLAN, "anna").public(), bytearray(MaskSite(PLAN, "dora").public())
    dora[start : start + 32] = anna[start : start + 32]
    dora[start + 31] ^= 0x80
    part = MaskCoordinator(PLAN)
    part.require_public("anna", anna)
    with pytest.raises(MessageRefused, match="hello"):
        part.require_public("dora", bytes(dora))
