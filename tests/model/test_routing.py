import dataclasses

import numpy as np
import pytest
import torch

from model.build import TabularModel, build_model
from model.moe import Router, Routing
from model.parameters import load_vector, model_to_vector, parameter_count
from model.routing import (
    LARGEST_BIAS,
    RoutedModel,
    balance_loss,
    balanced_bias,
    bias_slots,
    expert_loads,
    load_count,
    load_fractions,
)
from model.synthetic import synthetic_rows


def router(model: TabularModel, place: int) -> Router:
    """The router of one block."""
    found = model.get_submodule(f"trunk.blocks.{place}.moe.router")
    assert isinstance(found, Router)
    return found


@pytest.fixture
def routed(model):
    return RoutedModel(model.eval())


@pytest.fixture
def vector(model):
    return model_to_vector(model)


def routing(ids, scores=None, *, experts=4):
    ids = torch.tensor(ids)
    even = torch.zeros(*ids.shape[:2], experts)
    return Routing(even if scores is None else torch.tensor(scores), ids)


def biases(vector, config, table):
    return np.stack([vector[slot.start : slot.stop] for slot in bias_slots(config, table)])


def uneven_loads(config):
    """Loads of two blocks of four experts: the first expert of each has the most."""
    return np.tile(np.array([4.0, 2.0, 1.0, 1.0]), config.layers)


def test_logits_are_those_of_the_model(routed, model, values):
    assert torch.equal(routed(values).logits_B, model(values))


def test_outputs_have_a_row_per_record(routed, values):
    output = routed(values)

    assert output.balance_B.shape == (9,)
    assert output.loads_BS.shape == (9, 8)


def test_no_record_is_no_row(routed, values):
    output = routed(values[:0])

    assert [tuple(part.shape) for part in output] == [(0,), (0,), (0, 8)]


def test_parameters_are_the_models_own_in_the_same_order(routed, model):
    assert [id(p) for p in routed.parameters()] == [id(p) for p in model.parameters()]


def test_record_that_uses_all_experts_alike_has_a_balance_loss_of_one():
    even = routing([[[0, 1], [2, 3]]])

    assert balance_loss([even, even]).tolist() == [1.0]


def test_record_whose_tokens_all_crowd_has_the_largest_balance_loss():
    crowd = routing([[[1], [1]]], [[[-60.0, 60.0, -60.0, -60.0]] * 2])

    torch.testing.assert_close(balance_loss([crowd]), torch.tensor([4.0]))


def test_balance_loss_is_the_formula_of_deepseek_v3():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 5, 4, generator=generator)
    ids = scores.topk(2, dim=-1).indices
    chosen = torch.nn.functional.one_hot(ids, 4).sum(2).float()

    found = balance_loss([Routing(scores, ids)])

    fractions = 4 / (2 * 5) * chosen.sum(1)
    torch.testing.assert_close(found, (fractions * scores.softmax(-1).mean(1)).sum(1))


def test_balance_loss_of_a_record_is_its_own(routed, values):
    others = values.flip(0).clone()
    others[3] = values[3]

    torch.testing.assert_close(routed(others).balance_B[3], routed(values).balance_B[3])
    torch.testing.assert_close(routed(others).loads_BS[3], routed(values).loads_BS[3])


def test_balance_loss_teaches_every_router(routed, model, values):
    routed(values).balance_B.sum().backward()

    assert all(block.moe.router.scores.weight.grad.any() for block in model.trunk.blocks)


def gradients(routed, values, *, is_checkpointing):
    routed.model.use_noise_generator(torch.Generator().manual_seed(4))
    routed.model.use_checkpointing(is_checkpointing)
    output = routed(values)
    loss = (output.logits_B + output.balance_B).square().sum()
    trained = [parameter for parameter in routed.parameters() if parameter.requires_grad]
    return output, torch.autograd.grad(loss, trained)


def test_checkpointing_changes_nothing_of_the_balance_loss_and_the_loads(routed, values):
    plain_output, plain = gradients(routed.train(), values, is_checkpointing=False)

    output, again = gradients(routed, values, is_checkpointing=True)

    torch.testing.assert_close(tuple(output), tuple(plain_output), rtol=0, atol=0)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_gradients_of_a_batch_with_balance_loss_are_the_sum_over_its_records(routed, values):
    trained = [parameter for parameter in routed.parameters() if parameter.requires_grad]

    def gradient(rows):
        output = routed(rows)
        return torch.autograd.grad((output.logits_B + output.balance_B).sum(), trained)

    together = gradient(values)

    alone = [gradient(values[row : row + 1]) for row in range(9)]
    summed = [torch.stack(rows).sum(0) for rows in zip(*alone, strict=True)]
    torch.testing.assert_close(list(together), summed, rtol=1e-4, atol=1e-5)


def test_descent_on_the_balance_loss_spreads_a_record_over_the_experts(config, table):
    model = build_model(dataclasses.replace(config, gumbel_scale=0.0), table, seed=1)
    rows = synthetic_rows(table, 64, torch.Generator().manual_seed(2))
    routed = RoutedModel(model)
    with torch.no_grad():
        router(model, 0).scores.weight[0].mul_(6.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = routed(rows).balance_B.mean().item()

    for _ in range(40):
        optimizer.zero_grad()
        routed(rows).balance_B.sum().backward()
        optimizer.step()

    assert routed(rows).balance_B.mean().item() < 1.0 + (before - 1.0) / 4


def test_loads_are_the_fractions_of_choices_of_each_block(config):
    first = routing([[[0, 1], [0, 2]], [[3, 1], [3, 2]]])
    last = routing([[[2, 3]], [[0, 1]]])

    loads = expert_loads([first, last])

    expected = [[2, 1, 1, 0, 0, 0, 2, 2], [0, 1, 1, 2, 2, 2, 0, 0]]
    torch.testing.assert_close(loads, torch.tensor(expected) / 4.0, rtol=2e-6, atol=0)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("layers", [1, 2, 3, 7])
def test_loads_are_never_longer_than_one_and_reach_it(top_k, layers):
    # All tokens at the same experts: the longest loads there are.
    crowd = routing([[list(range(top_k))] * 7])

    length = expert_loads([crowd] * layers).double().square().sum().sqrt().item()

    assert 1.0 - 2e-6 < length <= 1.0


def test_loads_of_a_model_are_never_longer_than_one(routed, model, table):
    rows = synthetic_rows(table, 200, torch.Generator().manual_seed(0))

    lengths = RoutedModel(model.train())(rows).loads_BS.double().square().sum(1).sqrt()

    assert (lengths <= 1.0).all()


def test_loads_carry_no_gradient(routed, values):
    assert not routed(values).loads_BS.requires_grad


def test_summed_loads_become_fractions_again(routed, config, table):
    rows = synthetic_rows(table, 50, torch.Generator().manual_seed(0))
    summed = routed(rows).loads_BS.sum(0).numpy()

    fractions = load_fractions(summed, config)

    _, routings = routed.model.logits_and_routing(rows)
    counts = [torch.bincount(r.ids_BTK.flatten(), minlength=4).numpy() for r in routings]
    assert fractions is not None
    np.testing.assert_allclose(fractions, [c / c.sum() for c in counts], atol=1e-5)


def test_fractions_of_a_block_sum_to_one_under_noise(config):
    noise = np.random.default_rng(0).normal(0, 0.5, load_count(config))

    fractions = load_fractions(uneven_loads(config) + noise, config)

    assert fractions is not None
    np.testing.assert_allclose(fractions.sum(1), 1.0)


@pytest.mark.parametrize("loads", [np.zeros(8), np.full(8, -0.5)])
def test_sum_that_says_nothing_has_no_fractions(loads, config):
    assert load_fractions(loads, config) is None


@pytest.mark.parametrize("loads", [np.ones(7), np.ones((2, 4)), np.full(8, np.nan)])
def test_loads_that_are_not_the_models_are_refused(loads, config, table, vector):
    with pytest.raises(ValueError, match="Expected 8 finite loads"):
        balanced_bias(vector, loads, config, table, 0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rate_out_of_range_is_refused(rate, config, table, vector):
    with pytest.raises(ValueError, match="Expected rate="):
        balanced_bias(vector, None, config, table, rate)


def test_bias_falls_where_an_expert_has_too_many_choices(config, table, vector):
    balanced = balanced_bias(vector, uneven_loads(config), config, table, 0.1)

    np.testing.assert_allclose(biases(balanced, config, table), [[-0.1, 0.0, 0.05, 0.05]] * 2)


def test_only_biases_are_moved(config, table, vector):
    before = vector.copy()

    balanced = balanced_bias(vector, uneven_loads(config), config, table, 0.1)

    moved = np.flatnonzero(balanced != before)
    slots = [range(slot.start, slot.stop) for slot in bias_slots(config, table)]
    assert set(moved) <= set(slots[0]) | set(slots[1])
    assert np.array_equal(vector, before)
    assert balanced.dtype == np.float32


def test_biases_of_many_blocks_stand_in_the_order_of_the_blocks(config, table):
    deep = dataclasses.replace(config, layers=11)
    loads = np.tile(np.ones(4), (11, 1))
    loads[2] = [3.0, 1.0, 0.0, 0.0]
    vector = np.zeros(parameter_count(deep, table), np.float32)

    balanced = balanced_bias(vector, loads.ravel(), deep, table, 0.1)

    model = build_model(deep, table, seed=0)
    load_vector(model, balanced)
    moved = [bool(router(model, place).balance_bias.any()) for place in range(11)]
    assert moved == [place == 2 for place in range(11)]


@pytest.mark.parametrize(
    ("loads", "rate"),
    [(None, 0.1), (np.zeros(8), 0.1), (np.full(8, -1.0), 0.1), (np.arange(8.0), 0.0)],
    ids=["none", "zero", "below zero", "no rate"],
)
def test_without_loads_nothing_moves(loads, rate, config, table, vector):
    assert balanced_bias(vector, loads, config, table, rate) is vector


def test_even_loads_move_nothing(config, table, vector):
    balanced = balanced_bias(vector, np.full(8, 3.0), config, table, 0.1)

    assert np.array_equal(balanced, vector)


def test_wild_loads_move_a_bias_by_no_more_than_twice_the_rate(config, table, vector):
    # Twice, because the biases are centred afterwards.
    wild = np.array([1e30, -1e29, 0, 0, 5.0, -3.0, 1e3, 7.0])

    balanced = balanced_bias(vector, wild, config, table, 0.1)

    assert np.abs(biases(balanced, config, table)).max() <= 0.2 + 1e-6


def test_biases_stay_within_their_bound(config, table, vector):
    crowd = np.tile(np.array([1.0, 0.0, 0.0, 0.0]), 2)

    for _ in range(40):
        vector = balanced_bias(vector, crowd, config, table, 1.0)

    found = biases(vector, config, table)
    assert found.min() == -LARGEST_BIAS
    assert np.isfinite(found).all()


def test_rounds_of_balancing_even_out_a_crowded_model(config, table):
    model = build_model(config, table, seed=1)
    with torch.no_grad():
        for place in range(len(model.trunk.blocks)):
            router(model, place).scores.weight[0].mul_(8.0)
    rows = synthetic_rows(table, 400, torch.Generator().manual_seed(3))
    model.use_noise_generator(torch.Generator().manual_seed(5))
    vector = model_to_vector(model)

    def largest_excess(vector):
        load_vector(model, vector)
        loads = RoutedModel(model.train())(rows).loads_BS.sum(0).detach().numpy()
        fractions = load_fractions(loads, config)
        assert fractions is not None
        return loads, np.abs(fractions * 4 - 1).max()

    loads, before = largest_excess(vector)
    for _ in range(30):
        vector = balanced_bias(vector, loads, config, table, 0.3)
        loads, after = largest_excess(vector)

    assert before > 0.5
    assert after < 0.15
