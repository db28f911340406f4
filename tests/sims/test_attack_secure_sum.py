"""Every attack on secure sums fails on ours and succeeds on what is weak."""

import json
from fractions import Fraction

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from privacy.ckks.vectors import new_key
from privacy.randomness import SeededRandom
from privacy.secagg.errors import MessageRefused
from privacy.secagg.schemes import Roster
from privacy.secagg.site import Site
from sims.attack_cli import print_secure_sums
from sims.attacks.secure_sum import suite
from sims.attacks.secure_sum.finding import AttackRow, SecureSumSuite
from sims.attacks.secure_sum.hostile_sum import (
    VICTIM,
    HostileSum,
    ObedientSite,
    compare,
    enrol,
    steps_of,
    whole_vectors,
)
from sims.attacks.secure_sum.ring_opening import lagrange, standard_opening
from sims.attacks.secure_sum.seed_search import varying_bits
from sims.attacks.secure_sum.subjects import SITES, ckks_subject, light_subject, mask_subject
from sims.attacks.secure_sum.weak_masks import (
    NOWHERE,
    FewBitsMaskSite,
    FloatMaskSite,
    LowThresholdMaskSite,
    RememberingMaskSite,
    ReplayableMaskSite,
)
from sims.attacks.secure_sum.weak_rings import FractionalReleaseSite, LowThresholdCkksSite
from sims.cli import app

SEED = 1
EVERYWHERE = (
    "coordinator and t - 1 sites",
    "single-site decryption request",
    "split view of the survivors",
    "split view of the roster",
    "double unmask",
)
CASES = [
    *((attack, scheme) for scheme in ("mask", "ckks", "ckks-light") for attack in EVERYWHERE),
    ("seed search", "mask"),
    ("mask averaging, 200 rounds", "mask"),
    ("mask averaging, within one round", "mask"),
    ("mask averaging, two rounds subtracted", "mask"),
    ("mask averaging, two rounds subtracted", "ckks"),
    ("replayed from an earlier round", "mask"),
    ("flooding seen through fractions", "ckks"),
    ("contribution that cancels the others", "ckks"),
    ("contribution that cancels the others", "ckks-light"),
]


@pytest.fixture(scope="module")
def printed():
    result = CliRunner().invoke(app, ["attack", "secure-sum", "--seed", str(SEED), "--json"])
    assert result.stderr.startswith("seed search")
    return json.loads(result.stdout) | {"exit_code": result.exit_code}


def test_all_attacks_together_pass(printed):
    assert (printed["passed"], printed["exit_code"]) == (True, 0)


def measured(printed, attack, scheme, target):
    return [
        finding
        for finding in printed["findings"]
        if (finding["attack"], finding["scheme"], finding["target"]) == (attack, scheme, target)
    ]


def test_the_suite_holds_these_attacks_and_no_others(printed):
    assert {(found["attack"], found["scheme"]) for found in printed["findings"]} == set(CASES)


@pytest.mark.statistical
@pytest.mark.parametrize(("attack", "scheme"), CASES)
def test_the_attack_fails_on_ours(printed, attack, scheme):
    # Correlations with an independent vector stay below six deviations but for one run in 1e8.
    found = measured(printed, attack, scheme, "ours")
    assert {finding["verdict"] for finding in found} == {"pass"}
    assert max(finding["measured"] for finding in found) < 0.1


@pytest.mark.parametrize(("attack", "scheme"), CASES)
def test_the_attack_succeeds_on_each_weak_variant(printed, attack, scheme):
    found = measured(printed, attack, scheme, "weak")
    assert {finding["verdict"] for finding in found} == {"caught"}
    assert min(finding["measured"] for finding in found) > 0.97


def test_a_seed_search_finds_the_one_weak_seed_and_none_of_ours(printed):
    (ours, ours_bits), (weak, weak_bits) = (
        measured(printed, "seed search", "mask", target) for target in ("ours", "weak")
    )
    assert (ours["figures"]["seeds_that_fit"], weak["figures"]["seeds_that_fit"]) == (0, 1)
    assert ours["figures"]["seeds_searched"] == weak["figures"]["seeds_searched"] == 1 << 16
    assert (ours_bits["measured"], weak_bits["measured"]) == (0.0, 112.0)


def test_flowers_own_code_has_28_bits_and_opens_a_vector_for_a_lying_server(printed):
    (seeds,) = measured(printed, "seed search", "mask", "peer")
    assert 128.0 - seeds["measured"] == 28.0
    (unmask,) = measured(printed, "double unmask", "mask", "peer")
    assert unmask["measured"] == 1.0


def test_floating_point_masks_give_more_away_with_every_round(printed):
    (weak,) = measured(printed, "mask averaging, 200 rounds", "mask", "weak")
    correlations = list(weak["figures"].values())
    assert correlations == sorted(correlations)
    assert correlations[0] < 0.5 < 0.95 < correlations[-1]


@pytest.mark.parametrize("scheme", ["mask", "ckks", "ckks-light"])
@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("single-site decryption request", "3 of 3 honest sites refuse"),
        ("split view of the survivors", "3 confirmations; 4 are needed"),
        ("split view of the roster", "3 sites, 4 are needed"),
        ("double unmask", "for the second time"),
    ],
)
def test_ours_says_why_it_refuses(printed, attack, scheme, reason):
    (ours,) = measured(printed, attack, scheme, "ours")
    assert reason in ours["note"]


def test_a_box_of_an_earlier_round_is_refused_with_the_reason(printed):
    (ours,) = measured(printed, "replayed from an earlier round", "mask", "ours")
    assert "does not open here" in ours["note"]


def test_every_share_comes_with_correlation_and_largest_error(printed):
    (weak,) = measured(printed, "double unmask", "mask", "weak")
    assert (weak["figures"]["correlation"], weak["figures"]["largest_error"]) == (
        pytest.approx(1.0),
        0.0,
    )


@pytest.mark.parametrize(
    ("number", "ours", "weak"),
    [
        (0.0, "pass", "missed"),
        (0.01, "pass", "missed"),
        (0.5, "fail", "missed"),
        (1.0, "fail", "caught"),
        (float("nan"), "fail", "missed"),
    ],
)
def test_an_attack_must_fail_on_ours_and_succeed_in_full_elsewhere(number, ours, weak):
    row = AttackRow(attack="a", scheme="mask")
    verdicts = row.ours(number).line.verdict.value, row.weak(number, variant="v").line.verdict.value
    assert verdicts == (ours, weak)


@pytest.mark.parametrize(
    ("finding", "exit_code"),
    [
        (AttackRow(attack="a", scheme="mask").ours(0.0), 0),
        (AttackRow(attack="a", scheme="mask").ours(1.0), 1),
        (AttackRow(attack="a", scheme="mask").weak(1.0, variant="v"), 0),
        (AttackRow(attack="a", scheme="mask").weak(0.9, variant="v"), 1),
    ],
)
def test_the_exit_code_says_whether_all_went_as_it_must(finding, exit_code, monkeypatch):
    monkeypatch.setattr(suite, "ATTACKS", {"given": lambda seed: [finding]})
    result = CliRunner().invoke(app, ["attack", "secure-sum", "--json"])
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["passed"] is (exit_code == 0)
    assert result.stderr == "given\n"


def test_the_table_shows_what_was_measured_and_what_it_must_be(capsys):
    row = AttackRow(attack="double unmask", scheme="mask")
    found = row.ours(0.0, note="refused"), row.weak(1.0, variant="sites that check nothing")
    print_secure_sums(SecureSumSuite(findings=found), Console(width=200))
    printed = capsys.readouterr().out
    assert "0 of the victim's coordinates recovered" in printed
    assert "at most 0.01" in printed
    assert "weak: sites that check nothing" in printed
    assert "double unmask, mask, ours: refused" in printed


def test_options_of_the_other_attack_are_refused_in_front_of_secure_sum():
    result = CliRunner().invoke(app, ["attack", "--json", "secure-sum"])
    assert result.exit_code == 2
    assert "--json" in result.stderr
    assert result.stdout == ""


def make_sum(*, subject=mask_subject, hostile=0, **changes):
    software = subject(dimension=64).software.weakened(**changes)
    enrolment = enrol(SITES, hostile=hostile)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(SEED))
    return HostileSum(software, enrolment, vectors)


def true_sum(attacked, sites):
    return sum(steps_of(attacked.vectors[site], attacked.software.plan) for site in sites)


WEAK_BUT_RIGHT = [
    {},
    {"site": ObedientSite},
    {"scheme": lambda plan, site, _: RememberingMaskSite(plan, site)},
    {"scheme": lambda plan, site, _: LowThresholdMaskSite(plan, site)},
    {"scheme": lambda plan, site, _: FewBitsMaskSite(plan, site)},
    {"scheme": ReplayableMaskSite},
]


@pytest.mark.parametrize("changes", WEAK_BUT_RIGHT)
def test_a_weak_variant_still_opens_the_right_sum(changes):
    attacked = make_sum(**changes).seal_all()
    sites = attacked.enrolment.sites
    opened = attacked.open(sites, asked=sites)
    np.testing.assert_array_equal(opened, true_sum(attacked, sites))


@pytest.mark.parametrize("subject", [ckks_subject, light_subject])
@pytest.mark.parametrize("site", [Site, ObedientSite])
def test_ring_schemes_open_the_right_sum_in_the_attackers_hands(subject, site):
    attacked = make_sum(subject=subject, site=site, hostile=2).seal_all()
    sites = attacked.enrolment.sites
    opened = attacked.open(sites, asked=sites)
    np.testing.assert_array_equal(opened, true_sum(attacked, sites))


@pytest.mark.parametrize("scheme", [FractionalReleaseSite, LowThresholdCkksSite])
def test_a_weak_ring_variant_still_opens_the_right_sum(scheme):
    attacked = make_sum(subject=ckks_subject, scheme=scheme, hostile_scheme=scheme).seal_all()
    sites = attacked.enrolment.sites
    opened = attacked.open(sites, asked=sites)
    np.testing.assert_array_equal(opened, true_sum(attacked, sites))


@pytest.mark.parametrize(
    ("point", "points", "at", "weight"),
    [
        (1, [1, 2, 3], 0, Fraction(3)),
        (1, [1, 3, 5], 0, Fraction(15, 8)),
        (2, [1, 2], 3, Fraction(2)),
    ],
)
def test_lagrange_weights_are_those_of_interpolation(point, points, at, weight):
    assert lagrange(point, points, at) == weight


def test_a_product_with_the_public_polynomial_is_divided_exactly():
    tools = standard_opening(ckks_subject(dimension=8192).software.plan)
    roster = Roster(scope=NOWHERE, public={})
    key = new_key(tools.ring, SeededRandom(SEED, "key"))
    product = tools.whole(tools.product(key, roster))
    np.testing.assert_array_equal(tools.quotient(product, roster), key)


def test_floating_point_masks_cancel_in_the_sum_of_what_is_sealed():
    attacked = make_sum(scheme=lambda plan, site, _: FloatMaskSite(plan, site)).seal_all()
    sealed = [attacked.sealed[site][0] for site in attacked.enrolment.sites]
    opening = attacked.software.opening(attacked.software.plan)
    for site, part in zip(attacked.enrolment.sites, sealed, strict=True):
        opening.add(site, 0, memoryview(part))
    total = attacked.software.plan.encoding.signed(opening._total)
    np.testing.assert_array_equal(total, true_sum(attacked, attacked.enrolment.sites))


def test_the_secrets_of_an_honest_site_are_out_of_the_attackers_reach():
    attacked = make_sum(hostile=2)
    assert attacked.own("site-4").public()
    with pytest.raises(ValueError, match="site-0"):
        attacked.own(VICTIM)


def test_an_honest_site_in_the_attackers_hands_still_refuses():
    attacked = make_sum(hostile=2).seal_all()
    with pytest.raises(MessageRefused, match="1 sites, 4 are needed"):
        attacked.confirm(VICTIM, (VICTIM,))


def test_a_guess_is_compared_coordinate_by_coordinate():
    plan = mask_subject(dimension=64).software.plan
    true = np.arange(64) / plan.encoding.scale
    guess = np.arange(64, dtype=np.int64)
    guess[:16] += 2
    assert compare(guess, true, plan).share == 0.75
    assert compare(guess, true, plan).largest_error == 2 / plan.encoding.scale
    assert compare(guess, true, plan, tolerance_steps=2).share == 1.0
    assert compare(None, true, plan).share == 0.0
    assert compare(None, true, plan).figures == {}


def test_bits_that_are_the_same_in_every_key_do_not_vary():
    assert varying_bits([b"\x00\xf0", b"\x00\xf1", b"\x00\xe0"]) == 2
