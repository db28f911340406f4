import pytest
import torch


@pytest.fixture
def trunk(model):
    return model.trunk.eval()


@pytest.fixture
def tokens():
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))


def test_last_block_computes_of_the_cls_token_what_a_whole_block_would(trunk, tokens):
    first, last = trunk.blocks
    whole, _ = last(first(tokens, 5, None)[0], 5, None)

    torch.testing.assert_close(trunk(tokens)[0], whole[:, 0])


def test_tokens_of_the_columns_are_a_set(trunk, tokens):
    torch.testing.assert_close(trunk(tokens[:, [0, 4, 2, 1, 3]])[0], trunk(tokens)[0])


def test_every_block_tells_its_routing_and_the_last_that_of_the_cls_token_only(trunk, tokens):
    _, routings = trunk(tokens)

    assert [tuple(routing.ids_BTK.shape) for routing in routings] == [(3, 5, 2), (3, 1, 2)]


def test_modules_keep_nothing_of_the_records(trunk, tokens):
    trunk.train()
    before = [dict(vars(module)) for module in trunk.modules()]

    trunk(tokens)

    assert [dict(vars(module)) for module in trunk.modules()] == before
