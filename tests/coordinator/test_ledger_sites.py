"""Invitations admit exactly one site exactly once; a member's keys are its own."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from coordinator.errors import EnrolmentError, TokenRefused
from coordinator.ledger.store import LedgerStore, open_ledger
from tests.coordinator.ledger_cases import enrol

pytest_plugins = ["tests.coordinator.ledger_fixtures"]

TOKEN = hashlib.sha256(b"a token of 256 bits").hexdigest()


def redeemed(ledger: LedgerStore) -> str:
    """The site that was let in, or `refused`."""
    try:
        return ledger.sites.redeem_invitation(TOKEN)
    except TokenRefused:
        return "refused"


def test_an_invitation_is_redeemed_once(ledger):
    ledger.sites.invite("st-anna", token_sha256=TOKEN)

    assert ledger.sites.redeem_invitation(TOKEN) == "st-anna"
    with pytest.raises(TokenRefused):
        ledger.sites.redeem_invitation(TOKEN)


def test_of_eight_that_redeem_one_invitation_at_once_exactly_one_succeeds(ledger):
    ledger.sites.invite("st-anna", token_sha256=TOKEN)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(redeemed, [ledger] * 8))

    assert sorted(answers) == ["refused"] * 7 + ["st-anna"]


def test_an_invitation_expires_after_an_hour(ledger, clock):
    expires_at = ledger.sites.invite("st-anna", token_sha256=TOKEN)
    clock.advance(timedelta(hours=1))

    assert expires_at == clock.now
    with pytest.raises(TokenRefused):
        ledger.sites.redeem_invitation(TOKEN)


def test_unknown_used_and_expired_invitations_are_refused_in_the_same_words(ledger, clock):
    ledger.sites.invite("st-anna", token_sha256=TOKEN)
    ledger.sites.redeem_invitation(TOKEN)
    expired = hashlib.sha256(b"expired").hexdigest()
    ledger.sites.invite("st-berta", token_sha256=expired, lifetime=timedelta(seconds=1))
    clock.advance(timedelta(minutes=1))

    with pytest.raises(TokenRefused) as for_used:
        ledger.sites.redeem_invitation(TOKEN)
    with pytest.raises(TokenRefused) as for_expired:
        ledger.sites.redeem_invitation(expired)
    with pytest.raises(TokenRefused) as for_unknown:
        ledger.sites.redeem_invitation("0" * 64)

    assert str(for_used.value) == str(for_expired.value) == str(for_unknown.value)


def test_a_new_invitation_ends_the_one_before_it(ledger):
    ledger.sites.invite("st-anna", token_sha256=TOKEN)
    second = hashlib.sha256(b"second").hexdigest()
    ledger.sites.invite("st-anna", token_sha256=second)

    assert redeemed(ledger) == "refused"
    assert ledger.sites.redeem_invitation(second) == "st-anna"


@pytest.mark.parametrize(
    "name", ["", "St-Anna", "-anna", "anna-", "a" * 41, "st anna", "st-anna\n"]
)
def test_a_name_that_is_none_is_not_invited(ledger, name):
    with pytest.raises(EnrolmentError, match="cannot name a site"):
        ledger.sites.invite(name, token_sha256=TOKEN)


def test_a_token_that_was_not_hashed_is_not_stored(ledger):
    with pytest.raises(ValueError, match="64 hex digits"):
        ledger.sites.invite("st-anna", token_sha256="the token itself")


def test_a_member_is_found_by_name_and_by_certificate(ledger, clock):
    enrol(ledger, "st-anna")

    site = ledger.sites.get("st-anna")

    assert ledger.sites.members() == (site,)
    assert ledger.sites.by_certificate(site.certificate_sha256) == site
    assert site.enrolled_at == clock.now
    assert ledger.sites.get("st-berta") is None
    assert ledger.sites.by_certificate("0" * 64) is None


def test_a_member_is_neither_invited_nor_enrolled_again(ledger):
    enrol(ledger, "st-anna")

    with pytest.raises(EnrolmentError, match="revoke it first"):
        ledger.sites.invite("st-anna", token_sha256=TOKEN)
    with pytest.raises(EnrolmentError, match="revoke it first"):
        enrol(ledger, "st-anna")


def test_two_sites_cannot_share_a_signing_key(ledger):
    enrol(ledger, "st-anna")
    key = ledger.sites.get("st-anna").signing_key

    with pytest.raises(EnrolmentError, match="belongs to another"):
        ledger.sites.enrol(
            name="st-berta", signing_key=key, node_key="other", certificate_sha256="1" * 64
        )

    assert [site.name for site in ledger.sites.members()] == ["st-anna"]


def test_a_flower_node_number_of_64_bits_is_kept_and_belongs_to_one_site(ledger):
    enrol(ledger, "st-anna")
    enrol(ledger, "st-berta")
    ledger.sites.set_flower_node_id("st-anna", 2**64 - 1)

    assert ledger.sites.get("st-anna").flower_node_id == 2**64 - 1
    with pytest.raises(EnrolmentError, match="another site's"):
        ledger.sites.set_flower_node_id("st-berta", 2**64 - 1)
    with pytest.raises(EnrolmentError, match='no enrolled site "st-clara"'):
        ledger.sites.set_flower_node_id("st-clara", 7)


def test_a_revoked_site_is_no_member_and_its_certificate_opens_nothing(ledger):
    enrol(ledger, "st-anna")
    certificate = ledger.sites.get("st-anna").certificate_sha256

    ledger.sites.revoke("st-anna")
    ledger.sites.revoke("st-anna")

    assert ledger.sites.members() == ()
    assert ledger.sites.by_certificate(certificate) is None
    assert ledger.sites.get("st-anna").revoked_at is not None
    with pytest.raises(EnrolmentError, match='no enrolled site "st-berta"'):
        ledger.sites.revoke("st-berta")


def test_a_revoked_site_may_return_with_new_keys_and_that_is_an_incident(ledger):
    enrol(ledger, "st-anna")
    ledger.sites.set_flower_node_id("st-anna", 7)
    ledger.sites.revoke("st-anna")

    ledger.sites.enrol(
        name="st-anna", signing_key="a" * 64, node_key="new", certificate_sha256="b" * 64
    )

    (member,) = ledger.sites.members()
    assert (member.signing_key, member.flower_node_id, member.revoked_at) == ("a" * 64, None, None)
    (incident,) = ledger.incidents()
    assert (incident.kind, incident.site) == ("site-returned", "st-anna")


def test_four_writers_at_once_lose_nothing(ledger, ledger_url):
    def record_ten(writer: int) -> None:
        with open_ledger(ledger_url) as mine:
            for number in range(10):
                mine.record_incident("test", f"{writer}-{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(record_ten, range(4)))

    assert len({incident.text for incident in ledger.incidents()}) == 40
