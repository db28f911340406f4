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
from participant.training import clipped_losses, train_update, training_random
from sims.federation import RealFederation


def stored_weights(federation: RealFederation, sha256: str) -> NDArray[np.float32]:
    """The weights of a model file of the coordinator."""
    path = federation.coordinator_home.models / f"{sha256}.safetensors"
    return read_model(path).vector


def contributions(
    federation: RealFederation, spec: RunSpec, history: RunHistory, round_number: int
) -> dict[str, NDArray[np.float32]]:
    """What each site adds to the sum of that round, from the model of the round before."""
    before = next(model for model in history.models if model.round == round_number - 1)
    base = stored_weights(federation, before.sha256)
    plan = plan_round(
        spec,
        run_id=history.run.run_id,
        number=round_number,
        attempt=1,
        cohort=tuple(federation.scenario.train),
        base_model=before.sha256,
        base_model_bytes=before.bytes,
        parameters=base.size,
        now=datetime.now(UTC),
    )
    return {site: _contribution(federation, plan, site, base) for site in federation.scenario.train}


def committed_from(
    spec: RunSpec,
    base: NDArray[np.float32],
    packed: Mapping[str, NDArray[np.float32]],
    sites: Sequence[str],
) -> NDArray[np.float32]:
    """The model that follows `base` under FedAvg when exactly these sites are counted."""
    assert spec.server.name == "fedavg"
    total = np.sum([packed[site].astype(np.float64) for site in sites], axis=0)
    mean = unpack_sum(total, update_range=spec.secure_sum.update_range)
    return base + mean.change


def _contribution(
    federation: RealFederation, plan: RoundPlan, site: str, base: NDArray[np.float32]
) -> NDArray[np.float32]:
    data = load_table(load_site(federation.folder / site).data, plan.table)
    patients = float(len(data.labels_N))
    update = train_update(
        plan, data, base=base, patients=patients, random=training_random(plan, site)
    )
    return pack_contribution(
        change=update.values,
        patients=patients,
        loss_sum=float(clipped_losses(plan, data, base=base).sum()),
        update_range=plan.update_range,
        weight_cap=plan.weight_cap,
    )
