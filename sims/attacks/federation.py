"""A federation that is attacked: a rehearsal whose records are known, and what its coordinator gets to see.

Four hospitals of the heart data, each with patients who take part always and candidates about whom a coin decides. The
run is what a curious coordinator may ask for within the plan: one step a round over all patients, many narrow experts,
no routing noise. Two views of every round:
- `sum`: under masks the coordinator opens the sum over the sites and nothing else, and commits the model it makes;
- `single`: in the clear (scheme `plain`, rehearsals only) it reads each site's vector.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordinator.ledger.store import open_ledger
from coordinator.run_spec import RunSpec, load_run_spec
from coordinator.wire.channel import COORDINATOR, Frame
from coordinator.wire.contribution import contribution_layout
from model.parameters import read_model
from participant.data import SiteData
from privacy.secagg.envelopes import SIGNATURE_BYTES
from privacy.secagg.integer_parts import IntegerParts
from privacy.secagg.messages import FRAME_HEADER
from privacy.secagg.plan import SumPlan
from sims.rehearsal import rehearse
from sims.scenario import Scenario, load_scenario, read_site_data, scenario_path

# P parameters of the model, M candidates

SCENARIO = "heart"
ROUNDS = 2
CERTAIN, CANDIDATES = 10, 8
"""Patients of each site that are in always, and those about whom a coin decides."""
MODEL = {
    "width": 64,
    "layers": 1,
    "heads": 4,
    "kv_heads": 4,
    "experts": 64,
    "top_k": 16,
    "expert_width": 4,
    "gumbel_scale": 0.0,
}
TRAINING = {"local_steps": 1, "sample_rate": 1.0, "learning_rate": 1.0, "optimizer": "sgd"}

View = Literal["sum", "single"]
Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AttackedRun:
    """What is rehearsed: with which privacy, in which view."""

    view: View
    epsilon: float | None
    """Total epsilon; None without privacy."""
    delta: float = 1e-5
    seed: int | None = None
    """Of the first model and of training, for runs without privacy; None is new for every run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """One vector that the coordinator reads: the change of the model by one site, or by all together."""

    round: int
    sites: tuple[str, ...]
    """Whose patients are in it."""
    base: Vector = field(repr=False)
    """Model of the round's start [P]."""
    change: Vector = field(repr=False)
    """Mean change of the weights [P], as read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One rehearsal, from the coordinator's chair; and the truth, to judge the attacks by."""

    spec: RunSpec
    releases: tuple[Release, ...]
    present: Mapping[str, SiteData]
    """The records that took part."""


def attack_spec(run: AttackedRun) -> RunSpec:
    """The run that the sites are asked for, its noise calibrated to the whole of it."""
    privacy: dict[str, Any] = {"mechanism": "none"}
    if run.epsilon is not None:
        privacy = {"mechanism": "dp-sgd", "epsilon": run.epsilon, "delta": run.delta}
    return load_run_spec(
        scenario_path(SCENARIO),
        name="attack",
        seed=run.seed,
        tier=None,
        rounds=ROUNDS,
        spare_attempts=0,
        model=MODEL,
        training=TRAINING,
        privacy=privacy,
        # Fine steps: what an attacker reads off a vector must be the vector, not its rounding.
        secure_sum={
            "scheme": "mask" if run.view == "sum" else "plain",
            "weight_cap": 100,
            "value_bits": 29,
        },
    )


def candidate_tables() -> dict[str, pd.DataFrame]:
    """Every site's patients: the first `CERTAIN` are in always, `CANDIDATES` follow."""
    scenario = load_scenario(SCENARIO, split_seed=0)
    return {site: table[: CERTAIN + CANDIDATES] for site, table in scenario.train.items()}


def record(
    run: AttackedRun,
    tables: Mapping[str, pd.DataFrame],
    was_in: Mapping[str, NDArray[np.bool_]],
    folder: Path,
) -> Recording:
    """Rehearses the run on the chosen candidates, and keeps what the coordinator saw.

    Args:
        run: privacy and view.
        tables: of `candidate_tables`.
        was_in: which candidates take part, by site [`CANDIDATES`].
        folder: new or empty.

    Raises:
        RoundError: the rehearsal failed.
    """
    scenario = load_scenario(SCENARIO, split_seed=0)
    chosen = {
        site: table[np.concatenate([np.ones(CERTAIN, dtype=np.bool_), was_in[site]])]
        for site, table in tables.items()
    }
    attacked = replace(scenario, spec=attack_spec(run), train=chosen, held_out={})
    frames: list[Frame] = []

    def observe(receiver: str, frame: Frame) -> None:
        if receiver == COORDINATOR and frame.kind == "seal":
            frames.append(frame)

    history = rehearse(attacked, folder, observer=observe)
    models = folder / "coordinator" / "models"
    vectors = [read_model(models / f"{m.sha256}.safetensors").vector for m in history.models]
    releases = (
        _sums(tuple(chosen), vectors)
        if run.view == "sum"
        else _singles(attacked, frames, vectors, folder)
    )
    present = {
        site: read_site_data(table, attacked.spec.table, folder) for site, table in chosen.items()
    }
    return Recording(spec=attacked.spec, releases=releases, present=present)


def _sums(sites: tuple[str, ...], models: list[Vector]) -> tuple[Release, ...]:
    """What the opened sums say: with FedAvg, the models' differences."""
    return tuple(
        Release(round=number, sites=sites, base=base, change=after - base)
        for number, (base, after) in enumerate(itertools.pairwise(models), start=1)
    )


def _singles(
    scenario: Scenario, frames: list[Frame], models: list[Vector], folder: Path
) -> tuple[Release, ...]:
    """Each site's vector, decoded from its sealed message; one frame a round."""
    spec = scenario.spec
    with open_ledger(f"sqlite:///{folder / 'coordinator' / 'ledger.db'}") as ledger:
        payload, _ = ledger.rounds.signed_plan(spec.name, round=1, attempt=1)
    plan = SumPlan(**json.loads(payload)["secure_sum"])
    packed = IntegerParts(dimension=plan.dimension, bits=plan.encoding.modulus_bits)
    parameters = contribution_layout(spec.model, spec.table, spec.privacy).parameters
    by_site: dict[str, list[bytes]] = defaultdict(list)
    for frame in frames:
        by_site[frame.sender].append(bytes(frame.payload))
    releases = []
    for site, messages in by_site.items():
        for number, message in enumerate(messages, start=1):
            part = memoryview(message)[SIGNATURE_BYTES + FRAME_HEADER.size :]
            words = packed.read(site, 0, part)
            vector = plan.encoding.decode(plan.encoding.signed(words))
            change = vector[:parameters] * (spec.secure_sum.update_range / vector[-2])
            releases.append(
                Release(
                    round=number,
                    sites=(site,),
                    base=models[number - 1],
                    change=change.astype(np.float32),
                )
            )
    return tuple(releases)
