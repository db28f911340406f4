"""Flower messages of a round <-> our types. The only codec between Flower's records and a plan.

The control plane carries small things only: the signed plan, the ticket of the exchange session and the cohort's
signing keys go to a site; an outcome in one word comes back. Models and contributions travel on the exchange.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, RecordDict

from coordinator.wire.channel import MAX_ENDPOINTS
from coordinator.wire.plan import SignedPlan

TASK = "concord.task"
OUTCOME = "concord.outcome"
MAX_SITES = MAX_ENDPOINTS - 1
"""What one session of the exchange seats beside the coordinator."""


@dataclass(frozen=True, kw_only=True)
class RoundTask:
    """What a site is handed for one attempt at a round."""

    plan: SignedPlan
    ticket: bytes = field(repr=False)
    """Admits this site, and only this site, to the attempt's exchange session."""
    keys: Mapping[str, bytes]
    """Raw Ed25519 public key of every site of the cohort."""


def encode_task(task: RoundTask) -> RecordDict:
    """The task as the content of a Flower message."""
    sites = sorted(task.keys)
    record = ConfigRecord(
        {
            "plan": task.plan.payload,
            "signature": task.plan.signature,
            "ticket": task.ticket,
            "sites": sites,
            "keys": [task.keys[site] for site in sites],
        }
    )
    return RecordDict({TASK: record})


def decode_task(content: RecordDict) -> RoundTask:
    """The task in a Flower message.

    Raises:
        ValueError: fields are missing, of another type, or of another length than they must be.
    """
    record = content.config_records.get(TASK)
    if record is None:
        raise ValueError(f"The message holds no {TASK!r} record.")
    plan, signature, ticket = record.get("plan"), record.get("signature"), record.get("ticket")
    sites, keys = record.get("sites"), record.get("keys")
    if not (isinstance(plan, bytes) and isinstance(signature, bytes) and isinstance(ticket, bytes)):
        raise ValueError("Plan, signature and ticket of a task must be bytes.")
    if (
        not (isinstance(sites, list) and isinstance(keys, list))
        or not 1 <= len(sites) == len(keys) <= MAX_SITES
    ):
        raise ValueError(f"A task needs 1 to {MAX_SITES} sites with one key each.")
    roster: dict[str, bytes] = {}
    for site, key in zip(sites, keys, strict=True):
        if not isinstance(site, str) or site in roster:
            raise ValueError("A task's sites must be names, each once.")
        if not (isinstance(key, bytes) and len(key) == 32):
            raise ValueError("A task's signing keys must be 32 bytes, one for each named site.")
        roster[site] = key
    return RoundTask(plan=SignedPlan(payload=plan, signature=signature), ticket=ticket, keys=roster)


def encode_outcome(outcome: str) -> RecordDict:
    """One word about how the attempt ended at a site: counted, refused or dropped."""
    return RecordDict({OUTCOME: ConfigRecord({"outcome": outcome})})


def decode_outcome(content: RecordDict) -> str:
    """The word in a site's reply, cut to a harmless length; `unreadable` for anything else."""
    record = content.config_records.get(OUTCOME)
    outcome = None if record is None else record.get("outcome")
    return outcome[:32] if isinstance(outcome, str) and outcome.isidentifier() else "unreadable"
