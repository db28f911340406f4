from typing import Any

import numpy as np
import pytest

from coordinator.errors import ConfigError
from sims.scenario import HELD_OUT_SHARE, held_out_rows, load_scenario, read_site_data
from tests.sims.small_federation import small_spec, small_table

NO_DP: dict[str, Any] = {"privacy": {"mechanism": "none"}}


@pytest.fixture(scope="module")
def heart():
    return load_scenario("heart", split_seed=0, **NO_DP)


def test_the_heart_scenario_has_four_hospitals_and_every_patient_once(heart):
    assert sorted(heart.train) == ["cleveland", "hungarian", "switzerland", "va"]
    sizes = {site: len(heart.train[site]) + len(heart.held_out[site]) for site in heart.train}
    assert sizes == {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
    for site in heart.train:
        assert not set(heart.train[site].index) & set(heart.held_out[site].index)


def test_a_quarter_is_held_out_with_the_same_share_of_either_label(heart):
    for site, table in heart.held_out.items():
        both = len(table) + len(heart.train[site])
        assert len(table) == pytest.approx(HELD_OUT_SHARE * both, abs=2)
        sick = (table["num"].astype(float) > 0).mean()
        sick_in_training = (heart.train[site]["num"].astype(float) > 0).mean()
        assert sick == pytest.approx(sick_in_training, abs=0.05)


def test_the_split_depends_on_its_seed_alone(heart):
    again = load_scenario("heart", split_seed=0, **NO_DP)
    other = load_scenario("heart", split_seed=1, **NO_DP)
    assert again.held_out["va"].equals(heart.held_out["va"])
    assert not other.held_out["va"].equals(heart.held_out["va"])


def test_changes_reach_the_run(heart):
    assert load_scenario("heart", split_seed=0, rounds=3, **NO_DP).spec.rounds == 3
    assert heart.spec.privacy.mechanism == "none"


def test_the_credit_scenario_has_four_banks_and_thirty_thousand_people_to_train_on():
    credit = load_scenario("credit", split_seed=100, **NO_DP)
    assert list(credit.train) == ["campus", "harbour", "northern", "traders"]
    assert sum(map(len, credit.train.values())) == pytest.approx(30_000, abs=8)
    assert sum(map(len, credit.held_out.values())) == pytest.approx(10_000, abs=8)
    assert max(map(len, credit.train.values())) < 1 / (10 * credit.spec.privacy.delta)


def test_another_seed_makes_up_other_people():
    first, again, other = (
        load_scenario("credit", split_seed=seed, people=400, **NO_DP) for seed in (1, 1, 2)
    )
    assert first.train["campus"].equals(again.train["campus"])
    assert not first.train["campus"].equals(other.train["campus"])


def test_patients_who_are_not_made_up_cannot_be_numbered():
    with pytest.raises(ConfigError, match=r"people=100.*heart.*not made up"):
        load_scenario("heart", split_seed=0, people=100, **NO_DP)


def test_an_unknown_scenario_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_scenario("nowhere", split_seed=0)


def test_a_table_with_one_label_only_can_be_split(tmp_path):
    table = small_table("anna").assign(ill="1")
    held_out = held_out_rows(table, small_spec(tmp_path).table, seed=0)
    assert held_out.sum() == np.ceil(HELD_OUT_SHARE * len(table))


def test_tables_are_read_as_a_site_reads_them(tmp_path):
    data = read_site_data(small_table("anna"), small_spec(tmp_path).table, tmp_path)
    assert data.values_NF.shape == (40, 3)
    assert np.isnan(data.values_NF).any()


def test_no_patient_shows_in_the_text_of_a_scenario(heart):
    assert "train={" not in repr(heart)
    assert "held_out=" not in repr(heart)
