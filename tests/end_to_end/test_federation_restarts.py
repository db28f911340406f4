"""Parts of the coordinator that die by SIGKILL in mid-round: the ServerApp, the SuperLink, all of it at once."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from coordinator.ledger.records import RunHistory
from coordinator.ledger.states import RoundState
from participant.budget import SiteBudget
from participant.budget_spending import Spending
from participant.config import load_site
from sims.federation import COMMANDS
from tests.end_to_end.federation_rig import (
    LegNote,
    WatchedFederation,
    alive,
    committed_models,
    counted,
    find_process,
    timing,
    tiny_heart,
    until,
)

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(1500)]

RUN = "restarts"
SITES = ("cleveland", "hungarian", "va")
HOLDER = "va"
"""The site that holds in mid-round, so that the round is under way when something is killed."""
SERVER_APP, SUPERLINK, COORDINATOR = "flwr-serverapp", "flower-superlink", "coordinator"
KILL_IN_ROUND = {SERVER_APP: 2, SUPERLINK: 3, COORDINATOR: 4}
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What was true when something was killed."""

    under_way: LegNote
    models: dict[int, str]
    spent: dict[str, Spending]


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened in the run."""

    federation: WatchedFederation
    moments: dict[str, Moment]
    left_behind: list[psutil.Process]
    """Children of the killed coordinator that did not end with it."""
    history: RunHistory
    spent: dict[str, Spending] = field(default_factory=dict)


def budgets(federation: WatchedFederation) -> dict[str, Spending]:
    return {site: budget(federation, site).spent() for site in SITES}


def budget(federation: WatchedFederation, site: str) -> SiteBudget:
    home = federation.folder / site
    return SiteBudget(home / "budget.db", load_site(home).budget)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    scenario = tiny_heart(
        hospitals=SITES, rounds=ROUNDS, spare_attempts=12, timing=timing(silence_seconds=20.0)
    )
    with WatchedFederation(tmp_path_factory.mktemp("restarts"), scenario) as federation:
        federation.wait_online(*SITES)
        left_behind: list[psutil.Process] = []

        def kill_part(program: str) -> None:
            find_process(federation.descendants("coordinator"), program).kill()

        def kill_coordinator() -> None:
            children = federation.descendants("coordinator")
            federation.kill("coordinator")
            psutil.wait_procs(children, timeout=30)
            left_behind.extend(alive(children))

        moments = {}
        moments[SERVER_APP] = in_mid_round(
            federation, SERVER_APP, lambda: kill_part(SERVER_APP), first=True
        )
        moments[SUPERLINK] = in_mid_round(federation, SUPERLINK, lambda: kill_part(SUPERLINK))
        moments[COORDINATOR] = in_mid_round(federation, COORDINATOR, kill_coordinator)
        federation.start_coordinator()
        history = federation.wait(RUN, timeout_seconds=600)
        yield Story(
            federation=federation,
            moments=moments,
            left_behind=left_behind,
            history=history,
            spent=budgets(federation),
        )


def in_mid_round(
    federation: WatchedFederation, what: str, kill: Callable[[], None], *, first: bool = False
) -> Moment:
    """Kills when every site but one has sealed, in the round that is meant for it."""
    federation.order(HOLDER, "seal", "hold", from_round=KILL_IN_ROUND[what])
    if first:
        federation.request(RUN)

    def held() -> list[LegNote]:
        notes = federation.notes(HOLDER, RUN)
        return [n for n in notes if n.order == "hold" and n.round >= KILL_IN_ROUND[what]]

    under_way = until(f"{HOLDER} holds", held)[-1]
    with federation.ledger() as ledger:
        models = committed_models(ledger.history(RUN))
    moment = Moment(under_way=under_way, models=models, spent=budgets(federation))
    kill()
    federation.withdraw(HOLDER, "seal")
    return moment


def test_the_run_goes_on_to_its_end(story: Story) -> None:
    rounds = {r.number: r.state for r in story.history.rounds}

    assert rounds == dict.fromkeys(range(1, ROUNDS + 1), RoundState.COMMITTED)
    assert len(committed_models(story.history)) == ROUNDS + 1
    last = story.history.attempts[-1]
    assert counted(story.history, last.round, last.attempt) == SITES


@pytest.mark.parametrize("what", [SERVER_APP, SUPERLINK, COORDINATOR])
def test_rounds_that_were_committed_before_keep_their_model(story: Story, what: str) -> None:
    before = story.moments[what].models
    after = committed_models(story.history)

    assert set(before) == set(range(KILL_IN_ROUND[what]))
    assert {number: after[number] for number in before} == before


@pytest.mark.parametrize("what", [SERVER_APP, COORDINATOR])
def test_the_attempt_under_way_is_aborted_and_another_one_commits(story: Story, what: str) -> None:
    under_way = story.moments[what].under_way
    attempts = [a for a in story.history.attempts if a.round == under_way.round]

    assert under_way.round == KILL_IN_ROUND[what]
    assert attempts[under_way.attempt - 1].state is RoundState.ABORTED
    assert attempts[under_way.attempt - 1].reason
    assert attempts[-1].state is RoundState.COMMITTED


def test_a_round_survives_the_superlink(story: Story) -> None:
    attempts = [a for a in story.history.attempts if a.round == KILL_IN_ROUND[SUPERLINK]]

    assert [a.state for a in attempts] == [RoundState.COMMITTED]
    assert counted(story.history, attempts[0].round, attempts[0].attempt) == SITES


def test_nothing_outlives_a_coordinator_that_was_killed(story: Story) -> None:
    assert story.left_behind == []


def test_the_ledger_tells_the_operator_that_the_server_app_died(story: Story) -> None:
    assert "flower-run-ended" in {incident.kind for incident in story.history.incidents}


@pytest.mark.parametrize("site", SITES)
def test_no_site_counts_less_than_it_has_sealed(story: Story, site: str) -> None:
    spent = [story.moments[what].spent[site] for what in KILL_IN_ROUND] + [story.spent[site]]
    sealed = {n.where for n in story.federation.notes(site, RUN) if n.leg == "confirm"}
    charged = [c.intent for c in budget(story.federation, site).charges()]

    epsilons = [one.epsilon for one in spent]
    assert epsilons == sorted(epsilons)
    assert epsilons[0] > 0
    assert charged.count(f"{RUN}/count") == 1
    assert len(set(charged)) - 1 >= len(sealed) >= ROUNDS
    assert spent[-1].epsilon <= spent[-1].contract_epsilon


def test_the_command_shows_what_the_budget_holds(story: Story) -> None:
    home = story.federation.folder / HOLDER
    shown = subprocess.run(
        [COMMANDS / "participant", "budget", "show", "--home", home, "--json"],
        check=True,
        capture_output=True,
    )

    assert json.loads(shown.stdout)["epsilon"] == story.spent[HOLDER].epsilon
