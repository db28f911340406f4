"""`sims bench rounds`: what a round of ours costs, beside a round of plain Flower on the same model and data.

Our round is whole: mutual TLS, DP-SGD, secure sum, budgets, durable model and ledger. Plain Flower's has none of it.
A round lasts from the end of the one before to its own end, as the ledger (ours) or the ServerApp (Flower) saw it, so the
first round, which loads everything, is not counted.

Memory: the peak of a coordinator's process with a large model, less its peak with the small one, which holds the
interpreter and everything that was imported; beside the large model's own size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from coordinator.ledger.records import RunHistory
from model.config import ModelConfig
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
FLOWER, RAY = "plain Flower, no privacy", "Flower's Ray simulation, no privacy"
SIZES = {"small": SMALL, "medium": MEDIUM}
MEMORY_ROUNDS, MEMORY_STEPS = 2, 1
SERVER_APP = "flwr-serverapp"
TIMEOUT_SECONDS = 1800.0
FLOAT32_BYTES = 4
BYTES_PER_MB = 10**6

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    rounds: int
    """Rounds that are counted; one more is run."""
    skipped: frozenset[str]
    """Names of `PARTS`, `BASELINES` and `SIZES` to leave out."""
    ray_python: Path
    """Interpreter that may have Ray."""
    folder: Path
    """New or empty; receives every process's homes and logs."""

    @property
    def sizes(self) -> dict[str, ModelConfig]:
        """Models to measure with."""
        return {name: model for name, model in SIZES.items() if name not in self.skipped}


def measure_rounds(options: Options, progress: Progress) -> Benchmark:
    """Measures all that is asked for, one after the other.

    Raises:
        FederationError, CoordinatorError: our own side failed; there is nothing to compare.
    """
    machine = describe_machine()
    results: list[Comparison] = []
    if "real" not in options.skipped:
        results.extend(_compare_real(options, progress))
    if "rehearsal" not in options.skipped:
        results.extend(_compare_rehearsals(options, progress))
    if "memory" not in options.skipped:
        results.extend(_compare_memory(options, progress))
    return Benchmark(name="rounds", machine=machine, results=tuple(results))


def round_seconds(history: RunHistory) -> list[float]:
    """Seconds between the commits of consecutive rounds."""
    commits = [r.committed_at for r in history.rounds if r.committed_at is not None]
    return [(later - earlier).total_seconds() for earlier, later in pairwise(commits)]


def _compare_real(options: Options, progress: Progress) -> Iterator[Comparison]:
    for size, model in options.sizes.items():
        scenario = make_scenario(model, rounds=options.rounds + 1, is_private=True)
        progress(f"real processes, {size} model: ours")
        history, _ = _run_real(scenario, options.folder / f"real-{size}")
        progress(f"real processes, {size} model: {FLOWER}")
        yield Comparison(
            what=f"round of real processes: mTLS, DP, masked sum; {_parameters(scenario)}",
            unit="s",
            ours=_figure(history),
            baseline_name=FLOWER,
            baseline=_time_flower(scenario, options, options.folder / f"flower-{size}"),
            aim=ROUND_AIM,
        )


def _compare_rehearsals(options: Options, progress: Progress) -> Iterator[Comparison]:
    for size, model in options.sizes.items():
        private = make_scenario(model, rounds=options.rounds + 1, is_private=True)
        plain = make_scenario(model, rounds=options.rounds + 1, is_private=False, scheme="plain")
        progress(f"one process, {size} model: {RAY}")
        baseline = _time_ray(plain, options, options.folder / f"ray-{size}")
        for does, scenario in (("DP, masked sum", private), ("no DP, plain sum", plain)):
            progress(f"one process, {size} model: our rehearsal, {does}")
            history = rehearse(scenario, _new(options.folder / f"rehearsal-{size}-{does[:2]}"))
            yield Comparison(
                what=f"round of a rehearsal: {does}; {_parameters(scenario)}",
                unit="s",
                ours=_figure(history),
                baseline_name=RAY,
                baseline=baseline,
                aim=REHEARSAL_AIM,
            )


def _compare_memory(options: Options, progress: Progress) -> Iterator[Comparison]:
    peaks, model_bytes = {}, 0
    for name, model in (("small", SMALL), ("large", LARGE)):
        progress(f"memory of the coordinator, {name} model")
        scenario = make_scenario(model, rounds=MEMORY_ROUNDS, is_private=False, steps=MEMORY_STEPS)
        _, peaks[name] = _run_real(scenario, options.folder / f"memory-{name}")
        model_bytes = FLOAT32_BYTES * count_parameters(scenario)
    growth = {p: max(0, peak - peaks["small"].get(p, 0)) for p, peak in peaks["large"].items()}
    parts = ", ".join(f"{p} {b / BYTES_PER_MB:.0f}" for p, b in growth.items() if b > BYTES_PER_MB)
    for what, grown in (
        ("growth of the coordinator's ServerApp at its peak", growth.get(SERVER_APP, 0)),
        ("growth of all coordinator processes, each at its peak", sum(growth.values())),
    ):
        yield Comparison(
            what=f"{what}; {_parameters(scenario)}",
            unit="MB",
            ours=Figure(
                value=grown / BYTES_PER_MB, note=f"over a model of 4 k parameters; {parts}"
            ),
            baseline_name="the model itself, float32",
            baseline=Figure(value=model_bytes / BYTES_PER_MB),
            aim=MEMORY_AIM,
        )


def _run_real(scenario: Scenario, folder: Path) -> tuple[RunHistory, dict[str, int]]:
    """The run's history, and the coordinator's programs with their peak bytes."""
    with RealFederation(_new(folder), scenario) as federation:
        with PeakWatch(federation.processes["coordinator"].pid) as watch:
            run_id = federation.request()
            history = federation.wait(run_id, timeout_seconds=TIMEOUT_SECONDS)
        return history, watch.peaks()


def _time_flower(scenario: Scenario, options: Options, folder: Path) -> Figure | Absent:
    if "flower" in options.skipped:
        return Absent(reason="skipped")
    write_workload(scenario, folder / "workload")
    try:
        return median_of(
            time_flower_rounds(
                folder / "workload",
                folder / "processes",
                sites=len(SITES),
                timeout_seconds=TIMEOUT_SECONDS,
            )
        )
    except BaselineError as error:
        return Absent(reason=str(error))


def _time_ray(scenario: Scenario, options: Options, folder: Path) -> Figure | Absent:
    if "ray" in options.skipped:
        return Absent(reason="skipped")
    write_workload(scenario, folder / "workload")
    try:
        return median_of(
            time_ray_rounds(
                folder / "workload",
                folder / "processes",
                python=options.ray_python,
                sites=len(SITES),
                timeout_seconds=TIMEOUT_SECONDS,
            )
        )
    except BaselineError as error:
        return Absent(reason=str(error))


def _figure(history: RunHistory) -> Figure:
    """The median round, and whether any had to be tried again."""
    figure = median_of(round_seconds(history))
    repeated = len(history.attempts) - len(history.rounds)
    return (
        replace(figure, note=f"{figure.note}, {repeated} attempts repeated") if repeated else figure
    )


def _parameters(scenario: Scenario) -> str:
    return f"{count_parameters(scenario):,} parameters"


def _new(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True)
    return folder
