"""What the federated model is compared with, on the same patients.

(b) each hospital alone: the same model, that hospital's patients only, no privacy;
(c) central: the same model on all patients in one place, no privacy;
(d) federated logistic regression: the same rounds, steps, epsilon and delta, on the same encoded features.

How (b) and (c) are kept comparable with the federation:
1. the same start: weights drawn from the same seed;
2. the same number of optimiser steps, `rounds * local_steps`, in one go: nothing is averaged, no optimiser forgets its
   moments between rounds, and no FedProx term holds the weights back;
3. the same sample rate and learning rate, so that every patient is seen as often, on average, and (c) takes each step
   on the batches of all hospitals together.
The learning rate is the scenario's, which was chosen for the federation under privacy and not for the central model.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coordinator.run_spec import RunSpec
from coordinator.strategies.server_optimizer import ServerOptimizer
from model.build import build_model
from model.parameters import load_vector, model_to_vector
from model.tokenizers import TabularEncoder
from participant.data import SiteData
from participant.training import RULES, binary_loss
from privacy.dp.dpsgd import TrainingTask, train
from privacy.randomness import OsRandom, Random, SeededRandom

Weights = NDArray[np.float32]
POOL = "pool"


class LogisticRegression(nn.Module):
    """Linear log-odds of the encoded columns, from zero."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self.encoder = TabularEncoder(spec.table)
        self.linear = nn.Linear(spec.table.flat_encoding_width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, values_BC: torch.Tensor) -> torch.Tensor:
        """Log-odds [B]."""
        encoded = self.encoder.flatten(self.encoder.encode(values_BC))
        return self.linear(encoded).squeeze(-1)  # type: ignore[no-any-return]


def pool(tables: Mapping[str, SiteData]) -> SiteData:
    """All records in one place. Patients of different sites are different patients."""
    last_units = np.cumsum([data.patients for data in tables.values()])
    units = [
        data.units_N + (last - data.patients)
        for data, last in zip(tables.values(), last_units, strict=True)
    ]
    return SiteData(
        units_N=np.concatenate(units),
        values_NF=np.concatenate([data.values_NF for data in tables.values()]),
        labels_N=np.concatenate([data.labels_N for data in tables.values()]),
        ignored_columns=(),
    )


def train_central(spec: RunSpec, tables: Mapping[str, SiteData], *, seed: int) -> Weights:
    """(c): final weights [P]."""
    return _train_in_one_place(spec, POOL, pool(tables), seed=seed)


def train_alone(spec: RunSpec, site: str, data: SiteData, *, seed: int) -> Weights:
    """(b): final weights [P] of one hospital by itself."""
    return _train_in_one_place(spec, site, data, seed=seed)


def train_logistic(
    spec: RunSpec, tables: Mapping[str, SiteData], *, seed: int
) -> LogisticRegression:
    """(d): a logistic regression under the run's own plan, privacy and server optimiser included.

    `seed` serves a run without privacy; with privacy the draws are the operating system's. The averaging is a loop
    (McMahan et al. 2017, Alg. 1): no secure sum, no transport. Its weights are the exact numbers of patients, where
    the federation knows noised ones.
    """
    is_private = spec.privacy.is_private
    model, optimizer = LogisticRegression(spec), ServerOptimizer(spec.server)
    weights = model_to_vector(model)
    total = sum(data.patients for data in tables.values())
    for number in range(1, spec.rounds + 1):
        mean = np.zeros_like(weights)
        for site, data in tables.items():
            random = OsRandom() if is_private else _seeded(seed, site, number)
            load_vector(model, weights)
            task = _task(spec, steps=spec.training.local_steps, patients=data.patients)
            _train(model, data, task, random)
            mean += (model_to_vector(model) - weights) * np.float32(data.patients / total)
        weights = optimizer.step(round_number=number, base=weights, change=mean)
    load_vector(model, weights)
    return model


def _train_in_one_place(spec: RunSpec, name: str, data: SiteData, *, seed: int) -> Weights:
    random = _seeded(seed, name, 1)
    model = build_model(spec.model, spec.table, seed=seed)
    model.use_noise_generator(random.torch_generator())
    task = replace(
        _task(spec, steps=spec.rounds * spec.training.local_steps, patients=data.patients),
        proximal_mu=0.0,
        clipping_norm=None,
        noise_multiplier=0.0,
    )
    _train(model, data, task, random)
    return model_to_vector(model)


def _train(model: nn.Module, data: SiteData, task: TrainingTask, random: Random) -> None:
    inputs, labels = torch.from_numpy(data.values_NF), torch.from_numpy(data.labels_N)
    units = torch.from_numpy(data.units_N)
    train(model, inputs, labels, binary_loss, task, random, units=units, rules=RULES)


def _task(spec: RunSpec, *, steps: int, patients: int) -> TrainingTask:
    is_private = spec.privacy.is_private
    return TrainingTask(
        steps=steps,
        sample_rate=spec.training.sample_rate,
        learning_rate=spec.training.learning_rate,
        optimizer=spec.training.optimizer,
        expected_batch_size=spec.training.sample_rate * patients,
        proximal_mu=spec.training.proximal_mu,
        clipping_norm=spec.privacy.clipping_norm if is_private else None,
        noise_multiplier=spec.privacy.noise_multiplier if is_private else 0.0,
    )


def _seeded(seed: int, name: str, number: int) -> SeededRandom:
    return SeededRandom(seed, "training", str(number), name)
