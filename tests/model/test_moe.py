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
    torch.nn.init.zeros_(module.router.balance_bias)
    return module


def said(mixture, tokens):
    """What the mixture says in its present mode, with noise of its own in training."""
    return mixture(tokens, mixture.router.draw_noise(*tokens.shape[:2]))[0]


def dense_mixture(mixture, tokens):
    """Every expert on every token, then the weights of those not chosen set to zero."""
    probabilities = torch.softmax(mixture.router.scores(tokens), dim=-1)
    appeal = mixture.router.scores(tokens) + mixture.router.balance_bias
    ids = appeal.topk(mixture.router.top_k, dim=-1).indices
    weights = torch.zeros_like(probabilities).scatter(-1, ids, probabilities.gather(-1, ids))
    weights = weights / weights.sum(-1, keepdim=True)
    gate, up = torch.einsum("btd,edi->btei", tokens, mixture.routed_up.weight).chunk(2, dim=-1)
    each = torch.einsum("btei,eid->bted", silu(gate) * up, mixture.routed_down.weight)
    shared_gate, shared_up = mixture.shared_up(tokens).chunk(2, dim=-1)
    return mixture.shared_down(silu(shared_gate) * shared_up) + torch.einsum(
        "bte,bted->btd", weights, each
    )


def test_output_equals_a_dense_mixture(mixture, tokens):
    torch.testing.assert_close(said(mixture, tokens), dense_mixture(mixture, tokens))


def test_gradients_equal_those_of_a_dense_mixture(mixture, tokens):
    parameters = [p for p in mixture.parameters() if p.requires_grad]

    found = torch.autograd.grad(said(mixture, tokens).square().sum(), parameters)

    expected = torch.autograd.grad(dense_mixture(mixture, tokens).square().sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_tokens_equal_those_of_a_dense_mixture(mixture, tokens):
    tokens.requires_grad_()

    (found,) = torch.autograd.grad(said(mixture, tokens).square().sum(), [tokens])

    (expected,) = torch.autograd.grad(dense_mixture(mixture, tokens).square().sum(), [tokens])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_all_experts_at_once_are_possible(config, tokens):
    mixture = MixtureOfExperts(dataclasses.replace(config, top_k=4)).eval()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(said(mixture, tokens), dense_mixture(mixture, tokens))


def test_no_token_is_dropped_when_all_choose_the_same_expert(mixture, tokens):
    same = tokens[:1, :1].expand(40, 5, 16)

    torch.testing.assert_close(said(mixture, same)[39, 4], said(mixture, tokens[:1, :1])[0, 0])


def test_grouped_linear_takes_rows_in_their_own_order():
    layer = GroupedLinear(3, 4, 8)
    generator = torch.Generator().manual_seed(2)
    torch.nn.init.normal_(layer.weight, generator=generator)
    rows = torch.randn(2, 5, 4, generator=generator)
    ids = torch.tensor([[2, 0, 2, 0, 0], [0, 2, 2, 2, 0]])
    order = expert_order(ids, 3)

    found = layer(rows, ids, **order._asdict())

    torch.testing.assert_close(found, torch.einsum("bri,brio->bro", rows, layer.weight[ids]))


def test_grouped_linear_finds_the_way_back_itself():
    layer = GroupedLinear(3, 4, 8)
    rows = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[2, 0, 2, 0, 0], [0, 2, 2, 2, 0]])
    order = expert_order(ids, 3)

    found = layer(rows, ids, permutation=order.permutation, offsets=order.offsets)

    assert torch.equal(found, layer(rows, ids, **order._asdict()))


def test_order_and_its_inverse_cancel():
    order = expert_order(torch.tensor([[2, 0, 2, 0, 0], [0, 2, 2, 2, 0]]), 3)

    assert order.permutation[order.inverse].tolist() == list(range(10))
    assert order.offsets.tolist() == [5, 5, 10]


def test_router_weights_sum_to_one_in_float32(mixture, tokens):
    routing = mixture.router(tokens, None)

    assert routing.weights_BTK.dtype == torch.float32
    assert routing.ids_BTK.shape == (6, 5, 2)
    torch.testing.assert_close(routing.weights_BTK.sum(-1), torch.ones(6, 5))


def test_router_scores_in_half_precision_are_weighed_in_float32(mixture, tokens):
    routing = mixture.bfloat16().router(tokens.bfloat16(), None)

    assert routing.weights_BTK.dtype == torch.float32


def test_router_scores_in_double_precision_stay_double(mixture, tokens):
    assert mixture.double().router(tokens.double(), None).scores_BTE.dtype == torch.float64


def test_balance_bias_moves_the_choice(mixture, tokens):
    with torch.no_grad():
        mixture.router.balance_bias[2] = 100.0

    assert (mixture.router(tokens, None).ids_BTK == 2).any(-1).all()


def test_balance_bias_does_not_enter_the_weights_of_the_chosen(config, tokens):
    mixture = MixtureOfExperts(dataclasses.replace(config, top_k=4)).eval()
    before = said(mixture, tokens)
    with torch.no_grad():
        mixture.router.balance_bias.copy_(torch.tensor([3.0, -1.0, 0.5, 0.0]))

    torch.testing.assert_close(said(mixture, tokens), before)


def test_output_under_a_balance_bias_equals_a_dense_mixture(mixture, tokens):
    with torch.no_grad():
        mixture.router.balance_bias.copy_(torch.tensor([0.5, -0.5, 1.0, 0.0]))

    torch.testing.assert_close(said(mixture, tokens), dense_mixture(mixture, tokens))


def test_balance_bias_is_frozen(mixture, tokens):
    said(mixture.train(), tokens).sum().backward()

    assert not mixture.router.balance_bias.requires_grad
    assert mixture.router.balance_bias.grad is None


def test_no_token_visits_an_expert_twice(mixture, tokens):
    ids = mixture.router(tokens, None).ids_BTK

    assert (ids[..., 0] != ids[..., 1]).all()


def test_routing_noise_follows_its_generator(mixture, tokens):
    mixture.train()
    mixture.router.noise_generator = torch.Generator().manual_seed(9)
    first = said(mixture, tokens)
    mixture.router.noise_generator = torch.Generator().manual_seed(9)
    second = said(mixture, tokens)
    third = said(mixture, tokens)

    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_no_noise_without_scale(config, tokens):
    mixture = MixtureOfExperts(dataclasses.replace(config, gumbel_scale=0.0)).train()

    assert torch.equal(said(mixture, tokens), said(mixture, tokens))


@pytest.mark.statistical
def test_noise_draws_the_first_expert_with_its_softmax_probability(config):
    # 20 000 draws: standard error at most 0.0036, so 0.015 is over four of them (error rate below 1e-3 for 4 experts).
    router = Router(dataclasses.replace(config, top_k=1)).train()
    router.noise_generator = torch.Generator().manual_seed(4)
    torch.nn.init.normal_(router.scores.weight, generator=torch.Generator().manual_seed(8))
    token = torch.full((1, 1, 16), 0.3)

    ids = router(token.expand(20000, 1, 16), router.draw_noise(20000, 1)).ids_BTK

    drawn = torch.bincount(ids.flatten(), minlength=4) / 20000
    expected = router.scores(token).softmax(-1).flatten()
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.015)
