"""One federated run, from its last committed round to its end. The ledger is the truth; this object is disposable.

A round, in the order it happens:
 1. wait until enough sites are online, and plan the attempt;
 2. the ledger records the plan; the exchange opens a session with one ticket per site;
 3. a Flower message hands each site the signed plan and its ticket;
 4. the sites train and take part in the secure sums of their groups, which are driven here leg by leg;
 5. sums -> mean, by the run's robust rule -> server optimiser -> candidate weights;
 6. the model file is written, fsynced, read back and hash-checked, and then the ledger commits the round.
Whatever fails before 6 aborts the attempt: the previous round is still the truth, and the next attempt asks again with
new masks and a new charge, as long as the attempts that the budget was calibrated for last.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid
from numpy.typing import NDArray

from coordinator.cohort import Cohort
from coordinator.errors import QuorumError, RoundError
from coordinator.group_means import mean_of_groups, promise_problem
from coordinator.ledger.records import (
    Lease,
    NewModel,
    PlannedAttempt,
    Site,
)
from coordinator.ledger.states import ParticipationState
from coordinator.ledger.store import LedgerStore
from coordinator.registry.checkpoints import CheckpointStore
from coordinator.round_outcome import round_outcome, site_charge, site_participations
from coordinator.rounds import (
    RoundProgress,
    begin_aggregation,
    commit_round,
    open_round,
    plan_round,
)
from coordinator.run_spec import RunSpec
from coordinator.strategies.server_optimizer import ServerOptimizer, load_moments, save_moments
from coordinator.summation import DONE, GroupPart, SumDriver, Summation
from coordinator.wire.channel import (
    COORDINATOR,
    Channel,
    ChannelClosed,
    SessionAdmin,
    SessionSpec,
    SessionTicket,
)
from coordinator.wire.groups import group_context, group_sum
from coordinator.wire.plan import RoundPlan, SignedPlan, session_name, sign_plan
from coordinator.wire.records import RoundTask
from model.build import build_model
from model.parameters import model_to_vector, read_model, save_model
from model.routing import balanced_bias
from privacy.secagg.errors import MessageRefused, SumImpossible
from privacy.secagg.secure_sum import coordinator_part

log = logging.getLogger(__name__)

TICKET_BYTES = 32
AttemptFailure = (RoundError, SumImpossible, MessageRefused, ChannelClosed)
"""What ends an attempt and not the run."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The model that a round starts from."""

    sha256: str
    bytes: int
    weights: NDArray[np.float32]


class TrainingRun:
    """Drives one run to its end; may be started again, by another process, at any point."""

    def __init__(
        self,
        *,
        spec: RunSpec,
        lease: Lease,
        ledger: LedgerStore,
        checkpoints: CheckpointStore,
        grid: Grid,
        sessions: SessionAdmin,
        connect: Callable[[SessionTicket], Channel],
        signing_key: Ed25519PrivateKey,
    ) -> None:
        """Takes everything it needs; opens nothing itself.

        Args:
            spec: what was asked for.
            lease: the right to write this run; the ledger refuses a process whose lease was taken over.
            ledger: where every step is recorded.
            checkpoints: model files.
            grid: Flower's link to the sites.
            sessions: opens and closes sessions on the exchange.
            connect: opens a channel for a ticket.
            signing_key: signs plans.
        """
        self._spec, self._lease, self._run_id = spec, lease, lease.run_id
        self._ledger, self._checkpoints = ledger, checkpoints
        self._cohort = Cohort(grid=grid, ledger=ledger, spec=spec, run_id=lease.run_id)
        self._sessions, self._connect, self._key = sessions, connect, signing_key

    def drive(self) -> None:
        """All rounds that are missing, then marks the run finished.

        Raises:
            RoundError: the attempts that the budget was calibrated for are used up, or no quorum came online; the run
                is marked failed in the ledger and its last committed round stays the truth.
        """
        base, committed, optimizer = self._resume()
        self._close_earlier_sessions(committed + 1)
        try:
            for number in range(committed + 1, self._spec.rounds + 1):
                base, optimizer = self._round(number, base, optimizer)
        except RoundError as error:
            self._ledger.runs.fail(self._lease, reason=str(error))
            raise
        self._ledger.runs.finish(self._lease)
        log.info("run %s finished after round %d", self._run_id, self._spec.rounds)

    def _resume(self) -> tuple[BaseModel, int, ServerOptimizer]:
        """The last committed round; round 0 is a new model of random weights."""
        last = self._ledger.runs.last_committed(self._run_id)
        if last is None:
            seed = secrets.randbits(62) if self._spec.seed is None else self._spec.seed
            weights = model_to_vector(build_model(self._spec.model, self._spec.table, seed=seed))
            base = self._store_model(weights)
            self._ledger.runs.record_start_model(
                self._lease, sha256=base.sha256, size_bytes=base.bytes
            )
            return base, 0, ServerOptimizer(self._spec.server)
        stored = read_model(self._checkpoints.require(last.model_sha256))
        moments = None
        if last.optimiser_state_sha256 is not None:
            moments = load_moments(self._checkpoints.require(last.optimiser_state_sha256))
        base = BaseModel(sha256=last.model_sha256, bytes=last.model_bytes, weights=stored.vector)
        return base, last.round, ServerOptimizer(self._spec.server, moments)

    def _close_earlier_sessions(self, number: int) -> None:
        """Frees sites that still wait in an attempt of a predecessor, which cannot call them off any more."""
        for attempt in self._ledger.rounds.attempts(self._run_id):
            if attempt.round == number:
                self._sessions.close_session(
                    session_name(self._run_id, number, attempt.attempt),
                    reason="the coordinator was started again and makes a new attempt",
                )

    def _round(
        self, number: int, base: BaseModel, optimizer: ServerOptimizer
    ) -> tuple[BaseModel, ServerOptimizer]:
        """Attempts until one commits.

        Raises:
            QuorumError: no attempt is left, or no quorum came online.
        """
        moments = optimizer.state()
        while True:
            attempts = self._ledger.rounds.attempts(self._run_id)
            # Earlier rounds took at least one attempt each, so the spare ones are what has been used beyond that.
            if len(attempts) >= number + self._spec.spare_attempts:
                raise QuorumError(self._attempts_used_up(number, attempts[-1].reason))
            attempt = 1 + sum(a.round == number for a in attempts)
            plan = self._plan(number, attempt, base)
            try:
                return self._attempt(plan, base, optimizer)
            except AttemptFailure as error:
                reason = f"{type(error).__name__}: {error}"
                log.warning("round %d, attempt %d aborted: %s", number, attempt, reason)
                self._sessions.close_session(plan.session_id, reason="aborted")
                self._ledger.rounds.abort_attempt(
                    self._lease, round=number, attempt=attempt, reason=reason
                )
                optimizer = ServerOptimizer(self._spec.server, moments)

    def _attempts_used_up(self, number: int, last_reason: str | None) -> str:
        return (
            f"Run {self._run_id}, round {number}: the {self._spec.spare_attempts} spare attempts that the privacy "
            f"budget was calibrated for are used up. Last: {last_reason} The last committed round is the truth. See "
            f'"coordinator ledger show {self._run_id}", mend the cause, then start a new run.'
        )

    def _plan(self, number: int, attempt: int, base: BaseModel) -> RoundPlan:
        return plan_round(
            self._spec,
            run_id=self._run_id,
            number=number,
            attempt=attempt,
            cohort=self._cohort.wait(),
            base_model=base.sha256,
            base_model_bytes=base.bytes,
            now=datetime.now(UTC),
        )

    def _attempt(
        self, plan: RoundPlan, base: BaseModel, optimizer: ServerOptimizer
    ) -> tuple[BaseModel, ServerOptimizer]:
        """Steps 2 to 6 of the module's list."""
        signed = sign_plan(plan, self._key)
        where = {"round": plan.round, "attempt": plan.attempt}
        self._ledger.rounds.plan_attempt(
            self._lease,
            PlannedAttempt(
                **where,
                plan=signed.payload,
                plan_signature=signed.signature,
                cohort=plan.cohort,
                quorum=plan.quorum,
                deadline=plan.deadline,
            ),
        )
        progress = open_round(RoundProgress(plan=plan))
        started = time.monotonic()
        members = self._cohort.members(plan)
        with self._session(plan, signed, members) as channel:
            summation = self._sum(plan, signed, members, channel)
            means = mean_of_groups(plan, summation.sums, spoilt=summation.spoilt)
            summation, mean = summation.without(means.spoilt), means.mean
            progress = begin_aggregation(progress, summation.counted)
            weights = optimizer.step(round_number=plan.round, base=base.weights, change=mean.change)
            if mean.loads is not None:
                weights = balanced_bias(
                    weights,
                    mean.loads,
                    self._spec.model,
                    self._spec.table,
                    self._spec.server.balance_rate,
                )
            following = self._store_model(weights)
            model = self._new_model(following, base, optimizer)
            commit_round(progress)
            outcome = round_outcome(
                plan,
                summation,
                mean,
                model=model,
                seconds=time.monotonic() - started,
                history=lambda: self._ledger.history(self._run_id),
            )
            self._ledger.rounds.commit_round(self._lease, outcome, **where)
            # The commit stands: a site that misses the word keeps its vector a little longer, and nothing else.
            with suppress(ChannelClosed):
                for site in summation.counted:
                    channel.send(to=site, kind=DONE, payload=following.sha256.encode())
        self._sessions.close_session(plan.session_id, reason="committed")
        log.info("round %d committed: model %s", plan.round, following.sha256[:12])
        return following, optimizer

    def _new_model(
        self, following: BaseModel, base: BaseModel, optimizer: ServerOptimizer
    ) -> NewModel:
        moments = optimizer.state()
        return NewModel(
            sha256=following.sha256,
            bytes=following.bytes,
            parent_sha256=base.sha256,
            optimiser_state_sha256=self._checkpoints.write(save_moments(moments))
            if moments
            else None,
        )

    @contextmanager
    def _session(
        self, plan: RoundPlan, signed: SignedPlan, members: Mapping[str, Site]
    ) -> Iterator[Channel]:
        """The coordinator's channel while the attempt lasts; if it fails, the sites hear why before they are left."""
        with self._open_session(plan, signed, members) as channel:
            try:
                yield channel
            except AttemptFailure as error:
                # The kind alone: the text may quote what one site said, which is not for the others.
                reason = f"the coordinator has aborted the attempt: {type(error).__name__}"
                self._sessions.close_session(plan.session_id, reason=reason)
                raise

    def _open_session(
        self, plan: RoundPlan, signed: SignedPlan, members: Mapping[str, Site]
    ) -> Channel:
        """Opens the attempt's session, records the attempt as open, and asks the cohort; the coordinator's channel."""
        tickets = {name: secrets.token_bytes(TICKET_BYTES) for name in (*plan.cohort, COORDINATOR)}
        self._sessions.open_session(
            SessionSpec(
                session_id=plan.session_id,
                tickets={name: hashlib.sha256(ticket).digest() for name, ticket in tickets.items()},
                models=(plan.base_model,),
                silence_seconds=plan.silence_seconds,
                deadline_seconds=self._spec.timing.round_seconds + plan.silence_seconds,
            )
        )
        ticket = SessionTicket(
            session_id=plan.session_id, endpoint=COORDINATOR, ticket=tickets[COORDINATOR]
        )
        channel = self._connect(ticket)
        self._ledger.rounds.open_attempt(self._lease, round=plan.round, attempt=plan.attempt)
        keys = signing_keys(members)
        tasks = {n: RoundTask(plan=signed, ticket=tickets[n], keys=keys) for n in plan.cohort}
        self._cohort.ask(plan, tasks, members)
        return channel

    def _sum(
        self, plan: RoundPlan, signed: SignedPlan, members: Mapping[str, Site], channel: Channel
    ) -> Summation:
        """Drives the secure sums of the groups; if they fail, the ledger keeps how far every site had come."""
        where = {"round": plan.round, "attempt": plan.attempt}
        keys = signing_keys(members)
        groups = [
            GroupPart(
                sites=sites,
                part=coordinator_part(
                    group_sum(plan, number),
                    context=group_context(plan, signed.payload, number),
                    keys={site: keys[site] for site in sites},
                    spool_folder=self._checkpoints.folder,
                ),
            )
            for number, sites in enumerate(plan.groups)
        ]
        driver = SumDriver(
            channel,
            groups,
            join_seconds=self._spec.timing.join_seconds,
            round_seconds=self._spec.timing.round_seconds,
            problem_with=lambda left, spoilt: promise_problem(plan, left=left, spoilt=spoilt),
            on_receipt=lambda site, receipt: self._ledger.rounds.record_charge(
                self._lease, site_charge(site, receipt), **where
            ),
            on_sealed=lambda _: self._ledger.rounds.mark_aggregating(self._lease, **where),
        )
        try:
            return driver.run()
        except AttemptFailure:
            for news in site_participations(plan, driver.sites, seconds=0.0):
                if news.state is not ParticipationState.ASKED:
                    self._ledger.rounds.record_participation(self._lease, news, **where)
            raise

    def _store_model(self, weights: NDArray[np.float32]) -> BaseModel:
        path = save_model(self._checkpoints.folder, weights, self._spec.model, self._spec.table)
        self._checkpoints.require(path.stem)
        return BaseModel(sha256=path.stem, bytes=path.stat().st_size, weights=weights)


def signing_keys(members: Mapping[str, Site]) -> dict[str, bytes]:
    """Raw Ed25519 public key of every member."""
    return {name: bytes.fromhex(site.signing_key) for name, site in members.items()}
