"""A run is requested once, driven by the holder of its newest epoch, and ended once."""

from datetime import timedelta

import pytest

from coordinator.errors import LedgerError, StaleEpochError, TransitionError
from coordinator.ledger.records import Lease, Participation
from coordinator.ledger.states import ParticipationState, RoundState, RunState
from tests.coordinator.ledger_cases import START_MODEL, charge, digest, outcome, planned

pytest_plugins = ["tests.coordinator.ledger_fixtures"]

SPEC = '{ "rounds" : 2, "odd":  "white space is kept" }'


def test_a_requested_run_is_kept_byte_for_byte_and_is_to_be_driven(ledger, clock):
    run = ledger.runs.request("heart-1", spec=SPEC, rounds=2)

    assert run.spec == SPEC
    assert (run.state, run.epoch, run.created_at) == (RunState.REQUESTED, 0, clock.now)
    assert ledger.runs.to_drive() == (run,)
    assert ledger.runs.get("heart-1") == run


def test_a_name_is_requested_once(ledger):
    ledger.runs.request("heart-1", spec=SPEC, rounds=2)

    with pytest.raises(LedgerError, match=r'Run "heart-1".*the name is taken'):
        ledger.runs.request("heart-1", spec=SPEC, rounds=3)


def test_a_run_of_no_rounds_is_refused(ledger):
    with pytest.raises(LedgerError, match="not at least 1"):
        ledger.runs.request("heart-1", spec=SPEC, rounds=0)


def test_runs_are_driven_in_the_order_in_which_they_were_requested(ledger, clock):
    ledger.runs.request("second-by-name", spec=SPEC, rounds=1)
    clock.advance(timedelta(seconds=1))
    ledger.runs.request("first-by-name", spec=SPEC, rounds=1)

    assert [run.run_id for run in ledger.runs.to_drive()] == ["second-by-name", "first-by-name"]


def test_taking_over_raises_the_epoch_and_aborts_what_was_under_way(driving):
    driving.to_open()

    lease = driving.ledger.runs.take_over("heart-1", flower_run_id=9)

    assert lease == Lease(run_id="heart-1", epoch=2)
    run = driving.ledger.runs.get("heart-1")
    assert (run.state, run.epoch, run.flower_run_id) == (RunState.RUNNING, 2, 9)
    (attempt,) = driving.ledger.rounds.attempts("heart-1")
    assert attempt.state is RoundState.ABORTED
    assert attempt.reason == "The process of epoch 1 was replaced by one of epoch 2."
    (round_one,) = driving.ledger.history("heart-1").rounds
    assert round_one.state is RoundState.ABORTED


def test_taking_over_leaves_committed_rounds_alone(driving):
    driving.to_committed()

    lease = driving.ledger.runs.take_over("heart-1")
    driving.ledger.rounds.plan_attempt(lease, planned(2))

    assert driving.ledger.runs.last_committed("heart-1").model_sha256 == digest("one")
    assert [row.state for row in driving.ledger.history("heart-1").rounds] == [
        RoundState.COMMITTED,
        RoundState.PLANNED,
    ]


STALE_WRITES = {
    "record_start_model": lambda d: d.ledger.runs.record_start_model(
        d.lease, sha256=START_MODEL, size_bytes=1
    ),
    "plan_attempt": lambda d: d.ledger.rounds.plan_attempt(d.lease, planned(1, 2)),
    "open_attempt": lambda d: d.ledger.rounds.open_attempt(d.lease, round=1, attempt=1),
    "record_participation": lambda d: d.ledger.rounds.record_participation(
        d.lease,
        Participation(site="va", state=ParticipationState.JOINED),
        round=1,
        attempt=1,
    ),
    "record_charge": lambda d: d.ledger.rounds.record_charge(
        d.lease, charge("va"), round=1, attempt=1
    ),
    "mark_aggregating": lambda d: d.ledger.rounds.mark_aggregating(d.lease, round=1, attempt=1),
    "commit_round": lambda d: d.ledger.rounds.commit_round(d.lease, outcome(), round=1, attempt=1),
    "abort_attempt": lambda d: d.ledger.rounds.abort_attempt(
        d.lease, round=1, attempt=1, reason="late"
    ),
    "finish": lambda d: d.ledger.runs.finish(d.lease),
    "fail": lambda d: d.ledger.runs.fail(d.lease, reason="late"),
}


@pytest.mark.parametrize("write", STALE_WRITES)
def test_a_process_whose_run_was_taken_over_writes_nothing(driving, write):
    driving.to_aggregating()
    driving.ledger.runs.take_over("heart-1")
    before = driving.ledger.history("heart-1")

    with pytest.raises(StaleEpochError, match="holds epoch 1, the ledger is at epoch 2"):
        STALE_WRITES[write](driving)

    assert driving.ledger.history("heart-1") == before


@pytest.mark.parametrize("write", STALE_WRITES)
def test_a_cancelled_run_is_written_no_more(driving, write):
    driving.to_aggregating()
    driving.ledger.runs.cancel("heart-1", reason="the operator said so")
    before = driving.ledger.history("heart-1")

    with pytest.raises(TransitionError, match="is cancelled, not running"):
        STALE_WRITES[write](driving)

    assert driving.ledger.history("heart-1") == before


def test_a_run_finishes_when_every_round_is_committed(driving, clock):
    driving.to_committed()
    with pytest.raises(TransitionError, match=r"running and cannot become finished: round 2"):
        driving.ledger.runs.finish(driving.lease)

    driving.to_aggregating(round=2)
    driving.ledger.rounds.commit_round(
        driving.lease, outcome("two", parent=digest("one")), round=2, attempt=1
    )
    driving.ledger.runs.finish(driving.lease)

    run = driving.ledger.runs.get("heart-1")
    assert (run.state, run.finished_at, run.reason) == (RunState.FINISHED, clock.now, None)
    assert driving.ledger.runs.to_drive() == ()


def test_a_failed_run_keeps_its_reason_and_aborts_what_was_under_way(driving):
    driving.to_open()

    driving.ledger.runs.fail(driving.lease, reason="no quorum\x1b[31m came online")

    run = driving.ledger.runs.get("heart-1")
    assert (run.state, run.reason) == (RunState.FAILED, "no quorum?[31m came online")
    assert driving.ledger.rounds.attempts("heart-1")[0].state is RoundState.ABORTED


def test_a_run_that_nobody_drives_is_cancelled_without_a_lease(ledger):
    ledger.runs.request("heart-1", spec=SPEC, rounds=2)

    ledger.runs.cancel("heart-1", reason="a mistake")

    assert ledger.runs.get("heart-1").state is RunState.CANCELLED


def test_an_ended_run_is_neither_taken_over_nor_cancelled(driving):
    driving.ledger.runs.fail(driving.lease, reason="no quorum")

    with pytest.raises(TransitionError, match=r"is failed; only .* becomes running"):
        driving.ledger.runs.take_over("heart-1")
    with pytest.raises(TransitionError, match=r"is failed; only .* becomes cancelled"):
        driving.ledger.runs.cancel("heart-1", reason="again")


def test_the_start_model_is_round_0_and_is_recorded_once(driving):
    driving.ledger.runs.record_start_model(driving.lease, sha256=START_MODEL, size_bytes=4096)

    last = driving.ledger.runs.last_committed("heart-1")
    assert (last.round, last.model_sha256, last.model_bytes) == (0, START_MODEL, 4096)
    with pytest.raises(LedgerError, match="cannot start again"):
        driving.ledger.runs.record_start_model(driving.lease, sha256=digest("b"), size_bytes=1)


def test_a_run_without_any_model_has_nothing_to_resume_from(ledger):
    ledger.runs.request("heart-1", spec=SPEC, rounds=2)

    assert ledger.runs.last_committed("heart-1") is None


def test_two_runs_may_arrive_at_the_same_model(driving):
    driving.ledger.runs.request("heart-2", spec=SPEC, rounds=2)
    second = driving.ledger.runs.take_over("heart-2")

    driving.ledger.runs.record_start_model(second, sha256=START_MODEL, size_bytes=4096)

    assert driving.ledger.runs.last_committed("heart-2").model_sha256 == START_MODEL


@pytest.mark.parametrize("ask", ["get", "take_over"])
def test_an_unknown_run_is_named_in_the_error(ledger, ask):
    with pytest.raises(LedgerError, match='knows no run "nothing"'):
        getattr(ledger.runs, ask)("nothing")
