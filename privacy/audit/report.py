"""What an audit found: one line per test, each with its figure, its bound and a verdict.

A line is about the code as it is (`pass` or `fail`), or about a variant that is broken on purpose (`caught` or
`missed`): an alarm that no broken variant sets off proves nothing. A figure that is not a number never passes.

The error rate of a line is the probability with which a correct implementation fails it. The report adds them up
(Bonferroni), so `false_alarm` bounds the probability that any of its lines is wrong about correct code.
"""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal


class Verdict(StrEnum):
    """What a line says."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    CAUGHT = "caught"
    MISSED = "missed"

    @property
    def is_good(self) -> bool:
        """Correct code passed, or broken code was caught."""
        return self in (Verdict.PASS, Verdict.CAUGHT)


@dataclass(frozen=True, kw_only=True)
class AuditLine:
    """One test: what was measured and what was allowed."""

    name: str
    measured: float
    bound: float
    sense: Literal["at most", "at least"]
    """How `measured` must stand to `bound`."""
    confidence: float
    """A correct implementation passes with at least this probability; 1 where nothing is left to chance."""
    detail: str = ""
    """What the figures are, in words, with units."""
    verdict: Verdict

    @property
    def holds(self) -> bool:
        """Whether the figure keeps to its bound."""
        return _holds(self.measured, self.bound, self.sense)


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All lines of one audit."""

    lines: tuple[AuditLine, ...]

    @property
    def passed(self) -> bool:
        """Whether all correct tests pass and all broken variants were caught; False without a line."""
        return bool(self.lines) and all(line.verdict.is_good for line in self.lines)

    @property
    def false_alarm(self) -> float:
        """Bound on the probability that this audit flags correct code."""
        tested = [line for line in self.lines if line.verdict in (Verdict.PASS, Verdict.FAIL)]
        return min(1.0, sum(1.0 - line.confidence for line in tested))

    def as_json(self) -> dict[str, Any]:
        """The report in plain types for `json.dumps`; numbers that JSON cannot hold are null."""
        return {
            "passed": self.passed,
            "false_alarm": self.false_alarm,
            "lines": [
                asdict(line)
                | {
                    "verdict": line.verdict.value,
                    "measured": _finite(line.measured),
                    "bound": _finite(line.bound),
                }
                for line in self.lines
            ],
        }


def at_most(
    name: str, measured: float, bound: float, *, confidence: float, detail: str = ""
) -> AuditLine:
    """A test that correct code passes with `measured` <= `bound`."""
    return _line(name, measured, bound, "at most", confidence, detail)


def at_least(
    name: str, measured: float, bound: float, *, confidence: float, detail: str = ""
) -> AuditLine:
    """A test that correct code passes with `measured` >= `bound`."""
    return _line(name, measured, bound, "at least", confidence, detail)


def control(name: str, line: AuditLine) -> AuditLine:
    """The line of a broken variant, which must not hold: caught if it fails, missed if it passes."""
    return AuditLine(
        name=name,
        measured=line.measured,
        bound=line.bound,
        sense=line.sense,
        confidence=line.confidence,
        detail=f"by {line.name}: {line.detail}" if line.detail else f"by {line.name}",
        verdict=Verdict.MISSED if line.holds else Verdict.CAUGHT,
    )


def _line(
    name: str,
    measured: float,
    bound: float,
    sense: Literal["at most", "at least"],
    confidence: float,
    detail: str,
) -> AuditLine:
    if not 0.0 <= confidence <= 1.0:
        raise ValueError(f"Expected confidence={confidence} in [0, 1].")
    return AuditLine(
        name=name,
        measured=measured,
        bound=bound,
        sense=sense,
        confidence=confidence,
        detail=detail,
        verdict=Verdict.PASS if _holds(measured, bound, sense) else Verdict.FAIL,
    )


def _holds(measured: float, bound: float, sense: str) -> bool:
    # Written so that NaN on either side does not hold.
    return measured <= bound if sense == "at most" else measured >= bound


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
