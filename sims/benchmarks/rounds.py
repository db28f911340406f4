"""`sims bench rounds`: what a round of ours costs, beside a round of plain Flower on the same model and data.

Our round is whole: mutual TLS, DP-SGD, secure sum, budgets, durable model and ledger. Plain Flower's has none of it.
A round lasts from the end of the one before to its own end, as the ledger (ours) or the ServerApp (Flower) saw it, so the
first round, which loads everything, is not counted.

Memory: the peak of a coordinator's process with a large model, less its peak with the small one, which holds the
interpreter and everything that was imported; beside the large model's own size.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from coordinator.ledger.records import RunHistory
from sims.benchmarks.benchmark import (
    Absent,
    Benchmark,
    Comparison,
    Figure,
    describe_machine,
    median_of,
)
from sims.benchmarks.flower_baseline import BaselineError, time_flower_rounds, time_ray_rounds
from sims.benchmarks.memory import PeakWatch
from sims.benchmarks.workload import (
    LARGE,
    MEDIUM,
    SITES,
    SMALL,
    count_parameters,
    make_scenario,
    write_workload,
)
from sims.federation import RealFederation
from sims.rehearsal import rehearse
from sims.scenario import Scenario

PARTS = ("real", "rehearsal", "memory")
BASELINES = ("flower", "ray")
ROUND_AIM, REHEARSAL_AIM, MEMORY_AIM = 1.3, 1 / 20, 3.0
FLOWER, RAY = "plain Flower", "Flower's Ray simulation"
MEMORY_ROUNDS, MEMORY_STEPS = 2, 1
SERVER_APP = "flwr-serverapp"
TIMEOUT_SECONDS = 1800.0
FLOAT32_BYTES = 4
BYTES_PER_MB = 10**6

Progress = Callable[[str], None]
Peaks = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    rounds: int
    """Rounds that are counted; one more is run."""
    skipped: frozenset[str]
    """Names of `PARTS` and `BASELINES` to leave out."""
    ray_python: Path
    """Interpreter that may have Ray."""
    folder: Path
    """New or empty; receives every process's homes and logs."""


def measure_rounds(options: Options, progress: Progress) -> Benchmark:
    """Runs all that is asked for, one after the other.

    Raises:
        FederationError, CoordinatorError: our own side failed; there is nothing to compare.
    """
    machine = describe_machine()
    results: list[Comparison] = []
    small_peaks: Peaks | None = None
    if "real" not in options.skipped:
        for name, model in (("small", SMALL), ("medium", MEDIUM)):
            scenario = make_scenario(model, rounds=options.rounds + 1, is_private=True)
            line, peaks = _real(scenario, options, progress, name=name)
            small_peaks = small_peaks or peaks
            results.append(line)
    if "rehearsal" not in options.skipped:
        for name, model in (("small", SMALL), ("medium", MEDIUM)):
            results.extend(_rehearsals(name, model, options, progress))
    if "memory" not in options.skipped:
        results.extend(_memory(small_peaks, options, progress))
    return Benchmark(name="rounds", machine=machine, results=tuple(results))
