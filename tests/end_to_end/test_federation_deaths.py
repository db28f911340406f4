"""Hospitals that die by SIGKILL in mid-round, in every leg of the secure sum: first one of four, then two of four.

At last one that was only frozen, and replies when the round has gone on without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil
import pytest

from coordinator.ledger.records import Attempt, RunHistory
from coordinator.ledger.states import ParticipationState, RoundState
from privacy.secagg.plan import sum_threshold
from tests.end_to_end.federation_rig import (
    NO_DP,
    SITES,
    LegNote,
    WatchedFederation,
    committed_models,
    counted,
    details,
    frozen,
    states,
    timing,
    tiny_heart,
    until,
)
from tests.end_to_end.recomputed_round import (
    committed_from,
    contributions,
    planned,
    stored_weights,
)

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(1500)]

ALONE, TOGETHER, LATE = "alone", "together", "late"
VICTIMS = ("switzerland", "va")
VICTIM = VICTIMS[0]
UNSEALED = ("hello", "share", "seal")
"""A site that dies on entering one of these has not sent its contribution."""
SEALED = ("confirm", "release", "done")
"""One that dies on entering one of these has, and counts."""
BELOW_QUORUM = ("seal", "release")
TOLERANCE = 2e-5
"""Of one weight: fixed-point steps of the sum, and float32 computed in another process."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened in the two runs."""

    federation: WatchedFederation
    alone: RunHistory
    """In each round until all legs were had, one site died, and came back for the next."""
    together: RunHistory
    """In round 2, two sites died in several attempts, until they were left alive."""
    models_then: dict[str, dict[int, str]]
    """Leg -> what was committed when two sites died in it."""
    before_late: RunHistory
    """While a site that did not seal in round 1 was still frozen."""
    late: RunHistory
    """When that site had replied, and taken part again."""

    def death(self, run_id: str, leg: str, site: str = VICTIM) -> LegNote:
        """Where the site died."""
        return self.federation.wait_for_order(site, run_id, leg, "die")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    legs = UNSEALED + SEALED
    scenario = tiny_heart(spare_attempts=20, timing=timing(silence_seconds=8.0), **NO_DP)
    with WatchedFederation(tmp_path_factory.mktemp("deaths"), scenario) as federation:
        federation.wait_online(*SITES)
        die_in_turn(federation, ALONE, (VICTIM,), legs, from_round=1, rounds=len(legs) + 3)
        alone = federation.wait(ALONE, timeout_seconds=600)
        federation.wait_online(*SITES)
        models_then = die_in_turn(
            federation, TOGETHER, VICTIMS, BELOW_QUORUM, from_round=2, rounds=3
        )
        together = federation.wait(TOGETHER, timeout_seconds=600)
        before_late, late = reply_late(federation)
        yield Story(
            federation=federation,
            alone=alone,
            together=together,
            models_then=models_then,
            before_late=before_late,
            late=late,
        )


def die_in_turn(
    federation: WatchedFederation,
    run_id: str,
    victims: Sequence[str],
    legs: Sequence[str],
    *,
    from_round: int,
    rounds: int,
) -> dict[str, dict[int, str]]:
    """Requests the run and lets the victims die in each leg, and come back each time; what was committed each time."""
    models_then = {}
    for leg in legs:
        for victim in victims:
            federation.order(victim, leg, "die", from_round=from_round)
        if leg == legs[0]:
            federation.request(run_id, spec=replace(federation.scenario.spec, rounds=rounds))
        else:
            federation.bring_back(*victims)
        for victim in victims:
            federation.wait_for_order(victim, run_id, leg, "die")
        with federation.ledger() as ledger:
            models_then[leg] = committed_models(ledger.history(run_id))
    federation.bring_back(*victims)
    return models_then


def reply_late(federation: WatchedFederation) -> tuple[RunHistory, RunHistory]:
    """The history when round 1 had committed without a frozen site, and that of the whole run."""
    federation.order(VICTIM, "seal", "hold")
    federation.request(LATE, spec=replace(federation.scenario.spec, rounds=4))
    federation.wait_for_order(VICTIM, LATE, "seal", "hold")
    agent = psutil.Process(federation.processes[VICTIM].pid)
    with federation.ledger() as ledger, frozen([agent, *federation.descendants(VICTIM)]):
        federation.withdraw(VICTIM, "seal")
        until("round 1 commits", lambda: 1 in committed_models(ledger.history(LATE)))
        before = ledger.history(LATE)
    return before, federation.wait(LATE, timeout_seconds=600)


def round_one(history: RunHistory) -> tuple[object, ...]:
    """All that the ledger says of round 1."""
    return (
        [r for r in history.rounds if r.number == 1],
        [a for a in history.attempts if a.round == 1],
        [p for p in history.participations if p.round == 1],
        [m for m in history.models if m.round == 1],
        [c for c in history.charges if c.round == 1],
        [m for m in history.metrics if m.round == 1],
    )


def attempt_at(history: RunHistory, where: tuple[int, int]) -> Attempt:
    return next(a for a in history.attempts if (a.round, a.attempt) == where)


def distance(story: Story, history: RunHistory, round_number: int, sites: Sequence[str]) -> float:
    """Largest difference between the model that a round committed and the mean over these sites."""
    spec = story.federation.scenario.spec
    assert spec.server.name == "fedavg"
    models = committed_models(history)
    plan = planned(story.federation, spec, history, round_number)
    base = stored_weights(story.federation, models[round_number - 1])
    expected = committed_from(plan, base, contributions(story.federation, plan), sites)
    committed = stored_weights(story.federation, models[round_number])
    return float(np.abs(committed - expected).max())


@pytest.mark.parametrize("leg", UNSEALED)
def test_a_round_goes_on_without_a_site_that_dies_before_it_has_sealed(
    story: Story, leg: str
) -> None:
    where = story.death(ALONE, leg).where

    assert attempt_at(story.alone, where).state is RoundState.COMMITTED
    assert states(story.alone, *where)[VICTIM] is ParticipationState.LOST
    assert details(story.alone, *where)[VICTIM] == f"silent in leg {leg}"
    assert set(counted(story.alone, *where)) == set(SITES) - {VICTIM}


@pytest.mark.parametrize("leg", SEALED)
def test_a_round_counts_a_site_that_dies_after_it_has_sealed(story: Story, leg: str) -> None:
    where = story.death(ALONE, leg).where

    assert attempt_at(story.alone, where).state is RoundState.COMMITTED
    assert set(counted(story.alone, *where)) == set(SITES)


@pytest.mark.parametrize("leg", UNSEALED + SEALED)
def test_the_model_is_the_mean_over_exactly_the_sites_that_the_ledger_counts(
    story: Story, leg: str
) -> None:
    where = story.death(ALONE, leg).where
    sites = counted(story.alone, *where)
    others = [site for site in SITES if site != VICTIM or VICTIM not in sites]

    assert distance(story, story.alone, where[0], sites) < TOLERANCE
    assert distance(story, story.alone, where[0], others) > 10 * TOLERANCE


def test_a_site_that_died_takes_part_again(story: Story) -> None:
    last = story.alone.attempts[-1]

    assert set(counted(story.alone, last.round, last.attempt)) == set(SITES)


@pytest.mark.parametrize("leg", BELOW_QUORUM)
def test_below_the_quorum_the_attempt_is_aborted_and_says_who_is_missing(
    story: Story, leg: str
) -> None:
    deaths = {story.death(TOGETHER, leg, victim).where for victim in VICTIMS}
    (where,) = deaths
    aborted = attempt_at(story.together, where)

    assert aborted.state is RoundState.ABORTED
    assert aborted.reason is not None
    for victim in VICTIMS:
        assert f"{victim}: lost (silent in leg {leg})" in aborted.reason
        assert states(story.together, *where)[victim] is ParticipationState.LOST
    assert counted(story.together, *where) == ()


@pytest.mark.parametrize("leg", BELOW_QUORUM)
def test_below_the_quorum_too_few_sites_release_to_open_anything(story: Story, leg: str) -> None:
    where = story.death(TOGETHER, leg).where
    released = [
        note
        for site in SITES
        for note in story.federation.notes(site, TOGETHER)
        if (note.where, note.leg) == (where, "done")
    ]

    assert len(released) < sum_threshold("mask", len(SITES))
    assert (leg == "release") == (len(released) > 0)


@pytest.mark.parametrize("leg", BELOW_QUORUM)
def test_below_the_quorum_the_last_committed_round_stays_the_truth(story: Story, leg: str) -> None:
    models = committed_models(story.together)

    assert story.models_then[leg] == {0: models[0], 1: models[1]}


def test_a_round_that_was_aborted_commits_when_the_sites_are_back(story: Story) -> None:
    attempts = [a for a in story.together.attempts if a.round == 2]
    (committed,) = [a for a in attempts if a.state is RoundState.COMMITTED]

    assert len(attempts) > len(BELOW_QUORUM)
    assert set(counted(story.together, 2, committed.attempt)) == set(SITES)
    assert distance(story, story.together, 2, SITES) < TOLERANCE


def test_a_reply_after_the_commit_changes_nothing(story: Story) -> None:
    legs = [n.leg for n in story.federation.notes(VICTIM, LATE) if n.where == (1, 1)]

    assert legs == ["hello", "share", "seal"]
    assert states(story.late, 1, 1)[VICTIM] is ParticipationState.LOST
    assert set(counted(story.late, 1, 1)) == set(SITES) - {VICTIM}
    assert round_one(story.late) == round_one(story.before_late)


def test_a_site_that_replied_late_takes_part_again(story: Story) -> None:
    last = story.late.attempts[-1]

    assert set(counted(story.late, last.round, last.attempt)) == set(SITES)


def test_no_site_releases_twice_in_an_attempt(story: Story) -> None:
    releases = [
        (site, note.run, note.where)
        for site in SITES
        for run_id in (ALONE, TOGETHER)
        for note in story.federation.notes(site, run_id)
        if note.leg == "release"
    ]

    assert len(releases) == len(set(releases))


def test_the_coordinator_keeps_the_committed_models_and_nothing_else(story: Story) -> None:
    committed = {
        model.sha256
        for history in (story.alone, story.together, story.late)
        for model in history.models
    }
    kept = {path.name for path in story.federation.coordinator_home.models.iterdir()}

    assert kept == {f"{sha256}.safetensors" for sha256 in committed}
