import numpy as np
import pytest

from model.build import build_model
from model.parameters import model_to_vector, save_model
from participant.data import SiteData
from sims.evaluation import (
    evaluate_file,
    evaluate_weights,
    quality,
    read_tables,
    score,
)
from tests.sims.small_federation import PATIENTS, SITES, small_scenario

LABELS = np.array([0, 0, 1, 1], np.float32)


def patients(labels_N):
    values_NF = np.zeros((len(labels_N), 3), np.float32)
    return SiteData(values_NF=values_NF, labels_N=labels_N, ignored_columns=())


def test_auc_counts_pairs_in_the_right_order():
    assert score(np.array([0.1, 0.4, 0.35, 0.8]), LABELS).auc == 0.75
    assert score(np.array([0.5, 0.5, 0.5, 0.5]), LABELS).auc == 0.5


def test_accuracy_decides_at_one_half():
    found = score(np.array([0.49, 0.5, 0.5, 0.51]), LABELS)
    assert found.accuracy == 0.75
    assert found.patients == 4


def test_auc_is_undefined_where_all_carry_one_label():
    assert score(np.array([0.2, 0.9]), np.ones(2, np.float32)).auc is None


def test_pooled_quality_is_over_patients_not_over_hospitals():
    held_out = {
        "anna": patients(LABELS[1:3]),
        "berta": patients(LABELS[3:]),
    }
    found = quality({"anna": np.array([0.3, 0.6]), "berta": np.array([0.2])}, held_out)
    assert found.pooled.patients == 3
    assert found.pooled.auc == 0.5
    assert found.sites["anna"].auc == 1.0
    assert found.sites["berta"].auc is None


@pytest.fixture
def scenario(tmp_path):
    return small_scenario(tmp_path / "scenario")


def test_every_hospital_is_read_whole(scenario):
    tables = read_tables(scenario, held_out=True)
    assert sorted(tables) == sorted(SITES)
    assert {len(data.labels_N) for data in tables.values()} == {PATIENTS}


def test_a_model_file_is_judged_as_its_weights_are(scenario, tmp_path):
    spec, held_out = scenario.spec, read_tables(scenario, held_out=True)
    weights = model_to_vector(build_model(spec.model, spec.table, seed=4))
    path = save_model(tmp_path, weights, spec.model, spec.table)
    from_file = evaluate_file(path, scenario=scenario, held_out=held_out)
    from_weights = evaluate_weights(
        weights, config=spec.model, scenario=scenario, held_out=held_out
    )
    assert from_file == from_weights
    assert from_file.pooled.patients == len(SITES) * PATIENTS
