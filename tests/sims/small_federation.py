"""A federation small enough for a test: three columns, four sites of forty made-up patients, a model of a thousand weights."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coordinator.rounds import plan_round
from coordinator.run_spec import RunSpec, load_run_spec
from coordinator.wire.plan import RoundPlan
from sims.scenario import Scenario

SITES = ("anna", "berta", "clara", "dora")
PATIENTS = 40
SCHEMA = """
name = "small"
version = 1

[label]
name = "ill"
positive_above = 0

[[columns]]
kind = "numeric"
name = "age"
unit = "year"
minimum = 0
maximum = 120
bins = [20, 40, 60, 80]

[[columns]]
kind = "numeric"
name = "pulse"
unit = "1/min"
minimum = 30
maximum = 250
bins = [50, 80, 110]

[[columns]]
kind = "category"
name = "smoker"
categories = ["0", "1"]
"""
RUN = """
name = "small"
schema = "schema.toml"
rounds = 2
spare_attempts = 1
sites = 4
quorum = 3
seed = 7

[model]
width = 8
layers = 1
heads = 2
kv_heads = 2
experts = 2
top_k = 1
expert_width = 8

[training]
local_steps = 2
sample_rate = 0.5
learning_rate = 0.3
optimizer = "sgd"

[privacy]
mechanism = "none"
epsilon = 8.0
delta = 1e-5
clipping_norm = 1.0
count_epsilon = 0.1
metric_epsilon = 0.02

[secure_sum]
scheme = "mask"
update_range = 1.0
weight_cap = 100

[timing]
join_seconds = 20.0
round_seconds = 30.0
silence_seconds = 20.0
online_seconds = 20.0
"""
WITH_DP: dict[str, Any] = {"privacy": {"mechanism": "dp-sgd"}, "seed": None}


def small_spec(folder: Path, **changes: Any) -> RunSpec:
    """The run, changed as an operator would change its file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    return load_run_spec(folder / "run.toml", **changes)


def small_plan(spec: RunSpec, **changes: Any) -> RoundPlan:
    """The plan of the run's first attempt, or of the one that `changes` name."""
    facts: dict[str, Any] = {
        "run_id": "small",
        "number": 1,
        "attempt": 1,
        "cohort": SITES,
        "base_model": "ab" * 32,
        "base_model_bytes": 4096,
        "now": datetime(2030, 1, 1, 12, tzinfo=UTC),
    }
    return plan_round(spec, **(facts | changes))


def small_table(site: str, rows: int = PATIENTS) -> pd.DataFrame:
    """Made-up patients of a site: the older smoke less and are ill more often. A few pulses are missing."""
    random = np.random.default_rng([len(site), *site.encode()])
    age = random.integers(20, 90, rows)
    pulse = random.integers(50, 120, rows).astype(str)
    pulse[::9] = "?"
    return pd.DataFrame(
        {
            "age": age.astype(str),
            "pulse": pulse,
            "smoker": random.integers(0, 2, rows).astype(str),
            "ill": (age + random.normal(0, 15, rows) > 55).astype(int).astype(str),
        }
    )


def small_scenario(folder: Path, *, sites: tuple[str, ...] = SITES, **changes: Any) -> Scenario:
    """A scenario for `sims.rehearsal.rehearse`; its files lie in `folder`."""
    spec = small_spec(folder, **changes)
    return Scenario(
        name="small",
        spec=spec,
        schema_path=folder / "schema.toml",
        train={site: small_table(site) for site in sites},
        held_out={site: small_table(f"{site}-held-out") for site in sites},
    )
