"""Models that break a guarantee are refused before training, each with its remedy; the real model passes."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from model.build import TabularModel, build_model
from model.routing import RoutedModel, RoutedOutput
from privacy.dp.same_draws import SameDraws
from privacy.dp.validate import require_private, require_private_layers
from tests.privacy.small_moe import CONFIG, RULES, TABLE, loss, records

# B records, T tokens, D width, E experts

RECORDS = 5


def routed_loss(outputs: RoutedOutput, labels_B: Tensor) -> Tensor:
    return loss(outputs.logits_B, labels_B) + 0.1 * outputs.balance_B


def routed_loads(outputs: RoutedOutput) -> Tensor:
    return outputs.loads_BS


def noisy_model() -> TabularModel:
    """As it comes: head at zero, Gumbel noise on, with a generator of its own."""
    model = build_model(type(CONFIG)(**{**vars(CONFIG), "gumbel_scale": 1.0}), TABLE, seed=1)
    model.use_noise_generator(torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("is_checkpointing", [False, True])
def test_the_real_model_passes_with_noise_balance_loss_and_loads(is_checkpointing: bool) -> None:
    model = noisy_model()
    model.use_checkpointing(is_checkpointing)
    require_private(
        RoutedModel(model), routed_loss, *records(RECORDS), rules=RULES, statistics=routed_loads
    )


def test_a_model_is_left_exactly_as_it_was() -> None:
    model, generator = noisy_model().eval(), torch.Generator().manual_seed(2)
    model.use_noise_generator(generator)
    model.trunk.blocks[0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = (generator.get_state(), torch.get_rng_state())
    modes = [module.training for module in model.modules()]
    require_private(model, loss, *records(RECORDS), rules=RULES)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert generator.get_state().equal(states[0])
    assert torch.get_rng_state().equal(states[1])
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Experts(nn.Module):
    """Two dense experts, of which each token weighs one, with something done to the choice."""

    def __init__(self, flaw: str) -> None:
        super().__init__()
        self.flaw = flaw
        self.router, self.head = nn.Linear(4, 2), nn.Linear(4, 1)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        scores_BTE = self.router(tokens_BTD)
        probabilities_BTE = scores_BTE.softmax(-1)
        choice_BT = self._choose(scores_BTE.detach())
        chosen_BTE = nn.functional.one_hot(choice_BT, 2) * probabilities_BTE
        if self.flaw == "capacity":
            places_BTE = (chosen_BTE > 0).flatten(0, 1).cumsum(0).view(chosen_BTE.shape)
            chosen_BTE = chosen_BTE * (places_BTE <= 4)
        outputs = [self.one(tokens_BTD), self.two(tokens_BTD)]
        mixed_BTD = (torch.stack(outputs, -1) * chosen_BTE.unsqueeze(2)).sum(-1)
        return self.head(mixed_BTD.mean(1)).squeeze(1), probabilities_BTE

    def _choose(self, scores_BTE: Tensor) -> Tensor:
        if self.flaw == "bias from the batch":
            choice_BT = scores_BTE.argmax(-1)
            loads_E = nn.functional.one_hot(choice_BT, 2).float().mean((0, 1))
            scores_BTE = scores_BTE - 10.0 * loads_E
        return scores_BTE.argmax(-1)


Outputs = tuple[Tensor, Tensor]


def task_loss(outputs: Outputs, labels_B: Tensor) -> Tensor:
    return loss(outputs[0], labels_B)


def balance_over_the_batch(outputs: Outputs, labels_B: Tensor) -> Tensor:
    loads_E = outputs[1].mean((0, 1))
    return task_loss(outputs, labels_B) + 0.01 * loads_E.square().sum()


def balance_over_each_record(outputs: Outputs, labels_B: Tensor) -> Tensor:
    return task_loss(outputs, labels_B) + 0.01 * outputs[1].mean(1).square().sum(1)


def divided_by_the_batch(outputs: Outputs, labels_B: Tensor) -> Tensor:
    return task_loss(outputs, labels_B) / len(labels_B)


def statistic_hidden_from_the_loss(outputs: Outputs, labels_B: Tensor) -> Tensor:
    """Changes nobody's loss, only the gradients."""
    means_E = outputs[1].mean((0, 1))
    return task_loss(outputs, labels_B) + 0.01 * (means_E - means_E.detach())[0]


def token_records() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(RECORDS, 3, 4, generator=generator), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("per_record", [task_loss, balance_over_each_record])
def test_experts_without_a_flaw_pass(per_record: Callable[..., Tensor]) -> None:
    require_private(Experts("none"), per_record, *token_records())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("flaw", "per_record", "complaint"),
    [
        ("capacity", task_loss, "change when others are taken away"),
        ("bias from the batch", task_loss, "change when others are taken away"),
        ("none", balance_over_the_batch, "change when others are taken away"),
        ("none", divided_by_the_batch, "losses of some records change"),
        ("none", statistic_hidden_from_the_loss, "gradients of some records, most in .*router"),
    ],
)
def test_records_that_influence_each_other_are_noticed(
    flaw: str, per_record: Callable[..., Tensor], complaint: str, seed: int
) -> None:
    torch.manual_seed(seed)
    with pytest.raises(ValueError, match=complaint):
        require_private(Experts(flaw), per_record, *token_records())


def test_statistics_over_the_batch_are_noticed() -> None:
    def loads(outputs: Outputs) -> Tensor:
        return outputs[1].mean((0, 1)).expand(len(outputs[0]), 2)

    with pytest.raises(ValueError, match="statistics of some records change"):
        require_private(Experts("none"), task_loss, *token_records(), statistics=loads)


class Parent(nn.Module):
    """Keeps a moving average in a buffer beside its layers."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("average", torch.zeros(3))

    def forward(self, values: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.lerp_(values.mean(0), 0.1)
        return torch.squeeze(self.layer(values - self.average), 1)


class PromisingParent(Parent):
    constant_buffers = frozenset({"average"})


class ReplacingParent(PromisingParent):
    def forward(self, values: Tensor) -> Tensor:
        self.average = self.average + values.detach().mean(0)
        return torch.squeeze(self.layer(values), 1)


class Scaled(nn.Module):
    """Divides by public constants."""

    constant_buffers = frozenset({"scale"})
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 4.0]), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return torch.squeeze(self.layer(values / self.scale), 1)


class PastTheLayer(nn.Module):
    """Uses a weight twice: by calling its layer, and again beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        inner = self.first(values).tanh()
        return torch.squeeze(self.last(linear(inner, self.first.weight)), 1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        return torch.squeeze(self.outer(self.inner(self.inner(values))), 1)


class SharedPositions(nn.Module):
    """Looks up positions once for all records."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(3, 2), nn.Linear(2, 1)

    def forward(self, values: Tensor) -> Tensor:
        tokens = values.unsqueeze(2) + self.positions(torch.arange(3))
        return torch.squeeze(self.head(tokens.mean(1)), 1)


class TokensAsUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(1, 4), nn.Linear(12, 1)

    def forward(self, values: Tensor) -> Tensor:
        return torch.squeeze(self.head(self.inner(values.reshape(-1, 1)).view(-1, 12)), 1)


def flat_records() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(RECORDS, 3, generator=generator), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])


def with_norm(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 1), nn.Flatten(0))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Parent(), "Layer model .Parent. has the buffer 'average'.*frozen parameter"),
        (PromisingParent(), "changed the buffer average"),
        (ReplacingParent(), "changed the buffer average"),
        (with_norm(nn.BatchNorm1d(3, affine=False)), "Layer 1 .BatchNorm1d. mixes"),
        (
            with_norm(nn.BatchNorm1d(3, affine=False, track_running_stats=False)),
            "Layer 1 .BatchNorm1d. mixes",
        ),
        (with_norm(nn.Bilinear(3, 3, 3)), "Layer 1 .Bilinear. has trainable .* no rule"),
        (PastTheLayer(), r"lacks gradients, most of first\.weight"),
        (Twice(), "Layer inner is called twice"),
        (SharedPositions(), "Layer positions is applied to 3 rows in a batch of 5"),
        (TokensAsUnits(), "Layer inner is applied to 15 rows in a batch of 5"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_that_cannot_be_private_are_refused_by_name(
    model: nn.Module, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        require_private(model, loss, *flat_records())


def test_a_buffer_that_its_layer_declares_constant_is_allowed() -> None:
    require_private_layers(Scaled())
    require_private(Scaled(), loss, *flat_records())


class Dropping(nn.Module):
    """Dropout, and noise of torch's default generator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 30), nn.Linear(30, 1)

    def forward(self, values: Tensor) -> Tensor:
        inner = dropout(self.first(values).tanh(), 0.5, self.training)
        return torch.squeeze(self.last(inner + 0.1 * torch.randn_like(inner)), 1)


def test_dropout_and_other_noise_per_record_pass() -> None:
    require_private(Dropping(), loss, *flat_records())


@pytest.mark.parametrize("count", [2, 3])
def test_too_few_records_or_labels_are_refused(count: int) -> None:
    values, labels = flat_records()
    with pytest.raises(ValueError, match="3 records or more and as many labels"):
        require_private(nn.Linear(3, 1), loss, values[:count], labels[:2])


def test_records_without_a_finite_loss_are_refused() -> None:
    values, labels = flat_records()
    with pytest.raises(ValueError, match="losses and statistics are finite"):
        require_private(Scaled(), loss, values * torch.nan, labels)


class Draws(NamedTuple):
    few: Tensor
    many: Tensor


@pytest.mark.parametrize(
    "draw",
    [
        lambda rows: torch.rand(rows, 3),
        lambda rows: torch.randn(rows, 3, generator=torch.default_generator),
        lambda rows: torch.randint(100, (rows, 3)),
        lambda rows: torch.empty(rows, 3).uniform_(),
        lambda rows: torch.empty(rows, 3).exponential_(),
        lambda rows: torch.rand_like(torch.empty(rows, 3)),
        lambda rows: torch.bernoulli(torch.full((rows, 3), 0.5)),
        lambda rows: torch.multinomial(torch.ones(rows, 9), 3),
        lambda rows: torch.native_dropout(torch.ones(rows, 3), 0.5, True)[0],
    ],
)
def test_draws_are_the_same_for_every_record_and_whoever_else_is_there(
    draw: Callable[[int], Tensor],
) -> None:
    with SameDraws():
        draws = Draws(few=draw(2), many=draw(4))
    assert draws.many.shape == (4, 3)
    assert draws.many.equal(draws.many[:1].expand(4, 3))
    assert draws.few.equal(draws.many[:2])


def test_draws_outside_go_on_as_if_there_had_been_none() -> None:
    torch.manual_seed(1)
    expected = torch.rand(5)
    torch.manual_seed(1)
    with SameDraws():
        torch.rand(3, 2)
    assert torch.rand(5).equal(expected)
