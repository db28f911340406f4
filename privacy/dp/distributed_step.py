"""One gradient step of a federation whose noise is shared among the sites: a site's part of it.

1. units join independently with probability `sample_rate`; their gradients are clipped and added up (as in `dpsgd`);
2. the sum is rounded to integers, 2**(value_bits - 1) of which stand for the range of the secure sum;
3. this site's share of the noise is added: a discrete Gaussian on the same integers. One share alone is less noise than
   the epsilon asks for; the sum over the sites holds the noise of all of them (Kairouz, Liu and Steinke 2021).

Nothing but the secure sum may see the result. Every integer is exact in float32 and in the encoding of the sum, which therefore
adds these integers and no others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.dp.clipping import LossPerRecord, clipped_sum, trainable_parameters
from privacy.dp.distributed import noised_contribution
from privacy.dp.dpsgd import NOISE_MARGINS, TrainingTask, training_mode
from privacy.dp.flat_sum import FlatSum
from privacy.dp.rules import LayerRule
from privacy.dp.share_sizing import size_share
from privacy.dp.unit_sampler import UnitSampler
from privacy.randomness import Random


@dataclass(frozen=True, kw_only=True)
class NoiseShare:
    """What all sites of a sum agree on."""

    honest_sites: int
    """Sites in the sum that keep their share of the noise to themselves."""
    sites: int
    """Most sites in the sum."""
    value_range: float
    """Largest absolute coordinate that the secure sum carries; beyond it a coordinate is clipped."""
    value_bits: int
    """Bits of one site's coordinate in the secure sum, whose own value range is 1."""


def noised_gradient(
    vector_model: nn.Module,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss_per_record: LossPerRecord,
    task: TrainingTask,
    random: Random,
    *,
    share: NoiseShare,
    rules: Mapping[type[nn.Module], LayerRule],
    units: Tensor | None = None,
) -> NDArray[np.float32]:
    """The site's clipped gradient sum with its share of the noise, in units of `value_range` [P], in [-1, 1].

    A frozen parameter's place is 0 without noise; nothing was computed for it. Other arguments as for
    `privacy.dp.dpsgd.train`.

    Args:
        vector_model: the module whose parameters, sorted by name, are the vector.
        model: that module, or one around it that gives its outputs another form. It is not changed.
        inputs: one row per record.
        labels: as many rows.
        loss_per_record: outputs and labels to one loss per record.
        task: its noise multiplier is that of the whole sum; steps, learning rate and optimiser are not used.
        random: `OsRandom` for a real release.
        share: sizes the noise.
        rules: how each kind of layer is clipped.
        units: whose record each is.

    Raises:
        ValueError: a model that cannot be trained privately, or a range too coarse or too narrow for the noise.
    """
    if task.clipping_norm is None:
        raise ValueError("Expected a clipping_norm: distributed noise needs a bound on every unit.")
    trainable = list(trainable_parameters(model).values())
    total = FlatSum(trainable)
    sampler = UnitSampler(
        len(inputs), units, rate=task.sample_rate, batch_records=task.physical_batch_size
    )
    with (
        training_mode(model),
        clipped_sum(
            model,
            loss_per_record,
            clipping_norm=task.clipping_norm,
            engine=task.engine,
            rules=rules,
            precision=task.precision,
        ) as gradient_sum,
    ):
        for records, owners in sampler.draw(random):
            total.add(gradient_sum(inputs[records], labels[records], owners))
    noised = _noised(total.values_P.cpu().numpy(), task, task.clipping_norm, share, random)
    return _in_vector_order(vector_model, trainable, noised)


def _noised(
    total: NDArray[np.float32],
    task: TrainingTask,
    clipping_norm: float,
    share: NoiseShare,
    random: Random,
) -> NDArray[np.float32]:
    """The sum on the integer grid with the share of the noise, divided by the steps of the range."""
    sizing = size_share(
        task.noise_multiplier,
        honest_sites=share.honest_sites,
        sites=share.sites,
        sensitivity=NOISE_MARGINS[task.precision] * clipping_norm / share.value_range,
        coordinates=total.size,
        value_bits=share.value_bits,
    )
    steps = total.astype(np.float64) * (sizing.steps_of_range / share.value_range)
    noised = noised_contribution(
        np.rint(steps).astype(np.int64),
        largest_value=sizing.largest_value,
        deviation=sizing.deviation,
        random=random,
    )
    return (noised / sizing.steps_of_range).astype(np.float32)


def _in_vector_order(
    vector_model: nn.Module, trainable: Iterable[nn.Parameter], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values in the order of the flat model vector: parameters sorted by name, frozen ones 0."""
    pieces, start = {}, 0
    for parameter in trainable:
        pieces[parameter] = values[start : start + parameter.numel()]
        start += parameter.numel()
    return np.concatenate(
        [
            pieces.get(parameter, np.zeros(parameter.numel(), np.float32))
            for _, parameter in sorted(vector_model.named_parameters())
        ]
    )
