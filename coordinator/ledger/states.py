"""The states that the ledger stores, and which may follow which.

    run            requested -> running -> finished | failed | cancelled       (requested -> cancelled too)
    attempt        planned -> open -> aggregating -> committed; any of the first three -> aborted
    participation  asked -> joined -> sealed -> counted; any of the first three -> lost | refused

A round has the state of its last attempt. `coordinator.rounds` holds the rule for attempts as functions; here it is
data, so that SQL can enforce it.
"""

from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands."""

    REQUESTED = "requested"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RoundState(StrEnum):
    """Where an attempt at a round stands."""

    PLANNED = "planned"
    OPEN = "open"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABORTED = "aborted"


class ParticipationState(StrEnum):
    """How far one site came in one attempt."""

    ASKED = "asked"
    JOINED = "joined"
    SEALED = "sealed"
    COUNTED = "counted"
    LOST = "lost"
    REFUSED = "refused"


DRIVABLE_RUNS = (RunState.REQUESTED, RunState.RUNNING)
"""Runs that somebody still has to bring to an end."""

LIVE_ATTEMPTS = (RoundState.PLANNED, RoundState.OPEN, RoundState.AGGREGATING)
"""Attempts that may still be aborted."""

ATTEMPT_MAY_COME_FROM = {
    RoundState.OPEN: (RoundState.PLANNED,),
    RoundState.AGGREGATING: (RoundState.OPEN,),
    RoundState.COMMITTED: (RoundState.AGGREGATING,),
    RoundState.ABORTED: LIVE_ATTEMPTS,
}

_UNSETTLED = (ParticipationState.ASKED, ParticipationState.JOINED, ParticipationState.SEALED)

PARTICIPATION_MAY_COME_FROM = {
    ParticipationState.JOINED: (ParticipationState.ASKED,),
    ParticipationState.SEALED: (ParticipationState.ASKED, ParticipationState.JOINED),
    ParticipationState.LOST: _UNSETTLED,
    ParticipationState.REFUSED: _UNSETTLED,
}
"""`asked` is written when an attempt opens, `counted` when it commits; nothing else writes these two."""

SETTLED_PARTICIPATIONS = (
    ParticipationState.COUNTED,
    ParticipationState.LOST,
    ParticipationState.REFUSED,
)
