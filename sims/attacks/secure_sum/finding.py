"""What one attack on a secure sum came to: on our code, on a variant that is weak on purpose, on a peer's code.

An attack that fails on ours proves something only if it works where it should. So every attack is also run against code
with a planted weakness, where it must succeed in full; an attack that does not is itself reported as broken (`missed`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from privacy.audit.report import AuditLine, AuditReport, Verdict, at_least, at_most
from sims.attacks.secure_sum.hostile_sum import Recovery

Target = Literal["ours", "weak", "peer"]

RECOVERED = "of the victim's coordinates recovered"
CHANCE = 0.01
"""Below this share nothing was recovered: guesses hit by chance in far fewer than one coordinate of a hundred."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack on one scheme of one target."""

    attack: str
    scheme: str
    target: Target
    variant: str
    """What is weak there; empty for ours."""
    measure: str
    """What the measured number counts, in words."""
    note: str
    """What stopped the attack, or what it needed."""
    figures: dict[str, float] = field(default_factory=dict)
    """Whatever else was measured, by name, with units."""
    line: AuditLine


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """Which attack on which scheme: what its findings have in common."""

    attack: str
    scheme: str
    measure: str = RECOVERED
    """What `measured` counts, in the words that follow it."""
    hidden: float = CHANCE
    """Up to this, ours has withstood the attack."""
    found: float = 1.0
    """From this on, the attack has succeeded."""
    confidence: float = 1.0
    """With at least this probability ours stays below `hidden` if it is sound."""

    def ours(
        self,
        measured: float | Recovery,
        *,
        note: str = "",
        figures: Mapping[str, float] | None = None,
    ) -> Finding:
        """What the attack measured on our code: `pass` if it withstood."""
        share, figures = _taken_apart(measured, figures)
        line = at_most(
            f"{self.attack}, {self.scheme}, ours",
            share,
            self.hidden,
            confidence=self.confidence,
            detail=f"{self.measure}; {note}" if note else self.measure,
        )
        return self._finding("ours", "", note, figures, line)

    def weak(
        self,
        measured: float | Recovery,
        *,
        variant: str,
        target: Target = "weak",
        note: str = "",
        figures: Mapping[str, float] | None = None,
    ) -> Finding:
        """What it measured where it must succeed: `caught` if it did, else the attack is broken."""
        share, figures = _taken_apart(measured, figures)
        tried = at_least("", share, self.found, confidence=1.0)
        line = AuditLine(
            name=f"{self.attack}, {self.scheme}, {target}: {variant}",
            measured=share,
            bound=self.found,
            sense="at least",
            confidence=1.0,
            detail=f"{self.measure}; {note}" if note else self.measure,
            verdict=Verdict.CAUGHT if tried.holds else Verdict.MISSED,
        )
        return self._finding(target, variant, note, figures, line)

    def _finding(
        self,
        target: Target,
        variant: str,
        note: str,
        figures: Mapping[str, float],
        line: AuditLine,
    ) -> Finding:
        return Finding(
            attack=self.attack,
            scheme=self.scheme,
            target=target,
            variant=variant,
            measure=self.measure,
            note=note,
            figures=dict(figures),
            line=line,
        )


def _taken_apart(
    measured: float | Recovery, figures: Mapping[str, float] | None
) -> tuple[float, dict[str, float]]:
    """The measured number, and what was measured beside it."""
    if isinstance(measured, Recovery):
        return measured.share, {**measured.figures, **(figures or {})}
    return measured, dict(figures or {})


@dataclass(frozen=True, kw_only=True)
class SecureSumSuite:
    """All findings, and the verdicts on them."""

    findings: tuple[Finding, ...]

    @property
    def report(self) -> AuditReport:
        """The verdicts: passed only if every attack failed on ours and succeeded everywhere else."""
        return AuditReport(lines=tuple(finding.line for finding in self.findings))

    def as_json(self) -> dict[str, Any]:
        """The object that `sims attack secure-sum --json` prints."""
        report = self.report.as_json()
        findings = [
            {
                "attack": finding.attack,
                "scheme": finding.scheme,
                "target": finding.target,
                "variant": finding.variant,
                "measure": finding.measure,
                "note": finding.note,
                "figures": finding.figures,
                **line,
            }
            for finding, line in zip(self.findings, report.pop("lines"), strict=True)
        ]
        return {**report, "findings": findings}
