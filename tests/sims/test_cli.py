import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sims.cli import app

KEYS = {
    "scenario",
    "rounds",
    "sites",
    "model_hash",
    "auc",
    "accuracy",
    "epsilon",
    "bytes_per_round",
    "seconds",
}
SIMS = Path(sys.executable).parent / "sims"


@pytest.fixture
def invoke():
    def run(*arguments):
        return CliRunner().invoke(app, list(arguments))

    return run


@pytest.mark.slow
def test_run_prints_exactly_one_object_and_everything_else_on_stderr(tmp_path):
    command = [str(SIMS), "run", "heart", "--json", "--no-dp", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert set(found) >= KEYS
    assert found["scenario"] == "heart"
    assert found["rounds"] == 1
    assert sorted(found["sites"]) == ["cleveland", "hungarian", "switzerland", "va"]
    assert len(found["model_hash"]) == 64
    assert 0 <= found["accuracy"] <= 1
    assert set(found["epsilon"]["va"]) == {"epsilon", "delta", "unit", "adjacency"}
    log = tmp_path / "out" / "coordinator" / "logs" / "serverapp.log"
    assert "round 1 committed" in log.read_text()
    assert (tmp_path / "out" / "coordinator" / "ledger.db").is_file()


def test_an_unknown_scenario_is_a_usage_error(invoke):
    result = invoke("run", "liver")
    assert result.exit_code == 2
    assert "'liver' is none of heart, credit" in result.stderr
    assert result.stdout == ""


def test_an_existing_folder_is_never_written_to(invoke, tmp_path):
    result = invoke("run", "heart", "--no-dp", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "exists; name a new" in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rounds", "0", "--no-dp"], "rounds"),
        (["--secure-sum", "rot13", "--no-dp"], "scheme"),
        (["--epsilon", "-1"], "epsilon"),
        (["--epsilon", "nan"], "epsilon"),
    ],
)
def test_a_run_that_cannot_be_is_an_error_with_advice_and_no_traceback(invoke, arguments, named):
    result = invoke("run", "heart", *arguments)
    assert result.exit_code == 1
    assert named in result.stderr
    assert "Correct the file" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--epsilon", "1", "--epsilon", "3"], "needs --seeds 2 or more"),
        (["--seeds", "2", "--no-dp"], "neither --no-dp nor --out"),
        (["--seeds", "2", "--out", "nowhere"], "neither --no-dp nor --out"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_options_that_contradict_each_other_are_a_usage_error(invoke, arguments, advice):
    result = invoke("run", "heart", *arguments)
    assert result.exit_code == 2
    assert advice in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_a_level_that_cannot_be_is_an_error_before_anything_is_tried(invoke):
    result = invoke("run", "heart", "--seeds", "2", "--epsilon", "-1")
    assert result.exit_code == 1
    assert "epsilon" in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_too_few_patients_for_an_epsilon_are_warned_of_on_stderr(invoke):
    result = invoke("run", "heart", "--epsilon", "0.9", "--rounds", "1", "--json")
    assert result.exit_code == 0
    assert "Warning: epsilon 0.9 (delta 1e-05, patient" in result.stderr
    assert "not useful at this size" in result.stderr
    assert json.loads(result.stdout)["rounds"] == 1


@pytest.mark.slow
@pytest.mark.slow
def test_several_seeds_print_one_object_with_every_level(tmp_path):
    command = [str(SIMS), "run", "heart", "--json", "--seeds", "2", "--epsilon", "8"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--processes", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=tmp_path,
    )
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert found["seeds"] == [0, 1]
    assert [level["epsilon"] for level in found["levels"]] == [8.0]
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_command(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    assert "run" in result.stdout
