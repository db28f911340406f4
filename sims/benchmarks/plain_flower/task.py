"""Model, data and local training of the plain Flower baseline, read from a folder that the benchmark wrote.

A ClientApp is a new process for every message, so this file imports no more than its work needs: whatever is imported
here counts as the baseline's time.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from model.build import TabularModel, build_model
from model.config import ModelConfig
from model.schema import load_schema

WORKLOAD_VARIABLE = "CONCORD_BENCHMARK_WORKLOAD"
"""Environment variable that names the folder."""
SETTINGS_FILE, SCHEMA_FILE, TIMES_FILE = "settings.json", "schema.toml", "times.json"
"""The benchmark writes the first two and one `SITE.npz` per site; the ServerApp writes the last."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is to be done."""

    sites: tuple[str, ...]
    rounds: int
    model: ModelConfig
    steps: int
    sample_rate: float
    learning_rate: float
    threads: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The settings in that folder."""
        raw = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return cls(**{**raw, "sites": tuple(raw["sites"]), "model": ModelConfig(**raw["model"])})


def workload_folder() -> Path:
    """The folder that the environment names."""
    return Path(os.environ[WORKLOAD_VARIABLE])


def new_model(folder: Path, settings: Settings) -> TabularModel:
    """The model, with weights of its own."""
    return build_model(settings.model, load_schema(folder / SCHEMA_FILE), seed=0)


def train(model: TabularModel, folder: Path, settings: Settings, *, site: str) -> int:
    """One local epoch of stochastic gradient descent; returns the number of patients."""
    torch.set_num_threads(settings.threads)
    with np.load(folder / f"{site}.npz") as table:
        values_NC, labels_N = torch.from_numpy(table["values"]), torch.from_numpy(table["labels"])
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
    model.train()
    for _ in range(settings.steps):
        drawn_N = torch.rand(len(labels_N)) < settings.sample_rate
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(values_NC[drawn_N]), labels_N[drawn_N])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return len(labels_N)
