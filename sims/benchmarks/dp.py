"""`sims bench dp`: what privacy costs: a private step beside a plain one, and beside Opacus; exact noise; the accounts.

Both sides run in turns in one process, on one thread, and the least time counts. On a processor a time is processor time;
on an accelerator it is the time until the work is done. Promises that are no ratio stand beside the figure as a baseline.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from participant.budget import SiteBudget
from participant.config import BudgetContract
from privacy.dp.accounting import epsilon_spent
from privacy.dp.clipping import Engine, PlainSum, clipped_sum, trainable_parameters
from privacy.dp.dpsgd import TrainingTask, train
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian
from privacy.dp.noise import GridGaussian, sum_grid
from privacy.randomness import OsRandom
from sims.benchmarks.benchmark import (
    Absent,
    Benchmark,
    Comparison,
    Figure,
    describe_machine,
    median_of,
)
from sims.benchmarks.dp_workload import (
    CLIPPING_NORM,
    RULES,
    SIZES,
    Size,
    Workload,
    count_flops,
    least_seconds,
    loss,
)
from sims.benchmarks.opacus_hooks import OpacusHooks
from sims.benchmarks.opendp_noise import opendp_seconds_per_million

PARTS = ("steps", "memory", "opacus", "noise", "budget", "accountant")
FLOPS_AIM, STEP_AIM, NOISED_STEP_AIM, MEMORY_AIM = 1.25, 1.5, 2.0, 1.5
GHOST_AIM, HOOKS_AIM = 1 / 1.3, 1 / 5
PLAIN = "the same step without privacy"
NOISE_MULTIPLIER, NOISE_SECONDS_PER_MILLION = 1.0, 0.1
MILLION = 1_000_000
BUDGET_ENTRIES, BUDGET_SECONDS = 100, 0.1
ACCOUNTANT_ENTRIES, ACCOUNTANT_SECONDS = 50, 1.0
CHILD_TIMEOUT_SECONDS = 600.0
FLOAT32_BYTES, BYTES_PER_MB, BYTES_PER_GB = 4, 10**6, 10**9
LARGEST_HOOKS_GIGABYTES = 3.0
"""Opacus holds them two times while it makes them."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    repetitions: int
    """Turns that are counted; one more is run."""
    skipped: frozenset[str]
    """Names of `PARTS` and of sizes to leave out."""
    device: str = "cpu"
    """Where models run: "cpu" or "cuda"."""
    offered: Mapping[str, Size] = field(default_factory=lambda: SIZES)
    """Models and batches."""
    noise_count: int = 10 * MILLION
    """Numbers to noise."""

    @property
    def sizes(self) -> dict[str, Size]:
        """Models to measure with."""
        return {name: size for name, size in self.offered.items() if name not in self.skipped}


def measure_dp(options: Options, progress: Progress) -> Benchmark:
    """Measures all that is asked for, one after the other."""
    machine = describe_machine()
    parts = {
        "steps": _compare_steps,
        "memory": _compare_memory,
        "opacus": _compare_opacus,
        "noise": _compare_noise,
        "budget": _compare_budget,
        "accountant": _compare_accountant,
    }
    results: list[Comparison] = []
    with _one_thread():
        for name, compare in parts.items():
            if name not in options.skipped:
                results.extend(compare(options, progress))
    return Benchmark(name="dp", machine=machine, results=tuple(results))


def _compare_steps(options: Options, progress: Progress) -> Iterator[Comparison]:
    for name, size in options.sizes.items():
        progress(f"steps of {name}")
        workload = Workload.of(size, options.device)
        plain = PlainSum(workload.model, loss)
        works: dict[str, Callable[[], object]] = {
            "ours": _clipped(workload, "bookkeeping"),
            "baseline": partial(plain, workload.inputs, workload.labels),
        }
        flops = {kind: count_flops(work) for kind, work in works.items()}
        times = least_seconds(works, options.device, options.repetitions)
        yield _comparison(
            f"operations of a step's sum, {size.title}",
            "GFLOP",
            {kind: count / 1e9 for kind, count in flops.items()},
            PLAIN,
            FLOPS_AIM,
        )
        yield _comparison(
            f"time of a step's sum, no noise, {size.title}", "s", times, PLAIN, STEP_AIM
        )
        yield _comparison(
            f"time of a whole step, exact noise, {size.title}",
            "s",
            _step_seconds(workload, options),
            PLAIN,
            NOISED_STEP_AIM,
        )


def _clipped(workload: Workload, engine: Engine) -> Callable[[], object]:
    """The clipped sum, attached for each turn anew: the engines' hooks would be in each other's way."""

    def work() -> object:
        clipped = clipped_sum(
            workload.model, loss, clipping_norm=CLIPPING_NORM, engine=engine, rules=RULES
        )
        with clipped as gradient_sum:
            return gradient_sum(workload.inputs, workload.labels)

    return work


def _step_seconds(workload: Workload, options: Options) -> dict[str, float]:
    """Least time of a whole step of training: sampling, sum, noise, optimiser. The first step of each run is its own."""
    private = TrainingTask(
        steps=2,
        sample_rate=1.0,
        learning_rate=0.0625,
        optimizer="sgd",
        expected_batch_size=float(len(workload.inputs)),
        clipping_norm=CLIPPING_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
    )
    plain = TrainingTask(
        steps=2,
        sample_rate=1.0,
        learning_rate=0.0625,
        optimizer="sgd",
        expected_batch_size=float(len(workload.inputs)),
    )
    times: dict[str, list[float]] = {"ours": [], "baseline": []}
    for _ in range(options.repetitions):
        times["ours"].append(_second_step(workload, private, options.device))
        times["baseline"].append(_second_step(workload, plain, options.device))
    return {kind: min(found) for kind, found in times.items()}


def _second_step(workload: Workload, task: TrainingTask, device: str) -> float:
    moments: list[float] = []

    def note(_: int) -> None:
        if device == "cpu":
            moments.append(time.process_time())
        else:
            torch.cuda.synchronize(device)
            moments.append(time.perf_counter())

    train(
        workload.model,
        workload.inputs,
        workload.labels,
        loss,
        task,
        OsRandom(),
        note,
        rules=RULES,
    )
    return moments[1] - moments[0]


def _compare_memory(options: Options, progress: Progress) -> Iterator[Comparison]:
    for name, size in options.sizes.items():
        progress(f"memory of {name}")
        added = {
            "ours": _added_megabytes(size, "clipped", options.device),
            "baseline": _added_megabytes(size, "plain", options.device),
        }
        yield _comparison(
            f"memory that a step's sum adds, {size.title}", "MB", added, PLAIN, MEMORY_AIM
        )


def _added_megabytes(size: Size, kind: str, device: str) -> float:
    """In a process of its own, because a peak never falls."""
    described = TypeAdapter(Size).dump_json(size).decode()
    command = (sys.executable, "-m", "sims.benchmarks.dp_memory", described, kind, device)
    child = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=CHILD_TIMEOUT_SECONDS
    )
    return int(child.stdout) / BYTES_PER_MB


def _compare_opacus(options: Options, progress: Progress) -> Iterator[Comparison]:
    for name, size in options.sizes.items():
        progress(f"Opacus, {name}")
        workload = Workload.of(size, options.device)
        works = {
            "ours": _clipped(workload, "bookkeeping"),
            "baseline": _clipped(workload, "opacus"),
        }
        times = least_seconds(works, options.device, options.repetitions)
        what = f"time of a step's sum, no noise, {size.title}"
        yield _comparison(what, "s", times, "Opacus ghost clipping with our rules", GHOST_AIM)
        yield Comparison(
            what=what,
            unit="s",
            ours=Figure(value=times["ours"]),
            baseline_name="Opacus' default, a gradient of every record",
            baseline=_hooks_seconds(workload, options),
            aim=HOOKS_AIM,
        )


def _hooks_seconds(workload: Workload, options: Options) -> Figure | Absent:
    parameters = sum(value.numel() for value in trainable_parameters(workload.model).values())
    gigabytes = parameters * len(workload.inputs) * FLOAT32_BYTES / BYTES_PER_GB
    if gigabytes > LARGEST_HOOKS_GIGABYTES:
        return Absent(reason=f"the gradients of all records take {gigabytes:.1f} GB")
    hooks = OpacusHooks(
        workload.model, loss, clipping_norm=CLIPPING_NORM, batch=len(workload.inputs)
    )
    try:
        works = {"hooks": partial(hooks, workload.inputs, workload.labels)}
        return Figure(value=least_seconds(works, options.device, options.repetitions)["hooks"])
    finally:
        hooks.close()


def _compare_noise(options: Options, progress: Progress) -> Iterator[Comparison]:
    progress("noise")
    values, random = np.zeros(options.noise_count, dtype=np.float32), OsRandom()
    grid = sum_grid(bound=CLIPPING_NORM, dimension=options.noise_count)
    noise = GridGaussian(deviation=NOISE_MULTIPLIER * CLIPPING_NORM, grid=grid)
    works = {"ours": partial(noise.add_to, values, random)}
    found = least_seconds(works, "cpu", options.repetitions)["ours"]
    ours = Figure(
        value=found * MILLION / options.noise_count,
        note=f"{options.noise_count / found / MILLION:.1f} million numbers a second on one core",
    )
    for baseline_name, baseline, aim in (
        ("10 million numbers a second", Figure(value=NOISE_SECONDS_PER_MILLION), 1.0),
        ("OpenDP's exact sampler", opendp_seconds_per_million(NOISE_MULTIPLIER / grid), None),
    ):
        yield Comparison(
            what="exact Gaussian noise on a grid, a million numbers",
            unit="s",
            ours=ours,
            baseline_name=baseline_name,
            baseline=baseline,
            aim=aim,
        )


def _compare_budget(options: Options, progress: Progress) -> Iterator[Comparison]:
    progress("budget")
    contract = BudgetContract(data_set="benchmark", epsilon=8.0, delta=1e-6)
    with tempfile.TemporaryDirectory(prefix="concord-budget-") as folder:
        path = Path(folder) / "budget.db"
        SiteBudget.create(path, contract)
        budget = SiteBudget(path, contract)
        times = []
        for number in range(BUDGET_ENTRIES + options.repetitions):
            started = time.perf_counter()
            budget.reserve(f"run-{number}/1/1", _round_events(number))
            times.append(time.perf_counter() - started)
    yield Comparison(
        what=f"reservation in a budget of {BUDGET_ENTRIES} charges, durable, wall time",
        unit="s",
        ours=median_of(times[BUDGET_ENTRIES:]),
        baseline_name="100 ms",
        baseline=Figure(value=BUDGET_SECONDS),
        aim=1.0,
    )


def _compare_accountant(options: Options, progress: Progress) -> Iterator[Comparison]:
    progress("accountant")
    times = []
    for repetition in range(options.repetitions):
        events = [
            event
            for number in range(ACCOUNTANT_ENTRIES // 2)
            for event in _round_events(number + repetition * ACCOUNTANT_ENTRIES)
        ]
        started = time.process_time()
        epsilon_spent(events, 1e-6)
        times.append(time.process_time() - started)
    yield Comparison(
        what=f"joint epsilon of {ACCOUNTANT_ENTRIES} different releases, nothing cached",
        unit="s",
        ours=median_of(times),
        baseline_name="1 s",
        baseline=Figure(value=ACCOUNTANT_SECONDS),
        aim=1.0,
    )


def _round_events(number: int) -> tuple[Event, Event]:
    """What a round releases: an update and a metric; no two rounds the same."""
    return (
        SubsampledGaussian(sample_rate=0.01, noise_multiplier=2.0 + 0.001 * number, steps=20),
        DiscreteLaplace(epsilon=0.01 + 0.0001 * number),
    )


def _comparison(
    what: str, unit: str, values: Mapping[str, float], baseline: str, aim: float
) -> Comparison:
    return Comparison(
        what=what,
        unit=unit,
        ours=Figure(value=values["ours"]),
        baseline_name=baseline,
        baseline=Figure(value=values["baseline"]),
        aim=aim,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
