"""Everything that the coordinator can fail with, in one tree.

    CoordinatorError
    ├── ConfigError             a setting, file or address that cannot be used
    ├── EnrolmentError          a site that cannot be invited, enrolled or revoked
    │   └── TokenRefused        an invitation that is unknown, used or expired (one text for all three)
    ├── SupervisorError         a child process that does not start, work or stop
    ├── LedgerError             the ledger cannot be opened, read or written, or what it holds contradicts the request
    │   ├── LedgerVersionError  the ledger's schema is not one that this program knows
    │   └── StaleEpochError     another process has taken the run over; the writer must stop
    ├── TransitionError         a run, round or attempt cannot go from its state to the one asked for
    └── RoundError              a round cannot produce a model
        ├── QuorumError         fewer sites than the plan demands
        └── AggregationError    the sum, the mean or the server optimiser gave nothing usable

A message says what was attempted, for which run, round and site, what was found, and what to do. It never holds
a record, a weight, a key or a token.
"""


class CoordinatorError(Exception):
    """Root of the tree: catch it at a command line, where it becomes a message and an exit code."""


class ConfigError(CoordinatorError):
    """A setting, file or address that cannot be used."""


class EnrolmentError(CoordinatorError):
    """A site cannot be invited, enrolled or revoked."""


class TokenRefused(EnrolmentError):  # noqa: N818 - a refusal is an answer, as PolicyRefusal is
    """An invitation is unknown, used or expired; which of the three is not told."""


class SupervisorError(CoordinatorError):
    """A child process does not start, work or stop."""


class LedgerError(CoordinatorError):
    """The ledger cannot be opened, read or written, or what it holds contradicts the request."""


class LedgerVersionError(LedgerError):
    """The ledger's schema is not one that this program knows."""


class StaleEpochError(LedgerError):
    """Another process has taken the run over: nothing was written, and the writer must stop."""


class TransitionError(CoordinatorError):
    """A run, round or attempt cannot go from its state to the one asked for; the text names both."""


class RoundError(CoordinatorError):
    """A round cannot produce a model."""


class QuorumError(RoundError):
    """Fewer sites than the plan demands."""


class AggregationError(RoundError):
    """The sum, the mean or the server optimiser gave nothing usable."""
