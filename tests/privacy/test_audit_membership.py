"""Membership inference: on made-up scores, where the area is known, and on the real private training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from privacy.audit.bounds import gaussian_epsilon, membership_auc_bound
from privacy.audit.membership import (
    Trial,
    audit_membership,
    contributions,
    loss_drop,
    paired_auc,
    record_gradients,
    repeat,
)
from privacy.audit.report import Verdict
from privacy.dp.accounting import epsilon_spent
from privacy.dp.clipping import trainable_parameters
from privacy.dp.dpsgd import TrainingTask, train
from privacy.randomness import SeededRandom
from tests.privacy.small_moe import RULES, flat, loss, moe_model, one_by_one, records

CANDIDATES = 24
TASK = TrainingTask(
    steps=1,
    sample_rate=1.0,
    learning_rate=1.0,
    optimizer="sgd",
    expected_batch_size=1.0,
    clipping_norm=0.5,
    noise_multiplier=1.0,
)
PLAIN = replace(TASK, clipping_norm=None, noise_multiplier=0.0)


def gaussian_trials(mu, pairs, seed):
    generator = np.random.default_rng(seed)
    return repeat(
        lambda number, was_in: generator.standard_normal(len(was_in)) + mu * was_in,
        candidates=200,
        pairs=pairs,
        coins=generator,
    )


@pytest.mark.statistical
@pytest.mark.parametrize("mu", [0.0, 1.0, 3.0])
def test_the_area_of_a_gaussian_mechanism_is_known(mu):
    area = paired_auc(gaussian_trials(mu, 40, 1), error=0.01)
    truth = norm.cdf(mu / np.sqrt(2))
    assert area.auc == pytest.approx(truth, abs=0.03)
    assert area.lower <= truth <= area.upper
    assert area.auc <= membership_auc_bound(gaussian_epsilon(mu, 1e-5), 1e-5) + 0.03


def test_an_area_above_what_epsilon_allows_is_flagged():
    trials = gaussian_trials(4.0, 20, 2)
    assert audit_membership(trials, epsilon=0.5, delta=1e-5, error=1e-3).verdict is Verdict.FAIL
    assert audit_membership(trials, epsilon=30.0, delta=1e-5, error=1e-3).verdict is Verdict.PASS


def test_scores_that_are_all_alike_count_half():
    was_in = np.array([True, False])
    trials = [Trial(scores_M=np.zeros(2), was_in_M=m) for m in (was_in, ~was_in) * 4]
    assert paired_auc(trials, error=0.1).auc == 0.5


def test_pairs_in_which_nobody_changed_sides_say_nothing():
    trials = [Trial(scores_M=np.zeros(2), was_in_M=np.ones(2, bool))] * 8
    with pytest.raises(ValueError, match="at least 4 pairs"):
        paired_auc(trials, error=0.1)


def test_an_odd_number_of_trials_is_refused():
    with pytest.raises(ValueError, match="even number"):
        paired_auc(gaussian_trials(1.0, 4, 1)[:-1], error=0.1)


def change_after(task, was_in, seed):
    model = moe_model()
    before = [parameter.detach().clone() for parameter in trainable_parameters(model).values()]
    values, labels = records(CANDIDATES)
    chosen = torch.from_numpy(was_in)
    random = SeededRandom(seed, "membership")
    train(model, values[chosen], labels[chosen], loss, task, random, rules=RULES)
    after = list(trainable_parameters(model).values())
    return flat(model, [a.detach() - b for a, b in zip(after, before, strict=True)])


def attacked(task, pairs):
    gradients = record_gradients(
        moe_model(), loss, *records(CANDIDATES), clipping_norm=task.clipping_norm
    )
    noise = task.noise_multiplier * (task.clipping_norm or 0.0)
    return repeat(
        lambda number, was_in: contributions(
            gradients,
            torch.zeros(gradients.shape[1], dtype=torch.float64),
            change_after(task, was_in, number),
            noise_deviation=noise,
        ),
        candidates=CANDIDATES,
        pairs=pairs,
        coins=np.random.default_rng(5),
    )


def test_without_privacy_the_released_sum_tells_every_member():
    assert paired_auc(attacked(PLAIN, 4), error=0.01).auc == 1.0


@pytest.mark.statistical
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_with_privacy_members_are_told_no_better_than_epsilon_allows(noise):
    # Seeded: 20 pairs of 12 candidates that change sides; the bounds are 20 deviations of the area away.
    task = replace(TASK, noise_multiplier=noise)
    area = paired_auc(attacked(task, 20), error=0.01)
    epsilon = epsilon_spent(task.events, 1e-5)
    assert area.auc <= membership_auc_bound(epsilon, 1e-5)
    # A single release of a unit cannot do better than the Gaussian mechanism it is.
    assert area.lower <= norm.cdf(1 / noise / np.sqrt(2))


def test_record_gradients_are_those_of_one_record_at_a_time_and_clipped():
    model, (values, labels) = moe_model(), records(6)
    expected = one_by_one(model, values, labels)
    found = record_gradients(model, loss, values, labels, clipping_norm=None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    clipped = record_gradients(model, loss, values, labels, clipping_norm=0.3)
    assert clipped.square().sum(1).sqrt().max() <= 0.3 + 1e-9


@pytest.mark.parametrize("factor", [1.0, 0.01])
def test_contributions_of_a_sum_without_noise_are_exact_whatever_it_was_divided_by(factor):
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(12, 50, generator=generator, dtype=torch.float64)
    candidates, certain = gradients[:8], gradients[8:].sum(0)
    was_in = torch.arange(8) % 3 == 0
    change = -factor * (certain + candidates[was_in].sum(0))
    found = contributions(candidates, certain, change, noise_deviation=0.0)
    np.testing.assert_allclose(found, was_in.double().numpy() - 0.5, atol=1e-5)


def test_a_sum_that_noise_has_turned_round_says_nothing():
    gradients = torch.eye(3, dtype=torch.float64)
    certain = torch.ones(3, dtype=torch.float64)
    assert not contributions(gradients, certain, certain, noise_deviation=1.0).any()


def test_the_loss_of_a_record_drops_where_it_was_trained_on():
    before, after = (nn.Linear(2, 1) for _ in range(2))
    after.load_state_dict(before.state_dict())
    inputs, labels = torch.eye(2), torch.ones(2)
    train(after, inputs[:1], labels[:1], _distance, PLAIN_SMALL, SeededRandom(1, "drop"))
    with torch.no_grad():
        after.bias.copy_(before.bias)
    trained, other = loss_drop(before, after, _distance, inputs, labels)
    assert trained > 0.0
    assert other == 0.0


PLAIN_SMALL = replace(PLAIN, learning_rate=0.1)


def _distance(outputs, labels):
    return (outputs.squeeze(1) - labels).square()
