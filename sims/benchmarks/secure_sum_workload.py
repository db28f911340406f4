"""How large each part of `sims bench secure-sum` is, and how its lines are made.

Every time is processor time of one thread, the least of several runs: what else the machine does adds to a time and never
takes from it. A rate is given as seconds for a million values, because less is better in every line.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sims.benchmarks.benchmark import Absent, Comparison, Figure

MILLION = 1_000_000
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Numbers of values and sites."""

    parameters: int
    """Of the large model: mask and memory."""
    neighbours: int
    """Pair masks of a site."""
    generator_values: int
    """Drawn by one mask generator."""
    unmask_sites: int
    unmask_parameters: int
    ckks_values: int
    """Of a sum under CKKS; a multiple of 4096."""
    paillier_values: int
    """Of a sum under Paillier, and sealed and opened alone."""
    phe_numbers: int
    """Encrypted and decrypted by phe."""
    products: int
    """Outputs of an encrypted inner product with 64 terms."""
    noise_values: int
    opendp_values: int
    memory_sites: int
    few_memory_sites: int
    repetitions: int
    """Runs of which the least time counts, where a run is short."""


FULL = Workload(
    parameters=10_000_000,
    neighbours=100,
    generator_values=10_000_000,
    unmask_sites=60,
    unmask_parameters=1000,
    ckks_values=245_760,
    paillier_values=127 * 2000,
    phe_numbers=24,
    products=64,
    noise_values=10_000_000,
    opendp_values=20_000,
    memory_sites=20,
    few_memory_sites=5,
    repetitions=5,
)
QUICK = Workload(
    parameters=1_000_000,
    neighbours=100,
    generator_values=1_000_000,
    unmask_sites=20,
    unmask_parameters=1000,
    ckks_values=40_960,
    paillier_values=127 * 200,
    phe_numbers=8,
    products=8,
    noise_values=10_000_000,
    opendp_values=5_000,
    memory_sites=20,
    few_memory_sites=5,
    repetitions=3,
)


def least_seconds(works: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """The least processor time of each of several works that take turns, after one turn that is not counted."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            times[name].append(seconds_of(work))
    return {name: min(found) for name, found in times.items()}


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of the work, all threads together."""
    started = time.process_time()
    work()
    return time.process_time() - started


def promised(what: str, unit: str, ours: Figure, most: float, promise: str) -> Comparison:
    """A line whose baseline is what was promised."""
    return Comparison(
        what=what,
        unit=unit,
        ours=ours,
        baseline_name=promise,
        baseline=Figure(value=most),
        aim=1.0,
    )


def beside(
    what: str,
    unit: str,
    ours: Figure,
    peer: str,
    baseline: Figure | Absent,
    aim: float | None = None,
) -> Comparison:
    """A line beside a peer; without an aim where the promise is an absolute number on a line of its own."""
    return Comparison(
        what=what, unit=unit, ours=ours, baseline_name=peer, baseline=baseline, aim=aim
    )


def million_seconds(seconds: float, values: int, note: str = "") -> Figure:
    """Seconds for a million values, with the rate in the note."""
    rate = f"{values / seconds:.3g} values/s"
    return Figure(value=seconds * MILLION / values, note=f"{rate}; {note}" if note else rate)
