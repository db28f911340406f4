from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from coordinator.errors import TransitionError
from coordinator.ledger.states import ATTEMPT_MAY_COME_FROM, RoundState
from coordinator.rounds import (
    RoundProgress,
    abort_round,
    begin_aggregation,
    commit_round,
    open_round,
)
from model.parameters import parameter_count
from privacy.secagg.plan import smallest_threshold, sum_threshold
from tests.sims.small_federation import SITES, small_plan, small_spec

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
TARGETS = (
    RoundState.OPEN,
    RoundState.AGGREGATING,
    RoundState.COMMITTED,
    RoundState.ABORTED,
)


@pytest.fixture
def spec(tmp_path):
    return small_spec(tmp_path)


@pytest.fixture
def progress(spec):
    return RoundProgress(plan=small_plan(spec))


def moved(progress, target):
    """The progress after the transition to `target`, with all who were asked having sealed."""
    moves = {
        RoundState.OPEN: open_round,
        RoundState.AGGREGATING: lambda p: begin_aggregation(p, p.plan.cohort),
        RoundState.COMMITTED: commit_round,
        RoundState.ABORTED: abort_round,
    }
    return moves[target](progress)


ALLOWED = [
    (source, target) for target, sources in ATTEMPT_MAY_COME_FROM.items() for source in sources
]
REFUSED = [
    (source, target)
    for source in RoundState
    for target in TARGETS
    if (source, target) not in ALLOWED
]


@pytest.mark.parametrize(("source", "target"), ALLOWED)
def test_a_transition_that_the_ledger_allows_is_allowed_here(progress, source, target):
    assert moved(replace(progress, state=source), target).state is target


@pytest.mark.parametrize(("source", "target"), REFUSED)
def test_every_other_transition_is_refused_and_names_both_states(progress, source, target):
    with pytest.raises(TransitionError, match=f"is {source}; only .* may become {target}"):
        moved(replace(progress, state=source), target)


def test_a_refused_transition_changes_nothing(progress):
    opened = open_round(progress)
    with pytest.raises(TransitionError):
        open_round(opened)
    assert opened == open_round(progress)


def test_sites_are_the_cohort_then_the_survivors_then_nobody(progress):
    opened = open_round(progress)
    aggregating = begin_aggregation(opened, ("dora", "anna", "berta"))
    assert progress.sites == ()
    assert opened.sites == SITES
    assert aggregating.sites == ("anna", "berta", "dora")
    assert commit_round(aggregating).sites == aggregating.sites
    assert abort_round(aggregating).sites == ()


def test_fewer_sealed_contributions_than_the_quorum_are_refused(progress):
    with pytest.raises(TransitionError, match="2 sealed contributions, quorum 3"):
        begin_aggregation(open_round(progress), ("anna", "berta"))


def test_a_site_that_was_never_asked_cannot_count(progress):
    with pytest.raises(TransitionError, match=r"never asked: \['mallory'\]"):
        begin_aggregation(open_round(progress), (*SITES, "mallory"))


def test_a_site_counts_once_however_often_it_is_named(progress):
    with pytest.raises(TransitionError, match="quorum 3"):
        begin_aggregation(open_round(progress), ("anna", "anna", "anna"))


def test_the_plan_of_an_attempt_follows_from_the_run_and_the_sites_online(spec):
    plan = small_plan(spec, cohort=("dora", "anna", "clara"))
    assert plan.cohort == ("anna", "clara", "dora")
    assert plan.rounds_charged == spec.rounds + spec.spare_attempts
    assert plan.deadline == NOW + timedelta(seconds=spec.timing.round_seconds)
    assert plan.secure_sum.dimension == parameter_count(spec.model, spec.table) + 2
    assert plan.secure_sum.max_sites == 3
    assert plan.session_id == "small/1/1"
    plan.secure_sum.require_cohort(plan.cohort)


def test_the_deadline_is_in_utc_whatever_the_clock_of_the_coordinator_shows(spec):
    there = timezone(timedelta(hours=5))
    assert small_plan(spec, now=NOW.astimezone(there)).deadline == small_plan(spec).deadline
    assert small_plan(spec, now=NOW.astimezone(there)).deadline.tzinfo is UTC


@pytest.mark.parametrize("sites", range(2, 65))
def test_the_threshold_is_the_smallest_that_the_secure_sum_accepts(sites):
    assert sum_threshold("mask", sites) == smallest_threshold(sites)


def test_a_sum_in_the_clear_needs_no_shares():
    assert sum_threshold("plain", 4) == 1
