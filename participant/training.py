"""Local training: from the shared model and the site's records to an update that may be released.

One loop serves both cases. With differential privacy every step clips each patient's gradient and adds noise, so the
result is a `NoisedUpdate`; without it the result is a `ModelUpdate`, which the release gate lets pass only where the
site's own policy does not demand privacy.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from coordinator.wire.contribution import LOSS_CAP
from coordinator.wire.plan import RoundPlan
from model.build import TabularModel, build_model
from model.grad_sample import register_samplers
from model.parameters import load_vector, model_to_vector
from participant.data import SiteData
from privacy.dp.dpsgd import TrainingTask, train
from privacy.dp.updates import ModelUpdate, NoisedUpdate, update_of
from privacy.randomness import OsRandom, Random, SeededRandom

EVALUATION_ROWS = 1024


def training_task(plan: RoundPlan, *, patients: float) -> TrainingTask:
    """The public parameters of the training that a plan asks for.

    Args:
        plan: the round's plan.
        patients: the site's number of training patients as released, at least 1: batches are divided by their expected
            size, which must not depend on anybody's presence.
    """
    is_private = plan.privacy.mechanism == "dp-sgd"
    return TrainingTask(
        steps=plan.training.local_steps,
        sample_rate=plan.training.sample_rate,
        learning_rate=plan.training.learning_rate,
        optimizer=plan.training.optimizer,
        expected_batch_size=plan.training.sample_rate * max(1.0, patients),
        proximal_mu=plan.training.proximal_mu,
        clipping_norm=plan.privacy.clipping_norm if is_private else None,
        noise_multiplier=plan.privacy.noise_multiplier if is_private else 0.0,
    )


def training_random(plan: RoundPlan, site: str) -> Random:
    """The operating system's randomness, or a rehearsal's, which depends on seed, round and site alone."""
    if plan.seed is None or plan.privacy.mechanism != "none":
        return OsRandom()
    return SeededRandom(plan.seed, "training", str(plan.round), site)


def train_update(
    plan: RoundPlan,
    data: SiteData,
    *,
    base: NDArray[np.float32],
    patients: float,
    random: Random,
    progress: Callable[[int], None] | None = None,
) -> ModelUpdate | NoisedUpdate:
    """Trains from `base` [P] on the site's records for the steps that the plan asks for.

    Raises:
        ValueError: the model cannot be trained under the plan, or training diverged; nothing has left the site.
    """
    register_samplers()
    model = _model(plan, base)
    model.use_noise_generator(random.torch_generator())
    task = training_task(plan, patients=patients)
    inputs, labels = torch.from_numpy(data.values_NF), torch.from_numpy(data.labels_N)
    summary = train(model, inputs, labels, binary_loss, task, random, progress)
    return update_of(start=base, trained=model_to_vector(model), summary=summary)


def clipped_losses(
    plan: RoundPlan, data: SiteData, *, base: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Loss of the base model on every record, clipped to [0, LOSS_CAP] [N]; not yet protected."""
    model = _model(plan, base).eval()
    losses = []
    with torch.inference_mode():
        for start in range(0, len(data.labels_N), EVALUATION_ROWS):
            rows = slice(start, start + EVALUATION_ROWS)
            logits = model(torch.from_numpy(data.values_NF[rows]))
            losses.append(binary_loss(logits, torch.from_numpy(data.labels_N[rows])).numpy())
    raw = np.concatenate(losses).astype(np.float64)
    return np.clip(np.nan_to_num(raw, nan=LOSS_CAP, posinf=LOSS_CAP), 0.0, LOSS_CAP)


def binary_loss(logits_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each patient [B]."""
    return binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")


def _model(plan: RoundPlan, base: NDArray[np.float32]) -> TabularModel:
    model = build_model(plan.model, plan.table, seed=0)
    load_vector(model, base)
    return model
