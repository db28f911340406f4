"""The one form of every benchmark: ours beside a baseline, their ratio, the aim, and whether it is met.

Ratios are always ours / baseline, and less is better: seconds, bytes, errors, never their inverse. A baseline that could
not be run is named with the reason, and its figure, ratio and verdict stay empty; nothing is filled in from memory.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "flwr", "grpcio", "numpy", "cryptography", "tenseal", "phe", "gmpy2", "opendp")
BYTES_PER_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number."""

    value: float
    note: str = ""
    """How it was reached: number of samples, least and most."""


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A baseline that could not be measured here."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of a benchmark."""

    what: str
    unit: str
    ours: Figure
    baseline_name: str
    baseline: Figure | Absent
    aim: float | None = None
    """The largest ratio that is good enough; None where nothing was promised."""

    @property
    def ratio(self) -> float | None:
        """Ours / baseline; None without a baseline or with a baseline of 0."""
        if isinstance(self.baseline, Absent) or self.baseline.value == 0:
            return None
        return self.ours.value / self.baseline.value

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is met; None where there is no aim or no ratio."""
        return None if self.aim is None or self.ratio is None else self.ratio <= self.aim

    @property
    def note(self) -> str:
        """What a reader must know beside the numbers."""
        if isinstance(self.baseline, Absent):
            parts = (self.ours.note, f"baseline not measured: {self.baseline.reason}")
        else:
            parts = (self.ours.note, self.baseline.note and f"baseline {self.baseline.note}")
        return "; ".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        """The line as the benchmark's object holds it."""
        return {
            "what": self.what,
            "ours": self.ours.value,
            "unit": self.unit,
            "baseline": None if isinstance(self.baseline, Absent) else self.baseline.value,
            "baseline_name": self.baseline_name,
            "ratio": self.ratio,
            "aim": self.aim,
            "met": self.is_met,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and when the figures were taken, and how busy the machine was."""

    date: str
    """UTC."""
    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    load_average: float
    """Of the last minute, when the measurement began: above 1 or so, wall times are inflated."""

    def as_json(self) -> dict[str, Any]:
        """The machine as the benchmark's object holds it."""
        return {
            "date": self.date,
            "processor": self.processor,
            "cores": self.cores,
            "memory_gib": self.memory_gib,
            "system": self.system,
            "python": self.python,
            "packages": self.packages,
            "load_average": self.load_average,
        }


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A finished measurement."""

    name: str
    machine: Machine
    results: tuple[Comparison, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that `sims bench NAME --json` prints."""
        return {
            "name": self.name,
            "machine": self.machine.as_json(),
            "results": [result.as_json() for result in self.results],
        }


def median_of(samples: Sequence[float]) -> Figure:
    """The median of at least one sample, with least, most and number in its note.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("Expected at least one sample, got none.")
    return Figure(
        value=median(samples),
        note=f"median of {len(samples)}, {min(samples):.3g} to {max(samples):.3g}",
    )


def describe_machine() -> Machine:
    """This machine, now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / BYTES_PER_GIB, 1),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        packages={name: _installed(name) for name in PACKAGES},
        load_average=round(os.getloadavg()[0], 2),
    )


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    """The benchmark as a table for people."""
    machine = benchmark.machine
    table = Table(
        title=f"{benchmark.name}, {machine.date} UTC",
        caption=f"{machine.processor}, {machine.cores} cores, {machine.memory_gib} GiB, "
        f"load {machine.load_average}; ratio = ours / baseline, less is better",
    )
    for column in ("what", "baseline is"):
        table.add_column(column, ratio=2)
    for column in ("ours", "baseline", "ratio", "aim", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in benchmark.results:
        table.add_row(
            result.what,
            result.baseline_name,
            f"{result.ours.value:.3g} {result.unit}",
            "none"
            if isinstance(result.baseline, Absent)
            else f"{result.baseline.value:.3g} {result.unit}",
            "" if result.ratio is None else f"{result.ratio:.3g}",
            "" if result.aim is None else f"≤ {result.aim:g}",
            {True: "yes", False: "no", None: ""}[result.is_met],
        )
    console.print(table)
    for result in benchmark.results:
        if result.note:
            console.print(f"{result.what}: {result.note}", style="dim", highlight=False)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
