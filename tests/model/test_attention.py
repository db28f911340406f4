import dataclasses
import math

import pytest
import torch

from model.attention import Attention


def attention_one_head_at_a_time(layer, tokens, heads, kv_heads):
    query = layer.query(tokens).chunk(heads, dim=-1)
    key, value = (half.chunk(kv_heads, dim=-1) for half in layer.key_value(tokens).chunk(2, dim=-1))
    mixed = []
    for head in range(heads):
        group = head * kv_heads // heads
        scores = query[head] @ key[group].transpose(1, 2) / math.sqrt(layer.head_width)
        mixed.append(scores.softmax(-1) @ value[group])
    return layer.output(torch.cat(mixed, dim=-1))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_one_head_at_a_time(kv_heads, config):
    layer = Attention(dataclasses.replace(config, kv_heads=kv_heads))
    tokens = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))

    expected = attention_one_head_at_a_time(layer, tokens, 4, kv_heads)

    torch.testing.assert_close(layer(tokens, 5), expected)
    torch.testing.assert_close(layer(tokens, 2), expected[:, :2])
