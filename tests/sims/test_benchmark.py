import io
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from sims.benchmarks.benchmark import (
    Absent,
    Benchmark,
    Comparison,
    Figure,
    describe_machine,
    median_of,
    print_benchmark,
)
from sims.benchmarks.memory import PeakWatch

LINE_KEYS = ["what", "ours", "unit", "baseline", "baseline_name", "ratio", "aim", "met", "note"]


def line(baseline: Figure | Absent, *, ours: float = 3.0, aim: float | None = 1.3) -> Comparison:
    return Comparison(
        what="a round",
        unit="s",
        ours=Figure(value=ours, note="median of 5, 2.9 to 3.2"),
        baseline_name="plain Flower",
        baseline=baseline,
        aim=aim,
    )


def test_the_ratio_is_ours_over_the_baseline() -> None:
    assert line(Figure(value=4.0)).ratio == 0.75


def test_an_aim_is_met_up_to_and_including_its_ratio() -> None:
    assert line(Figure(value=1.0), ours=1.3).is_met is True
    assert line(Figure(value=1.0), ours=1.31).is_met is False


def test_without_an_aim_nothing_is_met_or_missed() -> None:
    assert line(Figure(value=4.0), aim=None).is_met is None


def test_a_baseline_of_zero_has_no_ratio() -> None:
    assert line(Figure(value=0.0)).ratio is None


def test_an_absent_baseline_is_named_with_its_reason_and_no_figure() -> None:
    result = line(Absent(reason="no ray here")).as_json()

    assert result["baseline_name"] == "plain Flower"
    assert result["baseline"] is None
    assert result["ratio"] is None
    assert result["met"] is None
    assert "baseline not measured: no ray here" in result["note"]


def test_a_benchmark_is_one_object_of_name_machine_and_results() -> None:
    benchmark = Benchmark(
        name="rounds", machine=describe_machine(), results=(line(Figure(value=4.0)),)
    )

    result = benchmark.as_json()

    assert list(result) == ["name", "machine", "results"]
    assert list(result["results"][0]) == LINE_KEYS
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["packages"]["flwr"] == "1.41.0"


def test_the_table_shows_ratio_verdict_and_the_missing_baseline() -> None:
    results = (line(Figure(value=4.0)), line(Absent(reason="no ray here")))
    benchmark = Benchmark(name="rounds", machine=describe_machine(), results=results)
    shown = io.StringIO()

    print_benchmark(benchmark, Console(file=shown, width=160))

    assert "0.75" in shown.getvalue()
    assert "yes" in shown.getvalue()
    assert "none" in shown.getvalue()
    assert "no ray here" in shown.getvalue()


def test_a_median_tells_its_samples_and_spread() -> None:
    assert median_of([3.0, 1.0, 2.0]) == Figure(value=2.0, note="median of 3, 1 to 3")


def test_a_median_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        median_of([])


def test_a_peak_is_seen_in_a_grandchild_and_kept_after_its_end() -> None:
    hungry = "block = b'x' * 100_000_000; print('full', flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hungry!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        with PeakWatch(process.pid) as watch:
            process.stdout.readline()
            wait_for(lambda: max(watch.peaks().values(), default=0) > 100_000_000)
            process.communicate(b"\n")

    assert max(watch.peaks().values()) > 100_000_000


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
