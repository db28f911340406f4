"""Hospitals that die by SIGKILL in mid-round, in every leg of the secure sum: one of four, then two of four."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from coordinator.ledger.records import RunHistory
from coordinator.ledger.states import ParticipationState, RoundState
from coordinator.rounds import sum_threshold
from tests.end_to_end.federation_rig import (
    NO_DP,
    SITES,
    LegNote,
    WatchedFederation,
    committed_models,
    counted,
    details,
    states,
    tiny_heart,
    timing,
    until,
)
from tests.end_to_end.recomputed_round import committed_from, contributions, stored_weights

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(1500)]

RUN = "deaths"
VICTIM, SECOND_VICTIM = "switzerland", "va"
SURVIVORS = tuple(site for site in SITES if site != VICTIM)
UNSEALED = ("hello", "share", "seal")
SEALED = ("confirm", "release", "done")
"""Legs that a site enters only after its sealed contribution was sent: dead or not, it counts."""
BELOW_QUORUM = ("share", "seal", "release")
ROUNDS = len(UNSEALED) + len(SEALED) + len(BELOW_QUORUM) + 2
TOLERANCE = 2e-5
"""Largest difference of one weight: fixed-point steps of the sum, and float32 in another process."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened in the run, and where the victims died."""

    federation: WatchedFederation
    history: RunHistory
    alone: dict[str, LegNote]
    """Leg -> note of the only victim."""
    together: dict[str, LegNote]
    """Leg -> note of the first of two victims."""
    before: dict[str, dict[int, str]]
    """Leg -> committed models at the time that two victims died in it."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    scenario = tiny_heart(
        rounds=ROUNDS, spare_attempts=20, timing=timing(silence_seconds=10.0), **NO_DP
    )
    alone, together, before = {}, {}, {}
    with WatchedFederation(tmp_path_factory.mktemp("deaths"), scenario) as federation:
        federation.wait_online(*SITES)
        federation.order(VICTIM, "hello", "die")
        federation.request(RUN)
        for leg, following in zip(UNSEALED + SEALED, [*(UNSEALED + SEALED)[1:], None], strict=True):
            alone[leg] = federation.wait_for_order(VICTIM, RUN, leg, "die", seen=0)
            if following is not None:
                federation.order(VICTIM, following, "die")
                federation.bring_back(VICTIM)
        for leg in BELOW_QUORUM:
            seen = {v: deaths(federation, v, leg) for v in (VICTIM, SECOND_VICTIM)}
            federation.order(SECOND_VICTIM, leg, "die")
            federation.order(VICTIM, leg, "die")
            federation.bring_back(VICTIM)
            together[leg] = federation.wait_for_order(
                VICTIM, RUN, leg, "die", seen=seen[VICTIM]
            )
            federation.wait_for_order(
                SECOND_VICTIM, RUN, leg, "die", seen=seen[SECOND_VICTIM]
            )
            with federation.ledger() as ledger:
                before[leg] = committed_models(ledger.history(RUN))
            federation.bring_back(SECOND_VICTIM)
        federation.bring_back(VICTIM)
        history = federation.wait(RUN, timeout_seconds=600)
        yield Story(
            federation=federation,
            history=history,
            alone=alone,
            together=together,
            before=before,
        )


def deaths(federation: WatchedFederation, site: str, leg: str) -> int:
    notes = federation.notes(site, RUN)
    return len([note for note in notes if (note.leg, note.order) == (leg, "die")])
