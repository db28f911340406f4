"""A site's home for a rehearsal: as `participant join` leaves it, with its data in place, without certificates."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd

from coordinator.ledger.store import LedgerStore
from coordinator.run_spec import RunSpec
from coordinator.wire.bundle import BUNDLE_SHA256
from coordinator.wire.plan import PrivacyPlan
from participant.budget import SiteBudget
from participant.config import POLICY_TEMPLATE, SITE_TEMPLATE, load_site
from participant.identity import create_home, ensure_keys, pin_coordinator_key, public_identity

DATA_FILE = "patients.csv"
SCHEMA_FILE = "schema.toml"
LAX_POLICY = """
bundles = ["{bundle}"]
minimum_cohort = 1
minimum_quorum = 1
minimum_noise_multiplier = 0.0
max_epsilon = 100.0
max_delta = 0.001
require_dp = false
allow_fixed_seed = true
secure_sum_schemes = ["mask", "ckks", "ckks-light", "paillier", "plain"]
paillier_key_holders = []
"""
"""For rehearsals on public data: without privacy, in the clear, with fixed seeds."""


def needs_lax_policy(spec: RunSpec) -> bool:
    """Whether a run asks for what a site with the policy of `participant join` refuses."""
    return not spec.privacy.is_private or spec.quorum < 3 or spec.secure_sum.scheme == "plain"


def set_contract(home: Path, privacy: PrivacyPlan) -> None:
    """Sets the terms of the site's budget contract to the run's, as its administrator would in `site.toml`.

    A run without privacy has no epsilon; its contract keeps the one that `participant join` wrote.
    """
    path = home / "site.toml"
    text = path.read_text(encoding="utf-8").replace("delta = 1e-5", f"delta = {privacy.delta}")
    if privacy.is_private:
        text = text.replace("epsilon = 8.0", f"epsilon = {privacy.epsilon}")
        text = text.replace('unit = "patient"', f'unit = "{privacy.unit}"')
        text = text.replace("# honest_sites = 2 ", f"honest_sites = {privacy.honest_sites} ")
    path.write_text(text, encoding="utf-8")


def trust_key_holder(home: Path, holder: str) -> None:
    """Writes into the site's policy whom it trusts to make a Paillier key, as its administrator would; "" is nobody."""
    if holder:
        path = home / "policy.toml"
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace("paillier_key_holders = []", f'paillier_key_holders = ["{holder}"]'),
            encoding="utf-8",
        )


def put_data(home: Path, *, table: pd.DataFrame, schema: Path) -> None:
    """Places the site's table and the published schema where its `site.toml` expects them."""
    table.to_csv(home / DATA_FILE, index=False)
    shutil.copyfile(schema, home / SCHEMA_FILE)


def make_site_home(
    home: Path,
    *,
    site: str,
    exchange: str,
    coordinator_key: bytes,
    ledger: LedgerStore,
    node_id: int,
    spec: RunSpec,
) -> None:
    """Makes the home and enrols the site in the ledger.

    Args:
        home: folder to make.
        site: its name.
        exchange: address of the exchange.
        coordinator_key: raw Ed25519 public key to pin.
        ledger: where the site becomes a member.
        node_id: its node on the rehearsal's grid.
        spec: the run that its policy and its budget contract must allow.
    """
    files = create_home(home)
    ensure_keys(files)
    pin_coordinator_key(files, coordinator_key)
    settings = SITE_TEMPLATE.substitute(
        site=site, gateway="127.0.0.1:1", exchange=exchange, data_set=site
    )
    (home / "site.toml").write_text(settings, encoding="utf-8")
    set_contract(home, spec.privacy)
    bundles = f'"{BUNDLE_SHA256}"'
    policy = (
        LAX_POLICY.format(bundle=BUNDLE_SHA256)
        if needs_lax_policy(spec)
        else POLICY_TEMPLATE.substitute(bundles=bundles)
    )
    (home / "policy.toml").write_text(policy, encoding="utf-8")
    trust_key_holder(home, spec.secure_sum.key_holder)
    SiteBudget.create(home / "budget.db", load_site(home).budget)
    identity = public_identity(files, site=site)
    ledger.sites.enrol(
        name=site,
        signing_key=identity.signing_key.hex(),
        node_key=identity.node_key,
        certificate_sha256=hashlib.sha256(site.encode()).hexdigest(),  # no TLS in one process
    )
    ledger.sites.set_flower_node_id(site, node_id)
