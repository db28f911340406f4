"""From a configuration and a published table to a model whose first weights depend on the seed alone."""

import math

import torch
from torch import nn

from model.config import ModelConfig
from model.heads import BinaryHead
from model.moe import GroupedLinear, Router, Routing
from model.parameters import parameter_layout
from model.schema import TableSchema
from model.tokenizers import FeatureLinear, TabularEncoder
from model.trunk import Trunk

# B rows, C columns, F tokens, W slots of the widest column

MAX_SEED = 2**63 - 1
RESIDUAL_OUTPUTS = ("attention.output.weight", "moe.shared_down.weight", "moe.routed_down.weight")


class TabularModel(nn.Module):
    """The tabular member of the shared mixture-of-experts model.

    Every parameter belongs to a Linear, RMSNorm, FeatureLinear or GroupedLinear, but for the frozen balance biases of
    the routers, which training never touches; there is no buffer.
    """

    def __init__(self, config: ModelConfig, table: TableSchema) -> None:
        super().__init__()
        self.encoder = TabularEncoder(table)
        self.features = FeatureLinear(*table.encoding_shape, config.width)
        self.trunk = Trunk(config)
        self.head = BinaryHead(table.flat_encoding_width, config.width)

    def forward(self, values_BC: torch.Tensor) -> torch.Tensor:
        """Log-odds of the positive class [B] for rows of values, NaN where missing; B may be 0."""
        return self.logits_and_routing(values_BC)[0]

    def logits_and_routing(
        self, values_BC: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[Routing, ...]]:
        """The logits [B] and the routing of each block; the last block routes the CLS token only."""
        encoding_BFW = self.encoder.encode(values_BC)
        cls_BD, routings = self.trunk(self.features(encoding_BFW))
        return self.head(self.encoder.flatten(encoding_BFW), cls_BD), routings

    def use_checkpointing(self, is_wanted: bool) -> None:
        """Whether blocks are computed a second time on the way back instead of kept; the numbers are the same."""
        self.trunk.is_checkpointing = is_wanted

    def use_noise_generator(self, generator: torch.Generator | None) -> None:
        """Draws the routing noise of training from `generator`; None is torch's default generator."""
        for module in self.modules():
            if isinstance(module, Router):
                module.noise_generator = generator


def build_model(config: ModelConfig, table: TableSchema, *, seed: int) -> TabularModel:
    """A model in training mode with fresh weights: the same for the same arguments, whatever was drawn before.

    Torch's global random state is left as it was.

    Raises:
        ValueError: the seed is out of range, or the model has too many parameters.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"Expected 0 <= seed={seed} <= {MAX_SEED}.")
    parameter_layout(config, table)  # refuses what is too large, before memory is taken
    with torch.random.fork_rng(devices=[]):
        model = TabularModel(config, table)
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            owner, _, _ = name.rpartition(".")
            _initialise(name, parameter, modules[owner], config.layers, generator)
    return model


def _initialise(
    name: str, parameter: nn.Parameter, owner: nn.Module, layers: int, generator: torch.Generator
) -> None:
    """Norms at 1, head and balance biases at 0, others normal with variance 1 / inputs.

    What adds to the residual stream is scaled down.
    """
    if isinstance(owner, nn.RMSNorm):
        parameter.fill_(1.0)
    elif name.startswith("head.") or isinstance(owner, Router):
        parameter.zero_()
    else:
        # Of the slots of a column about two are not 0, whatever their number.
        inputs = 2 if isinstance(owner, FeatureLinear) else _inputs(parameter, owner)
        scale = math.sqrt(2 * layers) if name.endswith(RESIDUAL_OUTPUTS) else 1.0
        parameter.normal_(0.0, 1.0 / (math.sqrt(inputs) * scale), generator=generator)


def _inputs(parameter: nn.Parameter, owner: nn.Module) -> int:
    return parameter.shape[1 if isinstance(owner, GroupedLinear) else -1]
