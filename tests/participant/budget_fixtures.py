"""Budgets, contracts and children that the tests of the budget share."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from participant.budget import Programme, SiteBudget
from participant.budget_entries import EPOCH, History
from participant.config import BudgetContract
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian
from privacy.dp.filter import RdpFilter, default_order

CONTRACT = BudgetContract(data_set="heart", epsilon=3.0, delta=1e-5)
TENTH = (DiscreteLaplace(epsilon=0.1),)
DIGEST, OTHER_DIGEST = "ab" * 32, "cd" * 32
NOW = datetime.fromisoformat("2026-05-04T12:00:00+00:00")


def make_budget(folder: Path, contract: BudgetContract = CONTRACT, **options: Any) -> SiteBudget:
    """A new and empty budget in the folder."""
    SiteBudget.create(folder / "budget.db", contract)
    return SiteBudget(folder / "budget.db", contract, **options)


def gaussian(steps: int, noise_multiplier: float = 2.0) -> SubsampledGaussian:
    return SubsampledGaussian(sample_rate=0.05, noise_multiplier=noise_multiplier, steps=steps)


def programme(*events: Event, name: str = "run-1") -> Programme:
    return Programme(name=name, events=events)


def filter_of(contract: BudgetContract) -> RdpFilter:
    """The filter of a budget that was made with this contract."""
    order = contract.rdp_order or default_order(contract.epsilon, contract.delta)
    return RdpFilter(epsilon=contract.epsilon, delta=contract.delta, order=order)


def most_charges(contract: BudgetContract, events: Sequence[Event]) -> int:
    """How often the same charge fits a fresh budget."""
    filter_ = filter_of(contract)
    return next(n for n in itertools.count() if not filter_.admits(tuple(events) * (n + 1)))


def overspent(history: History, contract: BudgetContract) -> str:
    """What is wrong with a history, by the rules and not by the code; empty while the contract is kept."""
    filter_ = RdpFilter(
        epsilon=contract.epsilon, delta=contract.delta, order=history.identity.rdp_order
    )
    charged = {charge.intent for charge in history.charges}
    if any(release.intent not in charged for release in history.releases):
        return "something left without a charge"
    declared = {d.programme.name: d.programme.events for d in history.declarations if d.number == 1}
    events = [e for whole in declared.values() for e in whole]
    others = [c for c in history.charges if c.programme not in declared]
    if filter_.admits([*events, *(e for c in others for e in c.events)]):
        return ""
    if others:
        return "more was charged than the filter admits"
    spent = epsilon_spent([e for c in history.charges for e in c.events], contract.delta)
    whole = epsilon_spent(events, contract.delta)
    return "" if spent <= whole <= contract.epsilon else f"epsilon {spent} of {whole} was spent"


class SettableClock:
    """A clock that shows what it is set to."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **step: float) -> None:
        self.now += timedelta(**step)


def in_child(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """A forked process, started: it shares the file with this one and nothing else."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def kill_me(*arguments: object, **options: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def received(told: Connection) -> Iterator[Any]:
    """Everything told until the other end is closed."""
    with contextlib.suppress(EOFError):
        while True:
            yield told.recv()


def execute(path: Path, *statements: str) -> None:
    """Edits a budget file by hand."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)
