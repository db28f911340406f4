"""Key epochs of `ckks`: when keys are used again, when new ones are dealt, and what is counted before anything leaves."""

import json
from dataclasses import replace

import pytest

from privacy.ckks.parameters import MOST_OPENINGS
from privacy.secagg.ckks import CLAIM, NO_EPOCH, PUBLIC_BYTES, epoch_continues
from privacy.secagg.errors import MessageRefused
from privacy.secagg.key_epoch import KEY_BYTES, KeyEpoch, read_epoch
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.messages import encode_sites
from tests.privacy.secagg_cohort import Cohort, framed, make_context, plan_of

KIND = "ckks-3-of-5"


def cohort_of(attempt: int = 1, *, after: Cohort | None = None, count: int = 5) -> Cohort:
    """Five sites, with what they keep from an earlier sum."""
    if after is None:
        return Cohort(plan_of(KIND), count=count, context=make_context(attempt=attempt))
    following: Cohort = after.next_attempt(attempt=attempt, count=count)
    return following


def held_by(cohort: Cohort, site: str) -> KeyEpoch:
    epoch = read_epoch(cohort.key_stores[site].load(), member=site)
    assert epoch is not None
    return epoch


def opened_at(cohort: Cohort) -> list[int]:
    return [held_by(cohort, site).opened for site in cohort.sites]


def set_opened(cohort: Cohort, site: str, opened: int) -> None:
    epoch = replace(held_by(cohort, site), opened=opened)
    cohort.key_stores[site].store(epoch.to_bytes())


def dealt_bytes(cohort: Cohort) -> int:
    """Bytes of all boxes that have arrived."""
    return sum(len(message) for leg, _, message in cohort.received if leg == "share")


def is_exact(cohort: Cohort) -> bool:
    result = cohort.play_on("release") if cohort.inbox else cohort.coordinator.result()
    return bool((result.integers == cohort.exact_sum(result.sites)).all())


def test_the_keys_of_one_sum_serve_the_next_ones_and_every_opening_is_counted():
    first = cohort_of()
    first.play_all()
    second = cohort_of(2, after=first)
    second.play_all()
    third = cohort_of(3, after=second)
    result = third.play_all()
    assert len({held_by(third, site).digest for site in third.sites}) == 1
    assert held_by(first, "site-0").digest == held_by(third, "site-0").digest
    assert opened_at(third) == [3] * 5
    assert result.evidence == {"key_epoch_decryptions": 3.0}
    assert (result.integers == third.exact_sum(third.sites)).all()


def test_within_an_epoch_nothing_is_dealt():
    first = cohort_of()
    first.play_all()
    second = cohort_of(2, after=first)
    second.play_all()
    assert dealt_bytes(first) > 5 * 4 * KEY_BYTES
    assert dealt_bytes(second) < 5 * 400


def test_a_site_that_lost_its_keys_makes_all_deal_anew():
    first = cohort_of()
    first.play_all()
    first.key_stores["site-2"] = MemoryKeyStore()
    second = cohort_of(2, after=first)
    before = held_by(first, "site-0").digest
    assert is_exact(second.play_before("release"))
    assert len({held_by(second, site).digest for site in second.sites}) == 1
    assert held_by(second, "site-0").digest != before
    assert opened_at(second) == [1] * 5


def test_a_site_that_did_not_share_is_no_member_and_makes_all_deal_anew():
    first = cohort_of()
    first.play_all(drop={"share": ["site-3"]})
    assert "site-3" not in held_by(first, "site-0").points
    assert first.key_stores["site-3"].load() is None
    second = cohort_of(2, after=first)
    assert is_exact(second.play_before("release"))
    assert opened_at(second) == [1] * 5


def test_a_site_that_missed_the_boxes_of_an_epoch_makes_all_deal_anew():
    first = cohort_of().play_before("seal")
    first.inbox.pop("site-3")
    first.play_on("seal")
    assert "site-3" in held_by(first, "site-0").points
    second = cohort_of(2, after=first)
    assert is_exact(second.play_before("release"))
    assert opened_at(second) == [1] * 5


def test_members_that_stay_away_do_not_end_the_epoch():
    plan = plan_of(KIND, count=5)
    first = Cohort(plan)
    first.play_all()
    second = first.next_attempt()
    result = second.play_all(drop={"hello": ["site-1"]})
    assert result.sites == ("site-0", "site-2", "site-3", "site-4")
    assert held_by(second, "site-0").digest == held_by(second, "site-1").digest
    assert (result.integers == second.exact_sum(result.sites)).all()


def test_another_threshold_makes_all_deal_anew():
    first = cohort_of()
    first.play_all()
    second = Cohort(plan_of(KIND, threshold=5), context=make_context(attempt=2))
    second.key_stores = first.key_stores
    second.parts = {site: second.new_part(site) for site in second.sites}
    assert is_exact(second.play_before("release"))
    assert {held_by(second, site).threshold for site in second.sites} == {5}


@pytest.mark.parametrize(
    ("opened", "is_kept"), [(MOST_OPENINGS - 3, True), (MOST_OPENINGS - 2, False)]
)
def test_an_epoch_ends_while_openings_are_left_for_every_helper_that_may_fall_silent(
    opened, is_kept
):
    first = cohort_of()
    first.play_all()
    set_opened(first, "site-4", opened)
    before = held_by(first, "site-0").digest
    second = cohort_of(2, after=first)
    second.play_before("release")
    assert (held_by(second, "site-0").digest == before) == is_kept


def test_being_asked_again_counts_as_one_more_opening():
    cohort = cohort_of().play_before("release")
    cohort.play_release(silent=["site-1"])
    assert [held_by(cohort, site).opened for site in ("site-0", "site-2")] == [2, 2]


def test_a_count_is_taken_from_whoever_claims_the_largest():
    first = cohort_of()
    first.play_all()
    set_opened(first, "site-1", 700)
    second = cohort_of(2, after=first)
    second.play_all()
    assert opened_at(second) == [701] * 5


def test_a_store_that_was_rolled_back_within_the_epoch_counts_on_from_the_others():
    first = cohort_of()
    first.play_all()
    early = held_by(first, "site-0").to_bytes()
    second = cohort_of(2, after=first)
    second.play_all()
    second.key_stores["site-0"].store(early)
    third = cohort_of(3, after=second)
    third.play_all()
    assert opened_at(third) == [3] * 5


def test_a_store_that_was_rolled_back_to_another_epoch_makes_all_deal_anew():
    first = cohort_of()
    first.play_all()
    early = held_by(first, "site-0").to_bytes()
    first.key_stores["site-1"] = MemoryKeyStore()
    second = cohort_of(2, after=first)
    second.play_all()
    second.key_stores["site-0"].store(early)
    third = cohort_of(3, after=second)
    assert is_exact(third.play_before("release"))
    assert opened_at(third) == [1] * 5


class FullStore(MemoryKeyStore):
    """Durable memory that takes nothing any more."""

    def store(self, secret: bytes) -> None:
        raise OSError("no space left")


def test_nothing_is_released_before_the_opening_is_stored():
    cohort = cohort_of().play_before("release")
    site = cohort.parts["site-0"]
    site._scheme._store = FullStore(cohort.key_stores["site-0"].load())
    with pytest.raises(OSError, match="no space"):
        site.release(iter(cohort.inbox["site-0"]))


def test_no_vector_is_sealed_before_its_epoch_is_stored():
    cohort = cohort_of().play_before("seal")
    site = cohort.parts["site-0"]
    site._scheme._store = FullStore()
    with pytest.raises(OSError, match="no space"):
        site.seal(iter(cohort.inbox["site-0"]))


def test_the_opening_is_on_record_while_its_first_bytes_are_made():
    cohort = cohort_of().play_before("release")
    frames = cohort.parts["site-0"].release(iter(cohort.inbox["site-0"]))
    assert held_by(cohort, "site-0").opened == 1
    next(frames)


def test_what_another_sum_counted_in_the_meantime_is_counted_on():
    first = cohort_of()
    first.play_all()
    one = cohort_of(2, after=first).play_before("release")
    other = cohort_of(3, after=first).play_before("release")
    one.answer("release", "site-0")
    other.answer("release", "site-0")
    assert held_by(first, "site-0").opened == 3


def test_a_sum_whose_epoch_another_sum_has_ended_releases_nothing():
    first = cohort_of().play_before("release")
    later = cohort_of(2, after=first)
    set_opened(first, "site-0", MOST_OPENINGS)
    later.parts["site-0"] = later.new_part("site-0")
    later.play_before("release")
    with pytest.raises(MessageRefused, match="another sum has begun a new key epoch"):
        first.answer("release", "site-0")


def test_after_the_last_opening_nothing_is_released():
    cohort = cohort_of().play_before("release")
    set_opened(cohort, "site-0", MOST_OPENINGS)
    with pytest.raises(MessageRefused, match=r"1024 sums were opened .* Nothing was released"):
        cohort.answer("release", "site-0")


def forged_hello(cohort: Cohort, site: str, claim: bytes) -> None:
    """Let the site claim another epoch than it holds."""
    part = cohort.parts[site]
    public = part._scheme.public()
    part._scheme.public = lambda: public[: PUBLIC_BYTES - CLAIM.size] + claim


def test_a_site_that_claims_an_epoch_of_which_it_is_no_member_is_refused_by_name():
    first = cohort_of()
    first.play_all(drop={"share": ["site-3"]})
    second = cohort_of(2, after=first)
    epoch = held_by(first, "site-0")
    forged_hello(second, "site-3", CLAIM.pack(epoch.digest, 1, 3))
    second.play("hello")
    with pytest.raises(MessageRefused, match='"site-3": it claims a key epoch of which it is no'):
        second.answer("share", "site-0")


def test_a_false_count_only_makes_all_deal_anew():
    first = cohort_of()
    first.play_all()
    second = cohort_of(2, after=first)
    forged_hello(second, "site-3", CLAIM.pack(held_by(first, "site-3").digest, 2**32 - 1, 3))
    assert is_exact(second.play_before("release"))
    assert opened_at(second) == [1] * 5


def test_keys_that_a_site_deals_within_an_epoch_are_refused_on_arrival_and_at_the_sites():
    first = cohort_of()
    first.play_all()
    second = cohort_of(2, after=first).play_before("share")
    boxes = dict.fromkeys(second.sites, b"")
    with pytest.raises(MessageRefused, match='1 bytes for site "site-2", expected 0'):
        second.deliver_signed("share", "site-1", encode_sites(boxes | {"site-2": b"k"}))
    second.play("share")
    told = framed(encode_sites({"site-0": b"", "site-1": b"k", "site-3": b"", "site-4": b""}))
    with pytest.raises(MessageRefused, match='"site-1": it deals keys although all sites hold'):
        second.answer("seal", "site-2", told)


@pytest.mark.parametrize("length", [0, 1, KEY_BYTES + 27, KEY_BYTES + 29])
def test_boxes_of_wrong_length_are_refused_on_arrival(length):
    cohort = cohort_of().play_before("share")
    box = bytes(KEY_BYTES + 28)
    boxes = dict.fromkeys(cohort.sites, box) | {"site-1": b"", "site-2": bytes(length)}
    with pytest.raises(MessageRefused, match="share"):
        cohort.deliver_signed("share", "site-1", encode_sites(boxes))


@pytest.mark.parametrize(
    "packed", [b"\xff" * KEY_BYTES, bytes(KEY_BYTES - 1)], ids=["range", "length"]
)
def test_a_share_outside_the_ring_is_refused_by_name_at_the_site_that_opens_it(packed):
    cohort = cohort_of().play_before("share")
    cohort.play("share")
    dealer = cohort.parts["site-1"]._scheme
    box = dealer._channel.lock(packed, roster=dealer._roster, recipient="site-0")
    told = framed(encode_sites(cohort.boxes("site-0") | {"site-1": box}))
    with pytest.raises(MessageRefused, match='"site-1": its share is none'):
        cohort.answer("seal", "site-0", told)
    assert cohort.key_stores["site-0"].load() is None


@pytest.mark.parametrize(
    ("claims", "continues"),
    [
        ([(b"e" * 32, 0, 3)] * 5, True),
        ([(b"e" * 32, 0, 3)] * 4 + [(b"f" * 32, 0, 3)], False),
        ([(b"e" * 32, 0, 3)] * 4 + [(NO_EPOCH, 0, 0)], False),
        ([(b"e" * 32, 0, 3)] * 4 + [(b"e" * 32, 0, 2)], False),
        ([(NO_EPOCH, 0, 0)] * 5, False),
        ([(NO_EPOCH, 0, 3)] * 5, False),
        ([(b"e" * 32, 0, 2)] * 5, False),
        ([(b"e" * 32, 0, 3)] * 4 + [(b"e" * 32, MOST_OPENINGS - 2, 3)], False),
    ],
)
def test_an_epoch_continues_only_if_all_claim_the_same_one(claims, continues):
    publics = {f"s{place}": bytes(32) + CLAIM.pack(*claim) for place, claim in enumerate(claims)}
    assert epoch_continues(publics, 3) == continues


def changed(stored: bytes, **header: object) -> bytes:
    line, _, body = stored.partition(b"\n")
    return json.dumps(json.loads(line) | header).encode() + b"\n" + body


def test_what_is_stored_is_read_again_and_only_that():
    cohort = cohort_of()
    cohort.play_all()
    stored = cohort.key_stores["site-1"].load()
    epoch = held_by(cohort, "site-1")
    assert epoch.to_bytes() == stored
    points = dict(epoch.points)
    bad = [
        b"",
        stored[:-1],
        stored + b"\0",
        stored[:-KEY_BYTES] + b"\xff" * KEY_BYTES,
        changed(stored, format="another"),
        changed(stored, opened=-1),
        changed(stored, opened=MOST_OPENINGS + 1),
        changed(stored, threshold=6),
        changed(stored, digest="00"),
        changed(stored, points=points | {"site-0": 2}),
        changed(stored, points=points | {"site-0": 65}),
        changed(stored, points=[]),
    ]
    assert [read_epoch(other, member="site-1") for other in bad] == [None] * len(bad)
    assert read_epoch(stored, member="site-9") is None


def test_no_secret_is_in_the_text_of_an_epoch():
    cohort = cohort_of()
    cohort.play_all()
    epoch = held_by(cohort, "site-1")
    assert "key=" not in repr(epoch)
    assert "shares=" not in repr(epoch)
