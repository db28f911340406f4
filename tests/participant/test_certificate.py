"""A certificate holds if nothing of it was changed, and fails for every change that matters."""

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.wire.bundle import BUNDLE_SHA256
from participant import recompute as recompute_script
from participant.budget import SiteBudget
from participant.budget_entries import canonical_json, entry_chain
from participant.certificate import (
    GUARANTEE,
    NOT_COVERED,
    make_certificate,
    source_digest,
    verify_certificate,
)
from participant.config import BudgetContract
from participant.errors import CertificateError
from participant.recompute import FORMAT, pld_epsilon, rdp_epsilon, recompute
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import (
    DiscreteLaplace,
    Event,
    RandomisedResponse,
    SubsampledGaussian,
    TruncatedSubsampledGaussian,
    event_to_json,
)
from privacy.dp.filter import RdpFilter
from privacy.dp.noise import SAMPLING_REMAINDER
from tests.participant.budget_fixtures import (
    CONTRACT,
    DIGEST,
    NOW,
    TENTH,
    SettableClock,
    gaussian,
    make_budget,
    programme,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def budget(tmp_path_factory: pytest.TempPathFactory) -> SiteBudget:
    """One declared run in two attempts, another one, a release, and a clock that was put right."""
    clock = SettableClock()
    budget = make_budget(tmp_path_factory.mktemp("site"), clock=clock)
    run = programme(gaussian(60, 4.0), *TENTH)
    budget.reserve("run-1/count", TENTH, programme=run)
    budget.reserve("run-1/1/1", (gaussian(20, 4.0),), programme=run)
    budget.spend("run-1/1/1", sha256=DIGEST)
    clock.advance(days=2)
    budget.reserve("run-2/1/1", (DiscreteLaplace(epsilon=0.2, sensitivity=64),))
    clock.now = NOW + timedelta(days=1)
    budget.accept_clock()
    budget.reserve("run-2/2/1", (RandomisedResponse(epsilon=0.3, categories=2),))
    return budget


@pytest.fixture(scope="module")
def fields(budget: SiteBudget) -> dict[str, Any]:
    return certificate_of(budget.history(), budget.contract)


def certificate_of(history: Any, contract: BudgetContract) -> dict[str, Any]:
    made = make_certificate(history, contract, site="st-anna", key=KEY, now=NOW)
    return dict(json.loads(made.to_json()))


def signed(statement: dict[str, Any]) -> bytes:
    """A certificate of any statement, as its site could sign it."""
    message = FORMAT.encode() + b"\0" + canonical_json(statement).encode()
    return json.dumps(
        {
            "format": FORMAT,
            "statement": statement,
            "public_key": KEY.public_key().public_bytes_raw().hex(),
            "signature": KEY.sign(message).hex(),
        }
    ).encode()


def failing(text: bytes, key: str | None = None) -> list[str]:
    return [check.name for check in recompute(text, key=key) if not check.holds]


def rechained(statement: dict[str, Any]) -> None:
    """Hashes the entries anew, as somebody would who forges a whole file."""
    identity = statement["identity"]
    chain = hashlib.sha256(
        recompute_script.IDENTITY_LABEL + canonical_json(identity).encode()
    ).digest()
    for number, entry in enumerate(statement["entries"], start=1):
        entry["number"] = number
        names = ("number", "kind", "name", "content", "at_microseconds")
        chain = entry_chain(chain, **{name: entry[name] for name in names})
        entry["chain"] = chain.hex()
    statement["head"] = chain.hex()


def test_certificate_holds_as_it_was_written(fields: dict[str, Any]) -> None:
    checks = recompute(json.dumps(fields).encode())

    assert [check.name for check in checks if not check.holds] == []
    assert [check.name for check in checks] == [
        "signature",
        "chain",
        "order",
        "epsilon",
        "filter_epsilon",
        "contract",
    ]


def test_certificate_states_what_was_guaranteed_and_what_was_not(
    fields: dict[str, Any], budget: SiteBudget
) -> None:
    statement, spent = fields["statement"], budget.spent()

    assert (statement["site"], statement["made_at"]) == ("st-anna", "2026-05-04T12:00:00+00:00")
    assert statement["contract"]["unit"] == statement["figures"]["unit"] == "patient"
    assert statement["contract"]["adjacency"] == "add-or-remove-one"
    assert statement["figures"]["epsilon"] == spent.epsilon
    assert statement["figures"]["filter_epsilon"] == spent.filter_epsilon
    assert statement["figures"]["delta"] == statement["contract"]["delta"] == 1e-5
    assert statement["sampling_remainder"] == SAMPLING_REMAINDER
    assert statement["identity"]["rdp_order"] == spent.rdp_order
    assert statement["code"]["bundle_sha256"] == BUNDLE_SHA256
    assert len(statement["entries"]) == len(budget.history().rows)
    assert statement["head"] == budget.history().head.hex()
    assert (len(statement["guarantee"]), len(statement["not_covered"])) == (
        len(GUARANTEE),
        len(NOT_COVERED),
    )
    assert "delta is at most 1 / (10 x number of patients)" in statement["not_covered"][0]


def test_certificate_of_an_empty_budget_holds(tmp_path: Path) -> None:
    budget = make_budget(tmp_path)

    certificate = certificate_of(budget.history(), CONTRACT)

    assert failing(json.dumps(certificate).encode()) == []
    assert certificate["statement"]["figures"]["epsilon"] == 0.0


def test_certificate_of_a_data_set_dedicated_to_its_first_run_holds(tmp_path: Path) -> None:
    budget = make_budget(tmp_path)
    whole = programme(gaussian(60, 1.0))
    budget.reserve("run-1/1/1", (gaussian(40, 1.0),), programme=whole)

    certificate = json.dumps(certificate_of(budget.history(), CONTRACT)).encode()

    found = {check.name: check for check in recompute(certificate)}
    assert found["contract"].holds
    assert "by the whole declaration of run-1" in found["contract"].found


@pytest.mark.parametrize(
    "edit",
    [
        lambda certificate: certificate["statement"].update(site="st-bernard"),
        lambda certificate: certificate["statement"]["figures"].update(epsilon=0.1),
        lambda certificate: certificate["statement"]["contract"].update(epsilon=1e9),
        lambda certificate: certificate["statement"].update(sampling_remainder=0.0),
        lambda certificate: certificate["statement"]["not_covered"].pop(),
        lambda certificate: certificate.update(signature="00" * 64),
    ],
)
def test_certificate_that_was_changed_is_not_signed(fields: dict[str, Any], edit: Edit) -> None:
    changed = deepcopy(fields)
    edit(changed)

    assert "signature" in failing(json.dumps(changed).encode())


def test_certificate_signed_by_somebody_else_fails_against_the_known_key(
    fields: dict[str, Any],
) -> None:
    text = json.dumps(fields).encode()

    assert failing(text, key=fields["public_key"]) == []
    assert failing(text, key="ab" * 32) == ["signature"]


def shorten_history(statement: dict[str, Any]) -> None:
    statement["entries"].pop()


def edit_an_entry(statement: dict[str, Any]) -> None:
    entry = statement["entries"][2]
    entry["content"] = entry["content"].replace('"steps":20', '"steps":2')


def edit_the_identity(statement: dict[str, Any]) -> None:
    statement["identity"]["rdp_order"] = 2.0


def release_without_a_charge(statement: dict[str, Any]) -> None:
    statement["entries"][3]["name"] = "run-9/1/1"
    rechained(statement)


def charge_beyond_the_declaration(statement: dict[str, Any]) -> None:
    entry = statement["entries"][2]
    entry["content"] = entry["content"].replace('"steps":20', '"steps":61')
    rechained(statement)


def set_the_clock_back(statement: dict[str, Any]) -> None:
    statement["entries"][4]["at_microseconds"] -= 10**12
    rechained(statement)


def repeat_a_release(statement: dict[str, Any]) -> None:
    statement["entries"].insert(4, dict(statement["entries"][3]))
    rechained(statement)


def understate_the_figure(statement: dict[str, Any]) -> None:
    statement["figures"]["epsilon"] -= 0.05


def understate_the_filter(statement: dict[str, Any]) -> None:
    statement["figures"]["filter_epsilon"] -= 0.05


def overspend(statement: dict[str, Any]) -> None:
    statement["contract"]["epsilon"] = 1.5


@pytest.mark.parametrize(
    ("edit", "check"),
    [
        (shorten_history, "chain"),
        (edit_an_entry, "chain"),
        (edit_the_identity, "chain"),
        (release_without_a_charge, "order"),
        (charge_beyond_the_declaration, "order"),
        (set_the_clock_back, "order"),
        (repeat_a_release, "order"),
        (understate_the_figure, "epsilon"),
        (understate_the_filter, "filter_epsilon"),
        (overspend, "contract"),
    ],
)
def test_site_that_signs_what_is_not_so_is_found_out(
    fields: dict[str, Any], edit: Edit, check: str
) -> None:
    statement = deepcopy(fields["statement"])
    edit(statement)

    assert check in failing(signed(statement))


EVENTS: tuple[Event, ...] = (
    SubsampledGaussian(sample_rate=0.0256, noise_multiplier=1.5, steps=700),
    SubsampledGaussian(sample_rate=1.0, noise_multiplier=6.0, steps=3),
    DiscreteLaplace(epsilon=0.1, sensitivity=64, count=5),
    RandomisedResponse(epsilon=0.5, categories=5),
    TruncatedSubsampledGaussian(
        sample_rate=0.0256, noise_multiplier=2.0, steps=50, units=10_000, largest_batch=300
    ),
)


@pytest.mark.parametrize("events", [*((event,) for event in EVENTS), EVENTS])
@pytest.mark.parametrize("order", [4.0, 12.5])
def test_script_and_product_reckon_the_same(events: tuple[Event, ...], order: float) -> None:
    values = [json.loads(event_to_json(event)) for event in events]
    delta = 1e-5 - SAMPLING_REMAINDER
    filter_ = RdpFilter(epsilon=100.0, delta=1e-5, order=order)

    by_filter = filter_.epsilon_of(events)
    assert rdp_epsilon(values, delta, order) == pytest.approx(by_filter, rel=3e-3)
    assert rdp_epsilon(values, delta, order) <= by_filter + 1e-6
    assert pld_epsilon(values, delta) == pytest.approx(epsilon_spent(events, 1e-5), abs=2e-3)


def test_script_reads_no_code_of_the_product() -> None:
    tree = ast.parse(Path(recompute_script.__file__).read_text())
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert modules - set(sys.stdlib_module_names) == {"cryptography", "dp_accounting"}


@pytest.mark.processes
def test_script_runs_alone_from_a_copy(fields: dict[str, Any], tmp_path: Path) -> None:
    script = shutil.copy(recompute_script.__file__, tmp_path / "recompute.py")
    (tmp_path / "good.json").write_text(json.dumps(fields))
    changed = deepcopy(fields)
    changed["statement"]["site"] = "st-bernard"
    (tmp_path / "bad.json").write_text(json.dumps(changed))

    good, bad = (
        subprocess.run(
            [sys.executable, "-I", script, str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        for name in ("good.json", "bad.json")
    )

    assert (good.returncode, bad.returncode) == (0, 1)
    assert good.stdout.count("holds  ") == 6
    assert "FAILS  signature: the signature is wrong" in bad.stdout


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', "\xff", '{"format": 1e999}'])
def test_file_that_is_no_certificate_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "certificate.json").write_text(text, encoding="latin-1")

    with pytest.raises(CertificateError, match="is no certificate"):
        verify_certificate(tmp_path / "certificate.json")


def test_missing_certificate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="cannot be read"):
        verify_certificate(tmp_path / "certificate.json")


def test_source_digest_changes_with_one_byte_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "privacy" / "dp").mkdir(parents=True)
    (tmp_path / "privacy" / "dp" / "noise.py").write_text("a")
    before = source_digest(tmp_path)
    (tmp_path / "privacy" / "dp" / "noise.py").write_text("b")

    assert before != source_digest(tmp_path)


def test_certificate_of_customers_speaks_of_customers(tmp_path: Path) -> None:
    contract = replace(CONTRACT, unit="customer")
    budget = make_budget(tmp_path, contract)

    statement = certificate_of(budget.history(), contract)["statement"]

    assert "one customer added or removed" in statement["guarantee"][0]
    assert "patient" not in json.dumps(statement["guarantee"] + statement["not_covered"])
