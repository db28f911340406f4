"""What a budget file holds, as values: an identity, then a chain of entries that only grows.

    programme   a run declared whole, before its first release
    charge      what one release costs, reserved before a record is touched
    release     which bytes left under a charge
    clock       the administrator vouched for the clock; times may go back here and nowhere else

Every entry has a number, a kind, a name that is unique in its kind, a content in canonical JSON, a time, and the hash
over all of these and over the chain before it. The chain begins with the hash of the identity. What is written here is
what a certificate shows and what `participant/recompute.py` checks without this code.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from participant.config import BudgetContract
from privacy.dp.events import Event, event_from_json, event_to_json

IDENTITY_LABEL = b"concord/budget-identity/v2\0"
ENTRY_LABEL = b"concord/budget-entry/v2\0"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PROGRAMME, CHARGE, RELEASE, CLOCK = "programme", "charge", "release", "clock"
MAX_NAME_CHARACTERS = 500
SHA256_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose budget the file is, and in which terms it counts; fixed when the file is made."""

    data_set: str
    unit: str
    adjacency: str
    rdp_order: float
    """Order of the Renyi divergence in which charges add up."""

    @property
    def chain(self) -> bytes:
        """Where the chain of entries begins."""
        return hashlib.sha256(IDENTITY_LABEL + canonical_json(asdict(self)).encode()).digest()


@dataclass(frozen=True, kw_only=True)
class Programme:
    """A run declared whole before its first release: what it may cost at most."""

    name: str
    """The run."""
    events: tuple[Event, ...]
    """All that its attempts may release, every attempt that it was calibrated for included."""


@dataclass(frozen=True, kw_only=True)
class ContractTerms:
    """What the contract said when something was charged."""

    epsilon: float
    delta: float
    honest_sites: int
    valid_until: date | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """An entry as it is stored, its content not yet read."""

    number: int
    kind: str
    name: str
    content: str
    at_microseconds: int
    """Microseconds since 1970, UTC."""
    chain: bytes

    @property
    def at(self) -> datetime:
        """When it was written."""
        return EPOCH + timedelta(microseconds=self.at_microseconds)


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A programme that was admitted."""

    number: int
    programme: Programme
    epsilon: float | None
    """Epsilon of the whole programme by privacy loss distributions, at `terms.delta`; None where the filter admitted it."""
    terms: ContractTerms
    at: datetime
    chain: bytes


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one release costs: it counts from now on, whether the release happens or not."""

    number: int
    intent: str
    """What was charged for, for instance "<run>/<round>/<attempt>"; charged once."""
    events: tuple[Event, ...]
    programme: str | None
    """The declared run that it belongs to."""
    rdp_after: float | None
    """Renyi divergence, at the file's order, of everything that counts after this charge; None: none can be computed."""
    terms: ContractTerms
    at: datetime
    chain: bytes

    @property
    def run(self) -> str:
        """The run that was charged: the programme, or what stands before the first "/" of the intent."""
        return self.programme if self.programme is not None else self.intent.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Release:
    """Bytes that left, or were about to leave, under the charge of the same intent."""

    number: int
    intent: str
    sha256: str
    """Digest of exactly those bytes, in hex."""
    at: datetime
    chain: bytes


@dataclass(frozen=True, kw_only=True)
class ClockStatement:
    """The site's administrator vouched for the clock: the entry before may be of a later time."""

    number: int
    at: datetime
    chain: bytes


Entry = Declaration | Charge | Release | ClockStatement


@dataclass(frozen=True, kw_only=True)
class History:
    """A verified file: everything in it, oldest first."""

    identity: Identity
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All charges."""
        return tuple(entry for entry in self.entries if isinstance(entry, Charge))

    @property
    def releases(self) -> tuple[Release, ...]:
        """All releases."""
        return tuple(entry for entry in self.entries if isinstance(entry, Release))

    @property
    def declarations(self) -> tuple[Declaration, ...]:
        """All declared programmes."""
        return tuple(entry for entry in self.entries if isinstance(entry, Declaration))

    @property
    def first_programme(self) -> Declaration | None:
        """The programme that was declared before anything else happened on the data set, if there is one."""
        first = self.entries[0] if self.entries else None
        return first if isinstance(first, Declaration) else None

    @property
    def head(self) -> bytes:
        """The newest hash of the chain."""
        return self.rows[-1].chain if self.rows else self.identity.chain

    def charge(self, intent: str) -> Charge | None:
        """The charge of that intent."""
        return next((charge for charge in self.charges if charge.intent == intent), None)

    def release(self, intent: str) -> Release | None:
        """The release under that intent."""
        return next((release for release in self.releases if release.intent == intent), None)

    def declaration(self, name: str) -> Declaration | None:
        """The programme of that name."""
        return next((d for d in self.declarations if d.programme.name == name), None)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def entry_chain(
    previous: bytes, *, number: int, kind: str, name: str, content: str, at_microseconds: int
) -> bytes:
    """Hash over an entry and the chain before it."""
    text = canonical_json([number, kind, name, content, at_microseconds])
    return hashlib.sha256(ENTRY_LABEL + previous + text.encode()).digest()


def contract_terms(contract: BudgetContract) -> ContractTerms:
    """The part of the contract that may change over the life of a data set."""
    return ContractTerms(
        epsilon=contract.epsilon,
        delta=contract.delta,
        honest_sites=contract.honest_sites,
        valid_until=contract.valid_until,
    )


def programme_content(
    events: Sequence[Event], *, epsilon: float | None, terms: ContractTerms
) -> str:
    """Content of a programme's entry."""
    return canonical_json(
        {"contract": _terms_fields(terms), "epsilon": epsilon, "events": _event_fields(events)}
    )


def charge_content(
    events: Sequence[Event], *, programme: str | None, rdp_after: float | None, terms: ContractTerms
) -> str:
    """Content of a charge's entry."""
    return canonical_json(
        {
            "contract": _terms_fields(terms),
            "events": _event_fields(events),
            "programme": programme,
            "rdp_after": rdp_after,
        }
    )


def release_content(sha256: str) -> str:
    """Content of a release's entry."""
    return canonical_json({"sha256": sha256})


def read_entry(row: Row) -> Entry:
    """The entry that a stored row holds.

    Raises:
        ValueError: an unknown kind, a missing or extra field, a wrong type, or an event that is not known.
    """
    fields = json.loads(row.content)
    wanted = {
        PROGRAMME: {"contract", "epsilon", "events"},
        CHARGE: {"contract", "events", "programme", "rdp_after"},
        RELEASE: {"sha256"},
        CLOCK: set(),
    }.get(row.kind)
    if wanted is None or not isinstance(fields, dict) or set(fields) != wanted:
        raise ValueError(f'The content of a "{row.kind}" is not what was expected.')
    place: dict[str, Any] = {"number": row.number, "at": row.at, "chain": row.chain}
    if row.kind == CLOCK:
        return ClockStatement(**place)
    if row.kind == RELEASE:
        return Release(**place, intent=row.name, sha256=str(fields["sha256"]))
    events, terms = _read_events(fields["events"]), _read_terms(fields["contract"])
    if row.kind == PROGRAMME:
        programme = Programme(name=row.name, events=events)
        epsilon = None if fields["epsilon"] is None else float(fields["epsilon"])
        return Declaration(**place, programme=programme, epsilon=epsilon, terms=terms)
    return Charge(
        **place,
        intent=row.name,
        events=events,
        programme=None if fields["programme"] is None else str(fields["programme"]),
        rdp_after=None if fields["rdp_after"] is None else float(fields["rdp_after"]),
        terms=terms,
    )


def _event_fields(events: Sequence[Event]) -> list[Any]:
    return [json.loads(event_to_json(event)) for event in events]


def _read_events(values: Any) -> tuple[Event, ...]:
    if not isinstance(values, list):
        raise ValueError("Expected a list of events.")
    return tuple(event_from_json(canonical_json(value)) for value in values)


def _terms_fields(terms: ContractTerms) -> dict[str, Any]:
    until = terms.valid_until
    return asdict(terms) | {"valid_until": None if until is None else until.isoformat()}


def _read_terms(fields: Any) -> ContractTerms:
    if not isinstance(fields, dict) or set(fields) != set(ContractTerms.__annotations__):
        raise ValueError("Expected the terms of a contract.")
    until = fields["valid_until"]
    return ContractTerms(
        epsilon=float(fields["epsilon"]),
        delta=float(fields["delta"]),
        honest_sites=int(fields["honest_sites"]),
        valid_until=None if until is None else date.fromisoformat(until),
    )
