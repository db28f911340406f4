"""What a round without privacy must come to, computed again in one process from the sites' own tables."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from coordinator.ledger.records import RunHistory
from coordinator.rounds import plan_round
from coordinator.run_spec import RunSpec
from coordinator.wire.contribution import pack_contribution, unpack_sum
from coordinator.wire.plan import RoundPlan
from model.parameters import read_model
from participant.config import load_site
from participant.data import load_table
from participant.training import evaluate, site_random, train_update
from sims.federation import RealFederation


def stored_weights(federation: RealFederation, sha256: str) -> NDArray[np.float32]:
    """The weights of a model file of the coordinator."""
    path = federation.coordinator_home.models / f"{sha256}.safetensors"
    return read_model(path).vector


def planned(
    federation: RealFederation, spec: RunSpec, history: RunHistory, round_number: int
) -> RoundPlan:
    """The plan of that round's first attempt, on the model of the round before."""
    before = next(model for model in history.models if model.round == round_number - 1)
    return plan_round(
        spec,
        run_id=history.run.run_id,
        number=round_number,
        attempt=1,
        cohort=tuple(federation.scenario.train),
        base_model=before.sha256,
        base_model_bytes=before.bytes,
        now=datetime.now(UTC),
    )


def contributions(federation: RealFederation, plan: RoundPlan) -> dict[str, NDArray[np.float32]]:
    """What each site adds to the sum of that round."""
    base = stored_weights(federation, plan.base_model)
    return {site: _contribution(federation, plan, site, base) for site in federation.scenario.train}


def committed_from(
    plan: RoundPlan,
    base: NDArray[np.float32],
    packed: Mapping[str, NDArray[np.float32]],
    sites: Sequence[str],
) -> NDArray[np.float32]:
    """The model that follows `base` under FedAvg when exactly these sites are counted."""
    total = np.sum([packed[site].astype(np.float64) for site in sites], axis=0)
    mean = unpack_sum(plan, total)
    return base + mean.change


def _contribution(
    federation: RealFederation, plan: RoundPlan, site: str, base: NDArray[np.float32]
) -> NDArray[np.float32]:
    data = load_table(load_site(federation.folder / site).data, plan.table)
    patients = float(len(data.labels_N))
    update = train_update(
        plan, data, base=base, patients=patients, random=site_random(plan, site, "training")
    )
    return pack_contribution(
        plan,
        change=update.values,
        patients=patients,
        loss_sum=float(evaluate(plan, data, base=base).losses_U.sum()),
    )
