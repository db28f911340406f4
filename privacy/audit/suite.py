"""The whole audit of one implementation: its noise, its sensitivity, its canaries, and the variants that must fail.

1. noise, over nobody and over canaries whose values are 1;
2. sensitivity of the clipped sum on the real model;
3. canaries through the real training loop: Gaussian audit and one-run audit;
4. every variant of `privacy.audit.controls`, by a test that has the power to see it.

Each line fails correct code with probability at most `ERROR`; the report adds them up. Attacks on what the coordinator
sees (`inversion`, `membership`) need a federation and are run where one is (`sims attack`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from privacy.audit.canaries import (
    CLIPPING_NORM,
    audit_gaussian,
    audit_one_run,
    canary_task,
    run_canaries,
)
from privacy.audit.controls import (
    BrokenBatchLoss,
    broken_counting_twice,
    broken_half_noise,
    broken_records_as_units,
    broken_stale_norms,
    broken_unclipped_sum,
    broken_without_clipping,
    broken_without_noise,
)
from privacy.audit.noise import (
    Float32,
    audit_noise,
    audit_reachability,
    audit_reuse,
    coordinates_needed,
)
from privacy.audit.report import AuditLine, AuditReport, control
from privacy.audit.sensitivity import audit_sensitivity
from privacy.audit.subject import Batch, OpenSum, Train
from privacy.dp.clipping import LossPerRecord, PlainSum, trainable_parameters
from privacy.dp.dpsgd import TrainingTask
from privacy.randomness import Random

ERROR = 1e-6
"""Probability with which each line may flag correct code: below 1e-4 for all lines together."""
DELTA = 1e-5
ONE_RUN_DELTA = 1e-10
"""In one run, delta may explain 2 * canaries * delta guesses: at 1e-5 no bound with so small an error is left."""
IMMENSE_LABEL = 1000.0
"""A label far outside 0 to 1 makes a loss, and a gradient, as far outside the usual."""
NOISE_TASK = canary_task(sample_rate=1.0, steps=1, noise_multiplier=1.0)
GAUSSIAN_TASK = canary_task(sample_rate=1.0, steps=4, noise_multiplier=2.0)
ONE_RUN_TASK = canary_task(sample_rate=0.25, steps=20, noise_multiplier=4.0)


@dataclass(frozen=True, kw_only=True)
class AuditSize:
    """How much is drawn. More sees smaller errors."""

    reachability_coordinates: int = 1 << 17
    gaussian_canaries: int = 20_000
    one_run_canaries: int = 20_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The implementation under audit, and a batch that breaks bad ones."""

    train: Train
    open_sum: OpenSum
    grid_of: Callable[[float, int], float] | None
    """Bound of a sum and its dimension -> declared step of the released values; None if none is declared."""
    model: nn.Module
    """The real model, deterministic, weights such that every parameter has a gradient."""
    loss_per_record: LossPerRecord
    batch: Batch = field(repr=False)
    """An outlier as its first unit, persons with several records, and the units `not_finite`."""
    later: Batch = field(repr=False)
    """Few records, so that some experts of the batch get none; see `arrange`."""
    not_finite: tuple[int, ...]
    clipping_norm: float


def audit(
    subject: Subject,
    random: Random,
    *,
    size: AuditSize | None = None,
    progress: Callable[[AuditLine], None] | None = None,
) -> AuditReport:
    """Runs all tests and all negative controls.

    Args:
        subject: what is audited.
        random: source of training's randomness and of the auditor's coins.
        size: how much is drawn.
        progress: told each line as soon as it is known.
    """
    lines = []
    for line in _lines(subject, random, size or AuditSize()):
        lines.append(line)
        if progress is not None:
            progress(line)
    return AuditReport(lines=tuple(lines))


def _lines(subject: Subject, random: Random, size: AuditSize) -> Iterator[AuditLine]:
    yield from correct_lines(subject, random, size)
    yield from control_lines(subject, random, size)


def correct_lines(subject: Subject, random: Random, size: AuditSize) -> Iterator[AuditLine]:
    """Every test of the implementation as it is."""
    yield from noise_lines(subject, random, size)
    yield from sensitivity_lines(subject)
    yield _gaussian(subject.train, random, size)
    yield _one_run(subject.train, random, size)


def noise_lines(subject: Subject, random: Random, size: AuditSize) -> Iterator[AuditLine]:
    """Tests of what a step over nobody releases, and of 0 against 1."""
    first, second = (_noise(subject.train, random) for _ in range(2))
    grid = _grid(subject, NOISE_TASK, len(first))
    deviation = NOISE_TASK.noise_multiplier * CLIPPING_NORM
    yield from audit_noise(first, deviation=deviation, error=ERROR, grid=grid)
    yield audit_reuse(first, second, error=ERROR)
    weights = size.reachability_coordinates
    zero, one = (
        run_canaries(subject.train, NOISE_TASK, random, weights=weights, present=np.arange(count))
        for count in (0, weights)
    )
    yield audit_reachability(zero, one)


def sensitivity_lines(subject: Subject) -> tuple[AuditLine, ...]:
    """The sensitivity test on the subject's model."""
    return _sensitivity(subject, subject.open_sum, subject.loss_per_record)


def control_lines(subject: Subject, random: Random, size: AuditSize) -> Iterator[AuditLine]:
    """Every broken variant, by a test that must notice it."""
    for name, broken in (
        ("no noise", broken_without_noise(subject.train)),
        ("half the noise", broken_half_noise(subject.train)),
    ):
        noise = _noise(broken, random)
        grid = _grid(subject, NOISE_TASK, len(noise))
        deviation, *_ = audit_noise(noise, deviation=CLIPPING_NORM, error=ERROR, grid=grid)
        yield control(f"control: {name}", deviation)
        yield control(f"control: {name}", _gaussian(broken, random, size))
    for name, broken in (
        ("no clipping", broken_without_clipping(subject.train)),
        ("a person counted twice", broken_counting_twice(subject.train)),
    ):
        yield control(f"control: {name}", _gaussian(broken, random, size))
    loud = broken_without_clipping(subject.train)
    yield control("control: no clipping", _one_run(loud, random, size))
    yield from _sum_controls(subject)


def _sum_controls(subject: Subject) -> Iterator[AuditLine]:
    honest, loss = subject.open_sum, subject.loss_per_record
    for name, open_sum, loss_per_record, test in (
        ("no clipping", broken_unclipped_sum(honest), loss, 0),
        ("a person's records clipped one by one", broken_records_as_units(honest), loss, 0),
        ("batch-coupled loss", honest, BrokenBatchLoss(loss), 0),
        ("stale expert norms", broken_stale_norms(honest), loss, 2),
    ):
        lines = _sensitivity(subject, open_sum, loss_per_record)
        yield control(f"control: {name}", lines[test])


def _sensitivity(
    subject: Subject, open_sum: OpenSum, loss_per_record: LossPerRecord
) -> tuple[AuditLine, ...]:
    return audit_sensitivity(
        open_sum,
        subject.model,
        loss_per_record,
        subject.batch,
        later=subject.later,
        clipping_norm=subject.clipping_norm,
        not_finite=subject.not_finite,
    )


def _noise(train: Train, random: Random) -> Float32:
    return run_canaries(
        train,
        NOISE_TASK,
        random,
        weights=coordinates_needed(ERROR),
        present=np.zeros(0, dtype=np.int64),
    )


def _gaussian(train: Train, random: Random, size: AuditSize) -> AuditLine:
    return audit_gaussian(
        train, GAUSSIAN_TASK, random, canaries=size.gaussian_canaries, delta=DELTA, error=ERROR
    )


def _one_run(train: Train, random: Random, size: AuditSize) -> AuditLine:
    return audit_one_run(
        train,
        ONE_RUN_TASK,
        random,
        canaries=size.one_run_canaries,
        delta=ONE_RUN_DELTA,
        error=ERROR,
    )


def _grid(subject: Subject, task: TrainingTask, dimension: int) -> float | None:
    if subject.grid_of is None or task.clipping_norm is None:
        return None
    return subject.grid_of(task.clipping_norm, dimension)


def scramble(model: nn.Module, *, seed: int, scale: float = 0.3) -> None:
    """Adds normal numbers to every weight, so that none starts at zero and each has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def hostile(batch: Batch, *, outlier: int, not_finite: int) -> Batch:
    """The batch with a unit whose gradient is immense, and one whose labels are not numbers."""
    labels = batch.labels.clone()
    labels[batch.owners == outlier] = IMMENSE_LABEL
    labels[batch.owners == not_finite] = torch.nan
    return replace(batch, labels=labels)


def arrange(
    model: nn.Module, loss_per_record: LossPerRecord, pool: Batch, *, units: int
) -> tuple[Batch, Batch]:
    """A batch of `units` units and a later one of a single unit that leaves alone an expert of the batch's first unit.

    Only so can norms that a layer kept from the batch before do harm, and be seen. Which experts a unit uses is read off
    its gradient: a slice of a stacked parameter that is zero was not used.

    Raises:
        ValueError: too few units in the pool, or all of them use the same experts.
    """
    if pool.unit_count <= units:
        raise ValueError(f"Expected a pool of more than {units} units, got {pool.unit_count}.")
    used_US = _used_slices(model, loss_per_record, pool)
    # [i, j]: slices that unit i uses and unit j does not.
    only_UU = (used_US.unsqueeze(1) & ~used_US.unsqueeze(0)).sum(2)
    if not bool(only_UU.any()):
        raise ValueError("Expected units that use different experts, all use the same.")
    first, later = divmod(int(only_UU.argmax()), pool.unit_count)
    others = [unit for unit in range(pool.unit_count) if unit not in (first, later)]
    chosen = [first, *others[: units - 1]]
    rows = [torch.nonzero(pool.owners == unit).flatten() for unit in chosen]
    owners = [torch.full((len(of_unit),), place) for place, of_unit in enumerate(rows)]
    batch = Batch(
        inputs=pool.inputs[torch.cat(rows)],
        labels=pool.labels[torch.cat(rows)],
        units=None if pool.units is None else torch.cat(owners),
    )
    return batch, pool.only(later)


def _used_slices(model: nn.Module, loss_per_record: LossPerRecord, pool: Batch) -> torch.Tensor:
    """Which slices of the stacked (three-dimensional) parameters each unit's gradient reaches, bool [U, S]."""
    alone = PlainSum(model, loss_per_record)
    parameters = list(trainable_parameters(model).values())
    rows = []
    for unit in range(pool.unit_count):
        own = pool.only(unit)
        sums = alone(own.inputs, own.labels, own.units).gradients
        reached = [
            torch.zeros(len(parameter), dtype=torch.bool)
            if piece is None
            else piece.flatten(1).any(1)
            for parameter, piece in zip(parameters, sums, strict=True)
            if parameter.dim() == 3
        ]
        rows.append(torch.cat([torch.zeros(0, dtype=torch.bool), *reached]))
    return torch.stack(rows)
