"""A site's home for a rehearsal: as `participant join` leaves it, with its data in place, without certificates."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd

from coordinator.ledger.store import LedgerStore
from coordinator.wire.bundle import BUNDLE_SHA256
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
secure_sum_schemes = ["mask", "plain"]
"""
"""For rehearsals on public data: without privacy, in the clear, with fixed seeds."""


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
    is_lax: bool,
    epsilon: float | None = None,
) -> None:
    """Makes the home and enrols the site in the ledger.

    Args:
        home: folder to make.
        site: its name.
        exchange: address of the exchange.
        coordinator_key: raw Ed25519 public key to pin.
        ledger: where the site becomes a member.
        node_id: its node on the rehearsal's grid.
        is_lax: whether its policy allows what only rehearsals need.
        epsilon: total of its budget contract; the template's if None.
    """
    files = create_home(home)
    ensure_keys(files)
    pin_coordinator_key(files, coordinator_key)
    settings = SITE_TEMPLATE.substitute(
        site=site, gateway="127.0.0.1:1", exchange=exchange, data_set=site
    )
    if epsilon is not None:
        settings = settings.replace("epsilon = 8.0", f"epsilon = {epsilon}")
    (home / "site.toml").write_text(settings, encoding="utf-8")
    policy = (
        LAX_POLICY.format(bundle=BUNDLE_SHA256)
        if is_lax
        else POLICY_TEMPLATE.substitute(bundles=f'"{BUNDLE_SHA256}"')
    )
    (home / "policy.toml").write_text(policy, encoding="utf-8")
    SiteBudget.create(home / "budget.db", load_site(home).budget)
    identity = public_identity(files, site=site)
    ledger.sites.enrol(
        name=site,
        signing_key=identity.signing_key.hex(),
        node_key=identity.node_key,
        certificate_sha256=hashlib.sha256(site.encode()).hexdigest(),  # no TLS in one process
    )
    ledger.sites.set_flower_node_id(site, node_id)
