"""The command line of a site: one JSON object on standard output, words on standard error, exit codes 0, 1 and 2."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from participant.cli import app
from participant.config import load_site
from participant.supervisor import ensure_budget, only_agent
from tests.participant.stub_coordinator import Authority, joined_home
from tests.participant.test_supervisor import ready_home

run = CliRunner().invoke


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return ready_home(tmp_path / "home", Authority(), "localhost:1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["join", "--help"],
        ["run", "--help"],
        ["status", "--help"],
        ["data", "check", "--help"],
        ["budget", "show", "--help"],
    ],
)
def test_every_command_explains_itself(arguments: list[str]) -> None:
    result = run(app, arguments)

    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize("arguments", [["unknown"], ["join"], ["run", "--unknown"], []])
def test_what_is_not_understood_ends_with_2(arguments: list[str]) -> None:
    assert run(app, arguments).exit_code == 2


def test_data_check_prints_one_object(home: Path) -> None:
    result = run(app, ["data", "check", "--home", str(home), "--json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 303


def test_data_check_shows_where_the_table_is_wrong_but_not_in_the_json(home: Path) -> None:
    table = (home / "patients.csv").read_text().splitlines()
    table[1] = "9999" + table[1][table[1].index(",") :]
    (home / "patients.csv").write_text("\n".join(table))

    result = run(app, ["data", "check", "--home", str(home), "--json"])

    assert result.exit_code == 1
    assert "9999" in result.stderr
    assert json.loads(result.stdout)["kind"] == "DataError"
    assert "9999" not in result.stdout


def test_the_home_may_come_from_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCORD_SITE_HOME", str(home))

    assert run(app, ["data", "check"]).exit_code == 0


def test_a_missing_home_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    result = run(app, ["status", "--home", str(tmp_path / "nowhere")])

    assert result.exit_code == 1
    assert "participant join" in result.stderr


def test_status_says_when_nothing_runs(home: Path) -> None:
    result = run(app, ["status", "--home", str(home), "--json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"running": False, "agent": None}


def test_budget_show_states_delta_unit_and_adjacency(home: Path) -> None:
    ensure_budget(home, load_site(home))

    result = run(app, ["budget", "show", "--home", str(home), "--json"])

    spent = json.loads(result.stdout)
    assert (spent["epsilon"], spent["contract_epsilon"]) == (0.0, 8.0)
    assert (spent["unit"], spent["adjacency"]) == ("patient", "add-or-remove-one")


def test_budget_show_without_a_budget_is_an_error(home: Path) -> None:
    assert run(app, ["budget", "show", "--home", str(home)]).exit_code == 1


def test_joining_with_a_file_that_is_no_invitation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "invitation").write_text("hello")
    home = str(tmp_path / "home")

    result = run(app, ["join", str(tmp_path / "invitation"), "--home", home, "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["kind"] == "EnrolmentError"
    assert not (tmp_path / "home").exists()


def test_running_with_a_bad_table_ends_before_anything_is_sent(home: Path) -> None:
    (home / "patients.csv").write_text("age\n40\n")

    result = run(app, ["run", "--home", str(home)])

    assert result.exit_code == 1
    assert not (home / "budget.db").exists()
    assert not (home / "superexec.secret").exists()


def test_running_beside_another_agent_is_refused(home: Path) -> None:
    with only_agent(home):
        result = run(app, ["run", "--home", str(home)])

    assert result.exit_code == 1
    assert "Another agent runs" in result.stderr


def test_running_before_joining_is_refused(tmp_path: Path) -> None:
    home = joined_home(tmp_path / "home", Authority()).home

    result = run(app, ["run", "--home", str(home)])

    assert result.exit_code == 1
    assert "site.toml" in result.stderr
