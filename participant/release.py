"""The release gate: the only way out of a site for anything computed from records.

For each attempt at a round, in this order:
1. `charge`        the plan's cost is reserved in the site's budget, durably, before a record is touched;
2. `patients`      the number of training patients: discrete Laplace, once per run, the same answer ever after;
3. `contribution`  the trained update, held to the bounds of plan and policy, with its expert loads, the training loss
                   and the scores becomes the one vector that enters the secure sum; it is stored in the outbox before it
                   is sealed, and a retry seals the stored vector again;
4. `spend`         the budget remembers, durably, which bytes leave under the charge;
5. the secure sum seals the vector (`privacy.secagg`), once per attempt.

An update that was computed but never sealed has been seen by nobody: the next attempt from the same base model
sends it without computing, and without charging, anew.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.wire.charges import attempt_events, count_event, gradient_event, run_events
from coordinator.wire.contribution import (
    BLOCK,
    LABELS,
    LOSS_CAP,
    LOSS_GRID,
    SCORE_BINS,
    pack_contribution,
)
from coordinator.wire.plan import RoundPlan
from participant.budget import Programme, SiteBudget
from participant.budget_entries import Charge
from participant.errors import PolicyRefusal, RoundAborted
from participant.outbox import Outbox, OutboxKey, StoredSeals
from participant.policy import SitePolicy
from privacy.dp.mechanisms import discrete_laplace, discrete_laplace_vector
from privacy.dp.updates import ModelUpdate, NoisedUpdate
from privacy.randomness import OsRandom
from privacy.secagg.protocol import seal_key

# U patients


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """How the base model does on the site's patients: private. `repr` shows none of it."""

    losses_U: NDArray[np.float64] = field(repr=False)  # noqa: N815 - shape suffix
    """Mean loss of each patient's records, in [0, LOSS_CAP]."""
    scores_U: NDArray[np.float64] = field(repr=False)  # noqa: N815 - shape suffix
    """Predicted probability for each patient's first record, in [0, 1]."""
    labels_U: NDArray[np.float32] = field(repr=False)  # noqa: N815 - shape suffix
    """Label of that record, 0 or 1."""


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
            BudgetExhausted: the contract has no room, or the run has used up what it declared; nothing was charged.
            BudgetError, DiskFullError: the budget cannot be trusted or written; no record may be touched.
            RoundAborted: this attempt was sealed before.
        """
        if not plan.privacy.is_private:
            return None
        run = Programme(name=plan.run_id, events=run_events(plan))
        self._budget.reserve(_count_intent(plan), (count_event(plan.privacy),), programme=run)
        return self._budget.reserve(
            self._intent(plan), attempt_events(plan.privacy, plan.training), programme=run
        )

    def patients(self, plan: RoundPlan, count: int) -> float:
        """The number of training patients as the rest of the world may know it, at least 1."""
        if not plan.privacy.is_private:
            return float(count)
        key = _count_key(plan)
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
        evaluate: Callable[[], Evaluation],
    ) -> NDArray[np.float32]:
        """The vector that this site adds to the secure sum: stored bytes if there are any, else computed and stored.

        Args:
            plan: the round's plan, already charged.
            patients: as returned by `patients`.
            train: computes the update; called only if nothing was stored.
            evaluate: judges the base model on every patient; likewise, and only if the plan releases a metric.

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
            loss_sum, counts = self._released_metrics(plan, evaluate)
            vector = pack_contribution(
                plan,
                change=within_norm(update.values, self._norm_bound(plan)),
                patients=patients,
                loss_sum=loss_sum,
                counts=counts,
                loads=update.statistics,
            )
            self._outbox.put(key, vector.tobytes())
            return vector
        return np.frombuffer(stored, np.float32)

    def spend(self, plan: RoundPlan, vector: NDArray[np.float32]) -> None:
        """Writes into the budget, durably, that the vector and the count in it leave now.

        Raises:
            BudgetError: nothing was charged for it, or other bytes left under the charge before. Nothing may be sent.
            DiskFullError: no room; nothing may be sent.
        """
        if not plan.privacy.is_private:
            return
        count = self._outbox.find(_count_key(plan))
        if count is None:
            raise RoundAborted(
                f"Run {plan.run_id}, round {plan.round}: the noised number of patients is not in the outbox, where every "
                "release is stored first. Nothing was sent; restore the outbox or start a new run."
            )
        self._budget.spend(_count_intent(plan), sha256=count.sha256)
        digest = hashlib.sha256(vector.data).hexdigest()
        self._budget.spend(self._intent(plan), sha256=digest)

    def finish(self, plan: RoundPlan) -> None:
        """Forgets the vectors of a round that the coordinator has committed; their digests stay."""
        for attempt in range(1, plan.attempt + 1):
            self._outbox.forget(self._update_key(plan, attempt))

    def _released_metrics(
        self, plan: RoundPlan, evaluate: Callable[[], Evaluation]
    ) -> tuple[float, NDArray[np.int64] | None]:
        """The summed loss, and the patients by label and score: exact without privacy, noised with it, or neither."""
        privacy = plan.privacy
        if privacy.is_private and privacy.metric_epsilon == 0 and privacy.auc_epsilon == 0:
            return 0.0, None
        found = evaluate()
        counts = score_counts(found) if privacy.auc_epsilon > 0 else None
        if not privacy.is_private:
            return float(found.losses_U.sum()), counts
        if counts is not None:
            counts = discrete_laplace_vector(
                counts, epsilon=privacy.auc_epsilon, sensitivity=1, random=self._noise
            )
        if privacy.metric_epsilon == 0:
            return 0.0, counts
        steps = int(np.rint(found.losses_U * (LOSS_GRID / LOSS_CAP)).astype(np.int64).sum())
        noised = discrete_laplace(
            steps, epsilon=privacy.metric_epsilon, sensitivity=LOSS_GRID, random=self._noise
        )
        return noised * LOSS_CAP / LOSS_GRID, counts

    def _norm_bound(self, plan: RoundPlan) -> float:
        """Largest L2 norm of a change that leaves: the plan's or this site's own bound, whichever is smaller."""
        bounds = (plan.robust.update_norm, self._policy.max_update_norm)
        return min((bound for bound in bounds if bound is not None), default=math.inf)

    def _require_protected(self, plan: RoundPlan, update: ModelUpdate | NoisedUpdate) -> None:
        """Order of the release: a plain update passes only under a plan and a policy without privacy."""
        privacy = plan.privacy
        if isinstance(update, NoisedUpdate) and privacy.is_private:
            if update.events == (gradient_event(privacy, plan.training),):
                return
        elif (
            isinstance(update, ModelUpdate)
            and not privacy.is_private
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

    def _intent(self, plan: RoundPlan) -> str:
        """What the vector that goes out now is charged under."""
        return f"{plan.run_id}/{plan.round}/{self._attempt_to_send(plan)}/{plan.base_model}"

    @staticmethod
    def _update_key(plan: RoundPlan, attempt: int) -> OutboxKey:
        return OutboxKey(
            run_id=plan.run_id, name=f"update/{plan.round}/{plan.base_model}/{attempt}"
        )


def within_norm(change: NDArray[np.float32], bound: float) -> NDArray[np.float32]:
    """The change [P], shortened to L2 norm `bound` if it is longer, its direction kept.

    After noise this is post-processing: it costs no privacy. NaN and infinity stay what they are, and are refused later.
    """
    norm = math.sqrt(
        sum(
            float(np.sum(np.square(change[start : start + BLOCK], dtype=np.float64)))
            for start in range(0, change.size, BLOCK)
        )
    )
    if not math.isfinite(norm) or norm <= bound:
        return change
    return change * np.float32(bound / norm)


def score_counts(found: Evaluation) -> NDArray[np.int64]:
    """Patients by label and score bin, negatives first [LABELS * SCORE_BINS]; every patient stands in one bin.

    A score that is not a number stands in the first bin: nobody is left out, since that would show.
    """
    scores_U = np.nan_to_num(found.scores_U, nan=0.0)
    bins_U = np.clip((scores_U * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
    rows_U = (found.labels_U > 0).astype(np.int64) * SCORE_BINS + bins_U
    return np.bincount(rows_U, minlength=LABELS * SCORE_BINS).astype(np.int64)


def _count_intent(plan: RoundPlan) -> str:
    return f"{plan.run_id}/count"


def _count_key(plan: RoundPlan) -> OutboxKey:
    return OutboxKey(run_id=plan.run_id, name="count")
