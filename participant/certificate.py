"""The privacy certificate of a data set: what was guaranteed to its patients, signed by the site, checkable by anybody.

It holds the contract, every entry of the budget file as stored, the figures that follow from them, and the version of
the code, under the site's Ed25519 key. `participant/recompute.py` checks it offline without this code. It holds nothing
that was computed from records but digests of what had left the site already.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.wire.bundle import BUNDLE_SHA256
from participant.budget import SiteBudget
from participant.budget_entries import History, canonical_json
from participant.budget_spending import Spending, spending
from participant.config import DELTA_SHARE, BudgetContract, SiteConfig
from participant.durable import write_durably
from participant.errors import CertificateError
from participant.identity import load_signing_key, open_home
from participant.recompute import FORMAT, MAX_FILE_BYTES, Check, recompute
from privacy.dp.noise import SAMPLING_REMAINDER

SOURCE_PACKAGES = ("coordinator/wire", "kernels", "model", "participant", "privacy")
"""Packages whose code touches records, noise or budget."""
GUARANTEE = (
    "Epsilon and delta bound, for any two tables that differ by one {unit} added or removed, how much the probability of "
    "anything that this data set released in all runs can differ: by a factor of e^epsilon at most, plus delta.",
    "The figure `filter_epsilon` holds also where later runs were chosen after earlier releases were seen. The figure "
    "`epsilon` is tighter and holds for runs whose parameters were fixed beforehand, a declared first run included.",
    "Everything charged counts, whether it was released or not.",
)
NOT_COVERED = (
    "The number of {unit}s is treated as public only as far as the rule goes that delta is at most 1 / ({share} x number "
    "of {unit}s), which the site checks before it trains: that it trains says that the rule holds.",
    "Time: how long training takes, when the site answers, and that it takes part.",
    "A {unit} at several sites: each site's epsilon counts by itself, and for that {unit} they add up.",
    "Relatives and others whose records resemble one another: the bound is per {unit}.",
    "What is true of the population and learnt whether or not one {unit} is in the table.",
    "Sites that do not add their share: where a run shares the noise of a sum among sites, its events count on the noise "
    "of `honest_sites` of them only, and hold only if as many are honest.",
    "Copies of the table elsewhere, a second budget for the same {unit}s, and whoever can read the site's machine.",
    "Whether the installed code does what it says: compare `code` with a release that you trust, and run the audits.",
)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A statement and the signature over it."""

    statement: dict[str, Any]
    public_key: str
    """The site's raw Ed25519 public key in hex, 32 bytes."""
    signature: str
    """Over the label, a zero byte and the statement in canonical JSON; in hex, 64 bytes."""

    def to_fields(self) -> dict[str, Any]:
        """The certificate as one JSON object."""
        return {"format": FORMAT} | asdict(self)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.to_fields(), indent=1) + "\n"


def make_certificate(
    history: History,
    contract: BudgetContract,
    *,
    site: str,
    key: Ed25519PrivateKey,
    now: datetime,
) -> Certificate:
    """The certificate of everything in a verified budget file.

    Args:
        history: the budget file, verified.
        contract: the site's contract.
        site: name of the site in its consortium.
        key: the site's signing key.
        now: the time, with its zone.
    """
    statement = certificate_statement(history, contract, site=site, now=now)
    message = FORMAT.encode() + b"\0" + canonical_json(statement).encode()
    return Certificate(
        statement=statement,
        public_key=key.public_key().public_bytes_raw().hex(),
        signature=key.sign(message).hex(),
    )


def write_certificate(home: Path, config: SiteConfig, path: Path | None) -> dict[str, Any]:
    """Makes the certificate of the site's budget and writes it to `path`, if there is one; its JSON fields.

    Raises:
        ParticipantError: the budget or the signing key cannot be used, or there is no room.
    """
    budget = SiteBudget(home / "budget.db", config.budget)
    certificate = make_certificate(
        budget.history(),
        config.budget,
        site=config.site,
        key=load_signing_key(open_home(home)),
        now=datetime.now(UTC),
    )
    if path is not None:
        write_durably(path, (certificate.to_json().encode(),), replace=True)
    return certificate.to_fields()


def verify_certificate(path: Path, *, key: str | None = None) -> list[Check]:
    """Everything that can be recomputed of a certificate; it holds if all of it does.

    Args:
        path: the file.
        key: the site's public signing key in hex, as known from elsewhere.

    Raises:
        CertificateError: the file cannot be read, or is no certificate of a known form.
    """
    try:
        with path.open("rb") as file:
            return recompute(file.read(MAX_FILE_BYTES + 1), key=key)
    except OSError as error:
        raise CertificateError(f'"{path}" cannot be read: {error.strerror}.') from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CertificateError(
            f'"{path}" is no certificate that this Concord knows: {error}.'
        ) from error


def certificate_statement(
    history: History, contract: BudgetContract, *, site: str, now: datetime
) -> dict[str, Any]:
    """What is signed, as JSON values."""
    until = contract.valid_until
    first = history.first_programme
    return {
        "site": site,
        "made_at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "guarantee": [text.format(unit=contract.unit) for text in GUARANTEE],
        "not_covered": [text.format(unit=contract.unit, share=DELTA_SHARE) for text in NOT_COVERED],
        "contract": {
            "data_set": contract.data_set,
            "epsilon": contract.epsilon,
            "delta": contract.delta,
            "unit": contract.unit,
            "adjacency": contract.adjacency,
            "honest_sites": contract.honest_sites,
            "valid_until": None if until is None else until.isoformat(),
        },
        "figures": _figures(spending(history, contract)),
        "declared_first": None if first is None else first.programme.name,
        "sampling_remainder": SAMPLING_REMAINDER,
        "code": {
            "concord": version("concord"),
            "bundle_sha256": BUNDLE_SHA256,
            "source_sha256": source_digest(Path(__file__).parent.parent),
        },
        "identity": asdict(history.identity),
        "entries": [
            asdict(row) | {"chain": row.chain.hex(), "at": row.at.isoformat()}
            for row in history.rows
        ],
        "head": history.head.hex(),
    }


def source_digest(root: Path) -> str:
    """SHA-256, in hex, over names and contents of the installed source files, in the order of their names.

    Args:
        root: the folder that holds the packages.
    """
    digest = hashlib.sha256(b"concord/source/v1\0")
    files = [path for package in SOURCE_PACKAGES for path in (root / package).rglob("*.py")]
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(root).as_posix()}\n".encode())
    return digest.hexdigest()


def _figures(spent: Spending) -> dict[str, Any]:
    """The statement of what was spent; never an epsilon without its delta, unit and adjacency."""
    return {
        "epsilon": spent.epsilon,
        "filter_epsilon": spent.filter_epsilon,
        "rdp_order": spent.rdp_order,
        "delta": spent.delta,
        "unit": spent.unit,
        "adjacency": spent.adjacency,
        "charges": spent.charges,
        "releases": spent.releases,
    }
