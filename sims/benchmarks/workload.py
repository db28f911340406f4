"""What both sides of the round benchmark do: two hospitals of the heart scenario, the same model, data and steps.

One local epoch is `STEPS` steps, each of which every patient joins with probability `SAMPLE_RATE`: as many drawn
patients as the table has, on average.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from model.config import ModelConfig
from model.parameters import parameter_count
from sims.benchmarks.plain_flower.task import SCHEMA_FILE, SETTINGS_FILE, Settings
from sims.scenario import Scenario, load_scenario, read_site_data

SITES = ("cleveland", "hungarian")
STEPS = 4
SAMPLE_RATE = 0.25
LEARNING_RATE = 0.3
THREADS = 1
"""Processor threads of torch at each site, on both sides."""

SMALL = ModelConfig(width=8, layers=1, heads=2, kv_heads=2, experts=4, top_k=2, expert_width=20)
"""4,033 parameters on the heart table."""
MEDIUM = ModelConfig(width=112, layers=4, heads=4, kv_heads=4, experts=8, top_k=2, expert_width=64)
"""996,909 parameters on the heart table."""
LARGE = ModelConfig(width=512, layers=4, heads=8, kv_heads=8, experts=8, top_k=2, expert_width=376)
"""25,086,061 parameters on the heart table: 100 MB of float32."""


def make_scenario(
    model: ModelConfig, *, rounds: int, is_private: bool, scheme: str = "mask", steps: int = STEPS
) -> Scenario:
    """Our side: the heart scenario with two of its hospitals.

    Args:
        model: sizes of the model.
        rounds: rounds of the run.
        is_private: DP-SGD at epsilon 8 for the whole run, or none.
        scheme: the secure sum.
        steps: optimiser steps per round at each site.
    """
    scenario = load_scenario(
        "heart",
        split_seed=0,
        rounds=rounds,
        sites=len(SITES),
        quorum=len(SITES),
        tier=None,
        model=asdict(model),
        training={
            "local_steps": steps,
            "sample_rate": SAMPLE_RATE,
            "learning_rate": LEARNING_RATE,
        },
        privacy={} if is_private else {"mechanism": "none"},
        secure_sum={"scheme": scheme},
    )
    return replace(
        scenario,
        train={site: scenario.train[site] for site in SITES},
        held_out={site: scenario.held_out[site] for site in SITES},
    )


def count_parameters(scenario: Scenario) -> int:
    """Parameters of the scenario's model."""
    return parameter_count(scenario.spec.model, scenario.spec.table)


def write_workload(scenario: Scenario, folder: Path) -> None:
    """The other side: the same model, schema, tables and steps, for a program that knows nothing of our federation."""
    folder.mkdir(parents=True)
    spec = scenario.spec
    settings = Settings(
        sites=SITES,
        rounds=spec.rounds,
        model=spec.model,
        steps=spec.training.local_steps,
        sample_rate=spec.training.sample_rate,
        learning_rate=spec.training.learning_rate,
        threads=THREADS,
    )
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)), encoding="utf-8")
    (folder / SCHEMA_FILE).write_bytes(scenario.schema_path.read_bytes())
    for site, table in scenario.train.items():
        data = read_site_data(table, spec.table, folder)
        np.savez(folder / f"{site}.npz", values=data.values_NF, labels=data.labels_N)
