"""How many malicious sites a round stands, and with how many groups it can keep that promise.

The cohort is split into groups, each with a secure sum of its own; a rule then combines the groups' means. One malicious
site spoils its group's mean and no other, so f malicious sites spoil at most f groups, wherever they are. Every group
counts once: a group's weight is what its sites say, and a rule that believed it would let one site outweigh the others.

| rule             | groups for f  | why                                                                              |
|------------------|---------------|----------------------------------------------------------------------------------|
| mean             | f = 0 only    | one group moves the mean as far as it likes                                      |
| median           | 2f + 1        | each coordinate lies between honest ones (Yin et al. 2018)                       |
| trimmed-mean     | 2f + 1        | the f largest and f smallest of each coordinate are left out (Yin et al. 2018)   |
| geometric-median | 2f + 1        | breakdown point 1/2 (Pillutla et al. 2019)                                       |
| krum, multi-krum | 2f + 3        | Blanchard et al. 2017, proposition 1                                             |
| bulyan           | 4f + 3        | El Mhamdi et al. 2018                                                            |

Not promised: that f malicious sites have no influence. They move the result within the spread of the honest groups.
"""

from dataclasses import dataclass as plain_dataclass
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

Rule = Literal["mean", "median", "trimmed-mean", "geometric-median", "krum", "multi-krum", "bulyan"]
SLOPE_AND_OFFSET: dict[Rule, tuple[int, int]] = {
    "median": (2, 1),
    "trimmed-mean": (2, 1),
    "geometric-median": (2, 1),
    "krum": (2, 3),
    "multi-krum": (2, 3),
    "bulyan": (4, 3),
}
"""Groups needed for f malicious sites: slope * f + offset."""
LEAST_HIDDEN_GROUP = 4
"""Fewest sites in one of several groups whose sum hides them: the average of fewer says too much about each."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RobustPlan:
    """How the sums of the groups become one change of the model."""

    rule: Rule = "mean"
    tolerate: int = 0
    """Malicious sites of the cohort whom the round must stand."""
    update_norm: float | None = None
    """L2 bound of one site's change, kept by every honest site's own code before it seals; None: no bound."""


@plain_dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What a rule over so many groups stands."""

    rule: Rule
    groups: int
    sites: int
    promised: int
    """Malicious sites that the round must stand."""
    tolerated: int
    """Malicious sites that it stands while all groups are there, at least `promised`."""
    fewest_groups: int
    """With fewer groups left, an attempt is aborted."""

    @property
    def words(self) -> str:
        """The same in one sentence, for an operator."""
        groups = "1 group" if self.groups == 1 else f"{self.groups} groups"
        return (
            f"Tolerates {self.tolerated} malicious sites of {self.sites} ({self.rule}, {groups}); promised are "
            f"{self.promised}, for which {self.fewest_groups} of the groups must get through an attempt."
        )


def fewest_groups(rule: Rule, malicious: int) -> int:
    """Groups that the rule needs to stand so many malicious sites.

    Raises:
        ValueError: a negative number, or a malicious site under `mean`, which stands none.
    """
    if malicious < 0:
        raise ValueError(f"Expected tolerate={malicious} >= 0.")
    if rule == "mean":
        if malicious > 0:
            raise ValueError(
                f'tolerate={malicious} with rule="mean": a mean stands no malicious site at all. Choose median, trimmed-mean, '
                "geometric-median, krum, multi-krum or bulyan, and several groups"
            )
        return 1
    slope, offset = SLOPE_AND_OFFSET[rule]
    return slope * malicious + offset


def tolerance(plan: RobustPlan, *, groups: int, sites: int) -> Tolerance:
    """What the plan stands with so many groups.

    `median` and `geometric-median` stand as many as the groups allow, the others what they are told to expect.

    Raises:
        ValueError: fewer groups than the promise takes.
    """
    needed = fewest_groups(plan.rule, plan.tolerate)
    if groups < needed:
        raise ValueError(
            f'groups={groups} with rule="{plan.rule}" cannot stand tolerate={plan.tolerate} malicious sites: one may sit in '
            f"each of as many groups, and the rule then needs {needed} groups"
        )
    counts_by_itself = plan.rule in ("median", "geometric-median")
    return Tolerance(
        rule=plan.rule,
        groups=groups,
        sites=sites,
        promised=plan.tolerate,
        tolerated=(groups - 1) // 2 if counts_by_itself else plan.tolerate,
        fewest_groups=needed,
    )


def left_to_expect(plan: RobustPlan, *, spoilt: int) -> int:
    """Malicious sites that may still be among the groups that are left, once so many groups are out for their sums.

    A group whose sum cannot stem from honest sites holds a malicious one, which is out with it. A group that merely lost
    too many sites proves nothing.
    """
    return max(0, plan.tolerate - spoilt)


def least_group(scheme: str, quorum: int, *, groups: int) -> int:
    """Fewest sites that may form one of so many groups."""
    if groups == 1 or scheme == "plain":
        return quorum
    return max(quorum, LEAST_HIDDEN_GROUP)
