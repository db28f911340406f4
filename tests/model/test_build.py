import copy
import dataclasses

import pytest
import torch
from torch import nn

from model.build import build_model
from model.config import TIERS
from model.moe import GroupedLinear
from model.parameters import model_to_vector
from model.tokenizers import FeatureLinear


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_forward_gives_one_logit_per_row(model, values):
    logits = model(values)

    assert logits.shape == (9,)
    assert logits.isfinite().all()


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches_have_logits_and_gradients(model, values, rows):
    model(values[:rows]).sum().backward()

    assert all(parameter.grad.isfinite().all() for parameter in trainable(model))


@pytest.mark.parametrize("tier", TIERS)
def test_tiers_can_be_built(tier, table, values):
    assert build_model(TIERS[tier], table, seed=0)(values).shape == (9,)


def test_missing_value_changes_the_logit(model, values):
    changed = values.clone()
    changed[4, 0] = torch.nan
    model.eval()

    moved = (model(changed) - model(values)).abs() > 1e-4  # rounding depends on the neighbours

    assert moved.tolist() == [False] * 4 + [True] + [False] * 4


def test_first_logits_are_zero_for_all_rows(config, table, values):
    assert build_model(config, table, seed=0)(values).tolist() == [0.0] * 9


def test_same_seed_gives_the_same_weights_whatever_was_drawn_before(config, table):
    torch.manual_seed(1)
    first = model_to_vector(build_model(config, table, seed=5))
    torch.manual_seed(2)
    second = model_to_vector(build_model(config, table, seed=5))

    assert first.tobytes() == second.tobytes()


def test_other_seed_gives_other_weights(config, table):
    first, second = (model_to_vector(build_model(config, table, seed=seed)) for seed in (5, 6))

    assert first.tobytes() != second.tobytes()


def test_building_leaves_the_global_random_state_alone(config, table):
    before = torch.random.get_rng_state()

    build_model(config, table, seed=5)

    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range_is_refused(config, table, seed):
    with pytest.raises(ValueError, match=f"seed={seed}"):
        build_model(config, table, seed=seed)


def test_model_too_large_is_refused_before_it_is_built(config, table):
    huge = dataclasses.replace(
        config, width=8192, layers=128, experts=1024, top_k=2, expert_width=32768
    )

    with pytest.raises(ValueError, match="at most 2000000000 parameters"):
        build_model(huge, table, seed=0)


def test_inference_is_deterministic_and_training_is_not(model, values):
    model.use_noise_generator(torch.Generator().manual_seed(0))

    assert torch.equal(model.eval()(values), model(values))
    assert not torch.equal(model.train()(values), model(values))


def test_training_noise_follows_the_generator_it_was_given(model, values):
    model.use_noise_generator(torch.Generator().manual_seed(0))
    first = model(values)
    model.use_noise_generator(torch.Generator().manual_seed(0))

    assert torch.equal(first, model(values))


def test_gradient_of_a_row_is_unchanged_when_the_others_change(model, values):
    model.eval()
    others = values.flip(0).clone()
    others[3] = values[3]
    parameters = trainable(model)

    first = torch.autograd.grad(model(values)[3], parameters)

    second = torch.autograd.grad(model(others)[3], parameters)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_batch_is_the_sum_over_its_rows(model, values):
    model.eval()
    parameters = trainable(model)

    together = torch.autograd.grad(model(values).sum(), parameters)

    alone = [
        torch.autograd.grad(model(values[row : row + 1]).sum(), parameters) for row in range(9)
    ]
    summed = [torch.stack(rows).sum(0) for rows in zip(*alone, strict=True)]
    torch.testing.assert_close(list(together), summed, rtol=1e-4, atol=1e-5)


def test_every_parameter_belongs_to_a_layer_with_a_privacy_rule(model):
    owners = {
        type(module)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    }

    assert owners == {nn.Linear, nn.RMSNorm, FeatureLinear, GroupedLinear}


def test_balance_biases_are_all_that_training_does_not_touch(model):
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]

    assert frozen == [f"trunk.blocks.{place}.moe.router.balance_bias" for place in range(2)]
    assert not any(model.get_parameter(name).any() for name in frozen)


def test_model_has_no_buffers(model):
    assert list(model.buffers()) == []


def test_model_can_be_copied(model, values):
    model.eval()

    assert torch.equal(copy.deepcopy(model)(values), model(values))


def test_every_parameter_learns_once_the_head_listens(model, values):
    model.train()
    # Many rows, so that every expert is chosen.
    model(values.repeat(20, 1)).square().sum().backward()

    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not parameter.grad.any()
    ]

    assert still == []


def gradients(model, values, *, is_checkpointing):
    model.use_noise_generator(torch.Generator().manual_seed(4))
    model.use_checkpointing(is_checkpointing)
    logits = model(values)
    # Draws between the two passes must not matter.
    torch.rand(3)
    return logits, torch.autograd.grad(logits.square().sum(), trainable(model))


def test_checkpointing_changes_no_number_although_routing_is_random(model, values):
    plain_logits, plain = gradients(model.train(), values, is_checkpointing=False)

    logits, again = gradients(model, values, is_checkpointing=True)

    assert torch.equal(logits, plain_logits)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def saved_numbers(model, values):
    """How many numbers the graph keeps for the way back."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(values)
    assert logits.requires_grad
    return sum(kept.values())


def test_checkpointing_keeps_less(model, values):
    values = values.repeat(40, 1)
    whole = saved_numbers(model, values)
    model.use_checkpointing(True)

    assert saved_numbers(model, values) < whole / 3


def test_checkpointing_at_inference_is_the_same_model(model, values):
    model.eval()
    before = model(values)
    model.use_checkpointing(True)

    with torch.inference_mode():
        assert torch.equal(model(values), before)


def test_training_separates_a_simple_table(config, table):
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(128, 4, generator=generator) * torch.tensor([120.0, 2.0, 250.0, 5.0])
    rows[:, [1, 3]] = rows[:, [1, 3]].floor()
    is_ill = ((rows[:, 0] > 60) ^ (rows[:, 1] > 0)).float()
    model = build_model(config, table, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(rows), is_ill).backward()
        optimizer.step()

    accuracy = ((model.eval()(rows) > 0) == is_ill.bool()).float().mean()
    assert accuracy > 0.95
