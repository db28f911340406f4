"""The baseline that most projects use: Opacus in its default mode, which forms every record's gradient.

Opacus knows torch's own layers; the gradients of ours are given here, in the form that it calls.
"""

from collections.abc import Sequence

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import one_hot

from model.moe import GroupedLinear
from model.tokenizers import FeatureLinear
from privacy.dp.clipping import LossPerRecord

# B records, F features, W slots, D width, R expert rows of a record, E experts, I inputs, O outputs


class OpacusHooks:
    """The clipped sum by `GradSampleModule` and the clipping of `DPOptimizer`."""

    def __init__(
        self, model: nn.Module, loss_per_record: LossPerRecord, *, clipping_norm: float, batch: int
    ) -> None:
        register_grad_sampler(FeatureLinear)(feature_linear_gradients)
        register_grad_sampler(GroupedLinear)(grouped_linear_gradients)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._loss_per_record = loss_per_record
        self._model = GradSampleModule(model, loss_reduction="sum")
        self._optimizer = DPOptimizer(
            torch.optim.SGD(trained, lr=0.0),
            noise_multiplier=0.0,
            max_grad_norm=clipping_norm,
            expected_batch_size=batch,
        )
        self._trained = trained

    def __call__(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """The sum of the clipped gradients, one tensor per trained parameter."""
        self._optimizer.zero_grad()
        torch.autograd.backward(self._loss_per_record(self._model(inputs), labels).sum())
        self._optimizer.clip_and_accumulate()
        return [vars(parameter)["summed_grad"] for parameter in self._trained]

    def close(self) -> None:
        """Leaves the model without hooks."""
        self._optimizer.zero_grad()
        self._model.to_standard_module()


def feature_linear_gradients(
    layer: FeatureLinear, inputs: Sequence[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Each record's gradient [B, F, W, D]."""
    return {layer.weight: torch.einsum("bfw,bfd->bfwd", inputs[0], backprops)}


def grouped_linear_gradients(
    layer: GroupedLinear, inputs: Sequence[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Each record's gradient [B, E, I, O]; zero for experts that the record did not visit."""
    rows_BRI, expert_ids_BR = inputs
    visits_BRE = one_hot(expert_ids_BR, layer.weight.shape[0]).to(backprops.dtype)
    formed = [
        torch.bmm((rows_BRI * visits_BR1).transpose(1, 2), backprops)
        for visits_BR1 in visits_BRE.unsqueeze(2).unbind(-1)
    ]
    return {layer.weight: torch.stack(formed, 1)}
