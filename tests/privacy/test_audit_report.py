import json
import math

import pytest

from privacy.audit.report import AuditReport, Verdict, at_least, at_most, control


def test_a_figure_on_its_bound_passes():
    assert at_most("a", 1.0, 1.0, confidence=1.0).verdict is Verdict.PASS
    assert at_least("b", 1.0, 1.0, confidence=1.0).verdict is Verdict.PASS


@pytest.mark.parametrize("test", [at_most, at_least])
@pytest.mark.parametrize(("measured", "bound"), [(math.nan, 1.0), (1.0, math.nan)])
def test_what_is_not_a_number_never_passes(test, measured, bound):
    assert test("a", measured, bound, confidence=1.0).verdict is Verdict.FAIL


def test_a_control_is_caught_where_the_test_fails_and_missed_where_it_passes():
    assert control("c", at_most("a", 2.0, 1.0, confidence=1.0)).verdict is Verdict.CAUGHT
    assert control("c", at_most("a", 0.5, 1.0, confidence=1.0)).verdict is Verdict.MISSED


def test_a_report_passes_only_if_all_tests_pass_and_all_controls_are_caught():
    good = at_most("a", 0.0, 1.0, confidence=0.999)
    bad = at_most("b", 2.0, 1.0, confidence=1.0)
    assert AuditReport(lines=(good, control("c", bad))).passed
    assert not AuditReport(lines=(good, bad)).passed
    assert not AuditReport(lines=(good, control("c", good))).passed
    assert not AuditReport(lines=()).passed


def test_false_alarms_of_the_tests_add_up_and_controls_raise_none():
    line = at_most("a", 0.0, 1.0, confidence=0.99)
    failing = at_most("b", 2.0, 1.0, confidence=0.9)
    report = AuditReport(lines=(line, line, control("c", failing)))
    assert report.false_alarm == pytest.approx(0.02)


def test_the_report_is_one_json_object_even_with_numbers_that_json_lacks():
    report = AuditReport(lines=(at_most("a", math.nan, math.inf, confidence=1.0),))
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert found["passed"] is False
    assert found["lines"][0]["measured"] is None
    assert found["lines"][0]["verdict"] == "fail"
    assert set(found["lines"][0]) == {
        "name",
        "measured",
        "bound",
        "sense",
        "confidence",
        "detail",
        "verdict",
    }
