import dataclasses

import pytest
import torch
from torch.nn.functional import silu

from model.moe import GroupedLinear, MixtureOfExperts, Router, expert_order


@pytest.fixture
def tokens():
    return torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(11))


@pytest.fixture
def mixture(config):
    module = MixtureOfExperts(config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def dense_mixture(mixture, tokens):
    """Every expert on every token, then the weights of those not chosen set to zero."""
    probabilities = torch.softmax(mixture.router.scores(tokens), dim=-1)
    best = probabilities.topk(mixture.router.top_k, dim=-1)
    weights = torch.zeros_like(probabilities).scatter(-1, best.indices, best.values)
    weights = weights / weights.sum(-1, keepdim=True)
    gate, up = torch.einsum("btd,edi->btei", tokens, mixture.routed_up.weight).chunk(2, dim=-1)
    each = torch.einsum("btei,eid->bted", silu(gate) * up, mixture.routed_down.weight)
    shared_gate, shared_up = mixture.shared_up(tokens).chunk(2, dim=-1)
    return mixture.shared_down(silu(shared_gate) * shared_up) + torch.einsum(
        "bte,bted->btd", weights, each
    )


def test_output_equals_a_dense_mixture(mixture, tokens):
    torch.testing.assert_close(mixture(tokens), dense_mixture(mixture, tokens))


def test_gradients_equal_those_of_a_dense_mixture(mixture, tokens):
    parameters = list(mixture.parameters())

    found = torch.autograd.grad(mixture(tokens).square().sum(), parameters)

    expected = torch.autograd.grad(dense_mixture(mixture, tokens).square().sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_tokens_equal_those_of_a_dense_mixture(mixture, tokens):
    tokens.requires_grad_()

    (found,) = torch.autograd.grad(mixture(tokens).square().sum(), [tokens])

    (expected,) = torch.autograd.grad(dense_mixture(mixture, tokens).square().sum(), [tokens])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_all_experts_at_once_are_possible(config, tokens):
    mixture = MixtureOfExperts(dataclasses.replace(config, top_k=4)).eval()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(mixture(tokens), dense_mixture(mixture, tokens))


def test_no_token_is_dropped_when_all_choose_the_same_expert(mixture, tokens):
    same = tokens[:1, :1].expand(40, 5, 16)

    torch.testing.assert_close(mixture(same)[39, 4], mixture(tokens[:1, :1])[0, 0])


def test_grouped_linear_takes_rows_in_their_own_order():
    layer = GroupedLinear(3, 4, 8)
    generator = torch.Generator().manual_seed(2)
    torch.nn.init.normal_(layer.weight, generator=generator)
    rows = torch.randn(2, 5, 4, generator=generator)
    ids = torch.tensor([[2, 0, 2, 0, 0], [0, 2, 2, 2, 0]])
    order = expert_order(ids, 3)

    found = layer(rows, ids, permutation=order.permutation, offsets=order.offsets)

    torch.testing.assert_close(found, torch.einsum("bri,brio->bro", rows, layer.weight[ids]))


def test_router_weights_sum_to_one_in_float32(mixture, tokens):
    weights, ids = mixture.router(tokens)

    assert weights.dtype == torch.float32
    assert ids.shape == (6, 5, 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 5))


def test_routing_noise_follows_its_generator(mixture, tokens):
    mixture.train()
    mixture.router.noise_generator = torch.Generator().manual_seed(9)
    first = mixture(tokens)
    mixture.router.noise_generator = torch.Generator().manual_seed(9)
    second = mixture(tokens)
    third = mixture(tokens)

    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_no_noise_without_scale(config, tokens):
    mixture = MixtureOfExperts(dataclasses.replace(config, gumbel_scale=0.0)).train()

    assert torch.equal(mixture(tokens), mixture(tokens))


@pytest.mark.statistical
def test_noise_draws_the_first_expert_with_its_softmax_probability(config):
    # 20 000 draws: standard error at most 0.0036, so 0.015 is over four of them (error rate below 1e-3 for 4 experts).
    router = Router(dataclasses.replace(config, top_k=1)).train()
    router.noise_generator = torch.Generator().manual_seed(4)
    torch.nn.init.normal_(router.scores.weight, generator=torch.Generator().manual_seed(8))
    token = torch.full((1, 1, 16), 0.3)

    _, ids = router(token.expand(20000, 1, 16))

    drawn = torch.bincount(ids.flatten(), minlength=4) / 20000
    expected = router.scores(token).softmax(-1).flatten()
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.015)
