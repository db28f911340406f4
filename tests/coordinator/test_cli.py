"""The `coordinator` command: exit codes, one JSON object, and words that help."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.config import CoordinatorHome, load_config
from coordinator.ledger.store import open_ledger

COMMANDS = ["init", "invite", "sites", "revoke", "serve", "train", "status", "ledger"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: str | Path) -> dict[str, object]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    content: dict[str, object] = json.loads(result.stdout)
    return content


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "coordinator-home"
    answer("init", "--home", folder, "--gateway-port", "0")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")

    assert result.exit_code == 0
    assert "--home" in result.stdout or command == "ledger"


def test_init_makes_a_home_that_is_its_owners_alone(home: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*") if path.is_file()}

    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert modes == {0o600}
    assert load_config(CoordinatorHome(folder=home)).exchange_port == 8444


def test_init_refuses_a_home_that_holds_something(home: Path) -> None:
    before = (home / "pki" / "ca.key").read_bytes()

    result = run("init", "--home", home)

    assert result.exit_code == 2
    assert "never overwritten" in result.stderr
    assert (home / "pki" / "ca.key").read_bytes() == before


def test_a_failed_init_leaves_nothing_behind(tmp_path: Path) -> None:
    result = run("init", "--home", tmp_path / "home", "--ledger-url", "nonsense")

    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_init_without_a_possible_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = run("init", "--home", tmp_path / "file" / "home")

    assert result.exit_code == 2
    assert "Name another --home" in result.stderr


def test_an_invitation_goes_to_a_file_and_not_to_the_screen(home: Path, tmp_path: Path) -> None:
    result = run("invite", "st-anna", "--out", tmp_path / "i.json", "--home", home)

    invitation = json.loads((tmp_path / "i.json").read_text())
    config = load_config(CoordinatorHome(folder=home))
    assert result.exit_code == 0
    assert invitation["token"] not in result.stdout + result.stderr
    assert invitation["site"] == "st-anna"
    assert invitation["enrol"] == f"127.0.0.1:{config.enrolment_port}"
    assert invitation["ca"] == (home / "pki" / "ca.crt").read_text()


def test_a_wrong_site_name_is_a_usage_error(home: Path, tmp_path: Path) -> None:
    result = run("invite", "St. Anna", "--out", tmp_path / "i.json", "--home", home)

    assert result.exit_code == 2
    assert not (tmp_path / "i.json").exists()


def test_sites_lists_members_and_revoke_ends_one(home: Path) -> None:
    with open_ledger(f"sqlite:///{home / 'ledger.db'}") as ledger:
        ledger.sites.enrol(
            name="st-anna", signing_key="ab" * 32, node_key="ssh", certificate_sha256="cd" * 32
        )

    listed = answer("sites", "--home", home)
    answer("revoke", "st-anna", "--home", home)

    assert [site["name"] for site in listed["sites"]] == ["st-anna"]  # type: ignore[attr-defined]
    assert answer("sites", "--home", home) == {"sites": []}


def test_revoking_a_stranger_fails_with_a_json_error(home: Path) -> None:
    result = run("revoke", "nobody", "--home", home, "--json")

    assert result.exit_code == 1
    assert "nobody" in json.loads(result.stdout)["error"]


def test_status_of_a_coordinator_that_does_not_serve(home: Path) -> None:
    assert answer("status", "--home", home) == {"serving": None, "sites": [], "runs": []}


def test_the_ledger_is_shown(home: Path) -> None:
    assert run("ledger", "list", "--home", home, "--json").exit_code == 0


@pytest.mark.parametrize("command", ["sites", "status", "serve"])
def test_a_home_that_does_not_exist_is_a_settings_error(command: str, tmp_path: Path) -> None:
    result = run(command, "--home", tmp_path / "none", "--json")

    assert result.exit_code == 2
    assert "coordinator init" in json.loads(result.stdout)["error"]


def test_a_run_that_does_not_parse_is_a_settings_error(home: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('name = "x"\n')

    result = run("train", tmp_path / "run.toml", "--home", home, "--json")

    assert result.exit_code == 2
    assert "run.toml" in json.loads(result.stdout)["error"]


def test_an_unknown_option_is_a_usage_error() -> None:
    assert run("serve", "--nonsense").exit_code == 2
