"""What a site agrees to: `policy.toml`, and the check of every round plan against it.

The check comes first of all: before the budget is charged, before a model is fetched, before a record is read. Each
refusal names the clause, what was asked, what is allowed and who could change it. A clause "plan.*" is no setting: a
plan that breaks it contradicts itself, or this site's role in it, and no policy can allow it.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.dataclasses import dataclass

from coordinator.wire.plan import RoundPlan
from coordinator.wire.shared_noise import colluders_withstood, distributed_problem
from model.parameters import parameter_count
from participant.config import BudgetContract, parse_toml
from participant.policy_clauses import (
    Clause,
    listed,
    require_all,
    robust_clauses,
    secure_sum_clauses,
)
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import Event
from privacy.secagg.plan import MOST_MASKED_SITES, Scheme

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
EpsilonOf = Callable[[Sequence[Event], float], float]
ROUNDING = 1.0 + 1e-9
"""Room for the last digit when the same total is reckoned at two places."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SitePolicy:
    """Everything in `policy.toml`. The defaults suit four or more institutions and private records."""

    bundles: tuple[Sha256, ...]
    """App bundles that this site agrees to serve, by SHA-256."""
    schemas: tuple[Sha256, ...] = ()
    """Digests of table schemas that this site agrees to, besides that of its own `schema.toml`'s."""
    max_epsilon: float = Field(default=8.0, gt=0)
    """Largest total epsilon of one run."""
    max_delta: float = Field(default=1e-5, gt=0, lt=0.01)
    """Largest delta of one run."""
    minimum_noise_multiplier: float = Field(default=0.3, ge=0)
    """Least noise on a clipped sum, in units of the clipping norm."""
    minimum_cohort: int = Field(default=3, ge=1, le=MOST_MASKED_SITES)
    """Fewest sites asked in a round. With two, each reads the other's update off the sum."""
    minimum_quorum: int = Field(default=3, ge=1, le=MOST_MASKED_SITES)
    """Fewest sites whose sum may be opened, also where the cohort is split into groups with a sum each."""
    max_update_norm: float | None = Field(default=None, gt=0)
    """Largest L2 norm of this site's change; a longer one is shortened to it before it is sealed. None: no bound."""
    secure_sum_schemes: tuple[Scheme, ...] = ("mask", "ckks", "ckks-light", "paillier")
    """Secure sums that are allowed. "plain" shows every update to the coordinator."""
    paillier_key_holders: tuple[str, ...] = ()
    """Sites that are trusted to make a Paillier key: one of them and the coordinator together can read every update."""
    require_dp: bool = True
    """Refuse plans without differential privacy."""
    allow_fixed_seed: bool = False
    """Allow a plan to fix the randomness of training; only ever without differential privacy."""
    max_rounds: int = Field(default=1000, ge=1)
    """Rounds and spare attempts of one run."""
    max_local_steps: int = Field(default=10_000, ge=1)
    """Training steps in a round: a bound on this site's time."""
    max_model_bytes: int = Field(default=1 << 31, ge=1)
    """Largest model file that is fetched: a bound on this site's disk and memory."""

    def require_permitted(
        self,
        plan: RoundPlan,
        *,
        site: str,
        bundle: str,
        schema: str,
        run_events: Sequence[Event],
        contract: BudgetContract,
        now: datetime,
        epsilon_of: EpsilonOf = epsilon_spent,
    ) -> None:
        """Raises unless this site agrees to the plan.

        Args:
            plan: a plan whose signature was verified.
            site: name of this site.
            bundle: SHA-256, in hex, of the app bundle that the task came with.
            schema: digest of this site's own table schema.
            run_events: what this site would be charged over the whole run, by its own reckoning of the plan; empty
                without differential privacy.
            contract: of the data set: the plan must speak of the same unit and adjacency, and trust no more sites to be
                honest than the institution does.
            now: the time, with its zone.
            epsilon_of: the accountant.

        Raises:
            PolicyRefusal: with the first clause that the plan breaks.
        """
        cheap = (
            *_identity_clauses(plan, self, site=site, bundle=bundle, schema=schema, now=now),
            *secure_sum_clauses(
                plan,
                site=site,
                schemes=self.secure_sum_schemes,
                key_holders=self.paillier_key_holders,
                minimum_quorum=self.minimum_quorum,
            ),
            *robust_clauses(plan, max_update_norm=self.max_update_norm),
            *_training_clauses(plan, self),
            *_privacy_clauses(plan, self, contract),
        )
        require_all(cheap, plan, site)
        if plan.privacy.is_private:  # only now: the accountant takes seconds on absurd parameters
            require_all(
                _epsilon_clauses(plan, self, epsilon_of(run_events, plan.privacy.delta)), plan, site
            )


def load_policy(home: Path) -> SitePolicy:
    """Reads `policy.toml` in the site folder.

    Raises:
        ConfigError: missing, not TOML, an unknown or missing clause, or a value out of range.
    """
    return parse_toml(home / "policy.toml", SitePolicy)


def _identity_clauses(
    plan: RoundPlan, policy: SitePolicy, *, site: str, bundle: str, schema: str, now: datetime
) -> Iterator[Clause]:
    """Whom the plan addresses, in which terms, until when."""
    cohort, digest = plan.cohort, plan.table.digest
    yield Clause(
        name="bundles",
        is_kept=bundle in policy.bundles,
        wanted=f"bundle {bundle[:64]}",
        allowed=listed(policy.bundles),
    )
    yield Clause(
        name="plan.cohort",
        is_kept=site in cohort and list(cohort) == sorted(set(cohort)),
        wanted=f"{len(cohort)} sites",
        allowed=f'a sorted cohort that names "{site}", every site once',
    )
    yield Clause(
        name="minimum_cohort",
        is_kept=len(cohort) >= policy.minimum_cohort,
        wanted=f"{len(cohort)} sites",
        allowed=f"at least {policy.minimum_cohort}",
    )
    has_time = plan.deadline.tzinfo is not None and now < plan.deadline
    yield Clause(
        name="plan.deadline",
        is_kept=has_time,
        wanted=f"work until {plan.deadline.isoformat()}",
        allowed=f"a deadline with a time zone, after now ({now.isoformat(timespec='seconds')})",
    )
    yield Clause(
        name="schemas",
        is_kept=digest == schema or digest in policy.schemas,
        wanted=f'table "{plan.table.name}" version {plan.table.version}, schema {digest}',
        allowed=listed((schema, *policy.schemas)),
    )


def _training_clauses(plan: RoundPlan, policy: SitePolicy) -> Iterator[Clause]:
    """Bounds on work, and parameters that mean something."""
    training = plan.training
    yield Clause(
        name="max_rounds",
        is_kept=plan.rounds_charged <= policy.max_rounds,
        wanted=f"{plan.rounds_charged} attempts in the run",
        allowed=f"at most {policy.max_rounds}",
    )
    yield Clause(
        name="plan.round",
        is_kept=1 <= plan.round <= plan.rounds_charged and plan.attempt >= 1,
        wanted=f"round {plan.round}, attempt {plan.attempt} of {plan.rounds_charged} attempts",
        allowed="rounds and attempts from 1, within what the noise was calibrated for",
    )
    yield Clause(
        name="max_local_steps",
        is_kept=training.local_steps <= policy.max_local_steps,
        wanted=f"{training.local_steps} steps",
        allowed=f"at most {policy.max_local_steps}",
    )
    yield Clause(
        name="plan.training",
        is_kept=training.local_steps >= 1
        and 0 < training.sample_rate <= 1
        and training.learning_rate > 0
        and min(training.proximal_mu, training.balance_loss) >= 0,
        wanted=f"steps {training.local_steps}, sample rate {training.sample_rate:g}, learning rate "
        f"{training.learning_rate:g}, proximal term {training.proximal_mu:g}, balance loss {training.balance_loss:g}",
        allowed="steps of at least 1, a rate in (0, 1], a positive learning rate, no negative proximal term or balance loss",
    )
    yield Clause(
        name="plan.contribution",
        is_kept=plan.update_range > 0 and plan.weight_cap >= 1,
        wanted=f"update range {plan.update_range:g}, weight cap {plan.weight_cap}",
        allowed="a positive range and a cap of at least one patient",
    )
    yield Clause(
        name="max_model_bytes",
        is_kept=1 <= plan.base_model_bytes <= policy.max_model_bytes,
        wanted=f"a model of {plan.base_model_bytes} bytes",
        allowed=f"1 to {policy.max_model_bytes}",
    )


def _privacy_clauses(
    plan: RoundPlan, policy: SitePolicy, contract: BudgetContract
) -> Iterator[Clause]:
    """What the plan promises, before it is reckoned."""
    privacy, is_private = plan.privacy, plan.privacy.is_private
    yield Clause(
        name="require_dp",
        is_kept=is_private or not policy.require_dp,
        wanted='mechanism "none": training without differential privacy',
        allowed='mechanism "dp-sgd" or "distributed-dp"',
    )
    yield Clause(
        name="allow_fixed_seed",
        is_kept=plan.seed is None or (policy.allow_fixed_seed and not is_private),
        wanted="a fixed seed" + (" under differential privacy" if is_private else ""),
        allowed="no seed"
        if is_private or not policy.allow_fixed_seed
        else "a seed without differential privacy",
    )
    if not is_private:
        return
    yield Clause(
        name="plan.privacy",
        is_kept=privacy.epsilon > 0
        and 0 < privacy.delta < 1
        and privacy.clipping_norm > 0
        and privacy.noise_multiplier > 0
        and min(privacy.count_epsilon, privacy.metric_epsilon, privacy.auc_epsilon) >= 0
        and privacy.load_noise_multiplier >= 0,
        wanted=f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g}, clipping norm {privacy.clipping_norm:g}, noise "
        f"{privacy.noise_multiplier:g}, count {privacy.count_epsilon:g}, metrics {privacy.metric_epsilon:g} and "
        f"{privacy.auc_epsilon:g}, loads {privacy.load_noise_multiplier:g}",
        allowed="positive epsilon, delta, clipping norm and noise; nothing negative of counts, metrics and loads",
    )
    yield Clause(
        name="plan.unit",
        is_kept=(privacy.unit, privacy.adjacency) == (contract.unit, contract.adjacency),
        wanted=f"unit {privacy.unit}, adjacency {privacy.adjacency}",
        allowed=f"unit {contract.unit}, adjacency {contract.adjacency}, as the contract of the data set says",
    )
    if privacy.mechanism == "distributed-dp":
        yield from _distributed_clauses(plan, contract)
    yield Clause(
        name="max_delta",
        is_kept=privacy.delta <= policy.max_delta,
        wanted=f"delta {privacy.delta:g}",
        allowed=f"at most {policy.max_delta:g}",
    )
    yield Clause(
        name="minimum_noise_multiplier",
        is_kept=privacy.noise_multiplier >= policy.minimum_noise_multiplier,
        wanted=f"noise multiplier {privacy.noise_multiplier:g}",
        allowed=f"at least {policy.minimum_noise_multiplier:g}",
    )
    yield Clause(
        name="max_epsilon",
        is_kept=privacy.epsilon <= policy.max_epsilon,
        wanted=_statement(plan, privacy.epsilon),
        allowed=_statement(plan, policy.max_epsilon),
    )


def _distributed_clauses(plan: RoundPlan, contract: BudgetContract) -> Iterator[Clause]:
    """Whether the other sites' noise may be counted on."""
    problem = distributed_problem(
        plan.privacy,
        plan.training,
        scheme=plan.secure_sum.scheme,
        quorum=min(plan.quorum, plan.secure_sum.quorum),
        withstood=colluders_withstood(plan.secure_sum, len(plan.cohort)),
        encoding=plan.secure_sum.encoding,
        parameters=parameter_count(plan.model, plan.table),
        update_range=plan.update_range,
    )
    yield Clause(
        name="plan.distributed",
        is_kept=not problem,
        wanted=problem,
        allowed="one plain gradient step a round, in a sum that hides every site's vector, adds whole steps exactly, has room "
        "for noise, and is opened over enough honest sites whoever drops out",
    )
    yield Clause(
        name="budget.honest_sites",
        is_kept=plan.privacy.honest_sites <= contract.honest_sites,
        wanted=f"{plan.privacy.honest_sites} sites in the sum trusted to have added their noise",
        allowed=f"at most {contract.honest_sites} (honest_sites in site.toml; this site is one of them)",
    )


def _epsilon_clauses(plan: RoundPlan, policy: SitePolicy, reckoned: float) -> Iterator[Clause]:
    """What the plan's parameters really cost, whatever it says."""
    yield Clause(
        name="max_epsilon",
        is_kept=reckoned <= policy.max_epsilon * ROUNDING,
        wanted=f"{_statement(plan, reckoned)}, as reckoned by this site",
        allowed=_statement(plan, policy.max_epsilon),
    )
    yield Clause(
        name="plan.epsilon",
        is_kept=reckoned <= plan.privacy.epsilon * ROUNDING,
        wanted=f"{_statement(plan, reckoned)}, as reckoned by this site",
        allowed=f"{_statement(plan, plan.privacy.epsilon)}, as the plan says of itself",
    )


def _statement(plan: RoundPlan, epsilon: float) -> str:
    privacy = plan.privacy
    return f"epsilon {epsilon:.4g} (delta {privacy.delta:g}, unit {privacy.unit}, adjacency {privacy.adjacency})"
