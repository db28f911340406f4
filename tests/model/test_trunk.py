import torch


def test_last_block_computes_of_the_cls_token_what_a_whole_block_would(model):
    trunk = model.trunk.eval()
    tokens = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))

    first, last = trunk.blocks
    whole = last(first(tokens, 5), 5)

    torch.testing.assert_close(trunk(tokens), whole[:, 0])


def test_tokens_of_the_columns_are_a_set(model):
    trunk = model.trunk.eval()
    tokens = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(trunk(tokens[:, [0, 4, 2, 1, 3]]), trunk(tokens))
