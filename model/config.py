"""The shape of the shared model: one frozen configuration, and the tiers that are offered by name."""

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

# A configuration comes over the network: these bounds hold before anything is built.
BOUNDS: dict[str, int] = {
    "width": 8192,
    "layers": 128,
    "heads": 256,
    "kv_heads": 256,
    "experts": 1024,
    "top_k": 64,
    "expert_width": 32768,
}
MAX_GUMBEL_SCALE = 100.0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ModelConfig:
    """Sizes of the mixture-of-experts trunk. Symbols in brackets are the shape suffixes used in the code."""

    width: int
    """Numbers per token [D]; a multiple of `heads` and of 4 (`torch` grouped products need 16-byte rows)."""
    layers: int
    """Blocks of attention and experts [L]."""
    heads: int
    """Attention heads [H]."""
    kv_heads: int
    """Key and value heads, a divisor of `heads` (grouped-query attention)."""
    experts: int
    """Routed experts per block [E]."""
    top_k: int
    """Routed experts that each token visits [K]."""
    expert_width: int
    """Hidden numbers of each expert, shared or routed [I]; a multiple of 4."""
    gumbel_scale: float = 1.0
    """Scale of the Gumbel noise on router scores in training; none at inference."""

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit together or are out of bounds."""
        for name, most in BOUNDS.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"Expected 1 <= {name}={getattr(self, name)} <= {most}.")
        for name, divisor_name, divisor in (
            ("width", "heads", self.heads),
            ("heads", "kv_heads", self.kv_heads),
            ("width", "4", 4),
            ("expert_width", "4", 4),
        ):
            if getattr(self, name) % divisor:
                shown = divisor_name if divisor_name == "4" else f"{divisor_name}={divisor}"
                raise ValueError(
                    f"Expected {name}={getattr(self, name)} to be a multiple of {shown}."
                )
        if self.top_k > self.experts:
            raise ValueError(f"Expected top_k={self.top_k} <= experts={self.experts}.")
        if not 0.0 <= self.gumbel_scale <= MAX_GUMBEL_SCALE:
            raise ValueError(
                f"Expected 0 <= gumbel_scale={self.gumbel_scale} <= {MAX_GUMBEL_SCALE}."
            )


TIERS: dict[str, ModelConfig] = {
    # For tables of a few hundred people per site: 100 patients cannot fill more, and noise grows with size.
    "cpu-small": ModelConfig(
        width=32, layers=2, heads=4, kv_heads=4, experts=4, top_k=2, expert_width=32
    ),
    # For tables of thousands of people on a machine without an accelerator.
    "cpu-demo": ModelConfig(
        width=128, layers=4, heads=4, kv_heads=4, experts=8, top_k=2, expert_width=64
    ),
}
