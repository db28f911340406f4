"""What privacy may cost in a scenario, and how each run is made: `scenarios/NAME.utility.toml`, fixed beforehand.

1. The epsilons, and what each may cost: AUC and accuracy, in points (hundredths) against the run without privacy.
2. What is changed in the scenario's run for each epsilon, and for the run without privacy, which gets the steps that
   suit it: a baseline held back by the learning rate of the noise would flatter the private model.

Learning rates chosen for an epsilon cost no privacy: they were chosen on other people, or on public tables.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from coordinator.errors import ConfigError
from sims.scenario import scenario_path

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Changes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Level:
    """One epsilon: what it may cost, and the run that is made for it."""

    epsilon: float = Field(gt=0)
    """Total of the run at each site."""
    auc_aim: float | None = None
    """Points of AUC that it may cost; None: no aim."""
    accuracy_aim: float | None = None
    """Points of accuracy that it may cost; None: no aim."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Of the scenario's run."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UtilityPlan:
    """All that is decided beforehand."""

    levels: tuple[Level, ...] = Field(min_length=1)
    """By rising epsilon."""
    no_privacy: dict[str, Any] = Field(default_factory=dict)
    """Changes of the scenario's run for the baseline without privacy."""

    def __post_init__(self) -> None:
        """Refuses levels out of order."""
        epsilons = [level.epsilon for level in self.levels]
        if epsilons != sorted(set(epsilons)):
            raise ValueError(f"Expected epsilons={epsilons} to rise.")

    def level(self, epsilon: float) -> Level:
        """The level of any epsilon: the run of the next smaller level that is planned, and what that one may cost.

        More epsilon must not cost more. Below the smallest level its run is taken, and nothing is aimed at.

        Raises:
            ConfigError: `epsilon` is not a positive number.
        """
        if not 0.0 < epsilon < math.inf:
            raise ConfigError(f"Expected epsilon={epsilon} > 0 and finite.")
        smaller = [level for level in self.levels if level.epsilon <= epsilon]
        if smaller:
            return replace(smaller[-1], epsilon=epsilon)
        return Level(epsilon=epsilon, changes=self.levels[0].changes)


def load_plan(name: str) -> UtilityPlan:
    """What was decided for the scenario of that name.

    Raises:
        ConfigError: there is no plan, or it does not parse.
    """
    path = scenario_path(name).with_suffix(".utility.toml")
    try:
        return TypeAdapter(UtilityPlan).validate_python(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValidationError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}. Correct the file and try again.") from error


def merged(first: Changes, second: Changes) -> dict[str, Any]:
    """Changes of a run, those of `second` above those of `first`; tables are merged key by key."""
    both = dict(first)
    for key, value in second.items():
        is_table = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = {**both[key], **value} if is_table else value
    return both
