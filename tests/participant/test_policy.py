from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from coordinator.wire.plan import PrivacyPlan, RoundPlan, TrainingPlan
from model.config import TIERS
from model.schema import CategoryColumn, LabelColumn, TableSchema
from participant.config import BudgetContract
from participant.errors import PolicyRefusal
from participant.policy import EpsilonOf, SitePolicy
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian
from privacy.secagg.plan import SumPlan

BUNDLE = "ab" * 32
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
POLICY = SitePolicy(bundles=(BUNDLE,))
CONTRACT = BudgetContract(data_set="small", epsilon=8.0, delta=1e-5, honest_sites=2)
TABLE = TableSchema(
    name="small",
    version=1,
    columns=(CategoryColumn(name="sex", categories=("0", "1")),),
    label=LabelColumn(name="num", positive_above=0),
)
PLAN = RoundPlan(
    run_id="run-1",
    round=3,
    attempt=1,
    rounds_charged=12,
    cohort=("a", "b", "c", "d"),
    groups=(("a", "b", "c", "d"),),
    quorum=3,
    deadline=NOW + timedelta(minutes=10),
    silence_seconds=10.0,
    base_model="cd" * 32,
    base_model_bytes=1000,
    model=TIERS["cpu-demo"],
    table=TABLE,
    training=TrainingPlan(local_steps=5, sample_rate=0.25, learning_rate=0.1, optimizer="sgd"),
    privacy=PrivacyPlan(
        mechanism="dp-sgd",
        epsilon=8.0,
        delta=1e-5,
        noise_multiplier=1.5,
        clipping_norm=1.0,
        count_epsilon=0.1,
        metric_epsilon=0.0,
    ),
    secure_sum=SumPlan(
        scheme="mask", dimension=100, max_sites=4, quorum=3, threshold=3, value_range=1.0
    ),
    update_range=1.0,
    weight_cap=1000,
    seed=None,
)
WITHOUT_DP = replace(PLAN, privacy=replace(PLAN.privacy, mechanism="none"))


def run_events(plan: RoundPlan) -> tuple[Event, ...]:
    steps = plan.training.local_steps * plan.rounds_charged
    gradients = SubsampledGaussian(
        sample_rate=plan.training.sample_rate,
        noise_multiplier=plan.privacy.noise_multiplier,
        steps=steps,
    )
    return (gradients, DiscreteLaplace(epsilon=plan.privacy.count_epsilon))


def total_is(epsilon: float) -> EpsilonOf:
    def epsilon_of(events: Sequence[Event], delta: float) -> float:
        return epsilon

    return epsilon_of


def check(
    plan: RoundPlan, policy: SitePolicy = POLICY, *, bundle: str = BUNDLE, total: float = 1.0
) -> None:
    policy.require_permitted(
        plan,
        site="b",
        bundle=bundle,
        schema=TABLE.digest,
        run_events=(),
        contract=CONTRACT,
        now=NOW,
        epsilon_of=total_is(total),
    )


def with_training(**changes: Any) -> RoundPlan:
    return replace(PLAN, training=replace(PLAN.training, **changes))


def with_privacy(**changes: Any) -> RoundPlan:
    return replace(PLAN, privacy=replace(PLAN.privacy, **changes))


def with_sum(**changes: Any) -> RoundPlan:
    return replace(PLAN, secure_sum=replace(PLAN.secure_sum, **changes))


def test_default_policy_permits_a_private_round_of_four_sites() -> None:
    check(PLAN)


@pytest.mark.parametrize(
    ("plan", "clause"),
    [
        (replace(PLAN, cohort=("a", "c", "d")), "plan.cohort"),
        (replace(PLAN, cohort=("b", "a", "c")), "plan.cohort"),
        (replace(PLAN, cohort=("a", "b", "b")), "plan.cohort"),
        (replace(PLAN, cohort=("a", "b")), "minimum_cohort"),
        (replace(PLAN, deadline=NOW), "plan.deadline"),
        (replace(PLAN, deadline=datetime(2031, 1, 1)), "plan.deadline"),  # noqa: DTZ001 - without a zone
        (replace(PLAN, table=replace(TABLE, version=2)), "schemas"),
        (with_sum(scheme="plain"), "secure_sum_schemes"),
        (replace(PLAN, quorum=2, secure_sum=replace(PLAN.secure_sum, quorum=2)), "minimum_quorum"),
        (with_sum(quorum=4), "plan.quorum"),
        (with_sum(quorum=2), "minimum_quorum"),
        (with_sum(threshold=2), "plan.secure_sum"),
        (with_sum(max_sites=3), "plan.secure_sum"),
        (replace(PLAN, rounds_charged=1001), "max_rounds"),
        (replace(PLAN, round=13), "plan.round"),
        (replace(PLAN, round=0), "plan.round"),
        (replace(PLAN, attempt=0), "plan.round"),
        (with_training(local_steps=10_001), "max_local_steps"),
        (with_training(local_steps=0), "plan.training"),
        (with_training(sample_rate=1.5), "plan.training"),
        (with_training(sample_rate=0.0), "plan.training"),
        (with_training(learning_rate=-1.0), "plan.training"),
        (replace(PLAN, weight_cap=0), "plan.contribution"),
        (replace(PLAN, base_model_bytes=1 << 40), "max_model_bytes"),
        (WITHOUT_DP, "require_dp"),
        (replace(PLAN, seed=1), "allow_fixed_seed"),
        (with_privacy(clipping_norm=0.0), "plan.privacy"),
        (with_privacy(noise_multiplier=0.0), "plan.privacy"),
        (with_privacy(count_epsilon=-1.0), "plan.privacy"),
        (with_privacy(delta=2e-5), "max_delta"),
        (with_privacy(noise_multiplier=0.1), "minimum_noise_multiplier"),
        (with_privacy(epsilon=8.1), "max_epsilon"),
    ],
)
def test_plan_outside_the_policy_is_refused_with_the_clause(plan: RoundPlan, clause: str) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        check(plan)

    assert caught.value.clause == clause
    assert f'refused by clause "{clause}"' in str(caught.value)
    assert 'Run "run-1", round' in str(caught.value)


def test_unlisted_bundle_is_refused() -> None:
    with pytest.raises(PolicyRefusal) as caught:
        check(PLAN, bundle="ef" * 32)

    assert (caught.value.clause, caught.value.allowed) == ("bundles", BUNDLE)


def test_refusal_says_what_was_asked_what_is_allowed_and_who_may_change_it() -> None:
    with pytest.raises(PolicyRefusal) as caught:
        check(with_privacy(epsilon=12.0))

    message = str(caught.value)
    assert "Asked: epsilon 12 (delta 1e-05, unit patient, adjacency add-or-remove-one)" in message
    assert "Allowed: epsilon 8 (delta 1e-05" in message
    assert "administrator may change max_epsilon in policy.toml" in message


def test_contradiction_of_a_plan_is_not_offered_as_a_setting() -> None:
    with pytest.raises(PolicyRefusal, match="No policy allows this"):
        check(replace(PLAN, round=13))


def test_plan_that_costs_more_than_it_says_is_refused() -> None:
    with pytest.raises(PolicyRefusal) as caught:
        check(with_privacy(epsilon=3.0), total=3.01)

    assert caught.value.clause == "plan.epsilon"


def test_plan_that_costs_more_than_the_policy_allows_is_refused() -> None:
    with pytest.raises(PolicyRefusal) as caught:
        check(PLAN, total=8.01)

    assert caught.value.clause == "max_epsilon"


def test_total_that_is_no_number_is_refused() -> None:
    with pytest.raises(PolicyRefusal):
        check(PLAN, total=float("nan"))


def test_cost_is_reckoned_by_the_real_accountant() -> None:
    total = epsilon_spent(run_events(PLAN), 1e-5)
    too_modest = with_privacy(epsilon=total * 0.9)

    with pytest.raises(PolicyRefusal) as caught:
        POLICY.require_permitted(
            too_modest,
            site="b",
            bundle=BUNDLE,
            schema=TABLE.digest,
            run_events=run_events(too_modest),
            contract=CONTRACT,
            now=NOW,
        )

    assert caught.value.clause == "plan.epsilon"


def test_rehearsal_policy_permits_plain_sums_without_privacy_and_with_a_seed() -> None:
    policy = replace(
        POLICY, secure_sum_schemes=("mask", "plain"), require_dp=False, allow_fixed_seed=True
    )
    plan = replace(WITHOUT_DP, seed=7, secure_sum=replace(PLAN.secure_sum, scheme="plain"))

    check(plan, policy)


def test_seed_under_privacy_is_refused_whatever_the_policy() -> None:
    with pytest.raises(PolicyRefusal, match="under differential privacy"):
        check(replace(PLAN, seed=7), replace(POLICY, allow_fixed_seed=True))


def test_further_schema_may_be_listed() -> None:
    other = replace(TABLE, version=2)

    check(replace(PLAN, table=other), replace(POLICY, schemas=(other.digest,)))


def test_refused_plan_is_not_reckoned() -> None:
    def must_not_run(events: Sequence[Event], delta: float) -> float:
        raise AssertionError("the accountant ran")

    with pytest.raises(PolicyRefusal):
        POLICY.require_permitted(
            with_privacy(noise_multiplier=1e-9),
            site="b",
            bundle=BUNDLE,
            schema=TABLE.digest,
            run_events=(),
            contract=CONTRACT,
            now=NOW,
            epsilon_of=must_not_run,
        )


DISTRIBUTED = replace(
    PLAN,
    training=replace(PLAN.training, local_steps=1),
    privacy=replace(PLAN.privacy, mechanism="distributed-dp", honest_sites=2),
    update_range=256.0,
)


def test_distributed_noise_is_permitted_if_the_site_trusts_as_many_sites() -> None:
    check(DISTRIBUTED)


@pytest.mark.parametrize(
    ("plan", "clause"),
    [
        (replace(DISTRIBUTED, training=PLAN.training), "plan.distributed"),
        (replace(DISTRIBUTED, update_range=1.0), "plan.distributed"),
        (
            replace(DISTRIBUTED, privacy=replace(DISTRIBUTED.privacy, honest_sites=3)),
            "budget.honest_sites",
        ),
        (
            replace(DISTRIBUTED, privacy=replace(DISTRIBUTED.privacy, honest_sites=4)),
            "plan.distributed",
        ),
        (
            replace(DISTRIBUTED, privacy=replace(DISTRIBUTED.privacy, colluding_sites=2)),
            "plan.distributed",
        ),
        (
            replace(
                DISTRIBUTED,
                privacy=replace(DISTRIBUTED.privacy, honest_sites=1, colluding_sites=2),
            ),
            "plan.distributed",
        ),
        (replace(DISTRIBUTED, update_range=0.0), "plan.contribution"),
        (
            replace(DISTRIBUTED, secure_sum=replace(PLAN.secure_sum, value_bits=12)),
            "plan.distributed",
        ),
        (
            replace(DISTRIBUTED, secure_sum=replace(PLAN.secure_sum, value_range=2.0)),
            "plan.distributed",
        ),
    ],
)
def test_distributed_noise_that_would_not_be_there_is_refused(plan: RoundPlan, clause: str) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        check(plan)

    assert caught.value.clause == clause


def test_colluders_that_quorum_and_secure_sum_allow_for_are_permitted() -> None:
    check(replace(DISTRIBUTED, privacy=replace(DISTRIBUTED.privacy, colluding_sites=1)))


def test_distributed_noise_may_ride_in_an_exact_encrypted_sum() -> None:
    total = replace(PLAN.secure_sum, scheme="paillier", key_holder="a")
    policy = replace(POLICY, paillier_key_holders=("a",))
    check(replace(DISTRIBUTED, secure_sum=total), policy)


def test_distributed_noise_in_a_sum_that_hides_nothing_is_refused_whatever_the_policy() -> None:
    plan = replace(DISTRIBUTED, secure_sum=replace(PLAN.secure_sum, scheme="plain"))
    with pytest.raises(PolicyRefusal, match=r"plan\.distributed"):
        check(plan, replace(POLICY, secure_sum_schemes=("mask", "plain")))


def test_a_plan_for_another_unit_than_the_contract_s_is_refused() -> None:
    with pytest.raises(PolicyRefusal, match=r"plan\.unit"):
        check(with_privacy(unit="customer"))
