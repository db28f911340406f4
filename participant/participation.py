"""A site's part in one attempt at a round, in the order it happens.

1. verify the plan's signature, ask the site's own policy, probe the model, pin the cohort's signing keys;
2. join the exchange session and say hello, so that the coordinator knows who takes part; fetch the base model by hash;
3. charge the privacy budget, durably; only then touch a record;
4. train, and pass the result through the release gate; the budget notes what leaves before it does;
5. the remaining legs of the secure sum: share, seal, confirm, release.
A refusal in 1 or 3 is told to the coordinator as one sentence that holds no number computed from records, so that
nobody waits; any other failure ends the attempt here, and the round goes on without this site.
"""

import itertools
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.wire.bundle import BUNDLE_SHA256
from coordinator.wire.channel import (
    COORDINATOR,
    Channel,
    ChannelTimeout,
    Frame,
    SessionTicket,
    TlsFiles,
)
from coordinator.wire.charges import run_events
from coordinator.wire.connect import open_channel
from coordinator.wire.contribution import contribution_layout
from coordinator.wire.groups import group_context, group_of, group_sum
from coordinator.wire.plan import PlanError, RoundPlan, verify_plan
from coordinator.wire.receipt import RoundReceipt, encode_receipt
from coordinator.wire.records import RoundTask
from model.parameters import read_model
from model.schema import load_schema
from participant.budget import SiteBudget
from participant.budget_entries import Charge
from participant.config import load_site, require_delta_fits
from participant.data import SiteData, load_table
from participant.errors import (
    BudgetExhausted,
    ConfigError,
    ContractError,
    IdentityError,
    PolicyRefusal,
    RoundAborted,
)
from participant.identity import PeerKeys, load_coordinator_key, load_signing_key, open_home
from participant.outbox import Outbox, StoredSeals
from participant.policy import load_policy
from participant.release import ReleaseGate
from participant.sum_keys import StoredKeys
from participant.training import (
    evaluate,
    require_private_model,
    site_random,
    train_update,
)
from privacy.dp.events import event_to_json
from privacy.secagg.errors import MessageRefused
from privacy.secagg.protocol import LEGS, SitePart
from privacy.secagg.secure_sum import site_part

log = logging.getLogger(__name__)

REFUSE, RECEIPT, DONE = "refuse", "receipt", "done"
Refusal = (PlanError, PolicyRefusal, BudgetExhausted, ContractError, IdentityError)


class Participation:
    """One institution's agent, loaded from its home and kept warm between rounds."""

    def __init__(self, home: Path) -> None:
        """Loads configuration, policy, keys, budget and records.

        Raises:
            ParticipantError: anything of it is missing, damaged or contradicts the schema.
        """
        self._config = load_site(home)
        self._files = open_home(home)
        self._policy = load_policy(home)
        self._table = load_schema(self._config.schema)
        self._data: SiteData = load_table(self._config.data, self._table)
        self._models = home / "models"
        self._models.mkdir(mode=0o700, exist_ok=True)
        self._seals = StoredSeals(home / "seals")
        self._keys = home / "keys"
        require_delta_fits(self._config.budget, self._data.patients)
        self._require_engine_takes_data(home)
        self._budget = SiteBudget(home / "budget.db", self._config.budget)
        self._gate = ReleaseGate(
            site=self._config.site,
            policy=self._policy,
            budget=self._budget,
            outbox=Outbox(home / "outbox"),
            seals=self._seals,
        )
        self._peers = PeerKeys(self._files.peer_keys)
        self._signing_key = load_signing_key(self._files)
        self._coordinator_key = load_coordinator_key(self._files)
        torch.set_num_threads(self._config.training.threads)

    def take_part(self, task: RoundTask) -> str:
        """Takes part in the attempt that `task` names; the outcome in one word: counted or refused.

        Raises:
            ChannelError, SecureSumError, ParticipantError: the attempt ended without this site; nothing of it is
                released beyond what the error's stage says, and the budget keeps what was charged.
        """
        plan = verify_plan(task.plan, self._coordinator_key)
        ticket = SessionTicket(
            session_id=plan.session_id, endpoint=self._config.site, ticket=task.ticket
        )
        tls = TlsFiles(
            ca=self._files.ca_certificate,
            certificate=self._files.tls_certificate,
            key=self._files.tls_key,
        )
        with open_channel(self._config.exchange, session=ticket, credentials=tls) as channel:
            try:
                self._require_acceptable(plan, task)
                part = self._secure_sum_part(plan, task)
                self._send_all(channel, LEGS[0], part.hello())
                base = self._fetch_base(plan, channel)
                charge = self._gate.charge(plan)
            except Refusal as refusal:
                log.warning("refused: %s", refusal)
                self._send(channel, REFUSE, str(refusal).encode())
                return "refused"
            try:
                self._contribute(plan, channel, part, base, charge)
            except MessageRefused as refusal:
                # It names whose message was bad, which the coordinator cannot know where that is encrypted for this site.
                self._send(channel, REFUSE, str(refusal).encode())
                raise
        return "counted"

    def _require_engine_takes_data(self, home: Path) -> None:
        is_opacus = self._config.training.dp_engine == "opacus"
        if is_opacus and self._data.patients < len(self._data.labels_N):
            raise ConfigError(
                path=home / "site.toml",
                problem='dp_engine = "opacus" takes one row per patient, and the table has patients with several. Use '
                '"bookkeeping".',
            )

    def _require_acceptable(self, plan: RoundPlan, task: RoundTask) -> None:
        try:
            events = run_events(plan)
            dimension = contribution_layout(plan.model, plan.table, plan.privacy).dimension
        except ValueError as error:
            raise PlanError(f"The plan contradicts itself: {error}") from error
        self._policy.require_permitted(
            plan,
            site=self._config.site,
            bundle=BUNDLE_SHA256,
            schema=self._table.digest,
            run_events=events,
            contract=self._config.budget,
            now=datetime.now(UTC),
        )
        if plan.secure_sum.dimension != dimension:
            raise PlanError(
                f"The plan contradicts itself: a sum of dimension={plan.secure_sum.dimension}, where its model and "
                f"weight take {dimension}."
            )
        if plan.privacy.is_private and plan.privacy.count_epsilon <= 0:
            raise PlanError(
                f"The plan contradicts itself: count_epsilon={plan.privacy.count_epsilon} pays for no count, and the "
                "site's weight in the mean is a count."
            )
        if plan.privacy.is_private:
            try:
                require_private_model(plan.model, plan.table, plan.training.balance_loss)
            except ValueError as error:
                raise PlanError(f"The plan's model cannot be trained privately: {error}") from error
        if sorted(task.keys) != sorted(plan.cohort):
            raise PlanError("The signing keys handed out are not those of the plan's cohort.")
        self._peers.pin(task.keys)

    def _secure_sum_part(self, plan: RoundPlan, task: RoundTask) -> SitePart:
        """This site's part in the sum of its group."""
        group = group_of(plan, self._config.site)
        return site_part(
            group_sum(plan, group),
            site=self._config.site,
            context=group_context(plan, task.plan.payload, group),
            identity=self._signing_key,
            keys={site: task.keys[site] for site in plan.groups[group]},
            journal=self._seals,
            key_store=StoredKeys(self._keys, plan.secure_sum.scheme),
            rounding=site_random(plan, self._config.site, "rounding"),
        )

    def _fetch_base(self, plan: RoundPlan, channel: Channel) -> NDArray[np.float32]:
        """Weights of the plan's base model [P]; older models are removed, the coordinator keeps them all.

        Raises:
            PlanError: a file that is no model, or one of another shape than the plan's.
        """
        path = channel.fetch_model(
            sha256=plan.base_model, size=plan.base_model_bytes, into=self._models
        )
        for other in self._models.glob("*.safetensors"):
            if other != path:
                other.unlink()
        try:
            stored = read_model(path)
        except ValueError as error:
            raise PlanError(f"The base model is not acceptable: {error}") from error
        if stored.config != plan.model or stored.table_digest != plan.table.digest:
            raise PlanError("The base model has another shape or table than the plan.")
        return stored.vector

    def _contribute(
        self,
        plan: RoundPlan,
        channel: Channel,
        part: SitePart,
        base: NDArray[np.float32],
        charge: Charge | None,
    ) -> None:
        started = time.monotonic()
        patients = self._gate.patients(plan, self._data.patients)
        vector = self._gate.contribution(
            plan,
            patients=patients,
            train=lambda: train_update(
                plan,
                self._data,
                base=base,
                patients=patients,
                random=site_random(plan, self._config.site, "training"),
                settings=self._config.training,
            ),
            evaluate=lambda: evaluate(plan, self._data, base=base),
        )
        receipt = self._receipt(plan, charge, seconds=time.monotonic() - started)
        self._send(channel, RECEIPT, encode_receipt(receipt))
        self._send_all(channel, "share", part.share(self._frames(channel, plan, "share"), vector))
        dealt = self._message(channel, plan, self._await(channel, plan, ("seal",)))
        self._gate.spend(plan, vector)
        self._send_all(channel, "seal", part.seal(dealt))
        self._send_all(channel, "confirm", part.confirm(self._frames(channel, plan, "confirm")))
        while (frame := self._await(channel, plan, ("release", DONE))).kind == "release":
            self._send_all(channel, "release", part.release(self._message(channel, plan, frame)))
        self._gate.finish(plan)

    @staticmethod
    def _send(channel: Channel, kind: str, payload: bytes) -> None:
        channel.send(to=COORDINATOR, kind=kind, payload=payload)

    @classmethod
    def _send_all(cls, channel: Channel, kind: str, frames: Iterator[bytes]) -> None:
        for frame in frames:
            cls._send(channel, kind, frame)

    def _frames(self, channel: Channel, plan: RoundPlan, kind: str) -> Iterator[bytes]:
        """The coordinator's frames of that kind, as they come; whoever reads knows which is the last."""
        while True:
            yield self._await(channel, plan, (kind,)).payload

    def _message(self, channel: Channel, plan: RoundPlan, first: Frame) -> Iterator[bytes]:
        """The frames of a message of which the first has come."""
        return itertools.chain((first.payload,), self._frames(channel, plan, first.kind))

    def _await(self, channel: Channel, plan: RoundPlan, kinds: tuple[str, ...]) -> Frame:
        """The coordinator's next frame of these kinds; others may be waiting for stragglers until the deadline."""
        while True:
            remaining = (plan.deadline - datetime.now(UTC)).total_seconds() + plan.silence_seconds
            try:
                frame: Frame = channel.receive(timeout_seconds=max(remaining, 0.001))
            except ChannelTimeout as error:
                raise RoundAborted(
                    f"Run {plan.run_id}, round {plan.round}: no {kinds[0]!r} message before the deadline. The attempt is "
                    f"over for this site; the budget keeps its charge."
                ) from error
            if frame.sender == COORDINATOR and frame.kind in kinds:
                return frame

    def _receipt(self, plan: RoundPlan, charge: Charge | None, *, seconds: float) -> RoundReceipt:
        contract = self._config.budget
        return RoundReceipt(
            epsilon_spent=0.0 if charge is None else self._budget.spent().epsilon,
            epsilon_limit=contract.epsilon,
            delta=contract.delta,
            unit=contract.unit,
            adjacency=contract.adjacency,
            events="[]" if charge is None else f"[{','.join(map(event_to_json, charge.events))}]",
            training_seconds=seconds,
        )
