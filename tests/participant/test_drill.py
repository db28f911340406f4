import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from participant.cli import app
from participant.drill import format_line, run_drill
from participant.errors import ConfigError
from privacy.audit.report import Verdict, at_most, control

ROOT = Path(__file__).parents[2]
HEART = ROOT / "sims" / "data" / "heart" / "schema.toml"
SMALL = """
name = "small"
version = 1

[label]
name = "ill"
positive_above = 0

[[columns]]
kind = "numeric"
name = "age"
unit = "year"
minimum = 0
maximum = 120
bins = [20, 40, 60, 80]

[[columns]]
kind = "category"
name = "smoker"
categories = ["0", "1"]
"""


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(app, ["drill", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.statistical
def test_the_drill_passes_with_nothing_but_the_schema_of_the_home(invoke, tmp_path):
    # With the operating system's randomness; error rate 6e-6.
    (tmp_path / "schema.toml").write_text(SMALL, encoding="utf-8")
    result = invoke("--home", tmp_path, "--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert found["passed"] is True
    assert found["false_alarm"] <= 1e-4
    assert [line["verdict"] for line in found["lines"]] == ["pass"] * 13 + ["caught"] * 11
    assert [path.name for path in tmp_path.iterdir()] == ["schema.toml"]


def test_before_joining_a_schema_is_named_and_the_home_is_not_looked_at(invoke, tmp_path):
    (tmp_path / "other.toml").write_text("name = 3", encoding="utf-8")
    result = invoke("--home", tmp_path / "none", "--schema", tmp_path / "other.toml")
    assert result.exit_code == 1
    assert "other.toml: is no schema" in result.stderr
    assert not (tmp_path / "none").exists()


def test_without_a_schema_the_drill_says_which_option_names_one(invoke, tmp_path):
    result = invoke("--home", tmp_path)
    assert result.exit_code == 1
    assert "--schema" in result.stderr
    assert result.stdout == ""


def test_a_file_that_is_no_schema_is_an_error_in_the_json_too(invoke, tmp_path):
    (tmp_path / "schema.toml").write_text("name = 3", encoding="utf-8")
    result = invoke("--home", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["kind"] == "ConfigError"


def test_an_unknown_tier_is_refused_by_name():
    with pytest.raises(ConfigError, match="cpu-small"):
        run_drill(HEART, "huge")


def test_a_line_shows_how_the_figure_stands_to_its_bound():
    good = at_most("noise", 0.25, 0.5, confidence=1.0, detail="what")
    bad = at_most("noise", 0.75, 0.5, confidence=1.0)
    assert good.verdict is Verdict.PASS
    assert format_line(good).split() == ["PASS", "noise", "0.25", "<=", "0.5", "(what)"]
    assert format_line(control("broken", bad)).split()[:5] == [
        "CAUGHT",
        "broken",
        "0.75",
        ">",
        "0.5",
    ]
    assert format_line(bad).startswith("FAIL")
