"""What an operator may ask for against malicious sites, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.errors import ConfigError
from coordinator.run_spec import parse_run_spec, tolerance_facts
from tests.sims.small_federation import RUN, SCHEMA, WITH_DP, small_spec

GROUPED = {"sites": 12, "robust": {"rule": "median", "groups": 3, "tolerate": 1}}
ALONE = {"sites": 5, "quorum": 1, "secure_sum": {"scheme": "plain"}}
SHARED_NOISE = {
    "seed": None,
    "privacy": {"mechanism": "distributed-dp", "honest_sites": 3, "metric_epsilon": 0.0},
    "training": {"local_steps": 1},
    "secure_sum": {"update_range": 64.0},
}


FREE_PORTS = ("--gateway-port", "0", "--exchange-port", "0", "--enrolment-port", "0")


def robust(rule="median", groups=3, tolerate=1, **more):
    return {"rule": rule, "groups": groups, "tolerate": tolerate} | more


def test_a_run_without_a_word_about_it_is_one_sum_and_a_mean(tmp_path):
    spec = small_spec(tmp_path)
    assert (spec.robust.rule, spec.robust.groups, spec.robust.tolerate) == ("mean", 1, 0)
    assert spec.fewest_sites == spec.quorum == 3
    assert tolerance_facts(spec).tolerated == 0


def test_a_promise_survives_the_ledger(tmp_path):
    spec = small_spec(tmp_path, **GROUPED)
    assert parse_run_spec(spec.to_json()) == spec
    assert spec.fewest_sites == 12
    assert tolerance_facts(spec).tolerated == 1


def test_a_run_that_entered_the_ledger_without_groups_is_still_read(tmp_path):
    fields = json.loads(small_spec(tmp_path).to_json())
    del fields["robust"]
    assert parse_run_spec(json.dumps(fields)) == small_spec(tmp_path)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (robust(tolerate=2), "needs 5 groups"),
        (robust(rule="krum"), "needs 5 groups"),
        (robust(rule="bulyan"), "needs 7 groups"),
        (robust(rule="mean"), "a mean stands no malicious site at all"),
        (robust(groups=4), "take 16 sites; the run has sites=12"),
        (robust(rule="average"), r"robust\.rule"),
        (robust(groups=0), r"robust\.groups"),
        (robust(tolerate=-1), r"robust\.tolerate"),
        (robust(update_norm=0.0), r"robust\.update_norm"),
        (robust(weighted=True), r"robust\.weighted"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(tmp_path, asked, words):
    with pytest.raises(ConfigError, match=words):
        small_spec(tmp_path, sites=12, robust=asked)


def test_hidden_groups_of_fewer_than_four_sites_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="groups=3 of at least 4 sites"):
        small_spec(tmp_path, sites=9, quorum=3, robust=robust())


def test_in_the_clear_every_site_may_be_a_group(tmp_path):
    spec = small_spec(tmp_path, **ALONE, robust=robust(groups=5, tolerate=2))
    assert spec.fewest_sites == 5
    assert tolerance_facts(spec).tolerated == 2


def test_groups_and_a_key_holder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="key holder can be in one group only"):
        small_spec(tmp_path, **GROUPED, secure_sum={"scheme": "paillier", "key_holder": "anna"})


@pytest.mark.parametrize(
    "asked", [robust(), robust(tolerate=0), {"groups": 3}, {"update_norm": 1.0}]
)
def test_shared_noise_with_groups_rules_or_norms_is_refused(tmp_path, asked):
    with pytest.raises(ConfigError, match='robust: mechanism="distributed-dp"'):
        small_spec(tmp_path, sites=12, robust=asked, **SHARED_NOISE)


def test_shared_noise_with_a_plain_mean_is_not(tmp_path):
    assert small_spec(tmp_path, sites=12, **SHARED_NOISE).robust.groups == 1


def test_a_private_run_may_have_groups(tmp_path):
    assert small_spec(tmp_path, **WITH_DP, **GROUPED).privacy.noise_multiplier > 0


@pytest.fixture
def home(tmp_path):
    made = CliRunner().invoke(
        app,
        ["init", "--home", str(tmp_path / "home"), *FREE_PORTS],
    )
    assert made.exit_code == 0, made.output
    return tmp_path / "home"


def train(home, folder, table, *options):
    (folder / "schema.toml").write_text(SCHEMA)
    text = RUN.replace("sites = 4", "sites = 12")
    (folder / "run.toml").write_text(f"{text}\n[robust]\n{table}\n")
    return CliRunner().invoke(
        app, ["train", str(folder / "run.toml"), "--home", str(home), *options]
    )


def test_the_operator_is_told_how_many_malicious_sites_a_run_stands(home, tmp_path):
    result = train(home, tmp_path, 'rule = "median"\ngroups = 3\ntolerate = 1')
    assert result.exit_code == 0, result.output
    assert "Tolerates 1 malicious sites of 12 (median, 3 groups)" in result.stdout


def test_a_program_is_told_the_same(home, tmp_path):
    result = train(home, tmp_path, 'rule = "median"\ngroups = 3\ntolerate = 1', "--json")
    assert json.loads(result.stdout)["tolerance"] == {
        "rule": "median",
        "groups": 3,
        "sites": 12,
        "promised": 1,
        "tolerated": 1,
        "fewest_groups": 3,
    }


def test_a_promise_that_cannot_be_kept_never_enters_the_ledger(home, tmp_path):
    result = train(home, tmp_path, 'rule = "median"\ngroups = 3\ntolerate = 2', "--json")
    assert result.exit_code == 2
    assert "needs 5 groups" in json.loads(result.stdout)["error"]
