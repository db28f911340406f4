"""Several secure sums in one session, one for each group of the cohort."""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from coordinator.errors import QuorumError
from coordinator.summation import SumDriver
from coordinator.wire.channel import COORDINATOR
from privacy.secagg.envelopes import SIGNATURE_BYTES
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS
from privacy.secagg.secure_sum import MemoryJournal, site_part
from tests.coordinator.scripted_sites import CONTEXT, play_all, sum_session

GROUPS = (("a1", "a2", "a3", "a4"), ("b1", "b2", "b3", "b4"), ("c1", "c2", "c3", "c4"))
EVERYBODY = tuple(site for group in GROUPS for site in group)
_relays = itertools.count(1)


class Rig:
    """A driver at work in its own thread; it goes on with `fewest` groups, a spoilt one taken off."""

    def __init__(self, session, pool):
        self.session, self.sealed = session, []
        self._pool = pool

    def start(self, *, fewest=1, join_seconds=10.0):
        driver = SumDriver(
            self.session.seat(COORDINATOR),
            [self.session.part(group) for group in range(len(GROUPS))],
            join_seconds=join_seconds,
            round_seconds=10.0,
            problem_with=lambda left, spoilt: (
                "" if left >= fewest - spoilt else f"{left} groups left"
            ),
            on_receipt=lambda site, receipt: None,
            on_sealed=self.sealed.append,
        )
        self._future = self._pool.submit(driver.run)
        return {site: self.session.site(site) for site in EVERYBODY}

    def finish(self):
        return self._future.result(timeout=20)

    def total(self, *names):
        return np.sum([self.session.values[name] for name in names], axis=0)


def make_rig(scheme, tmp_path):
    plan = SumPlan(
        scheme=scheme,
        dimension=50,
        max_sites=4,
        quorum=3,
        threshold=3 if scheme == "mask" else 1,
        value_range=1.0,
    )
    name = f"groups-{next(_relays)}"
    return sum_session(name, groups=GROUPS, plan=plan, models=tmp_path)


@pytest.fixture(params=["mask", "plain"])
def rig(request, tmp_path):
    with ThreadPoolExecutor(1) as pool, make_rig(request.param, tmp_path) as session:
        yield Rig(session, pool)


@pytest.fixture
def plain_rig(tmp_path):
    with ThreadPoolExecutor(1) as pool, make_rig("plain", tmp_path) as session:
        yield Rig(session, pool)


def test_every_group_has_a_sum_of_its_own(rig):
    sites = rig.start()
    play_all(list(sites.values()))
    summation = rig.finish()
    assert summation.counted == EVERYBODY
    assert [result.sites for result in summation.sums.values()] == list(GROUPS)
    for group, names in enumerate(GROUPS):
        np.testing.assert_allclose(summation.sums[group].values, rig.total(*names), atol=1e-6)
    assert summation.failed == {}


def test_nothing_is_opened_before_every_group_has_sealed(rig):
    sites = rig.start()
    *quick, slow = sites.values()
    play_all(list(sites.values()), LEGS[:2])
    play_all(quick, ("seal",))
    assert rig.sealed == []  # nobody has been asked to confirm
    slow.play("seal")
    play_all(list(sites.values()), LEGS[3:])
    assert rig.finish().counted == EVERYBODY
    assert rig.sealed == [EVERYBODY]


@pytest.mark.parametrize("leg", ["share", "seal"])
def test_a_group_that_loses_too_many_sites_is_out_and_the_others_go_on(rig, leg):
    sites = rig.start(fewest=2)
    play_all(list(sites.values()), LEGS[: LEGS.index(leg)])
    for name in ("b1", "b2"):
        sites[name].channel.close()
    others = [sites[name] for name in EVERYBODY if name not in ("b1", "b2")]
    play_all(others, [leg])
    play_all([s for s in others if s.name not in GROUPS[1]], LEGS[LEGS.index(leg) + 1 :])
    summation = rig.finish()
    assert list(summation.sums) == [0, 2]
    assert summation.counted == (*GROUPS[0], *GROUPS[2])
    assert not summation.failed[1].is_spoilt
    assert summation.spoilt == 0
    states = {name: summation.sites[name].state for name in GROUPS[1]}
    assert states == dict.fromkeys(GROUPS[1], "lost")
    assert "group 1 is out" in summation.sites["b3"].detail


def test_one_site_less_costs_its_group_nothing(rig):
    sites = rig.start(fewest=3)
    play_all(list(sites.values()), LEGS[:2])
    sites["c4"].channel.close()
    play_all([sites[name] for name in EVERYBODY[:-1]], LEGS[2:])
    summation = rig.finish()
    assert summation.counted == EVERYBODY[:-1]
    np.testing.assert_allclose(summation.sums[2].values, rig.total(*GROUPS[2][:3]), atol=1e-6)


def test_with_too_few_groups_left_nothing_is_opened_and_the_missing_are_named(rig):
    sites = rig.start(fewest=3)
    play_all(list(sites.values()), LEGS[:2])
    for name in ("b1", "b2"):
        sites[name].channel.close()
    play_all([sites[name] for name in EVERYBODY if name not in ("b1", "b2")], ("seal",))
    with pytest.raises(QuorumError, match=r"leg seal: 2 groups left.*b1: lost"):
        rig.finish()
    assert rig.sealed == []


def test_a_message_for_another_group_is_refused(rig):
    sites = rig.start(fewest=3)
    session, others = rig.session, [sites[name] for name in EVERYBODY[:-1]]
    strangers = {name: session.keys(0)[name] for name in GROUPS[0][:3]}
    elsewhere = site_part(
        session.plan,
        site="c4",
        context=replace(CONTEXT, group=0),
        identity=session.identities["c4"],
        keys=strangers | {"c4": session.keys(2)["c4"]},
        journal=MemoryJournal(),
        key_store=MemoryKeyStore(),
    )
    (hello,) = elsewhere.hello()
    sites["c4"].send("hello", hello)
    play_all(others)
    summation = rig.finish()
    assert summation.counted == EVERYBODY[:-1]
    assert "message refused in leg hello" in summation.sites["c4"].detail


def test_what_a_site_sealed_is_kept_as_the_hash_that_its_own_journal_has(rig):
    sites = rig.start()
    play_all(list(sites.values()), LEGS[:2])
    sealed = {}
    for site in sites.values():
        frames = site.answers("seal")
        signatures = b"".join(frame[:SIGNATURE_BYTES] for frame in frames)
        sealed[site.name] = hashlib.sha256(signatures)
        for frame in frames:
            site.send("seal", frame)
    play_all(list(sites.values()), LEGS[3:])
    summation = rig.finish()
    details = {name: record.detail for name, record in summation.sites.items()}
    assert details == {
        name: f"sealed as sha256 {digest.hexdigest()}" for name, digest in sealed.items()
    }
    for name, digest in sealed.items():  # another digest under the same key would be refused
        rig.session.journals[name].record("secure-sum/small/1/1/seal", digest.digest())


def test_a_group_that_turns_out_spoilt_takes_its_sites_with_it(plain_rig):
    sites = plain_rig.start()
    play_all(list(sites.values()))
    summation = plain_rig.finish().without({2: "no weight"})
    assert list(summation.sums) == [0, 1]
    assert summation.counted == (*GROUPS[0], *GROUPS[1])
    assert summation.spoilt == 1
    assert (summation.sites["c1"].state, summation.sites["c1"].detail) == (
        "lost",
        "group 2 is out: no weight",
    )
