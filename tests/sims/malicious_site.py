"""A site that takes part as it should and seals what it likes: the protocol cannot tell."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from coordinator.wire.connect import open_channel
from coordinator.wire.contribution import pack_contribution
from coordinator.wire.plan import RoundPlan
from coordinator.wire.records import RoundTask
from model.parameters import read_model
from participant.config import load_site
from participant.data import load_table
from participant.training import train_update
from privacy.randomness import OsRandom
from privacy.secagg.protocol import LEGS
from tests.coordinator.scripted_sites import ScriptedSite
from tests.sims.driven_federation import DrivenFederation
from tests.sims.scripted_grid import Script, taken_up

Vector = NDArray[np.float32]
Attack = Callable[[RoundPlan, DrivenFederation, str], Vector]


def attacks(federation: DrivenFederation, site: str, attack: Attack) -> Script:
    """What the site does with a task: every leg in order, with the vector that the attack makes."""

    def script(task: RoundTask) -> None:
        plan, ticket, part = taken_up(task, federation, site)
        with open_channel(federation.address, session=ticket, credentials=None) as channel:
            scripted = ScriptedSite(site, channel, part, attack(plan, federation, site))
            for leg in LEGS:
                scripted.play(leg)

    return script


def everything_as_large_as_it_goes(
    plan: RoundPlan, federation: DrivenFederation, site: str
) -> Vector:
    """Every weight moved by the whole range, with the largest weight in the mean."""
    return np.ones(plan.secure_sum.dimension, np.float32)


def flipped_and_large(plan: RoundPlan, federation: DrivenFederation, site: str) -> Vector:
    """Against the gradient, twenty times as far, with the largest weight in the mean."""
    data = load_table(load_site(federation.site_home(site)).data, plan.table)
    base = read_model(federation.checkpoints.require(plan.base_model)).vector
    update = train_update(plan, data, base=base, patients=data.patients, random=OsRandom())
    return pack_contribution(
        plan, change=-20 * update.values, patients=plan.weight_cap, loss_sum=0.0
    )


def without_weight(plan: RoundPlan, federation: DrivenFederation, site: str) -> Vector:
    """A negative weight, larger than all others of the group, so that the mean of its group is nonsense."""
    vector = np.ones(plan.secure_sum.dimension, np.float32)
    vector[-2] = -1.0
    return vector
