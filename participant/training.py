"""Local training: from the shared model and the site's records to an update that may be released.

One loop serves all cases. With differential privacy every step clips each patient's gradient and adds noise, so the
result is a `NoisedUpdate`; without it the result is a `ModelUpdate`, which the release gate lets pass only where the
site's own policy does not demand privacy. With distributed noise the update is one noised gradient sum.

Before the first private training under a model and a table, both are probed on made-up records: a model in which one
record influences another, or a parameter that clipping would miss, is refused before a real record is touched.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from coordinator.wire.charges import gradient_event
from coordinator.wire.contribution import LOSS_CAP
from coordinator.wire.plan import RoundPlan
from model.build import TabularModel, build_model
from model.config import ModelConfig
from model.gradient_rules import MODEL_RULES
from model.parameters import load_vector, model_to_vector
from model.routing import RoutedModel, RoutedOutput, load_count
from model.schema import TableSchema
from model.synthetic import synthetic_labels, synthetic_rows
from participant.config import TrainingSettings
from participant.data import SiteData
from participant.release import Evaluation
from privacy.dp.clipping import LossPerRecord
from privacy.dp.distributed_step import NoiseShare, noised_gradient
from privacy.dp.dpsgd import Statistics, TrainingTask, train
from privacy.dp.rules import STANDARD_RULES
from privacy.dp.updates import ModelUpdate, NoisedUpdate, update_of
from privacy.dp.validate import require_private
from privacy.randomness import OsRandom, Random, SeededRandom

# B records, U patients

RULES = {**STANDARD_RULES, **MODEL_RULES}
EVALUATION_ROWS = 1024
PROBE_RECORDS = 4
PROBE_SEED = 1
DEFAULT_SETTINGS = TrainingSettings()

_probing = threading.Lock()


def training_task(
    plan: RoundPlan, *, patients: float, settings: TrainingSettings = DEFAULT_SETTINGS
) -> TrainingTask:
    """The public parameters of the training that a plan asks for.

    Args:
        plan: the round's plan.
        patients: the site's number of training patients as released, at least 1: batches are divided by their expected
            size, which must not depend on anybody's presence.
        settings: the site's own choices.
    """
    privacy, training = plan.privacy, plan.training
    return TrainingTask(
        steps=training.local_steps,
        sample_rate=training.sample_rate,
        learning_rate=training.learning_rate,
        optimizer=training.optimizer,
        expected_batch_size=training.sample_rate * max(1.0, patients),
        proximal_mu=training.proximal_mu,
        clipping_norm=privacy.clipping_norm if privacy.is_private else None,
        noise_multiplier=privacy.noise_multiplier if privacy.is_private else 0.0,
        statistics_noise_multiplier=privacy.load_noise_multiplier,
        engine=settings.dp_engine,
        precision=settings.precision,
    )


def site_random(plan: RoundPlan, site: str, purpose: Literal["training", "rounding"]) -> Random:
    """The operating system's randomness, or a rehearsal's, which depends on seed, purpose, round and site alone."""
    if plan.seed is None or plan.privacy.is_private:
        return OsRandom()
    return SeededRandom(plan.seed, purpose, str(plan.round), site)


def train_update(
    plan: RoundPlan,
    data: SiteData,
    *,
    base: NDArray[np.float32],
    patients: float,
    random: Random,
    settings: TrainingSettings = DEFAULT_SETTINGS,
    progress: Callable[[int], None] | None = None,
) -> ModelUpdate | NoisedUpdate:
    """Trains from `base` [P] on the site's records for the steps that the plan asks for.

    Raises:
        ValueError: the model cannot be trained under the plan, or training diverged; nothing has left the site.
    """
    if plan.privacy.is_private:
        require_private_model(plan.model, plan.table, plan.training.balance_loss)
    model = _model(plan, base)
    model.use_noise_generator(random.torch_generator())
    model.use_checkpointing(settings.gradient_checkpointing)
    task = training_task(plan, patients=patients, settings=settings)
    loss = record_loss(plan.training.balance_loss)
    inputs, labels = torch.from_numpy(data.values_NF), torch.from_numpy(data.labels_N)
    units = torch.from_numpy(data.units_N)
    if plan.privacy.mechanism == "distributed-dp":
        values = noised_gradient(
            model,
            RoutedModel(model),
            inputs,
            labels,
            loss,
            task,
            random,
            share=NoiseShare(
                honest_sites=plan.privacy.honest_sites,
                sites=plan.secure_sum.max_sites,
                value_range=plan.update_range,
                value_bits=plan.secure_sum.value_bits,
            ),
            rules=RULES,
            units=units,
        )
        return NoisedUpdate(values=values, events=(gradient_event(plan.privacy, plan.training),))
    statistics = None
    if plan.privacy.load_noise_multiplier > 0:
        statistics = Statistics(size=load_count(plan.model), per_record=_loads)
    summary = train(
        RoutedModel(model),
        inputs,
        labels,
        loss,
        task,
        random,
        progress,
        units=units,
        rules=RULES,
        statistics=statistics,
    )
    return update_of(start=base, trained=model_to_vector(model), summary=summary)


def evaluate(plan: RoundPlan, data: SiteData, *, base: NDArray[np.float32]) -> Evaluation:
    """How the base model does on every patient; not yet protected. A loss that is not a number counts as the largest."""
    model = _model(plan, base).eval()
    logits = []
    with torch.inference_mode():
        for start in range(0, len(data.labels_N), EVALUATION_ROWS):
            logits.append(model(torch.from_numpy(data.values_NF[start : start + EVALUATION_ROWS])))
    logits_B = torch.cat(logits)
    losses_B = binary_loss(logits_B, torch.from_numpy(data.labels_N)).double().numpy()
    capped_B = np.clip(np.nan_to_num(losses_B, nan=LOSS_CAP, posinf=LOSS_CAP), 0.0, LOSS_CAP)
    records_U = np.bincount(data.units_N, minlength=data.patients)
    first_U = np.cumsum(records_U) - records_U
    return Evaluation(
        losses_U=np.bincount(data.units_N, weights=capped_B, minlength=data.patients) / records_U,
        scores_U=logits_B.double().sigmoid().numpy()[first_U],
        labels_U=data.labels_N[first_U],
    )


def record_loss(balance_loss: float) -> LossPerRecord:
    """Cross-entropy of each record [B], plus its balance loss with that weight."""

    def loss(outputs: RoutedOutput, labels_B: torch.Tensor) -> torch.Tensor:
        losses_B = binary_loss(outputs.logits_B, labels_B)
        return losses_B + balance_loss * outputs.balance_B if balance_loss else losses_B

    return loss


def require_private_model(config: ModelConfig, table: TableSchema, balance_loss: float) -> None:
    """Probes the model on made-up records; once in a process for each model and table.

    Raises:
        ValueError: one record influences another, or a gradient would escape the clipping.
    """
    with _probing:  # sites that rehearse in one process ask at the same moment
        _probe(config, table, balance_loss)


@lru_cache(maxsize=16)
def _probe(config: ModelConfig, table: TableSchema, balance_loss: float) -> None:
    generator = torch.Generator().manual_seed(PROBE_SEED)
    values = synthetic_rows(table, PROBE_RECORDS, generator)
    labels = synthetic_labels(values, table, generator)
    require_private(
        RoutedModel(build_model(config, table, seed=PROBE_SEED)),
        record_loss(balance_loss),
        values,
        labels,
        rules=RULES,
        statistics=_loads,
    )


def _loads(outputs: RoutedOutput) -> torch.Tensor:
    return outputs.loads_BS


def binary_loss(logits_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each record [B]."""
    return binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")


def _model(plan: RoundPlan, base: NDArray[np.float32]) -> TabularModel:
    model = build_model(plan.model, plan.table, seed=0)
    load_vector(model, base)
    return model
