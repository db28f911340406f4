"""What the federated model is compared with, trained by the same code for the same number of steps.

(b) each hospital alone: the same model, that hospital's patients only, no privacy;
(c) central: the same model on all patients in one place, no privacy;
(d) federated logistic regression: the same rounds, steps, epsilon and delta, on the same encoded features.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coordinator.run_spec import RunSpec
from model.build import build_model
from model.grad_sample import register_samplers
from model.parameters import load_vector, model_to_vector
from model.tokenizers import TabularEncoder
from participant.data import SiteData
from participant.training import binary_loss
from privacy.dp.dpsgd import TrainingTask, train
from privacy.randomness import OsRandom, Random, SeededRandom

Weights = NDArray[np.float32]
MakeModel = Callable[[], nn.Module]
POOL = "pool"


class LogisticRegression(nn.Module):
    """Linear log-odds of the encoded columns, from zero."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self.encoder = TabularEncoder(spec.table)
        self.linear = nn.Linear(self.encoder.flat_width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, values_BC: torch.Tensor) -> torch.Tensor:
        """Log-odds [B]."""
        encoded = self.encoder.flatten(self.encoder.encode(values_BC))
        return self.linear(encoded).squeeze(-1)  # type: ignore[no-any-return]


def pool(tables: Mapping[str, SiteData]) -> SiteData:
    """All records in one place."""
    return SiteData(
        values_NF=np.concatenate([data.values_NF for data in tables.values()]),
        labels_N=np.concatenate([data.labels_N for data in tables.values()]),
        ignored_columns=(),
    )


def train_central(spec: RunSpec, tables: Mapping[str, SiteData], *, seed: int) -> Weights:
    """(c), as a federation of one site without privacy: final weights [P]."""
    return average_rounds(
        spec,
        {POOL: pool(tables)},
        lambda: build_model(spec.model, spec.table, seed=seed),
        seed=seed,
    )


def train_alone(spec: RunSpec, site: str, data: SiteData, *, seed: int) -> Weights:
    """(b): final weights [P] of one hospital by itself."""
    return average_rounds(
        spec, {site: data}, lambda: build_model(spec.model, spec.table, seed=seed), seed=seed
    )


def train_logistic(
    spec: RunSpec, tables: Mapping[str, SiteData], *, seed: int
) -> LogisticRegression:
    """(d): federated averaging of a logistic regression under the run's own privacy plan."""
    is_private = spec.privacy.mechanism == "dp-sgd"
    weights = average_rounds(
        spec, tables, lambda: LogisticRegression(spec), seed=seed, is_private=is_private
    )
    model = LogisticRegression(spec)
    load_vector(model, weights)
    return model


def average_rounds(
    spec: RunSpec,
    tables: Mapping[str, SiteData],
    make: MakeModel,
    *,
    seed: int,
    is_private: bool = False,
) -> Weights:
    """Federated averaging in a loop (McMahan et al. 2017, Alg. 1): no secure sum, no transport; final weights [P]."""
    register_samplers()
    model = make()
    weights = model_to_vector(model)
    total = sum(len(data.labels_N) for data in tables.values())
    for number in range(1, spec.rounds + 1):
        mean = np.zeros_like(weights)
        for site, data in tables.items():
            random: Random = (
                OsRandom() if is_private else SeededRandom(seed, "training", str(number), site)
            )
            load_vector(model, weights)
            if hasattr(model, "use_noise_generator"):
                model.use_noise_generator(random.torch_generator())
            task = _task(spec, patients=len(data.labels_N), is_private=is_private)
            inputs, labels = torch.from_numpy(data.values_NF), torch.from_numpy(data.labels_N)
            train(model, inputs, labels, binary_loss, task, random)
            mean += (model_to_vector(model) - weights) * np.float32(len(data.labels_N) / total)
        weights = weights + mean
    return weights


def _task(spec: RunSpec, *, patients: int, is_private: bool) -> TrainingTask:
    return TrainingTask(
        steps=spec.training.local_steps,
        sample_rate=spec.training.sample_rate,
        learning_rate=spec.training.learning_rate,
        optimizer=spec.training.optimizer,
        expected_batch_size=spec.training.sample_rate * patients,
        proximal_mu=spec.training.proximal_mu,
        clipping_norm=spec.privacy.clipping_norm if is_private else None,
        noise_multiplier=spec.privacy.noise_multiplier if is_private else 0.0,
    )
