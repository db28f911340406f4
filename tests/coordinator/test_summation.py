import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from coordinator.errors import QuorumError
from coordinator.summation import MAX_REASON_CHARACTERS, SumDriver
from coordinator.wire.channel import COORDINATOR, ChannelClosed
from coordinator.wire.memory_channel import find_relay
from coordinator.wire.receipt import RoundReceipt, encode_receipt
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS
from tests.coordinator.scripted_sites import SESSION, play_all, sum_session

NAMES = ("anna", "berta", "clara", "dora")
RECEIPT = RoundReceipt(
    epsilon_spent=1.0,
    epsilon_limit=8.0,
    delta=1e-5,
    unit="patient",
    adjacency="add-or-remove-one",
    events="[]",
    training_seconds=0.1,
)
_relays = itertools.count(1)


class Rig:
    """A driver at work in its own thread, and the sites it waits for."""

    def __init__(self, session, pool):
        self.session = session
        self.aggregated, self.receipts = [], []
        self._pool = pool

    def start(self, *, join_seconds=10.0, round_seconds=10.0):
        self.driver = SumDriver(
            self.session.seat(COORDINATOR),
            [self.session.part(0)],
            join_seconds=join_seconds,
            round_seconds=round_seconds,
            problem_with=lambda left, spoilt: "" if left else "no group is left",
            on_receipt=lambda site, receipt: self.receipts.append((site, receipt)),
            on_sealed=self.aggregated.append,
        )
        self._future = self._pool.submit(self.driver.run)

    def sites(self, *names):
        return [self.session.site(name) for name in names or NAMES]

    def finish(self):
        return self._future.result(timeout=20)

    def total(self, *names):
        return np.sum([self.session.values[name] for name in names or NAMES], axis=0)


@pytest.fixture(params=["mask", "plain"])
def rig(request, tmp_path):
    threshold = 3 if request.param == "mask" else 1
    plan = SumPlan(
        scheme=request.param,
        dimension=50,
        max_sites=4,
        quorum=3,
        threshold=threshold,
        value_range=1.0,
    )
    name = f"summation-{next(_relays)}"
    with (
        ThreadPoolExecutor(1) as pool,
        sum_session(name, groups=(NAMES,), plan=plan, models=tmp_path) as session,
    ):
        yield Rig(session, pool)


def test_everybody_counts_when_everybody_plays(rig):
    rig.start()
    play_all(rig.sites())
    summation = rig.finish()
    assert summation.counted == NAMES
    np.testing.assert_allclose(summation.sums[0].values, rig.total(), atol=1e-6)
    assert {record.state for record in summation.sites.values()} == {"counted"}
    assert all(record.bytes_received > 200 for record in summation.sites.values())


def test_the_driver_tells_who_sealed_before_anything_is_opened(rig):
    rig.start()
    sites = rig.sites()
    play_all(sites, ("hello", "share", "seal"))
    for site in sites:
        answer = site.answers("confirm")  # arrives only after the seal leg is closed
        assert rig.aggregated == [NAMES]
        site.send("confirm", answer[0])
    play_all(sites, ("release",))
    assert rig.finish().counted == NAMES


def test_a_site_that_never_comes_is_lost_after_the_join_time(rig):
    rig.start(join_seconds=0.3)
    play_all(rig.sites("anna", "berta", "clara"))
    summation = rig.finish()
    assert summation.counted == ("anna", "berta", "clara")
    assert summation.sites["dora"].state == "lost"
    assert summation.sites["dora"].detail == "silent in leg hello until the deadline"


def test_a_refusal_is_kept_with_its_reason_cut_to_length(rig):
    rig.start()
    dora, *others = rig.sites("dora", "anna", "berta", "clara")
    dora.send("refuse", b"clause max_epsilon: " + b"\xff" * 10_000)
    play_all(others)
    record = rig.finish().sites["dora"]
    assert record.state == "refused"
    assert record.detail.startswith("clause max_epsilon")
    assert len(record.detail) == MAX_REASON_CHARACTERS


def test_a_site_that_says_hello_and_then_refuses_does_not_hold_up_the_round(rig):
    rig.start()
    sites = rig.sites()
    play_all(sites, ("hello",))
    sites[3].send("refuse", b"the budget is exhausted")
    play_all(sites[:3], LEGS[1:])
    summation = rig.finish()
    assert summation.counted == NAMES[:3]
    assert summation.sites["dora"].state == "refused"


@pytest.mark.parametrize("leg", LEGS[1:])
def test_a_site_that_leaves_in_a_leg_does_not_hold_up_the_round(rig, leg):
    rig.start()
    sites = rig.sites()
    before = LEGS[: LEGS.index(leg)]
    play_all(sites, before)
    sites[3].channel.close()
    play_all(sites[:3], LEGS[LEGS.index(leg) :])
    summation = rig.finish()
    counted = NAMES if "seal" in before else NAMES[:3]
    assert summation.counted == counted
    np.testing.assert_allclose(summation.sums[0].values, rig.total(*counted), atol=1e-6)
    assert summation.sites["dora"].state == ("counted" if "seal" in before else "lost")


def test_a_site_that_falls_silent_after_hello_is_lost_at_the_deadline(rig):
    rig.start(round_seconds=1.0)
    sites = rig.sites()
    play_all(sites, ("hello",))
    play_all(sites[:3], ("share",))
    play_all(sites[:3], ("seal",))
    with pytest.raises(QuorumError, match="dora: lost"):
        rig.finish()


def test_below_the_quorum_nothing_is_opened_and_the_missing_are_named(rig):
    rig.start(join_seconds=0.3)
    anna, berta = rig.sites("anna", "berta")
    play_all([anna], ("hello",))
    berta.send("refuse", b"no")
    with pytest.raises(QuorumError, match=r"leg hello.*berta: refused \(no\).*dora: lost"):
        rig.finish()
    assert rig.aggregated == []


def test_a_vector_of_wrong_length_is_refused_and_the_others_count(rig):
    rig.start()
    *others, dora = rig.sites()
    play_all([*others, dora], ("hello", "share"))
    (chunk,) = dora.answers("seal")
    dora.send("seal", chunk[:-4])
    play_all(others, LEGS[2:])
    summation = rig.finish()
    assert summation.counted == NAMES[:3]
    assert summation.sites["dora"].state == "refused"
    assert "message refused in leg seal" in summation.sites["dora"].detail


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_never_sealed(rig, poison):
    rig.start()
    sites = rig.sites()
    play_all(sites, ("hello",))
    sites[3].values[5] = poison
    with pytest.raises(ValueError, match="NaN or infinite"):
        sites[3].answers("share")
    sites[3].channel.close()
    play_all(sites[:3], LEGS[1:])
    assert rig.finish().counted == NAMES[:3]


@pytest.mark.parametrize("leg", LEGS)
def test_garbage_in_a_leg_costs_its_sender_the_round_and_nobody_else(rig, leg):
    rig.start()
    sites = rig.sites()
    play_all(sites, LEGS[: LEGS.index(leg)])
    sites[3].send(leg, b"garbage" * 20)
    play_all(sites[:3], LEGS[LEGS.index(leg) :])
    summation = rig.finish()
    counted = NAMES if leg in ("confirm", "release") else NAMES[:3]
    assert summation.counted == counted
    np.testing.assert_allclose(summation.sums[0].values, rig.total(*counted), atol=1e-6)


def test_a_duplicate_of_a_complete_message_changes_nothing(rig):
    rig.start()
    sites = rig.sites()
    for leg in LEGS:
        for site in sites:
            for answer in site.answers(leg):
                site.send(leg, answer)
                site.send(leg, answer)
    summation = rig.finish()
    assert summation.counted == NAMES
    np.testing.assert_allclose(summation.sums[0].values, rig.total(), atol=1e-6)


def test_a_late_hello_changes_nothing(rig):
    rig.start(join_seconds=0.3)
    anna, berta, clara = rig.sites("anna", "berta", "clara")
    play_all([anna, berta, clara], ("hello",))
    shares = {site.name: site.answers("share")[0] for site in (anna, berta, clara)}
    rig.session.site("dora").play("hello")
    for site in (anna, berta, clara):
        site.send("share", shares[site.name])
    play_all([anna, berta, clara], LEGS[2:])
    summation = rig.finish()
    assert summation.counted == NAMES[:3]
    assert summation.sites["dora"].state == "lost"


def test_a_message_in_another_s_name_or_from_a_bystander_changes_nothing(rig):
    rig.start()
    bystander = rig.session.seat("bystander")
    sites = rig.sites()
    (hello,) = sites[0].answers("hello")
    bystander.send(to=COORDINATOR, kind="hello", payload=hello)
    bystander.send(to=COORDINATOR, kind="refuse", payload=b"everybody stop")
    bystander.send(to=COORDINATOR, kind="lost", payload=b"anna")
    sites[0].send("hello", hello)
    play_all(sites[1:], ("hello",))
    play_all(sites, LEGS[1:])
    summation = rig.finish()
    assert summation.counted == NAMES
    assert set(summation.sites) == set(NAMES)


def test_the_first_receipt_of_a_site_counts(rig):
    rig.start()
    sites = rig.sites()
    play_all(sites, ("hello",))
    second = RoundReceipt(**{**RECEIPT.__dict__, "epsilon_spent": 0.0})
    sites[0].send("receipt", encode_receipt(RECEIPT))
    sites[0].send("receipt", encode_receipt(second))
    play_all(sites, LEGS[1:])
    summation = rig.finish()
    assert summation.sites["anna"].receipt == RECEIPT
    assert summation.sites["berta"].receipt is None
    assert rig.receipts == [("anna", RECEIPT)]


def test_a_malformed_receipt_costs_its_sender_the_round(rig):
    rig.start()
    sites = rig.sites()
    play_all(sites, ("hello",))
    sites[3].send("receipt", b'{"epsilon_spent": -1}')
    play_all(sites[:3], LEGS[1:])
    record = rig.finish().sites["dora"]
    assert record.state == "refused"
    assert "receipt" in record.detail


def test_a_session_that_is_closed_ends_the_sum(rig):
    rig.start()
    play_all(rig.sites("anna"), ("hello",))
    find_relay(rig.session.address.removeprefix("memory:")).close_session(SESSION, reason="over")
    with pytest.raises(ChannelClosed, match="over"):
        rig.finish()
