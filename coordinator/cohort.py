"""The sites of a run as Flower sees them: who is online, asking them, and what they answer.

An answer is one word, or an error of the site's executor; nothing rests on it, since a site's part in a round is
decided on the exchange. It is read so that an operator finds in the log why a site was silent there.
"""

import logging
import time
from collections.abc import Mapping

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from coordinator.errors import QuorumError
from coordinator.ledger.records import Site
from coordinator.ledger.store import LedgerStore
from coordinator.run_spec import RunSpec
from coordinator.wire.plan import RoundPlan
from coordinator.wire.records import RoundTask, decode_outcome, encode_task

log = logging.getLogger(__name__)

ONLINE_POLL_SECONDS = 0.25
MAX_REASON_CHARACTERS = 300


class Cohort:
    """The link to the sites of one run."""

    def __init__(self, *, grid: Grid, ledger: LedgerStore, spec: RunSpec, run_id: str) -> None:
        """Takes Flower's link, the ledger that knows the members, and what the run asks for."""
        self._grid, self._ledger, self._spec, self._run_id = grid, ledger, spec, run_id
        self._given_up: set[str] = set()
        self._asked: dict[str, str] = {}

    def wait(self) -> tuple[str, ...]:
        """Names of the members that are online, sorted, once there are enough of them.

        Waits for as many as the run asks for, but for the fewest that will do (a quorum, in every group that the promise
        about malicious sites takes) only after `join_seconds`, and does not wait again for a member that was missing then
        and still is.

        Raises:
            QuorumError: no quorum within `online_seconds`.
        """
        start = time.monotonic()
        while True:
            nodes = set(self._grid.get_node_ids())
            members = self._ledger.sites.members()
            online = tuple(sorted(s.name for s in members if s.flower_node_id in nodes))
            missing = {site.name for site in members} - set(online)
            waited = time.monotonic() - start
            if len(online) >= self._spec.sites:
                self._given_up.clear()
                return online[: self._spec.most_sites]
            if len(online) >= self._spec.fewest_sites and (
                (missing and missing <= self._given_up) or waited > self._spec.timing.join_seconds
            ):
                self._given_up = missing
                return online[: self._spec.most_sites]
            if waited > self._spec.timing.online_seconds:
                raise QuorumError(
                    f"Run {self._run_id}: {len(online)} sites online ({', '.join(online) or 'none'}) after "
                    f"{waited:.0f} s, {self._spec.fewest_sites} are needed. Ask the missing sites to start "
                    f'"participant run", then start the run again.'
                )
            time.sleep(ONLINE_POLL_SECONDS)

    def members(self, plan: RoundPlan) -> dict[str, Site]:
        """The plan's cohort, by name.

        Raises:
            QuorumError: one of them is no member any more, or has no node.
        """
        known = {site.name: site for site in self._ledger.sites.members()}
        gone = [n for n in plan.cohort if n not in known or known[n].flower_node_id is None]
        if gone:
            raise QuorumError(f"{', '.join(gone)} ceased to be a member after the plan was made.")
        return {name: known[name] for name in plan.cohort}

    def ask(
        self, plan: RoundPlan, tasks: Mapping[str, RoundTask], members: Mapping[str, Site]
    ) -> None:
        """Hands each member of the cohort its task."""
        self._read_answers()
        messages = [  # a list: Flower's grid goes over its messages twice
            Message(
                encode_task(task),
                int(members[name].flower_node_id or 0),
                MessageType.TRAIN,
                ttl=self._spec.timing.round_seconds,
                group_id=str(plan.round),
            )
            for name, task in tasks.items()
        ]
        self._asked = dict(zip(self._grid.push_messages(messages), tasks, strict=True))

    def _read_answers(self) -> None:
        """Takes the answers to the last question off Flower's hands and into the log."""
        for answer in self._grid.pull_messages(list(self._asked)) if self._asked else ():
            site = self._asked.get(answer.metadata.reply_to_message_id, "unknown")
            if answer.has_error():
                reason = str(answer.error.reason)[:MAX_REASON_CHARACTERS]
                log.warning("site %s could not take part: %s", site, reason)
            else:
                log.info("site %s answered: %s", site, decode_outcome(answer.content))
