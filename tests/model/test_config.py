import pytest
from pydantic import TypeAdapter

from model.config import TIERS, ModelConfig

SIZES = {
    "width": 16,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "experts": 4,
    "top_k": 2,
    "expert_width": 8,
}


@pytest.mark.parametrize("tier", TIERS)
def test_tiers_survive_json(tier):
    adapter = TypeAdapter(ModelConfig)

    assert adapter.validate_json(adapter.dump_json(TIERS[tier])) == TIERS[tier]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, r"width=0 <="),
        ("width", 8196, r"width=8196 <= 8192"),
        ("width", 18, r"width=18 to be a multiple of heads=4"),
        ("heads", 8192, r"heads=8192 <= 256"),
        ("kv_heads", 3, r"heads=4 to be a multiple of kv_heads=3"),
        ("layers", -1, r"layers=-1"),
        ("layers", 129, r"layers=129 <= 128"),
        ("experts", 1, r"top_k=2 <= experts=1"),
        ("top_k", 0, r"top_k=0"),
        ("expert_width", 6, r"expert_width=6 to be a multiple of 4"),
        ("gumbel_scale", -0.5, r"gumbel_scale=-0.5"),
        ("gumbel_scale", 1e6, r"gumbel_scale=1000000"),
        ("gumbel_scale", float("nan"), r"gumbel_scale"),
        ("width", "wide", r"width"),
        ("depth", 3, r"depth"),
    ],
)
def test_size_that_does_not_fit_is_refused_by_name_and_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(ModelConfig).validate_python(SIZES | {field: value})


def test_width_must_fit_the_grouped_product():
    with pytest.raises(ValueError, match="width=6 to be a multiple of 4"):
        ModelConfig(**SIZES | {"width": 6, "heads": 2, "kv_heads": 2})
