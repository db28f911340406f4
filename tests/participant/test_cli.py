"""The command line of a site: one JSON object on standard output, words on standard error, exit codes 0, 1 and 2."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from participant.budget import SiteBudget
from participant.cli import app
from participant.config import load_site
from participant.supervisor import ensure_budget, only_agent
from tests.participant.budget_fixtures import DIGEST, TENTH, gaussian, programme
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
        ["budget", "accept-clock", "--help"],
        ["certificate", "--help"],
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


@pytest.fixture
def spent_home(home: Path) -> Path:
    """A home whose budget has two runs in it, one of them declared."""
    ensure_budget(home, load_site(home))
    budget = SiteBudget(home / "budget.db", load_site(home).budget)
    whole = programme(gaussian(60, 4.0))
    budget.reserve("run-1/1/1", (gaussian(20, 4.0),), programme=whole)
    budget.spend("run-1/1/1", sha256=DIGEST)
    budget.reserve("run-2/1/1", TENTH)
    return home


def test_budget_show_states_delta_unit_and_adjacency(home: Path) -> None:
    ensure_budget(home, load_site(home))

    result = run(app, ["budget", "show", "--home", str(home), "--json"])

    spent = json.loads(result.stdout)
    assert (spent["epsilon"], spent["contract_epsilon"]) == (0.0, 8.0)
    assert (spent["unit"], spent["adjacency"]) == ("patient", "add-or-remove-one")
    assert (spent["runs"], spent["rounds_left"]) == ([], None)


def test_budget_show_tells_the_runs_and_how_far_the_rest_reaches(spent_home: Path) -> None:
    shown = run(app, ["budget", "show", "--home", str(spent_home), "--json"])

    spent = json.loads(shown.stdout)
    assert 0 < spent["epsilon"] <= spent["filter_epsilon"] < 8.0
    assert spent["rounds_left"] > 10
    assert [(r["run"], r["charges"], r["releases"], r["is_declared"]) for r in spent["runs"]] == [
        ("run-1", 1, 1, True),
        ("run-2", 1, 0, False),
    ]


def test_budget_show_is_a_table_for_people(spent_home: Path) -> None:
    text = run(app, ["budget", "show", "--home", str(spent_home)]).stdout

    assert 'Privacy budget of data set "st-anna"' in text
    assert "epsilon 8 at delta 1e-05, without end" in text
    assert "patient, adjacency add-or-remove-one" in text
    assert "by the filter of order" in text
    assert "run-2" in text
    assert max(map(len, text.splitlines())) <= 110


def test_budget_show_warns_of_a_weak_contract(home: Path) -> None:
    site = home / "site.toml"
    site.write_text(site.read_text().replace("epsilon = 8.0", "epsilon = 12.0"))
    ensure_budget(home, load_site(home))

    text = run(app, ["budget", "show", "--home", str(home)]).stdout

    assert "Warning: The contract's epsilon of 12 is weak" in " ".join(text.split())


@pytest.mark.parametrize("name", ["budget.png", "budget.svg"])
def test_budget_show_draws_how_the_budget_was_used_up(
    spent_home: Path, tmp_path: Path, name: str
) -> None:
    result = run(app, ["budget", "show", "--home", str(spent_home), "--plot", str(tmp_path / name)])

    assert result.exit_code == 0
    assert (tmp_path / name).stat().st_size > 10_000


def test_budget_is_drawn_before_anything_was_charged(home: Path, tmp_path: Path) -> None:
    ensure_budget(home, load_site(home))
    picture = tmp_path / "budget.png"

    run(app, ["budget", "show", "--home", str(home), "--plot", str(picture)])

    assert picture.stat().st_size > 5_000


def test_picture_of_an_unknown_kind_is_not_understood(spent_home: Path, tmp_path: Path) -> None:
    picture = str(tmp_path / "budget.cake")

    result = run(app, ["budget", "show", "--home", str(spent_home), "--plot", picture])

    assert result.exit_code == 2
    assert "budget.cake" in result.stderr


def test_clock_that_is_right_is_not_accepted_once_more(spent_home: Path) -> None:
    result = run(app, ["budget", "accept-clock", "--home", str(spent_home), "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["kind"] == "BudgetError"


def test_certificate_is_written_and_holds(spent_home: Path) -> None:
    written = run(app, ["certificate", "--home", str(spent_home)])
    checked = run(app, ["certificate", "--verify", str(spent_home / "certificate.json"), "--json"])

    assert (written.exit_code, checked.exit_code) == (0, 0)
    assert json.loads(checked.stdout)["holds"] is True


def test_certificate_on_standard_output_is_the_one_object(spent_home: Path) -> None:
    result = run(app, ["certificate", "--home", str(spent_home), "--json"])

    assert json.loads(result.stdout)["format"] == "concord/privacy-certificate/v1"
    assert not (spent_home / "certificate.json").exists()


def test_certificate_that_was_changed_ends_with_1(spent_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "certificate.json"
    run(app, ["certificate", "--home", str(spent_home), "--out", str(out)])
    out.write_text(out.read_text().replace('"site": "st-anna"', '"site": "st-bernard"'))

    result = run(app, ["certificate", "--verify", str(out)])

    assert result.exit_code == 1
    assert "FAILS  signature" in result.stdout
    assert "holds  chain" in result.stdout


def test_certificate_of_another_key_ends_with_1(spent_home: Path) -> None:
    run(app, ["certificate", "--home", str(spent_home)])
    path = str(spent_home / "certificate.json")

    assert run(app, ["certificate", "--verify", path, "--key", "ab" * 32]).exit_code == 1


def test_checking_what_is_no_certificate_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").write_text("hello")

    result = run(app, ["certificate", "--verify", str(tmp_path / "certificate.json"), "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["kind"] == "CertificateError"


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
