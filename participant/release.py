"""The release gate: the only way out of a site for anything computed from records.

For each attempt at a round, in this order:
1. `charge`        the plan's cost is reserved in the site's budget, durably, before a record is touched;
2. `patients`      the number of training patients: discrete Laplace, once per run, the same answer ever after;
3. `contribution`  the trained update and the training loss become the one vector that enters the secure sum; it is
                   stored in the outbox before it is sealed, and a retry seals the stored vector again;
4. the secure sum seals the vector (`privacy.secagg`), once per attempt.

An update that was computed but never sealed has been seen by nobody: the next attempt from the same base model
sends it without computing, and without charging, anew.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coordinator.wire.contribution import LOSS_CAP, LOSS_GRID, pack_contribution
from coordinator.wire.plan import RoundPlan
from participant.budget import SiteBudget
from participant.budget_file import Charge
from participant.errors import PolicyRefusal, RoundAborted
from participant.outbox import Outbox, OutboxKey, StoredSeals
from participant.policy import ROUNDING, SitePolicy
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian
from privacy.dp.mechanisms import discrete_laplace
from privacy.dp.updates import ModelUpdate, NoisedUpdate
from privacy.randomness import OsRandom
from privacy.secagg.protocol import seal_key


class ReleaseGate:
    """What one site lets out under its budget and policy."""

    def __init__(
        self,
        *,
        site: str,
        policy: SitePolicy,
        budget: SiteBudget,
        outbox: Outbox,
        seals: StoredSeals,
    ) -> None:
        """Joins the site's durable parts; reads nothing yet."""
        self._site, self._policy = site, policy
        self._budget, self._outbox, self._seals = budget, outbox, seals
        self._noise = OsRandom()

    def charge(self, plan: RoundPlan) -> Charge | None:
        """Reserves what the attempt costs, durably; None without privacy.

        An unsealed update of an earlier attempt was paid for already: its charge is found again.

        Raises:
            PolicyRefusal: the run has used up the epsilon that it was agreed for; nothing was charged.
            BudgetExhausted: the contract has no room; nothing was charged.
            BudgetError, DiskFullError: the budget cannot be trusted or written; no record may be touched.
            RoundAborted: this attempt was sealed before.
        """
        if plan.privacy.mechanism == "none":
            return None
        if plan.privacy.count_epsilon > 0:
            self._budget.reserve(
                f"{plan.run_id}/count", (DiscreteLaplace(epsilon=plan.privacy.count_epsilon),)
            )
        intent = f"{plan.run_id}/{plan.round}/{self._attempt_to_send(plan)}/{plan.base_model}"
        self._require_within_run(plan, intent)
        return self._budget.reserve(intent, attempt_events(plan))

    def patients(self, plan: RoundPlan, count: int) -> float:
        """The number of training patients as the rest of the world may know it, at least 1."""
        if plan.privacy.mechanism == "none":
            return float(count)
        key = OutboxKey(run_id=plan.run_id, name="count")
        stored = self._outbox.get(key)
        if stored is None:
            noised = discrete_laplace(
                count, epsilon=plan.privacy.count_epsilon, sensitivity=1, random=self._noise
            )
            stored = str(max(1, noised)).encode()
            self._outbox.put(key, stored)
        return float(stored)

    def contribution(
        self,
        plan: RoundPlan,
        *,
        patients: float,
        train: Callable[[], ModelUpdate | NoisedUpdate],
        losses: Callable[[], NDArray[np.float64]],
    ) -> NDArray[np.float32]:
        """The vector that this site adds to the secure sum: stored bytes if there are any, else computed and stored.

        Args:
            plan: the round's plan, already charged.
            patients: as returned by `patients`.
            train: computes the update; called only if nothing was stored.
            losses: computes the clipped loss of every patient [N]; likewise.

        Raises:
            ValueError: an update that is not finite; it is not sent.
            PolicyRefusal: an update without privacy at a site that demands it.
            RoundAborted, OutboxError, DiskFullError: nothing may be sent.
        """
        key = self._update_key(plan, self._attempt_to_send(plan))
        stored = self._outbox.get(key)
        if stored is None:
            update = train()
            self._require_protected(plan, update)
            vector = pack_contribution(
                change=update.values,
                patients=patients,
                loss_sum=self._released_loss(plan, losses),
                update_range=plan.update_range,
                weight_cap=plan.weight_cap,
            )
            self._outbox.put(key, vector.tobytes())
            return vector
        return np.frombuffer(stored, np.float32)

    def finish(self, plan: RoundPlan) -> None:
        """Forgets the vectors of a round that the coordinator has committed; their digests stay."""
        for attempt in range(1, plan.attempt + 1):
            self._outbox.forget(self._update_key(plan, attempt))

    def _require_within_run(self, plan: RoundPlan, intent: str) -> None:
        """A run may cost what its plan says and the policy allows, however many attempts the contract has room for."""
        charged = [c for c in self._budget.charges() if c.intent.startswith(f"{plan.run_id}/")]
        if any(charge.intent == intent for charge in charged):
            return
        events = (*(e for charge in charged for e in charge.events), *attempt_events(plan))
        total = epsilon_spent(events, plan.privacy.delta)
        if not total <= plan.privacy.epsilon * ROUNDING:
            raise PolicyRefusal(
                clause="max_epsilon",
                context=f"Run {plan.run_id}, round {plan.round}, site {self._site}",
                wanted=f"another attempt, with which the run comes to epsilon {total:.4g}",
                allowed=f"epsilon {plan.privacy.epsilon:g} (delta {plan.privacy.delta:g}, unit {plan.privacy.unit}, "
                f"adjacency {plan.privacy.adjacency}), as the plan says of the run",
                remedy="Nothing was charged. The attempts that the noise was calibrated for are used up: start a new run.",
            )

    def _released_loss(self, plan: RoundPlan, losses: Callable[[], NDArray[np.float64]]) -> float:
        """The summed loss: exact without privacy, noised on a grid with it, 0 if the plan spends nothing on it."""
        if plan.privacy.mechanism == "none":
            return float(losses().sum())
        if plan.privacy.metric_epsilon <= 0:
            return 0.0
        steps = int(np.rint(losses() * (LOSS_GRID / LOSS_CAP)).astype(np.int64).sum())
        noised = discrete_laplace(
            steps, epsilon=plan.privacy.metric_epsilon, sensitivity=LOSS_GRID, random=self._noise
        )
        return noised * LOSS_CAP / LOSS_GRID

    def _require_protected(self, plan: RoundPlan, update: ModelUpdate | NoisedUpdate) -> None:
        """Order of the release: a plain update passes only under a plan and a policy without privacy."""
        if isinstance(update, NoisedUpdate) and set(update.events) <= set(attempt_events(plan)):
            return
        if (
            isinstance(update, ModelUpdate)
            and plan.privacy.mechanism == "none"
            and not self._policy.require_dp
        ):
            return
        raise PolicyRefusal(
            clause="require_dp",
            context=f"Run {plan.run_id}, round {plan.round}, site {self._site}",
            wanted="an update whose cost is not the one that was charged",
            allowed="updates clipped per patient and noised as the plan says",
            remedy="Nothing was sent. This is a fault of the agent: report it.",
        )

    def _attempt_to_send(self, plan: RoundPlan) -> int:
        """The attempt whose update goes out now: this one, or an earlier one whose stored update nobody has seen.

        Once an attempt was sealed, no update stored by then goes out again, whichever attempt stored it: two sums of
        the same vectors over different cohorts differ by the vector of one site.
        """
        for attempt in range(plan.attempt, 0, -1):
            if self._seals.was_sealed(seal_key(plan.run_id, plan.round, attempt)):
                if attempt == plan.attempt:
                    raise RoundAborted(
                        f"Run {plan.run_id}, round {plan.round}, attempt {attempt}: this site has sealed its "
                        f"contribution before and seals once. The coordinator must start a new attempt."
                    )
                break
            if self._outbox.find(self._update_key(plan, attempt)) is not None:
                return attempt
        return plan.attempt

    @staticmethod
    def _update_key(plan: RoundPlan, attempt: int) -> OutboxKey:
        return OutboxKey(
            run_id=plan.run_id, name=f"update/{plan.round}/{plan.base_model}/{attempt}"
        )


def attempt_events(plan: RoundPlan) -> tuple[Event, ...]:
    """All that one attempt releases about a patient: the noisy gradients of its steps, and the loss."""
    if plan.privacy.mechanism == "none":
        return ()
    gradients = SubsampledGaussian(
        sample_rate=plan.training.sample_rate,
        noise_multiplier=plan.privacy.noise_multiplier,
        steps=plan.training.local_steps,
    )
    if plan.privacy.metric_epsilon <= 0:
        return (gradients,)
    return (gradients, DiscreteLaplace(epsilon=plan.privacy.metric_epsilon, sensitivity=LOSS_GRID))


def run_events(plan: RoundPlan) -> tuple[Event, ...]:
    """All that the plan's whole run may release about a patient: every attempt it was calibrated for, and the count."""
    whole = tuple(_repeated(event, plan.rounds_charged) for event in attempt_events(plan))
    if plan.privacy.mechanism == "none":
        return whole
    return (*whole, DiscreteLaplace(epsilon=plan.privacy.count_epsilon))


def _repeated(event: Event, times: int) -> Event:
    if isinstance(event, SubsampledGaussian):
        return replace(event, steps=event.steps * times)
    return replace(event, count=event.count * times)
