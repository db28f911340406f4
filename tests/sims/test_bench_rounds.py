import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from flwr.app import ArrayRecord

from model.config import ModelConfig
from sims.benchmarks.flower_baseline import (
    BaselineError,
    read_rounds,
    time_flower_rounds,
    time_ray_rounds,
)
from sims.benchmarks.plain_flower.task import TIMES_FILE, Settings, new_model, train
from sims.benchmarks.workload import (
    LARGE,
    MEDIUM,
    SITES,
    SMALL,
    count_parameters,
    make_scenario,
    write_workload,
)
from sims.scenario import Scenario

BENCH = (sys.executable, "-m", "sims.cli", "bench", "rounds")


@pytest.fixture
def scenario() -> Scenario:
    return make_scenario(SMALL, rounds=2, is_private=False)


@pytest.mark.parametrize(
    ("model", "parameters"), [(SMALL, 4_033), (MEDIUM, 996_909), (LARGE, 25_086_061)]
)
def test_models_have_the_sizes_that_are_quoted(model: ModelConfig, parameters: int) -> None:
    assert count_parameters(make_scenario(model, rounds=1, is_private=False)) == parameters


def test_one_local_epoch_draws_every_patient_once_on_average(scenario: Scenario) -> None:
    assert scenario.spec.training.local_steps * scenario.spec.training.sample_rate == 1.0


def test_both_sides_have_the_same_model_table_and_steps(tmp_path: Path, scenario: Scenario) -> None:
    write_workload(scenario, tmp_path / "workload")

    settings = Settings.read(tmp_path / "workload")
    model = new_model(tmp_path / "workload", settings)

    assert sum(p.numel() for p in model.parameters()) == count_parameters(scenario)
    assert settings.sites == tuple(scenario.train)
    assert settings.steps == scenario.spec.training.local_steps
    assert train(model, tmp_path / "workload", settings, site="cleveland") == len(
        scenario.train["cleveland"]
    )


def test_the_baseline_trains(tmp_path: Path, scenario: Scenario) -> None:
    write_workload(scenario, tmp_path / "workload")
    settings = Settings.read(tmp_path / "workload")
    model = new_model(tmp_path / "workload", settings)
    before = ArrayRecord(model.state_dict()).object_id

    train(model, tmp_path / "workload", settings, site="hungarian")

    assert ArrayRecord(model.state_dict()).object_id != before


def test_rounds_are_the_times_between_their_ends(tmp_path: Path) -> None:
    (tmp_path / TIMES_FILE).write_text("[10.0, 12.5, 16.0]")

    assert read_rounds(tmp_path) == [2.5, 3.5]


def test_a_baseline_that_ended_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / TIMES_FILE).write_text("[10.0]")

    with pytest.raises(BaselineError, match="1 rounds were completed"):
        read_rounds(tmp_path)


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_an_interpreter_without_ray_is_named(tmp_path: Path, python: str) -> None:
    with pytest.raises(BaselineError, match=f"{python} cannot import ray"):
        time_ray_rounds(
            tmp_path, tmp_path / "ray", python=Path(python), sites=2, timeout_seconds=60.0
        )


@pytest.mark.slow
def test_the_command_prints_one_object_and_names_a_missing_baseline() -> None:
    chosen = ("--rounds", "1", "--skip", "real", "--skip", "memory", "--skip", "medium")
    done = subprocess.run(
        [*BENCH, *chosen, "--ray-python", "/nowhere/python", "--json"],
        capture_output=True,
        check=True,
        timeout=240,
    )

    result = json.loads(done.stdout)

    assert result["name"] == "rounds"
    assert [line["ours"] > 0 for line in result["results"]] == [True, True]
    assert [line["baseline"] for line in result["results"]] == [None, None]
    assert "cannot import ray" in result["results"][0]["note"]
    assert b"our rehearsal" in done.stderr


def test_the_command_refuses_to_skip_what_it_does_not_know() -> None:
    done = subprocess.run([*BENCH, "--skip", "everything"], capture_output=True, check=False)

    assert done.returncode == 2
    assert b"everything" in done.stderr
    assert done.stdout == b""


@pytest.mark.processes
def test_plain_flower_runs_as_processes_and_leaves_none_behind(
    tmp_path: Path, scenario: Scenario
) -> None:
    write_workload(scenario, tmp_path / "workload")
    before = set(psutil.Process().children(recursive=True))

    seconds = time_flower_rounds(
        tmp_path / "workload", tmp_path / "flower", sites=len(SITES), timeout_seconds=240.0
    )

    assert len(seconds) == 1
    assert seconds[0] > 0
    assert set(psutil.Process().children(recursive=True)) <= before
    assert processes_about(tmp_path) == []


def processes_about(folder: Path) -> list[psutil.Process]:
    """Processes that work in this folder, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(folder) in environment.get("FLWR_HOME", ""):
            found.append(process)
    return found
