"""A grid on which some nodes do what a test says; all others run the real app."""

from collections.abc import Callable

import numpy as np
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from coordinator.wire.channel import SessionTicket
from coordinator.wire.connect import open_channel
from coordinator.wire.groups import group_context, group_of, group_sum
from coordinator.wire.plan import RoundPlan, verify_plan
from coordinator.wire.records import RoundTask, decode_task, encode_outcome
from participant.client_app import app as client_app
from participant.identity import load_signing_key, open_home
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.protocol import LEGS, SitePart
from privacy.secagg.secure_sum import MemoryJournal, site_part
from sims.grid import InProcessGrid
from tests.coordinator.scripted_sites import ScriptedSite
from tests.sims.driven_federation import DrivenFederation

Script = Callable[[RoundTask], None]


class ScriptedGrid(InProcessGrid):
    """Set `scripts` before the run is driven: node -> what it does with a task instead of the app."""

    scripts: dict[int, Script]

    def _work(self, node_id: int, payload: bytes) -> bytes:
        if node_id not in self.scripts:
            return super()._work(node_id, payload)
        message = message_from_proto(ProtoMessage.FromString(payload))
        self.scripts[node_id](decode_task(message.content))
        reply = Message(encode_outcome("dropped"), reply_to=message)
        return bytes(message_to_proto(reply).SerializeToString())


def use_scripts(federation: DrivenFederation, scripts: dict[str, Script]) -> None:
    """Puts these sites on scripts."""
    federation.grid.close()
    grid = ScriptedGrid(client_app, federation.node_configs())
    grid.scripts = {federation.nodes[site]: script for site, script in scripts.items()}
    federation.grid = grid


def never_comes(task: RoundTask) -> None:
    """The site's process dies before it reaches the exchange."""


def taken_up(
    task: RoundTask, federation: DrivenFederation, site: str
) -> tuple[RoundPlan, SessionTicket, SitePart]:
    """The plan of a task, the site's ticket, and its part in the sum of its group."""
    plan = verify_plan(task.plan, federation.key.public_key())
    group = group_of(plan, site)
    part = site_part(
        group_sum(plan, group),
        site=site,
        context=group_context(plan, task.plan.payload, group),
        identity=load_signing_key(open_home(federation.site_home(site))),
        keys={name: task.keys[name] for name in plan.groups[group]},
        journal=MemoryJournal(),
        key_store=MemoryKeyStore(),
    )
    ticket = SessionTicket(session_id=plan.session_id, endpoint=site, ticket=task.ticket)
    return plan, ticket, part


def quits_before(leg: str, federation: DrivenFederation, site: str) -> Script:
    """A site that plays its part honestly and leaves in the leg, before it answers."""

    def script(task: RoundTask) -> None:
        plan, ticket, part = taken_up(task, federation, site)
        values = np.zeros(plan.secure_sum.dimension)
        values[-2] = 0.5  # its weight
        with open_channel(federation.address, session=ticket, credentials=None) as channel:
            scripted = ScriptedSite(site, channel, part, values)
            for earlier in LEGS[: LEGS.index(leg)]:
                scripted.play(earlier)

    return script
