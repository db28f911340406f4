"""The alternatives: trained on the right patients, from the same start, for the same number of steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.run_spec import ServerOptimizerSpec
from model.build import build_model
from model.parameters import model_to_vector
from participant.data import SiteData
from participant.training import binary_loss
from privacy.dp.dpsgd import TrainingTask, train
from privacy.randomness import SeededRandom
from sims.baselines import LogisticRegression, pool, train_alone, train_central, train_logistic
from sims.evaluation import read_tables
from sims.scenario import Scenario
from tests.sims.small_federation import PATIENTS, SITES, WITH_DP, small_scenario


@pytest.fixture
def plain(tmp_path: Path) -> Scenario:
    return small_scenario(tmp_path / "plain")


@pytest.fixture
def private(tmp_path: Path) -> Scenario:
    return small_scenario(tmp_path / "private", **WITH_DP)


@pytest.fixture
def tables(plain: Scenario) -> dict[str, SiteData]:
    return read_tables(plain, held_out=False)


def logistic_weights(scenario: Scenario, tables: dict[str, SiteData], *, seed: int) -> np.ndarray:
    return model_to_vector(train_logistic(scenario.spec, tables, seed=seed))


def test_the_pool_holds_every_patient_once(tables):
    pooled = pool(tables)
    assert pooled.values_NF.shape == (PATIENTS * len(SITES), 3)
    assert pooled.labels_N.sum() == sum(data.labels_N.sum() for data in tables.values())
    assert pooled.patients == PATIENTS * len(SITES)


def test_patients_of_two_sites_are_never_one_patient_in_the_pool():
    site = SiteData(
        values_NF=np.zeros((3, 2), np.float32),
        labels_N=np.zeros(3, np.float32),
        units_N=np.array([0, 0, 1]),
        ignored_columns=(),
    )
    assert pool({"anna": site, "berta": site}).units_N.tolist() == [0, 0, 1, 2, 2, 3]


def test_central_training_takes_all_steps_of_all_rounds_in_one_go(plain, tables):
    spec = plain.spec
    random = SeededRandom(3, "training", "1", "pool")
    model = build_model(spec.model, spec.table, seed=3)
    model.use_noise_generator(random.torch_generator())
    data = pool(tables)
    task = TrainingTask(
        steps=spec.rounds * spec.training.local_steps,
        sample_rate=spec.training.sample_rate,
        learning_rate=spec.training.learning_rate,
        optimizer="sgd",
        expected_batch_size=spec.training.sample_rate * PATIENTS * len(SITES),
    )
    train(
        model,
        torch.from_numpy(data.values_NF),
        torch.from_numpy(data.labels_N),
        binary_loss,
        task,
        random,
    )
    np.testing.assert_array_equal(train_central(spec, tables, seed=3), model_to_vector(model))


def test_central_training_knows_no_proximal_term(plain, tables):
    held_back = replace(plain.spec, training=replace(plain.spec.training, proximal_mu=10.0))
    np.testing.assert_array_equal(
        train_central(held_back, tables, seed=0), train_central(plain.spec, tables, seed=0)
    )


def test_central_training_of_a_private_run_is_neither_clipped_nor_noised(plain, private, tables):
    np.testing.assert_array_equal(
        train_central(private.spec, tables, seed=0), train_central(plain.spec, tables, seed=0)
    )


def test_a_hospital_alone_learns_from_its_own_patients(plain, tables):
    anna = train_alone(plain.spec, "anna", tables["anna"], seed=0)
    same_draws = train_alone(plain.spec, "anna", tables["berta"], seed=0)
    assert not np.array_equal(anna, same_draws)


def test_other_seed_is_another_start_and_another_order(plain, tables):
    first, second = (train_alone(plain.spec, "anna", tables["anna"], seed=s) for s in (0, 1))
    assert not np.allclose(first, second)


def test_logistic_regression_starts_undecided(plain, tables):
    logits = LogisticRegression(plain.spec)(torch.from_numpy(tables["anna"].values_NF))
    assert logits.shape == (PATIENTS,)
    assert not logits.any()


def test_logistic_regression_without_privacy_is_reproducible_and_learns(plain, tables):
    weights = logistic_weights(plain, tables, seed=0)
    np.testing.assert_array_equal(weights, logistic_weights(plain, tables, seed=0))
    assert np.abs(weights).max() > 0.01


def test_noise_of_the_private_logistic_regression_ignores_the_seed(private, tables):
    first, second = (logistic_weights(private, tables, seed=0) for _ in range(2))
    assert not np.array_equal(first, second)


def test_logistic_regression_moves_by_the_run_s_server_optimizer(plain, tables):
    adaptive = replace(plain.spec, server=ServerOptimizerSpec(name="fedadam", learning_rate=0.01))
    moved = model_to_vector(train_logistic(adaptive, tables, seed=0))
    assert not np.allclose(moved, logistic_weights(plain, tables, seed=0))
