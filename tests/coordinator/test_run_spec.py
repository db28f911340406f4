from typing import Any

import pytest

from coordinator.errors import ConfigError
from coordinator.run_spec import load_run_spec, noise_facts, parse_run_spec
from coordinator.wire.charges import gradient_event, side_events
from coordinator.wire.contribution import LOSS_GRID
from coordinator.wire.plan import PrivacyPlan
from model.config import TIERS
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import DiscreteLaplace, SubsampledGaussian
from tests.sims.small_federation import RUN, SCHEMA, WITH_DP, small_spec


def load(folder, text, **changes):
    (folder / "schema.toml").write_text(SCHEMA)
    (folder / "run.toml").write_text(text)
    return load_run_spec(folder / "run.toml", **changes)


def test_a_run_survives_the_ledger_exactly(tmp_path):
    spec = small_spec(tmp_path, **WITH_DP)
    assert parse_run_spec(spec.to_json()) == spec
    assert parse_run_spec(spec.to_json()).to_json() == spec.to_json()


def test_the_noise_makes_the_whole_run_cost_epsilon_and_no_more(tmp_path):
    spec = small_spec(tmp_path, **WITH_DP)
    attempts = spec.rounds + spec.spare_attempts
    gradients = SubsampledGaussian(
        sample_rate=spec.training.sample_rate,
        noise_multiplier=spec.privacy.noise_multiplier,
        steps=spec.training.local_steps * attempts,
    )
    others = side_events(spec.privacy, attempts)
    total = epsilon_spent((gradients, *others), spec.privacy.delta)
    assert 0.99 * spec.privacy.epsilon < total <= spec.privacy.epsilon


def test_spare_attempts_are_paid_for_with_more_noise(tmp_path):
    few = small_spec(tmp_path / "few", **WITH_DP, spare_attempts=0)
    many = small_spec(tmp_path / "many", **WITH_DP, spare_attempts=20)
    assert many.privacy.noise_multiplier > few.privacy.noise_multiplier


def test_without_privacy_no_epsilon_is_claimed_and_no_noise_added(tmp_path):
    privacy = small_spec(tmp_path).privacy
    assert (privacy.epsilon, privacy.noise_multiplier) == (0.0, 0.0)


def test_a_run_charges_one_count_and_a_loss_per_attempt(tmp_path):
    spec = small_spec(tmp_path, **WITH_DP)
    count, loss = side_events(spec.privacy, 3)
    assert count == DiscreteLaplace(epsilon=0.1)
    assert loss == DiscreteLaplace(epsilon=0.02, sensitivity=LOSS_GRID, count=3)


def test_releases_that_cost_nothing_are_not_charged(tmp_path):
    silent = PrivacyPlan(
        mechanism="dp-sgd",
        epsilon=1,
        delta=1e-5,
        noise_multiplier=1,
        clipping_norm=1,
        count_epsilon=0,
        metric_epsilon=0,
    )
    assert side_events(silent, 3) == ()


def test_an_auc_is_charged_for_every_attempt(tmp_path):
    changes = {"privacy": {"mechanism": "dp-sgd", "auc_epsilon": 0.05}, "seed": None}
    spec = small_spec(tmp_path, **changes)
    assert side_events(spec.privacy, 3)[-1] == DiscreteLaplace(epsilon=0.05, count=3)


def test_gradients_and_loads_together_cost_what_gradients_alone_would(tmp_path):
    changes = {"privacy": {"mechanism": "dp-sgd", "load_noise_multiplier": 20.0}, "seed": None}
    with_loads = small_spec(tmp_path / "loads", **changes)
    alone = small_spec(tmp_path / "alone", **WITH_DP)
    assert with_loads.privacy.noise_multiplier > alone.privacy.noise_multiplier
    together = gradient_event(with_loads.privacy, with_loads.training)
    assert together.noise_multiplier == pytest.approx(alone.privacy.noise_multiplier, rel=1e-12)


def test_loads_with_too_little_noise_leave_nothing_for_the_gradients(tmp_path):
    changes = {"privacy": {"mechanism": "dp-sgd", "load_noise_multiplier": 0.1}, "seed": None}
    with pytest.raises(ConfigError, match="would take the whole budget"):
        small_spec(tmp_path, **changes)


DISTRIBUTED: dict[str, Any] = {
    "privacy": {"mechanism": "distributed-dp", "honest_sites": 3},
    "training": {"local_steps": 1},
    "secure_sum": {"update_range": 256.0},
    "seed": None,
}


def test_distributed_noise_is_calibrated_for_one_step_a_round(tmp_path):
    spec = small_spec(tmp_path, **DISTRIBUTED)
    event = gradient_event(spec.privacy, spec.training)
    assert (event.steps, event.noise_multiplier) == (1, spec.privacy.noise_multiplier)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": {"local_steps": 2}}, "local_steps=1"),
        ({"training": {"local_steps": 1, "optimizer": "adam"}}, "optimizer=sgd"),
        ({"training": {"local_steps": 1, "proximal_mu": 0.1}}, "proximal_mu=0"),
        ({"privacy": {"mechanism": "distributed-dp", "honest_sites": 4}}, "honest_sites=4"),
        (
            {"privacy": {"mechanism": "distributed-dp", "honest_sites": 3, "colluding_sites": 1}},
            "together at most the quorum of 3",
        ),
        (
            {"privacy": {"mechanism": "distributed-dp", "honest_sites": 1, "colluding_sites": 2}},
            "colluding_sites=2 must be at most 1",
        ),
        (
            {"privacy": {"mechanism": "distributed-dp", "honest_sites": 3, "colluding_sites": -1}},
            "colluding_sites=-1",
        ),
        (
            {"privacy": {"mechanism": "distributed-dp", "load_noise_multiplier": 30.0}},
            "expert loads",
        ),
        ({"secure_sum": {"scheme": "plain"}}, "shows every site's share"),
        ({"secure_sum": {"update_range": 256.0, "value_bits": 12}}, "more value_bits"),
        ({"secure_sum": {"update_range": 256.0, "value_bits": 26}}, "not exact"),
        ({"secure_sum": {"update_range": 1.0}}, "larger update_range"),
        ({"secure_sum": {"update_range": 1e6}}, "smaller update_range"),
    ],
)
def test_a_run_whose_noise_cannot_be_shared_is_refused(tmp_path, changes, named):
    with pytest.raises(ConfigError, match=named):
        small_spec(tmp_path, **(DISTRIBUTED | changes))


@pytest.mark.parametrize(
    "secure_sum", [{"scheme": "mask"}, {"scheme": "paillier", "key_holder": "anna"}]
)
def test_exact_sums_may_carry_shared_noise(tmp_path, secure_sum):
    changes = DISTRIBUTED | {"secure_sum": {"update_range": 256.0} | secure_sum}
    assert small_spec(tmp_path, **changes).secure_sum.scheme == secure_sum["scheme"]


def test_what_shared_noise_takes_is_told_before_the_run(tmp_path):
    facts = noise_facts(small_spec(tmp_path, **DISTRIBUTED))
    assert facts is not None
    assert (facts.value_bits, facts.modulus_bits, facts.honest_sites) == (24, 26, 3)
    assert facts.bits_needed < 24
    assert 0.0 < facts.clipped_noise <= 3 * 2.0**-100
    assert facts.share_of_delta < 1e-18
    assert f"24 bits ({facts.bits_needed} would do)" in facts.words
    assert "of delta" in facts.words


def test_as_few_bits_as_are_needed_are_accepted(tmp_path):
    before = noise_facts(small_spec(tmp_path, **DISTRIBUTED))
    assert before is not None
    needed = before.bits_needed
    secure_sum: Any = {**DISTRIBUTED["secure_sum"], "value_bits": needed}
    facts = noise_facts(small_spec(tmp_path, **(DISTRIBUTED | {"secure_sum": secure_sum})))
    assert facts is not None
    assert (facts.value_bits, facts.bits_needed) == (needed, needed)


def test_a_run_without_shared_noise_has_no_such_facts(tmp_path):
    assert noise_facts(small_spec(tmp_path)) is None


def test_more_bits_than_the_sum_of_all_sites_has_room_for_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="would wrap around"):
        small_spec(tmp_path, secure_sum={"value_bits": 31})


def test_a_tier_names_a_model(tmp_path):
    text = RUN[: RUN.index("[model]")] + RUN[RUN.index("[training]") :]
    assert load(tmp_path, text, tier="cpu-small").model == TIERS["cpu-small"]


def test_changes_reach_into_a_table_and_leave_its_other_fields(tmp_path):
    spec = small_spec(tmp_path, training={"local_steps": 9}, rounds=5)
    assert (spec.training.local_steps, spec.training.learning_rate, spec.rounds) == (9, 0.3, 5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": "many"}, "rounds"),
        ({"rounds": [1]}, "int"),
        ({"sites": 256}, "sites"),
        ({"sites": 65, "secure_sum": {"scheme": "ckks"}}, "ckks.*at most 64 sites, found sites=65"),
        ({"sites": 200, "secure_sum": {"value_bits": 25}}, "25.*200 sites would wrap"),
        ({"quorum": 5}, "quorum=5"),
        ({"quorum": 1}, "hides nothing"),
        ({"name": "Not a name"}, "name"),
        ({"colour": "red"}, "colour"),
        ({"training": {"momentum": 0.9}}, "momentum"),
        ({"training": "fast"}, "training"),
        ({"privacy": "much"}, "privacy"),
        ({"tier": "galactic"}, "galactic"),
        ({"tier": ["cpu-small"]}, "cpu-small|unhashable"),
        ({"schema": "elsewhere.toml"}, "elsewhere.toml"),
        ({"secure_sum": {"scheme": "rot13"}}, "scheme"),
        ({"secure_sum": {"update_range": float("inf")}}, "update_range"),
        ({"server": {"learning_rate": 0}}, "learning_rate"),
        ({"timing": {"join_seconds": float("nan")}}, "join_seconds"),
        ({"privacy": {"mechanism": "dp-sgd", "epsilon": 0}, "seed": None}, "epsilon"),
        ({"privacy": {"mechanism": "dp-sgd", "epsilon": float("nan")}, "seed": None}, "epsilon"),
        ({"privacy": {"mechanism": "dp-sgd", "count_epsilon": 0}, "seed": None}, "count_epsilon"),
        ({"privacy": {"mechanism": "dp-sgd"}}, "predictable"),
    ],
)
def test_a_run_that_cannot_be_is_refused_with_file_and_field(tmp_path, changes, named):
    with pytest.raises(ConfigError, match=f"run.toml.*({named})"):
        small_spec(tmp_path, **changes)


def test_a_file_that_is_not_toml_or_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.toml"):
        load(tmp_path, "rounds = = 3")
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_run_spec(tmp_path / "nowhere.toml")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ConfigError, match="privacy"):
        load(tmp_path, RUN[: RUN.index("[privacy]")] + RUN[RUN.index("[secure_sum]") :])


def test_text_that_is_no_run_is_refused_when_the_ledger_is_read(tmp_path):
    good = small_spec(tmp_path).to_json()
    for text in ("", "{}", good.replace('"rounds":2', '"rounds":-1'), good[:-1] + ',"extra":1}'):
        with pytest.raises(ConfigError, match="does not parse"):
            parse_run_spec(text)


@pytest.mark.parametrize(
    ("secure_sum", "most"),
    [
        ({"scheme": "mask", "value_bits": 24}, 255),
        ({"scheme": "mask", "value_bits": 27}, 32),
        ({"scheme": "ckks", "value_bits": 24}, 64),
        ({"scheme": "plain", "value_bits": 28}, 16),
    ],
)
def test_a_cohort_is_no_larger_than_scheme_and_modulus_have_room_for(tmp_path, secure_sum, most):
    assert small_spec(tmp_path, secure_sum=secure_sum).most_sites == most
