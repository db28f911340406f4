"""Attempts move only as the rule allows; a commit is all or nothing, and once."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from coordinator.errors import LedgerError, QuorumError, TransitionError
from coordinator.ledger.records import Metric, Participation
from coordinator.ledger.states import ParticipationState, RoundState
from tests.coordinator.ledger_cases import SITES, Driving, charge, digest, enrol, outcome, planned

pytest_plugins = ["tests.coordinator.ledger_fixtures"]

REACH: dict[str, Callable[[Driving], object]] = {
    "planned": lambda d: d.ledger.rounds.plan_attempt(d.lease, planned()),
    "open": lambda d: d.to_open(),
    "aggregating": lambda d: d.to_aggregating(),
    "committed": lambda d: d.to_committed(),
    "aborted": lambda d: d.to_aborted(),
}
STEP: dict[str, Callable[[Driving], object]] = {
    "open": lambda d: d.ledger.rounds.open_attempt(d.lease, round=1, attempt=1),
    "aggregating": lambda d: d.ledger.rounds.mark_aggregating(d.lease, round=1, attempt=1),
    "committed": lambda d: d.ledger.rounds.commit_round(
        d.lease, outcome("another"), round=1, attempt=1
    ),
    "aborted": lambda d: d.ledger.rounds.abort_attempt(d.lease, round=1, attempt=1, reason="so"),
}
ALLOWED = {
    ("planned", "open"),
    ("open", "aggregating"),
    ("aggregating", "committed"),
    ("planned", "aborted"),
    ("open", "aborted"),
    ("aggregating", "aborted"),
}
REFUSED = sorted({(start, target) for start in REACH for target in STEP} - ALLOWED)


def participation(driving: Driving, site: str) -> Participation:
    """What the ledger holds of a site in the only attempt."""
    entries = driving.ledger.history("heart-1").participations
    return next(entry.participation for entry in entries if entry.participation.site == site)


def joined(site: str = "va") -> Participation:
    return Participation(site=site, state=ParticipationState.JOINED, bytes_received=10)


def sealed(site: str = "va") -> Participation:
    return Participation(site=site, state=ParticipationState.SEALED, bytes_sent=20)


@pytest.mark.parametrize(("start", "target"), sorted(ALLOWED))
def test_an_allowed_step_moves_the_attempt_and_its_round(driving, start, target):
    REACH[start](driving)

    STEP[target](driving)

    history = driving.ledger.history("heart-1")
    assert [row.state for row in history.attempts] == [RoundState(target)]
    assert [row.state for row in history.rounds] == [RoundState(target)]


@pytest.mark.parametrize(("start", "target"), REFUSED)
def test_any_other_step_is_refused_naming_both_states_and_changes_nothing(driving, start, target):
    REACH[start](driving)
    before = driving.ledger.history("heart-1")

    with pytest.raises(TransitionError, match=f"{start}.*{target}"):
        STEP[target](driving)

    assert driving.ledger.history("heart-1") == before


def test_a_plan_is_kept_as_the_bytes_that_were_signed(driving):
    plan = replace(planned(), plan=b'{ "white":  "space" }\n', plan_signature=bytes(range(64)))

    driving.ledger.rounds.plan_attempt(driving.lease, plan)

    kept = driving.ledger.rounds.signed_plan("heart-1", round=1, attempt=1)
    assert kept == (plan.plan, plan.plan_signature)
    (attempt,) = driving.ledger.rounds.attempts("heart-1")
    assert attempt.plan_sha256 == digest('{ "white":  "space" }\n')
    assert (attempt.cohort, attempt.quorum, attempt.deadline) == (SITES, 3, plan.deadline)
    with pytest.raises(LedgerError, match="attempt 2 was never planned"):
        driving.ledger.rounds.signed_plan("heart-1", round=1, attempt=2)


@pytest.mark.parametrize(
    ("round", "attempt", "words"),
    [
        (2, 1, "0 of 2 rounds are committed"),
        (1, 2, "the next attempt at this round is 1"),
        (1, 0, "the next attempt at this round is 1"),
        (0, 1, "0 of 2 rounds are committed"),
    ],
)
def test_only_the_next_attempt_can_be_planned(driving, round, attempt, words):
    with pytest.raises(TransitionError, match=words):
        driving.ledger.rounds.plan_attempt(driving.lease, planned(round, attempt))


def test_two_attempts_are_never_under_way_at_once(driving):
    driving.to_open()

    with pytest.raises(TransitionError, match=r"round 1, attempt 1 is open\. Abort it first"):
        driving.ledger.rounds.plan_attempt(driving.lease, planned(1, 2))


def test_an_aborted_attempt_is_followed_by_the_next_with_another_cohort(driving):
    driving.to_aborted()

    driving.ledger.rounds.plan_attempt(
        driving.lease, planned(1, 2, cohort=("cleveland", "hungary", "va"))
    )
    driving.ledger.rounds.open_attempt(driving.lease, round=1, attempt=2)

    first, second = driving.ledger.rounds.attempts("heart-1")
    assert (first.state, first.reason) == (RoundState.ABORTED, "too few sealed")
    assert (second.state, second.cohort) == (RoundState.OPEN, ("cleveland", "hungary", "va"))


def test_no_round_follows_the_last(driving):
    driving.to_committed()
    driving.to_aggregating(round=2)
    driving.ledger.rounds.commit_round(
        driving.lease, outcome("two", parent=digest("one")), round=2, attempt=1
    )

    with pytest.raises(TransitionError, match="2 of 2 rounds are committed"):
        driving.ledger.rounds.plan_attempt(driving.lease, planned(3))


def test_a_cohort_with_a_stranger_or_a_revoked_site_is_refused(driving):
    driving.ledger.sites.revoke("va")

    with pytest.raises(LedgerError, match="va not enrolled or revoked"):
        driving.ledger.rounds.plan_attempt(driving.lease, planned())


@pytest.mark.parametrize("quorum", [0, 5])
def test_a_quorum_that_the_cohort_cannot_meet_is_refused(driving, quorum):
    with pytest.raises(QuorumError, match=f"quorum {quorum} with a cohort of 4"):
        driving.ledger.rounds.plan_attempt(driving.lease, planned(quorum=quorum))


@pytest.mark.parametrize("cohort", [("va", "hungary"), ("va", "va")])
def test_a_cohort_is_sorted_with_each_site_once(driving, cohort):
    with pytest.raises(ValueError, match="to be sorted, each site once"):
        driving.ledger.rounds.plan_attempt(driving.lease, planned(quorum=1, cohort=cohort))


def test_opening_asks_the_whole_cohort(driving, clock):
    driving.to_open()

    history = driving.ledger.history("heart-1")
    assert [entry.participation for entry in history.participations] == [
        Participation(site=site, state=ParticipationState.ASKED) for site in SITES
    ]
    assert history.attempts[0].opened_at == clock.now


def test_a_site_joins_and_seals(driving):
    driving.to_open()

    assert driving.ledger.rounds.record_participation(driving.lease, joined(), round=1, attempt=1)
    assert driving.ledger.rounds.record_participation(driving.lease, sealed(), round=1, attempt=1)

    assert participation(driving, "va") == sealed()


def test_a_duplicate_reply_changes_nothing(driving):
    driving.to_open()
    driving.ledger.rounds.record_participation(driving.lease, sealed(), round=1, attempt=1)
    again = replace(sealed(), bytes_sent=999)

    assert not driving.ledger.rounds.record_participation(driving.lease, again, round=1, attempt=1)
    assert not driving.ledger.rounds.record_participation(
        driving.lease, joined(), round=1, attempt=1
    )

    assert participation(driving, "va") == sealed()


def test_a_reply_after_the_round_has_closed_for_contributions_changes_nothing(driving):
    driving.to_aggregating()

    assert not driving.ledger.rounds.record_participation(
        driving.lease, sealed(), round=1, attempt=1
    )
    assert participation(driving, "va").state is ParticipationState.ASKED


def test_a_site_can_be_lost_while_the_sum_is_formed(driving):
    driving.to_aggregating()
    lost = Participation(site="va", state=ParticipationState.LOST, detail="silent for 60 s")

    assert driving.ledger.rounds.record_participation(driving.lease, lost, round=1, attempt=1)
    assert participation(driving, "va") == lost


@pytest.mark.parametrize("end", ["committed", "aborted"])
def test_a_reply_to_a_closed_attempt_changes_nothing(driving, end):
    REACH[end](driving)
    before = driving.ledger.history("heart-1")
    lost = Participation(site="va", state=ParticipationState.LOST)

    assert not driving.ledger.rounds.record_participation(driving.lease, lost, round=1, attempt=1)
    assert driving.ledger.history("heart-1") == before


def test_nothing_is_recorded_of_a_site_that_was_not_asked(driving):
    enrol(driving.ledger, "st-anna")
    driving.to_open()

    with pytest.raises(LedgerError, match='"st-anna" was not asked'):
        driving.ledger.rounds.record_participation(
            driving.lease, joined("st-anna"), round=1, attempt=1
        )
    with pytest.raises(LedgerError, match='"st-anna" was not asked'):
        driving.ledger.rounds.record_charge(driving.lease, charge("st-anna"), round=1, attempt=1)


@pytest.mark.parametrize("state", ["asked", "counted"])
def test_asked_and_counted_are_not_for_reporting(driving, state):
    with pytest.raises(ValueError, match=f"Expected state={state}"):
        driving.ledger.rounds.record_participation(
            driving.lease,
            Participation(site="va", state=ParticipationState(state)),
            round=1,
            attempt=1,
        )


def test_a_charge_is_recorded_once_and_survives_the_abort(driving):
    driving.to_aborted()

    assert driving.ledger.rounds.record_charge(driving.lease, charge("va"), round=1, attempt=1)
    assert not driving.ledger.rounds.record_charge(driving.lease, charge("va"), round=1, attempt=1)

    (entry,) = driving.ledger.history("heart-1").charges
    assert entry.charge == charge("va")


def test_a_second_charge_that_differs_is_refused(driving):
    driving.to_open()
    driving.ledger.rounds.record_charge(driving.lease, charge("va"), round=1, attempt=1)

    with pytest.raises(LedgerError, match=r"reported epsilon 0\.5 before and 0\.4 now"):
        driving.ledger.rounds.record_charge(driving.lease, charge("va", 0.4), round=1, attempt=1)


@pytest.mark.parametrize("epsilon", [-0.1, float("inf"), float("nan")])
def test_a_charge_that_is_no_guarantee_is_refused(driving, epsilon):
    driving.to_open()

    with pytest.raises(ValueError, match="Expected epsilon="):
        driving.ledger.rounds.record_charge(
            driving.lease, charge("va", epsilon), round=1, attempt=1
        )


def test_a_commit_brings_everything_at_once(driving, clock):
    driving.to_aggregating()
    clock.now = datetime(2026, 1, 2, 3, 30, tzinfo=UTC)

    assert driving.ledger.rounds.commit_round(
        driving.lease, outcome(lost=("va",)), round=1, attempt=1
    )

    history = driving.ledger.history("heart-1")
    assert history.rounds[0].model_sha256 == digest("one")
    assert history.rounds[0].committed_at == history.attempts[0].closed_at == clock.now
    assert [model.round for model in history.models] == [0, 1]
    assert tuple(entry.participation for entry in history.participations) == (
        outcome(lost=("va",)).participations
    )
    assert [entry.charge.site for entry in history.charges] == [
        "cleveland",
        "hungary",
        "switzerland",
    ]
    assert [row.metric for row in history.metrics] == list(outcome().metrics)
    assert driving.ledger.runs.last_committed("heart-1").round == 1


def test_the_same_commit_again_changes_nothing(driving):
    driving.to_committed()
    before = driving.ledger.history("heart-1")

    assert not driving.ledger.rounds.commit_round(driving.lease, outcome(), round=1, attempt=1)
    assert driving.ledger.history("heart-1") == before


def test_a_round_committed_by_another_attempt_is_not_committed_again(driving):
    driving.to_aborted()
    driving.to_aggregating(attempt=2)
    driving.ledger.rounds.commit_round(driving.lease, outcome(), round=1, attempt=2)

    with pytest.raises(TransitionError, match="attempt 1 is aborted and cannot become committed"):
        driving.ledger.rounds.commit_round(driving.lease, outcome(), round=1, attempt=1)


def test_a_charge_reported_before_the_commit_is_not_doubled(driving):
    driving.to_open()
    driving.ledger.rounds.record_charge(driving.lease, charge("va"), round=1, attempt=1)
    driving.ledger.rounds.mark_aggregating(driving.lease, round=1, attempt=1)

    driving.ledger.rounds.commit_round(driving.lease, outcome(), round=1, attempt=1)

    assert len(driving.ledger.history("heart-1").charges) == 4


UNACCEPTABLE = {
    "another parent": (outcome(parent=digest("foreign")), LedgerError, "the last committed"),
    "a missing site": (
        replace(outcome(), participations=outcome().participations[1:]),
        LedgerError,
        "one participation for each of cleveland",
    ),
    "an unsettled site": (
        replace(outcome(), participations=tuple(sealed(site) for site in SITES)),
        ValueError,
        "to be counted, lost or refused",
    ),
    "too few sites": (
        outcome(lost=("hungary", "va")),
        QuorumError,
        "2 sites counted, the quorum is 3",
    ),
    "a metric that is no number": (
        replace(outcome(), metrics=(Metric(name="auc", value=float("nan"), released_with="-"),)),
        ValueError,
        "Expected metric auc=nan to be finite",
    ),
    "a charge that differs": (
        replace(outcome(), charges=(charge("va", 9.0),)),
        LedgerError,
        r"reported epsilon 0\.5 before and 9\.0 now",
    ),
}


@pytest.mark.parametrize("case", UNACCEPTABLE)
def test_an_outcome_that_does_not_fit_is_refused_as_a_whole(driving, case):
    bad, error, words = UNACCEPTABLE[case]
    driving.to_aggregating()
    driving.ledger.rounds.record_charge(driving.lease, charge("va"), round=1, attempt=1)
    before = driving.ledger.history("heart-1")

    with pytest.raises(error, match=words):
        driving.ledger.rounds.commit_round(driving.lease, bad, round=1, attempt=1)

    assert driving.ledger.history("heart-1") == before


def test_a_run_without_a_start_model_plans_nothing(driving):
    driving.ledger.runs.request("heart-2", spec="{}", rounds=1)
    lease = driving.ledger.runs.take_over("heart-2")

    with pytest.raises(TransitionError, match="the run has no start model yet"):
        driving.ledger.rounds.plan_attempt(lease, planned())


def test_a_deadline_without_a_time_zone_is_refused(driving):
    naive = datetime(2026, 1, 2, 3)  # noqa: DTZ001

    with pytest.raises(Exception, match="Expected a time with a time zone"):
        driving.ledger.rounds.plan_attempt(driving.lease, replace(planned(), deadline=naive))


def test_incidents_may_speak_of_what_the_ledger_does_not_know(ledger, clock):
    ledger.record_incident("stranger", "tried to join\x00", run_id="none", round=3, site="unknown")

    (incident,) = ledger.incidents()
    assert (incident.kind, incident.text, incident.at) == ("stranger", "tried to join?", clock.now)
