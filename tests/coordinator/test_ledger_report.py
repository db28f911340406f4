"""What the ledger says, as tables and as one JSON object, and how the command answers when it cannot."""

import json
from io import StringIO
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from sqlalchemy import text
from typer.testing import CliRunner

from coordinator.ledger.cli import ledger_app
from coordinator.ledger.engine import make_engine, writing
from coordinator.ledger.records import Participation
from coordinator.ledger.report import run_detail, run_summary, summary_tables
from coordinator.ledger.states import ParticipationState
from coordinator.ledger.store import open_ledger
from tests.coordinator.ledger_cases import SITES, Driving, digest, outcome, planned

pytest_plugins = ["tests.coordinator.ledger_fixtures"]


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def told(driving: Driving) -> Driving:
    """Round 1 took two attempts, round 2 is open."""
    driving.to_open()
    refused = Participation(
        site="va", state=ParticipationState.REFUSED, detail="[bold]max_epsilon", bytes_sent=7
    )
    driving.ledger.rounds.record_participation(driving.lease, refused, round=1, attempt=1)
    driving.ledger.rounds.abort_attempt(driving.lease, round=1, attempt=1, reason="quorum [red]")
    driving.to_aggregating(1, 2)
    driving.ledger.rounds.commit_round(driving.lease, outcome(lost=("va",)), round=1, attempt=2)
    driving.ledger.record_incident(
        "site-refused", "va refused", run_id="heart-1", round=1, site="va"
    )
    driving.to_open(2)
    return driving


def answer(*arguments: str, home: Path) -> Result:
    """The command's result."""
    return CliRunner().invoke(ledger_app, [*arguments, "--home", str(home)])


def test_the_summary_counts_attempts_sites_and_bytes_of_each_round(told):
    (run,) = run_summary(told.ledger).runs

    first, second = run.rounds
    assert (run.rounds_committed, run.rounds_requested) == (1, 2)
    assert (first.attempts, first.cohort) == (2, SITES)
    assert first.sites_counted == ("cleveland", "hungary", "switzerland")
    assert (first.bytes_sent, first.bytes_received) == (4007, 20000)
    assert (first.model_sha256, first.seconds) == (digest("one"), 0.0)
    assert (second.state, second.model_sha256, second.seconds) == ("open", None, None)


def test_an_epsilon_is_always_told_with_delta_unit_and_adjacency(told):
    (run,) = run_summary(told.ledger).runs

    assert sorted(run.guarantees) == ["cleveland", "hungary", "switzerland"]
    printed = StringIO()
    Console(width=120, file=printed).print(summary_tables(run_summary(told.ledger)))
    words = "hungary: epsilon 0.500 at delta 1e-05, per patient, add-or-remove-one"
    assert words in printed.getvalue()


def test_the_detail_of_one_round_holds_only_that_round(told):
    detail = run_detail(told.ledger, "heart-1", round=1)

    assert [row.attempt.attempt for row in detail.attempts] == [1, 2]
    assert {row.attempt.round for row in detail.attempts} == {1}
    assert [row.round for row in detail.run.rounds] == [1]
    assert detail.metrics[0].metric.name == "training_loss"
    assert [incident.kind for incident in detail.incidents] == ["site-refused"]
    assert detail.spec == '{"rounds": 2}'


def test_list_prints_one_json_object_with_every_round(told, tmp_path):
    result = answer("list", "--json", home=tmp_path)

    assert result.exit_code == 0
    told_object = json.loads(result.stdout)
    (run,) = told_object["runs"]
    assert [(row["round"], row["state"]) for row in run["rounds"]] == [
        (1, "committed"),
        (2, "open"),
    ]
    assert run["rounds"][0]["model_sha256"] == digest("one")
    assert run["created_at"] == "2026-01-02T03:04:05Z"


def test_list_prints_a_table_in_80_columns(told, tmp_path):
    result = answer("list", home=tmp_path)

    assert result.exit_code == 0
    assert "Run heart-1: running, 1 of 2 rounds committed" in result.stdout
    assert digest("one")[:8] in result.stdout
    assert "3/4" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_show_prints_what_each_site_did_and_takes_no_markup_from_it(told, tmp_path):
    result = answer("show", "heart-1", home=tmp_path)

    assert result.exit_code == 0
    assert "[bold]max_epsilon" in result.stdout
    assert "Round 1, attempt 1: aborted, quorum 3, epoch 1\n  quorum [red]" in result.stdout
    assert "training_loss 0.25 (secure sum, discrete Laplace)" in result.stdout
    assert "site-refused: va refused" in result.stdout


def test_show_prints_one_json_object_for_one_round(told, tmp_path):
    result = answer("show", "heart-1", "--round", "1", "--json", home=tmp_path)

    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert shown["attempts"][0]["participations"][3]["detail"] == "[bold]max_epsilon"
    assert shown["attempts"][1]["guarantees"]["hungary"]["epsilon"] == 0.5


def test_an_empty_ledger_says_so(tmp_path, ledger_url):
    open_ledger(ledger_url).close()

    assert "holds no runs yet" in answer("list", home=tmp_path).stdout.replace("\n", " ")
    assert json.loads(answer("list", "--json", home=tmp_path).stdout)["runs"] == []


def test_a_home_without_a_ledger_is_refused_with_code_2(tmp_path):
    result = answer("list", home=tmp_path / "nowhere")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "There is no ledger at sqlite:///" in result.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "heart-9"), 'knows no run "heart-9"'),
        (("show", "heart-1", "--round", "7"), 'Run "heart-1" has no round 7'),
    ],
)
def test_an_unknown_run_or_round_is_refused_with_code_2(told, tmp_path, arguments, words):
    result = answer(*arguments, home=tmp_path)

    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_a_ledger_of_an_unknown_version_is_refused_with_code_2(told, tmp_path, ledger_url):
    engine = make_engine(ledger_url)
    with writing(engine) as connection:
        connection.execute(text("UPDATE concord_schema SET version_num = '9999'"))
    engine.dispose()

    result = answer("list", "--json", home=tmp_path)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "found schema '9999', this program knows 0001" in result.stderr


def test_the_address_in_the_settings_is_followed(told, tmp_path, ledger_url):
    home = tmp_path / "home"
    home.mkdir()
    (home / "coordinator.toml").write_text(
        f'gateway_port = 1\nexchange_port = 2\nenrolment_port = 3\nledger_url = "{ledger_url}"\n'
    )

    result = answer("list", "--json", home=home)

    assert json.loads(result.stdout)["runs"][0]["run_id"] == "heart-1"


def test_a_planned_round_is_shown_before_anybody_was_asked(driving):
    driving.ledger.rounds.plan_attempt(driving.lease, planned())

    (row,) = run_summary(driving.ledger).runs[0].rounds

    assert (row.state, row.started_at, row.sites_counted) == ("planned", None, ())
