"""The plan of what privacy may cost: its levels, its order, and the plans that come with the scenarios."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from coordinator.errors import ConfigError
from sims.utility_plan import Level, UtilityPlan, load_plan, merged

PLAN = UtilityPlan(
    levels=(
        Level(epsilon=0.5, changes={"rounds": 3}),
        Level(epsilon=3.0, auc_aim=3.0, accuracy_aim=1.0, changes={"rounds": 5}),
    )
)


@pytest.mark.parametrize(
    ("epsilon", "rounds", "aim"), [(0.1, 3, None), (0.5, 3, None), (2.9, 3, None), (5.0, 5, 3.0)]
)
def test_any_epsilon_takes_run_and_aim_of_the_next_smaller_level(
    epsilon: float, rounds: int, aim: float | None
) -> None:
    level = PLAN.level(epsilon)
    assert (level.epsilon, level.changes["rounds"], level.auc_aim) == (epsilon, rounds, aim)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_an_epsilon_that_is_no_positive_number_has_no_level(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="epsilon="):
        PLAN.level(epsilon)


def test_levels_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="to rise"):
        UtilityPlan(levels=(Level(epsilon=3.0), Level(epsilon=1.0)))


def test_changes_are_merged_table_by_table() -> None:
    first = {"rounds": 3, "training": {"learning_rate": 0.1, "local_steps": 5}}
    second: dict[str, Any] = {"training": {"local_steps": 1}, "privacy": {"epsilon": 1.0}}
    assert merged(first, second) == {
        "rounds": 3,
        "training": {"learning_rate": 0.1, "local_steps": 1},
        "privacy": {"epsilon": 1.0},
    }


def test_a_scenario_without_a_plan_is_named() -> None:
    with pytest.raises(ConfigError, match=r"liver\.utility\.toml"):
        load_plan("liver")


def test_the_credit_plan_aims_at_what_was_asked_for() -> None:
    levels = load_plan("credit").levels
    aims = {level.epsilon: (level.auc_aim, level.accuracy_aim) for level in levels}
    assert aims == {0.5: (1.0, 2.3), 1.0: (1.0, 1.8), 3.0: (1.0, 1.2), 8.0: (1.0, 1.0)}


def test_the_heart_plan_aims_at_what_was_asked_for() -> None:
    aims = {level.epsilon: level.auc_aim for level in load_plan("heart").levels}
    assert aims == {0.5: None, 3.0: 3.0, 8.0: 2.0}
