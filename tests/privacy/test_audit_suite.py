"""The whole suite on correct code, many times, and who may import what is broken on purpose."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from model.routing import RoutedModel
from participant.training import record_loss
from privacy.audit.controls import broken_half_noise
from privacy.audit.report import AuditLine, AuditReport, Verdict
from privacy.audit.subject import Batch
from privacy.audit.suite import AuditSize, Subject, arrange, audit, correct_lines, hostile
from privacy.dp.clipping import clipped_sum
from privacy.dp.dpsgd import train
from privacy.dp.noise import sum_grid
from privacy.randomness import SeededRandom
from tests.privacy.small_moe import RULES, moe_model, records

ROOT = Path(__file__).parents[2]
MAY_BREAK = {"privacy/audit/controls.py", "privacy/audit/suite.py"}


def open_sum(model, loss_per_record, /, *, clipping_norm):
    return clipped_sum(model, loss_per_record, clipping_norm=clipping_norm, rules=RULES)


def subject(**changes):
    inputs, labels = records(40)
    pool = Batch(inputs=inputs, labels=labels, units=torch.arange(40) // 2)
    model, loss = RoutedModel(moe_model()), record_loss(0.01)
    batch, later = arrange(model, loss, pool, units=6)
    facts: dict[str, Any] = {
        "train": train,
        "open_sum": open_sum,
        "grid_of": lambda bound, dimension: sum_grid(bound=bound, dimension=dimension),
        "model": model,
        "loss_per_record": loss,
        "batch": hostile(batch, outlier=0, not_finite=4),
        "later": later,
        "not_finite": (4,),
        "clipping_norm": 0.4,
    }
    return Subject(**(facts | changes))


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    "runs", [2, pytest.param(200, marks=(pytest.mark.long, pytest.mark.timeout(3600)))]
)
def test_correct_code_is_not_flagged(runs):
    # Each run flags with probability below 1e-5.
    reports = [
        AuditReport(
            lines=tuple(correct_lines(subject(), SeededRandom(run, "correct"), AuditSize()))
        )
        for run in range(runs)
    ]
    assert all(report.passed for report in reports)
    assert max(report.false_alarm for report in reports) <= 1e-5


@pytest.mark.statistical
def test_half_the_noise_in_place_of_the_real_training_fails_the_audit():
    lines = tuple(
        correct_lines(
            subject(train=broken_half_noise(train)), SeededRandom(1, "broken"), AuditSize()
        )
    )
    failed = {line.name for line in lines if line.verdict is Verdict.FAIL}
    assert failed == {"noise: deviation", "canaries: Gaussian audit"}
    assert not AuditReport(lines=lines).passed


@pytest.mark.slow
@pytest.mark.statistical
def test_every_broken_variant_is_caught_and_progress_tells_each_line():
    told: list[AuditLine] = []
    report = audit(subject(), SeededRandom(1, "whole"), progress=told.append)
    assert report.passed
    assert tuple(told) == report.lines
    assert report.false_alarm <= 1e-4
    caught = {line.name for line in report.lines if line.verdict is Verdict.CAUGHT}
    assert caught == {
        "control: no noise",
        "control: half the noise",
        "control: no clipping",
        "control: a person counted twice",
        "control: a person's records clipped one by one",
        "control: batch-coupled loss",
        "control: stale expert norms",
    }


def imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    froms = [
        f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names
    ]
    plain = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    return [*froms, *plain]


PRODUCT = sorted(
    path
    for package in ("coordinator", "participant", "model", "privacy", "kernels", "sims")
    for path in (ROOT / package).rglob("*.py")
)


def test_nothing_but_the_audit_imports_what_is_broken_on_purpose():
    importing = {
        str(path.relative_to(ROOT))
        for path in PRODUCT
        if any(name.startswith("privacy.audit.controls") for name in imports(path))
    }
    assert importing == MAY_BREAK - {"privacy/audit/controls.py"}


def test_training_and_release_know_nothing_of_the_audit():
    importing = {
        str(path.relative_to(ROOT))
        for path in PRODUCT
        if any(name.startswith("privacy.audit") for name in imports(path))
    }
    outside = {name for name in importing if not name.startswith("privacy/audit/")}
    assert "participant/drill.py" in outside
    assert {name for name in outside if not name.startswith("sims/attacks/")} == {
        "participant/drill.py"
    }
