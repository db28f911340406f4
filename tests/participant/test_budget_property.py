"""Any order of charges and releases by children that are killed at any instruction: the budget is right after each.

A child counts the calls that it makes, into Python and into C, and kills itself with SIGKILL at a number that hypothesis
chose: between any two steps of a charge or a release, under the lock or outside of it.
"""

import multiprocessing
import signal
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from participant.budget import Programme, SiteBudget
from participant.budget_entries import Charge, Row
from participant.errors import BudgetError, BudgetExhausted
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import DiscreteLaplace, Event
from tests.participant.budget_fixtures import (
    CONTRACT,
    DIGEST,
    OTHER_DIGEST,
    filter_of,
    gaussian,
    in_child,
    kill_me,
    make_budget,
    overspent,
    programme,
    received,
)

CALLS = 6000
"""Calls and returns of a charge; a release makes half as many. A kill beyond them does not happen."""

LARGE = programme(gaussian(60, 1.0), name="large")
"""Within the contract as a whole, and more than the filter admits."""
SMALL = programme(gaussian(120, 1.5), name="small")
"""Leaves room for one of the metrics; for two only if it were counted by its charges."""
RUNS: dict[str, tuple[Programme | None, tuple[Event, ...]]] = {
    "large": (LARGE, (gaussian(40, 1.0),)),
    "small": (SMALL, (gaussian(40, 1.5),)),
    "metrics": (None, (DiscreteLaplace(epsilon=0.7),)),
}
intents = st.builds(
    lambda run, number: f"{run}/{number}", st.sampled_from(sorted(RUNS)), st.integers(1, 2)
)
moments = st.sampled_from([None, *range(0, CALLS, 3)])
"""Sampled, because integers that hypothesis draws are mostly small."""


def die_after(calls: int | None) -> None:
    """Kills this process at its `calls`-th call from now on."""
    left = calls

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        assert left is not None
        left -= 1
        if left < 0:
            kill_me()

    if calls is not None:
        sys.setprofile(count)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a job in a process of its own."""

    intent: str
    digest: str | None = None
    """Bytes to release under the intent; None: charge it."""
    dies: int | None = None
    """Number of calls after which the process is killed."""


def take(step: Step, path: Path, told: Connection) -> None:
    """Takes the step and tells what came of it: a charge, or the digest that was released, or the kind of error."""
    budget = SiteBudget(path, CONTRACT)
    declared, events = RUNS[step.intent.partition("/")[0]]
    die_after(step.dies)
    answer: Charge | str
    try:
        if step.digest is None:
            answer = budget.reserve(step.intent, events, programme=declared)
        else:
            budget.spend(step.intent, sha256=step.digest)
            answer = step.digest
    except (BudgetExhausted, BudgetError) as error:
        answer = type(error).__name__
    sys.setprofile(None)
    told.send(answer)


class KilledJobs(RuleBasedStateMachine):
    """What the file must hold after every step, whatever was killed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = make_budget(Path(self.folder.name)).path
        self.rows: tuple[Row, ...] = ()
        self.charged = set[Charge]()
        self.released = set[tuple[str, str]]()

    def teardown(self) -> None:
        self.folder.cleanup()

    def take(self, *steps: Step) -> None:
        """Takes the steps in as many processes at once, and keeps what they acknowledged."""
        running = []
        for step in steps:
            receiver, sender = multiprocessing.Pipe(duplex=False)
            running.append((step, in_child(take, step, self.path, sender), receiver))
            sender.close()
        for step, child, receiver in running:
            child.join()
            assert child.exitcode in (0, -signal.SIGKILL)
            for answer in received(receiver):
                if isinstance(answer, Charge):
                    self.charged.add(answer)
                elif answer == step.digest:
                    self.released.add((step.intent, answer))

    @rule(intent=intents, dies=moments)
    def charge(self, intent: str, dies: int | None) -> None:
        self.take(Step(intent=intent, dies=dies))

    @rule(intent=intents, digest=st.sampled_from([DIGEST, OTHER_DIGEST]), dies=moments)
    def release(self, intent: str, digest: str, dies: int | None) -> None:
        self.take(Step(intent=intent, digest=digest, dies=dies))

    @rule(first=intents, second=intents, dies=moments)
    def charge_two_at_once(self, first: str, second: str, dies: int | None) -> None:
        self.take(Step(intent=first, dies=dies), Step(intent=second))

    @rule(intent=intents, dies=moments)
    def release_two_answers_at_once(self, intent: str, dies: int | None) -> None:
        self.take(
            Step(intent=intent, digest=DIGEST, dies=dies), Step(intent=intent, digest=OTHER_DIGEST)
        )

    @invariant()
    def everything_holds(self) -> None:
        history = SiteBudget(self.path, CONTRACT).history()
        assert overspent(history, CONTRACT) == ""
        assert history.rows[: len(self.rows)] == self.rows, "the file only grows"
        assert self.charged <= set(history.charges)
        assert self.released <= {(r.intent, r.sha256) for r in history.releases}
        self.rows = history.rows


@pytest.mark.processes
def test_budget_is_right_after_a_kill_at_any_instruction() -> None:
    assert epsilon_spent(LARGE.events, CONTRACT.delta) <= CONTRACT.epsilon  # children inherit it
    assert not filter_of(CONTRACT).admits(LARGE.events)
    assert filter_of(CONTRACT).admits((*SMALL.events, *RUNS["metrics"][1]))
    run_state_machine_as_test(
        KilledJobs,
        settings=settings(
            max_examples=16,
            stateful_step_count=8,
            derandomize=True,
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # where a kill falls is not the same twice: nothing to shrink
        ),
    )
