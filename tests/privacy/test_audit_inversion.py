"""Inversion of what the real training releases: exact without privacy, at chance with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from model.build import build_model
from model.config import ModelConfig
from privacy.audit.inversion import chance_likeness, invert_experts, invert_linear, likeness
from privacy.dp.clipping import trainable_parameters
from privacy.dp.dpsgd import TrainingTask, train
from privacy.randomness import SeededRandom
from tests.privacy.small_moe import RULES, TABLE, loss, records

CONFIG = ModelConfig(
    width=64,
    layers=1,
    heads=2,
    kv_heads=2,
    experts=32,
    top_k=8,
    expert_width=8,
    gumbel_scale=0.0,
)
PATIENTS = 8
TASK = TrainingTask(
    steps=1, sample_rate=1.0, learning_rate=0.5, optimizer="sgd", expected_batch_size=PATIENTS
)


def model_of(seed):
    model = build_model(CONFIG, TABLE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def likenesses(task, seed):
    """|cosine| of guess and token for every expert of the last block with exactly one visitor."""
    model = model_of(seed)
    layer = model.trunk.blocks[0].moe.routed_up
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[:2]))
    values, labels = records(PATIENTS)
    with torch.no_grad():
        model(values)
    hook.remove()
    before = layer.weight.detach().clone()
    train(model, values, labels, loss, task, SeededRandom(seed, "inversion"), rules=RULES)
    guesses = invert_experts(layer.weight.detach() - before)
    rows_BRD, ids_BK = seen[0]
    single = [e for e in range(CONFIG.experts) if int((ids_BK == e).sum()) == 1]
    found = []
    for expert in single:
        guess = guesses[expert]
        assert guess is not None
        found.append(likeness(guess.token_I, rows_BRD[(ids_BK == expert).any(1)][0, 0]))
    return found


@pytest.fixture(scope="module")
def plain():
    return [value for seed in range(40) for value in likenesses(TASK, seed)]


@pytest.fixture(scope="module")
def private():
    task = replace(TASK, clipping_norm=1.0, noise_multiplier=0.5)
    return [value for seed in range(40) for value in likenesses(task, seed)]


def test_without_privacy_every_lone_token_is_recovered(plain):
    assert len(plain) >= 20
    assert min(plain) >= 0.99


@pytest.mark.statistical
def test_with_noise_multiplier_one_half_nothing_is_recovered(private):
    # Seeded. Mean of 20 or more values about 0.1 +- 0.08 each: 0.2 is 5 deviations away.
    assert len(private) >= 20
    assert np.mean(private) <= 0.2
    assert max(private) < 0.9


def test_a_linear_layer_gives_its_only_input_away_exactly():
    layer = nn.Linear(40, 3)
    secret = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    task = replace(TASK, expected_batch_size=1.0)
    train(layer, secret, torch.zeros(1), _spread, task, SeededRandom(1, "linear"))
    guess = invert_linear(layer.weight.detach() - before[0], layer.bias.detach() - before[1])
    assert likeness(guess, secret[0]) >= 0.9999
    torch.testing.assert_close(guess, secret[0], rtol=1e-3, atol=1e-3)


@pytest.mark.statistical
def test_a_private_linear_layer_gives_its_only_input_away_no_more():
    found = []
    for seed in range(20):
        layer = nn.Linear(400, 3)
        secret = torch.randn(1, 400, generator=torch.Generator().manual_seed(seed))
        before = layer.weight.detach().clone(), layer.bias.detach().clone()
        task = replace(TASK, expected_batch_size=1.0, clipping_norm=1.0, noise_multiplier=0.5)
        train(layer, secret, torch.zeros(1), _spread, task, SeededRandom(seed, "linear"))
        change = layer.weight.detach() - before[0], layer.bias.detach() - before[1]
        found.append(likeness(invert_linear(*change), secret[0]))
    assert np.mean(found) <= 0.2


def _spread(outputs, labels):
    return outputs.square().sum(1) + labels


def test_a_bias_that_stayed_says_nothing():
    with pytest.raises(ValueError, match="bias that moved"):
        invert_linear(torch.ones(2, 3), torch.zeros(2))


def test_an_expert_that_did_not_move_gets_no_guess_and_two_tokens_are_impure():
    token, other = torch.eye(6)[0], torch.eye(6)[1]
    change = torch.stack(
        [
            torch.zeros(6, 4),
            torch.outer(token, torch.ones(4)),
            torch.outer(token, torch.eye(4)[0]) + torch.outer(other, torch.eye(4)[1]),
        ]
    )
    nothing, single, double = invert_experts(change)
    assert nothing is None
    assert single is not None
    assert double is not None
    assert single.purity == pytest.approx(1.0)
    assert likeness(single.token_I, token) == pytest.approx(1.0)
    assert double.purity == pytest.approx(0.5)


@pytest.mark.statistical
def test_chance_is_what_random_directions_reach():
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randn(4000, 2, 64, generator=generator)
    found = np.mean([likeness(one, other) for one, other in pairs])
    assert found == pytest.approx(chance_likeness(64), rel=0.08)
