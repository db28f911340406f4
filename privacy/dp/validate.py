"""Whether a model can be trained privately: found out before any real record is touched.

1. Layers are looked at (`require_private_layers`): every trainable parameter has a rule and one owner, no layer mixes
   the units of a batch, no buffer could carry records past the clipping.
2. The model is tried on synthetic records, twice, with weights moved at random from where gradients vanish:
   a. each record in turn is taken away, and each is run alone: losses, statistics and gradients of those that are there
      must stay as they are, up to rounding. A balance loss over the batch, a capacity of experts, a statistic of the
      batch do not pass;
   b. the engine's clipped sum must be that of autograd, one record at a time. A weight used outside its layer, a layer
      that sees tokens instead of records or is called twice do not pass;
   c. no buffer may have changed.

Random draws in the model are the same for every record meanwhile (`privacy.dp.same_draws`).

A trial is no proof: a model that couples records only under circumstances that the synthetic records do not meet passes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from privacy.dp.bookkeeping import BookKeeping
from privacy.dp.rules import STANDARD_RULES, LayerRule, covered_layers, trainable_parameters
from privacy.dp.same_draws import SameDraws
from privacy.dp.unit_batch import (
    LossPerRecord,
    StatisticsPerRecord,
    UnitBatch,
    UnitOutcome,
    evaluate,
)

# N records, P parameters, S statistics

FEWEST_RECORDS = 3
TOLERANCE = 2e-5
"""Relative to the norm of a record's gradient, or to its loss; float32 rounding moved either by up to 5e-7 of it."""
LEAST_NORM = 1e-4
"""Gradients smaller than this part of the largest count as this large: their rounding is that of the larger ones."""
DISTURBANCE_SEEDS = (1, 2)
NO_CLIPPING = 1e30


def require_private(
    model: nn.Module,
    loss_per_record: LossPerRecord,
    inputs: Tensor,
    labels: Tensor,
    *,
    rules: Mapping[type[nn.Module], LayerRule] = STANDARD_RULES,
    statistics: StatisticsPerRecord | None = None,
) -> None:
    """Checks that the model can be trained with the guarantees of `privacy.dp.clipping`; leaves it as it was.

    Costs about 3 N backward passes for each of two draws of weights, and memory for 2 N gradients.

    Args:
        model: float32 or float64.
        loss_per_record: as for training.
        inputs: synthetic records, at least `FEWEST_RECORDS`, different from each other; 4 to 6 are enough.
        labels: as many rows.
        rules: as for training.
        statistics: as for training.

    Raises:
        ValueError: the model cannot be trained privately; the message names the layer or parameter and what to do.
    """
    if len(inputs) < FEWEST_RECORDS or len(inputs) != len(labels):
        raise ValueError(
            f"Expected {FEWEST_RECORDS} records or more and as many labels, got {len(inputs)} and {len(labels)}."
        )
    require_private_layers(model, rules)
    records = torch.arange(len(inputs))
    for seed in DISTURBANCE_SEEDS:
        with _disturbed(model, seed), SameDraws():
            trial = _Trial(model, loss_per_record, statistics, inputs, labels)
            for record in records:
                trial.require_independence(records[records != record])
                trial.require_independence(record.unsqueeze(0))
            trial.require_engine_agrees(rules)


def require_private_layers(
    model: nn.Module, rules: Mapping[type[nn.Module], LayerRule] = STANDARD_RULES
) -> None:
    """The part of `require_private` that needs no record.

    A buffer is allowed where the type of its layer names it in a class attribute `constant_buffers`: a promise that
    nothing ever writes to it.

    Raises:
        ValueError: see `require_private`.
    """
    covered_layers(model, rules)
    for name, layer in model.named_modules():
        constant = getattr(type(layer), "constant_buffers", ())
        for own_name, _ in layer.named_buffers(recurse=False):
            if own_name not in constant:
                raise ValueError(
                    f"Layer {name or 'model'} ({type(layer).__name__}) has the buffer {own_name!r}, which is neither "
                    "clipped nor noised. Remove it, make it a frozen parameter, or name it in the class attribute "
                    "`constant_buffers` if nothing ever writes to it."
                )


class _Trial:
    """Runs batches of the synthetic records through autograd and through the engine."""

    def __init__(
        self,
        model: nn.Module,
        loss_per_record: LossPerRecord,
        statistics: StatisticsPerRecord | None,
        inputs: Tensor,
        labels: Tensor,
    ) -> None:
        self._model = model
        self._loss_per_record = loss_per_record
        self._statistics = statistics
        self._inputs = inputs
        self._labels = labels
        self._parameters = trainable_parameters(model)
        self._everybody = self._run(torch.arange(len(inputs)))
        losses_N = self._everybody.losses_U
        # Different weights, so that what one record loses is not hidden by what another gains.
        self._weights_N = torch.linspace(1.0, 2.0, len(inputs)).to(losses_N)
        self._gradients_NP = torch.stack([self._gradient(loss) for loss in losses_N])
        self._norms_N = _norms(self._gradients_NP)

    def require_independence(self, some: Tensor) -> None:
        """Raises ValueError if some of the records notice that the others are absent."""
        alone, together_N = self._run(some), self._everybody.losses_U.detach()[some]
        moved_N = (alone.losses_U.detach() - together_N).abs()
        if (moved_N > TOLERANCE * (1.0 + together_N.abs())).any():
            raise ValueError(
                "The losses of some records change when others are taken away: the loss or a layer mixes the records "
                "of a batch. Use losses per record, and layers without statistics over the batch."
            )
        if alone.statistics_US is not None and self._everybody.statistics_US is not None:
            moved_NS = alone.statistics_US - self._everybody.statistics_US[some]
            if (_norms(moved_NS) > TOLERANCE).any():
                raise ValueError(
                    "The statistics of some records change when others are taken away. Compute them record by record."
                )
        weights_N = self._weights_N[some]
        moved_P = self._gradient(weights_N @ alone.losses_U) - weights_N @ self._gradients_NP[some]
        size = (weights_N @ self._norms_N[some]).clamp(min=LEAST_NORM * self._norms_N.max())
        if not _norms(moved_P) <= TOLERANCE * size:
            raise ValueError(
                f"The gradients of some records, most in {self._worst(moved_P)}, change when others are taken away: "
                "the loss or a layer mixes the records of a batch. Use losses per record, route every token, and move "
                "biases between rounds only."
            )

    def require_engine_agrees(self, rules: Mapping[type[nn.Module], LayerRule]) -> None:
        """Raises ValueError if the engine adds up other gradients than autograd, or clips them otherwise."""
        norms_N = self._norms_N
        smallest = norms_N[norms_N > 0].min() if norms_N.any() else norms_N.new_ones(())
        for clipping_norm in (NO_CLIPPING, 0.5 * float(smallest)):
            weights_N = (clipping_norm / norms_N.clamp(min=1e-30)).clamp(max=1.0)
            missing_P = self._clipped_sum(clipping_norm, rules) - weights_N @ self._gradients_NP
            if not _norms(missing_P) <= TOLERANCE * (weights_N @ norms_N):
                raise ValueError(
                    f"The clipped sum lacks gradients, most of {self._worst(missing_P)}: it is used outside the forward "
                    "call of its layer, or its layer computes something else than its rule knows. Call the layer "
                    "instead of using its weight."
                )

    def _clipped_sum(
        self, clipping_norm: float, rules: Mapping[type[nn.Module], LayerRule]
    ) -> Tensor:
        engine = BookKeeping(
            self._model,
            self._loss_per_record,
            clipping_norm=clipping_norm,
            rules=rules,
            statistics=self._statistics,
        )
        with engine as gradient_sum:
            return self._flat(gradient_sum(self._inputs, self._labels).gradients)

    def _run(self, records: Tensor) -> UnitOutcome:
        """The losses, with their graph, and statistics of a batch of the given records."""
        buffers = {name: value.clone() for name, value in self._model.named_buffers()}
        batch = UnitBatch.of(self._inputs[records], self._labels[records], None)
        outcome = evaluate(self._model, self._loss_per_record, self._statistics, batch)
        if not outcome.is_finite_U.all():
            raise ValueError("Expected synthetic records whose losses and statistics are finite.")
        for name, value in self._model.named_buffers():
            if name not in buffers or not torch.equal(value, buffers[name]):
                raise ValueError(
                    f"The forward pass changed the buffer {name}, which is neither clipped nor noised. Remove it."
                )
        return outcome

    def _gradient(self, loss: Tensor) -> Tensor:
        parameters = list(self._parameters.values())
        return self._flat(
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        )

    def _flat(self, pieces: Sequence[Tensor | None]) -> Tensor:
        return torch.cat(
            [
                torch.zeros_like(value).flatten() if piece is None else piece.flatten()
                for value, piece in zip(self._parameters.values(), pieces, strict=True)
            ]
        ).detach()

    def _worst(self, differences_P: Tensor) -> str:
        sizes = [value.numel() for value in self._parameters.values()]
        largest = [float(piece.square().sum()) for piece in differences_P.split(sizes)]
        return list(self._parameters)[largest.index(max(largest))]


def _norms(rows: Tensor) -> Tensor:
    return rows.square().sum(-1).sqrt()


@contextmanager
def _disturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Training mode and moved weights inside, because many layers begin at 0 and show no gradient; all as before after.

    Frozen parameters keep their values: they are not the model's to move.
    """
    modes = [(module, module.training) for module in model.modules()]
    weights = [(value, value.detach().clone()) for value in model.parameters()]
    buffers = [
        (module, name, value, value.clone())
        for module in model.modules()
        for name, value in module.named_buffers(recurse=False)
    ]
    generator = torch.Generator().manual_seed(seed)
    try:
        model.train()
        with torch.no_grad():
            for value in trainable_parameters(model).values():
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                inputs = value[0].numel() if value.dim() > 1 else 100
                value.add_(noise.to(value.device) * inputs**-0.5)
        yield
    finally:
        with torch.no_grad():
            for value, before in weights:
                value.copy_(before)
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))
        for module, was_training in modes:
            module.training = was_training
