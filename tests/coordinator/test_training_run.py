import shutil

import numpy as np
import pytest

from coordinator.errors import QuorumError, StaleEpochError, TransitionError
from coordinator.ledger.states import RoundState, RunState
from coordinator.registry.checkpoints import CheckpointStore
from coordinator.summation import DONE
from coordinator.wire.channel import ChannelClosed
from coordinator.wire.connect import open_channel
from coordinator.wire.plan import SignedPlan, verify_plan
from model.parameters import read_model
from privacy.secagg.protocol import LEGS
from tests.sims.driven_federation import RUN_ID, DrivenFederation
from tests.sims.scripted_grid import never_comes, quits_before, use_scripts
from tests.sims.small_federation import SITES, WITH_DP

QUICK = {"timing": {"silence_seconds": 0.3, "round_seconds": 20.0, "join_seconds": 5.0}}
FEDADAM = {"server": {"name": "fedadam", "learning_rate": 0.05}}


# Sites train in threads here, and `warnings.catch_warnings`, with which training hides this one, is not made for threads.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture
def made(tmp_path):
    """Makes federations; closes them after the test."""
    federations = []

    def make(name="federation", **changes):
        federations.append(DrivenFederation(tmp_path / name, **changes))
        return federations[-1]

    yield make
    for federation in federations:
        federation.__exit__(None, None, None)


def forbid_masked_sums(federation, *sites):
    """The sites' administrators change their minds."""
    for site in sites:
        path = federation.site_home(site) / "policy.toml"
        path.write_text(path.read_text().replace('"mask", ', ""))


def attempts(federation):
    return [(a.round, a.attempt, a.state) for a in federation.history().attempts]


def test_a_run_commits_every_round_and_finishes(made):
    federation = made()
    federation.run().drive()
    history = federation.history()
    assert history.run.state is RunState.FINISHED
    assert attempts(federation) == [(1, 1, RoundState.COMMITTED), (2, 1, RoundState.COMMITTED)]
    assert federation.states(2, 1) == dict.fromkeys(SITES, "counted")
    assert len(history.models) == 3
    assert history.models[2].parent_sha256 == history.models[1].sha256
    stored = read_model(federation.checkpoints.require(history.models[2].sha256))
    assert np.isfinite(stored.vector).all()


def test_the_ledger_keeps_the_very_plan_that_the_sites_verified(made):
    federation = made()
    federation.run().drive()
    payload, signature = federation.ledger.rounds.signed_plan(RUN_ID, round=2, attempt=1)
    signed = SignedPlan(payload=payload, signature=signature)
    plan = verify_plan(signed, federation.key.public_key())
    assert plan.base_model == federation.model_hashes()[1]


def test_a_site_whose_policy_refuses_does_not_hold_up_the_round(made):
    federation = made(rounds=1)
    forbid_masked_sums(federation, "dora")
    federation.run().drive()
    assert federation.states(1, 1) == dict.fromkeys(SITES[:3], "counted") | {"dora": "refused"}
    details = {
        p.participation.site: p.participation.detail for p in federation.history().participations
    }
    assert 'clause "secure_sum_schemes"' in details["dora"]


@pytest.mark.parametrize("leg", LEGS)
def test_a_site_that_dies_in_a_leg_does_not_hold_up_the_round(made, leg):
    federation = made(rounds=1)
    use_scripts(federation, {"dora": quits_before(leg, federation, "dora")})
    federation.run().drive()
    counts = leg in ("confirm", "release")  # its vector was sealed before
    assert federation.states(1, 1) == dict.fromkeys(SITES[:3], "counted") | {
        "dora": "counted" if counts else "lost"
    }
    assert federation.history().run.state is RunState.FINISHED


def test_a_site_that_never_comes_does_not_hold_up_the_round(made):
    federation = made(rounds=1, **QUICK)
    use_scripts(federation, {"dora": never_comes})
    federation.run().drive()
    assert federation.states(1, 1)["dora"] == "lost"
    assert federation.history().run.state is RunState.FINISHED


def test_a_site_whose_table_is_broken_does_not_hold_up_the_round(made):
    federation = made(rounds=1, **QUICK)
    (federation.site_home("dora") / "patients.csv").write_text("no,such,columns\n1,2,3\n")
    federation.run().drive()
    assert federation.states(1, 1)["dora"] == "lost"


def test_below_the_quorum_every_attempt_is_aborted_and_the_run_fails_with_the_reason(made):
    federation = made()
    forbid_masked_sums(federation, "clara", "dora")
    with pytest.raises(QuorumError, match="1 spare attempts"):
        federation.run().drive()
    history = federation.history()
    assert attempts(federation) == [(1, 1, RoundState.ABORTED), (1, 2, RoundState.ABORTED)]
    assert history.run.state is RunState.FAILED
    assert "spare attempts" in history.run.reason
    assert "QuorumError" in history.attempts[0].reason
    assert "clara: refused" in history.attempts[0].reason
    assert [model.round for model in history.models] == [0]


def test_the_ledger_shows_how_far_each_site_came_in_an_aborted_attempt(made):
    federation = made(spare_attempts=0)
    forbid_masked_sums(federation, "clara")
    use_scripts(federation, {"dora": quits_before("hello", federation, "dora")})
    with pytest.raises(QuorumError):
        federation.run().drive()
    assert federation.states(1, 1) == {
        "anna": "joined",
        "berta": "joined",
        "clara": "refused",
        "dora": "lost",
    }


def test_what_sites_charged_for_an_aborted_attempt_stays_in_the_ledger(made):
    federation = made(spare_attempts=0, **WITH_DP)
    quitters = {site: quits_before("seal", federation, site) for site in ("clara", "dora")}
    use_scripts(federation, quitters)
    with pytest.raises(QuorumError):
        federation.run().drive()
    charged = {row.charge.site: row.charge for row in federation.history().charges}
    assert sorted(charged) == ["anna", "berta"]
    assert 0 < charged["anna"].epsilon <= 8.0
    assert charged["anna"].delta == 1e-5


def test_the_last_committed_round_survives_a_run_that_fails(made):
    federation = made(rounds=3)
    with pytest.raises(KilledError):
        federation.run(sessions=DiesAtSession(federation.relay, "small/2/1")).drive()
    use_scripts(federation, {s: quits_before("hello", federation, s) for s in SITES})
    with pytest.raises(QuorumError):
        federation.run().drive()
    last = federation.ledger.runs.last_committed(RUN_ID)
    assert last.round == 1
    federation.checkpoints.require(last.model_sha256)


def test_an_attempt_that_fails_is_repeated_with_new_masks_and_then_counts(made):
    federation = made(rounds=1)
    real = dict.fromkeys(SITES[2:], None)
    tried = []

    def dies_once(site):
        quits = quits_before("seal", federation, site)

        def script(task):
            tried.append(site)
            quits(task)
            del federation.grid.scripts[federation.nodes[site]]

        return script

    use_scripts(federation, {site: dies_once(site) for site in real})
    federation.run().drive()
    assert sorted(tried) == ["clara", "dora"]
    assert attempts(federation) == [(1, 1, RoundState.ABORTED), (1, 2, RoundState.COMMITTED)]
    assert federation.states(1, 2) == dict.fromkeys(SITES, "counted")


def test_a_site_whose_contract_cannot_hold_the_run_refuses_and_the_others_go_on(made):
    federation = made(rounds=3, spare_attempts=0, **WITH_DP)
    path = federation.site_home("anna") / "site.toml"
    path.write_text(path.read_text().replace("epsilon = 8.0", "epsilon = 6.0"))
    federation.run().drive()
    assert federation.history().run.state is RunState.FINISHED
    outcomes = [federation.states(number, 1)["anna"] for number in (1, 2, 3)]
    assert outcomes == ["refused"] * 3
    details = [
        row.participation.detail
        for row in federation.history().participations
        if row.participation.site == "anna"
    ]
    assert "Privacy budget" in details[2]
    assert "was refused and not charged" in details[2]
    # One charge for the count, one for each round that counted, none for a refusal.
    assert federation.charges("anna") == ()
    assert len(federation.charges("berta")) == 1 + 3
    assert {row.charge.site for row in federation.history().charges} == set(SITES) - {"anna"}


class DiesAtSession:
    """The exchange's administration, until the coordinator is killed while it opens that session."""

    def __init__(self, relay, session_id):
        self._relay, self._session_id = relay, session_id

    def open_session(self, spec):
        if spec.session_id == self._session_id:
            raise KilledError
        self._relay.open_session(spec)

    def close_session(self, session_id, *, reason):
        self._relay.close_session(session_id, reason=reason)

    def close(self):
        pass


class DiesAtWrite(CheckpointStore):
    """The model files, until the coordinator is killed after the sum and before the commit."""

    def __init__(self, folder, *, writes):
        super().__init__(folder)
        self._left = writes

    def write(self, content):
        if self._left == 0:
            raise KilledError
        self._left -= 1
        return super().write(content)


def model_of_an_uninterrupted_run(made, **changes):
    federation = made("uninterrupted", **changes)
    federation.run().drive()
    return federation.model_hashes()


@pytest.mark.parametrize("server", ["fedavg", "fedadam", "fedyogi"])
def test_a_run_resumes_at_the_last_committed_round_and_ends_at_the_same_model(made, server):
    changes = {"rounds": 3, "server": {"name": server, "learning_rate": 0.05}}
    expected = model_of_an_uninterrupted_run(made, **changes)
    federation = made(**changes)
    with pytest.raises(KilledError):
        federation.run(sessions=DiesAtSession(federation.relay, "small/3/1")).drive()
    assert federation.ledger.runs.last_committed(RUN_ID).round == 2
    federation.run().drive()
    assert attempts(federation)[-2:] == [(3, 1, RoundState.ABORTED), (3, 2, RoundState.COMMITTED)]
    assert federation.model_hashes() == expected


def test_a_coordinator_killed_between_sum_and_commit_repeats_the_round(made):
    expected = model_of_an_uninterrupted_run(made, **FEDADAM)
    federation = made(**FEDADAM)
    dying = DiesAtWrite(federation.home.models, writes=1)
    with pytest.raises(KilledError):
        federation.run(checkpoints=dying).drive()
    assert federation.ledger.runs.last_committed(RUN_ID).round == 1
    federation.run().drive()
    assert federation.model_hashes() == expected


def test_a_coordinator_killed_before_the_first_round_starts_from_the_same_model(made):
    federation = made(seed=None, rounds=1)
    with pytest.raises(KilledError):
        federation.run(sessions=DiesAtSession(federation.relay, "small/1/1")).drive()
    (start,) = federation.model_hashes()
    federation.run().drive()
    assert federation.model_hashes()[0] == start


def test_a_committed_model_that_is_damaged_stops_the_run_before_anybody_is_asked(made):
    federation = made(**FEDADAM)
    with pytest.raises(KilledError):
        federation.run(sessions=DiesAtSession(federation.relay, "small/2/1")).drive()
    path = federation.checkpoints.path(federation.model_hashes()[1])
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    seen = len(federation.frames)
    with pytest.raises(Exception, match="damaged"):
        federation.run().drive()
    assert len(federation.frames) == seen


class ClosedBeforeTheLastWord:
    """The coordinator's seat in a session that ends just after the commit."""

    def __init__(self, channel):
        self._channel = channel

    def __getattr__(self, name):
        return getattr(self._channel, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._channel.close()

    def send(self, *, to, kind, payload):
        if kind == DONE:
            raise ChannelClosed("deadline has passed")
        self._channel.send(to=to, kind=kind, payload=payload)


def test_a_session_that_ends_just_after_the_commit_costs_nothing(made):
    federation = made()

    def connect(ticket):
        channel = open_channel(federation.address, session=ticket, credentials=None)
        return ClosedBeforeTheLastWord(channel)

    federation.run(connect=connect).drive()
    assert attempts(federation) == [(1, 1, RoundState.COMMITTED), (2, 1, RoundState.COMMITTED)]
    assert federation.history().run.state is RunState.FINISHED


def test_a_driver_whose_lease_was_taken_over_writes_nothing_more(made):
    federation = made()
    old = federation.take_over()
    new = federation.take_over()
    with pytest.raises(StaleEpochError):
        federation.run(old).drive()
    assert federation.history().models == ()
    federation.run(new).drive()
    assert federation.history().run.state is RunState.FINISHED


def test_a_driver_that_is_overtaken_in_mid_round_cannot_commit(made):
    federation = made(rounds=1)
    old = federation.take_over()

    def connect_and_be_overtaken(ticket):
        federation.take_over()
        return open_channel(federation.address, session=ticket, credentials=None)

    with pytest.raises(StaleEpochError):
        federation.run(old, connect=connect_and_be_overtaken).drive()
    assert federation.history().rounds[0].model_sha256 is None
    assert federation.history().run.state is RunState.RUNNING


def test_a_cancelled_run_is_not_driven_on(made):
    federation = made()
    lease = federation.take_over()
    federation.ledger.runs.cancel(RUN_ID, reason="by the operator")
    with pytest.raises(TransitionError):
        federation.run(lease).drive()
    assert federation.history().run.state is RunState.CANCELLED


def test_too_few_sites_online_fail_the_run_with_advice(made):
    federation = made(sites=SITES[:2], timing={"online_seconds": 0.3, "join_seconds": 0.1})
    with pytest.raises(QuorumError, match=r"2 sites online \(anna, berta\).*participant run"):
        federation.run().drive()
    assert federation.history().run.state is RunState.FAILED


def test_a_quorum_starts_without_the_missing_after_the_join_time(made):
    federation = made(sites=SITES[:3], rounds=1, timing={"join_seconds": 0.1})
    federation.run().drive()
    assert federation.states(1, 1) == dict.fromkeys(SITES[:3], "counted")


def test_a_site_without_its_model_cache_fetches_it_again(made):
    federation = made(rounds=1)
    shutil.rmtree(federation.site_home("anna") / "models", ignore_errors=True)
    federation.run().drive()
    assert federation.states(1, 1)["anna"] == "counted"
