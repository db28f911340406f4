"""Everything that can go wrong at a site, as one tree.

    ParticipantError
    ├── ConfigError        a file of the site's configuration cannot be used
    ├── DataError          the site's table does not fit the published schema
    ├── PolicyRefusal      the site's policy forbids what the coordinator asks
    ├── ContractError      the privacy contract of the data set has ended, or does not fit the table
    ├── BudgetExhausted    the privacy contract of the data set has no room for what is asked
    ├── BudgetError        the budget file is missing, damaged, newer, rolled back or contradicted
    ├── CertificateError   a file is no privacy certificate
    ├── OutboxError        what is stored to be sent is damaged, or contradicts what was stored before
    ├── DiskFullError      a durable write found no room; nothing was half written
    ├── EnrolmentError     joining a consortium failed
    ├── IdentityError      a key or certificate of this site, or one that it pinned, is not what it should be
    ├── SupervisorError    a child process cannot be kept running
    └── RoundAborted       a round ended without this site's update

Two voices. `str(error)` may leave the site: Flower puts it, unasked, into the error reply to the coordinator. It never
holds anything that was computed from records. `error.local_message` is for the site's own terminal, and may name a
row and the value found there; it is written to no log and sent to nobody.
"""

from pathlib import Path


class ParticipantError(Exception):
    """Root of the tree: catch it at the edge (command line, client app), nowhere else."""

    @property
    def local_message(self) -> str:
        """What the site's administrator reads."""
        return str(self)


class ConfigError(ParticipantError):
    """A file of the configuration cannot be read, or a field of it cannot be used."""

    def __init__(self, *, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class DataError(ParticipantError):
    """The site's table does not fit the schema. Nothing was charged and nothing was trained.

    Which column, row and value is wrong depends on the records, so `str(error)` says none of it.
    """

    def __init__(
        self,
        *,
        source: str,
        problem: str,
        column: str | None = None,
        row: int | None = None,
        line: int | None = None,
        value: str | None = None,
    ) -> None:
        super().__init__(
            "The site's table does not fit the published schema. The site's administrator sees where with "
            '"participant data check".'
        )
        self.source = source
        self.problem = problem
        self.column = column
        self.row = row
        """Row of data, counted from 1; the header is not counted."""
        self.line = line
        """Line of the text file, counted from 1, where the source is one."""
        self.value = value

    @property
    def place(self) -> str:
        """Source, column and row, as far as known."""
        parts = [self.source]
        if self.column is not None:
            parts.append(f'column "{self.column}"')
        if self.row is not None:
            parts.append(f"row {self.row}" + (f" (line {self.line})" if self.line else ""))
        return ", ".join(parts)

    @property
    def local_message(self) -> str:
        """Place, value found, and what is expected: for the site's own terminal only."""
        found = f' found "{self.value}".' if self.value is not None else ""
        return f"{self.place}:{found} {self.problem}"


class PolicyRefusal(ParticipantError):  # noqa: N818 - a decision
    """The site's policy forbids what the coordinator asks; a decision, not a fault."""

    def __init__(
        self, *, clause: str, context: str, wanted: str, allowed: str, remedy: str
    ) -> None:
        super().__init__(
            f'{context}: refused by clause "{clause}" of the site\'s policy. '
            f"Asked: {wanted}. Allowed: {allowed}. {remedy}"
        )
        self.clause = clause
        self.wanted = wanted
        self.allowed = allowed


class ContractError(ParticipantError):
    """The privacy contract in `site.toml` allows nothing here; nothing was charged and no record was touched."""

    def __init__(self, *, problem: str, local_problem: str | None = None) -> None:
        super().__init__(f"The site's privacy contract: {problem}. Nothing was charged.")
        self._local_problem = local_problem

    @property
    def local_message(self) -> str:
        """The message with the numbers, which may depend on the table."""
        if self._local_problem is None:
            return str(self)
        return f"The site's privacy contract: {self._local_problem}. Nothing was charged."


class BudgetExhausted(ParticipantError):  # noqa: N818 - a decision
    """The contract of the data set has no room for the events asked; nothing was charged."""

    def __init__(
        self,
        *,
        data_set: str,
        intent: str,
        problem: str,
        epsilon: float,
        delta: float,
        unit: str,
        adjacency: str,
    ) -> None:
        super().__init__(
            f'Privacy budget of data set "{data_set}": {intent} was refused and not charged. {problem} Contract: epsilon '
            f"{epsilon:g} (all at delta {delta:g}, unit {unit}, adjacency {adjacency}). Ask the coordinator for a plan "
            "with more noise or fewer rounds, or have the contract in site.toml raised by whoever answers for the records."
        )
        self.data_set = data_set
        self.intent = intent
        self.problem = problem


class BudgetError(ParticipantError):
    """The budget file cannot be trusted or does not allow this; no record may be touched."""

    def __init__(self, *, path: Path, problem: str) -> None:
        super().__init__(f"Privacy budget {path.name}: {problem}")
        self.path = path

    @property
    def local_message(self) -> str:
        """The message with the whole path."""
        return str(self).replace(self.path.name, str(self.path), 1)


class CertificateError(ParticipantError):
    """A file is no privacy certificate of a known form."""


class OutboxError(ParticipantError):
    """What is stored to be sent is damaged, or contradicts what was stored before."""


class DiskFullError(ParticipantError):
    """A durable write found no room. Nothing was half written; the same call works once there is room."""

    def __init__(self, *, path: Path, attempted: str) -> None:
        super().__init__(
            f"No room on the site's disk: {attempted} was not stored, and so not done. "
            "Free space on the disk of the site folder; the work then continues by itself."
        )
        self.path = path

    @property
    def local_message(self) -> str:
        """The message with the path."""
        return f"{self.path}: {self}"


class EnrolmentError(ParticipantError):
    """Joining a consortium failed."""


class IdentityError(ParticipantError):
    """A key or certificate of this site, or one that it pinned, is not what it should be."""


class SupervisorError(ParticipantError):
    """A child process cannot be kept running."""


class RoundAborted(ParticipantError):  # noqa: N818 - an outcome
    """A round ended without this site's update; the last committed model stands."""
