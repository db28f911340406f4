"""A site's configuration: `site.toml` in the site folder, read once at the start.

Secrets are not here. A database URL with a password stands in a file of its own (mode 0600) that `site.toml` names;
it is read when the table is read and kept nowhere. Relative paths are relative to the site folder.
"""

import json
import math
import re
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path
from string import Template
from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from participant.errors import ConfigError, ContractError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
MAX_CONFIG_BYTES = 1 << 20
WEAK_EPSILON = 8.0
"""Contracts above it are accepted and called weak."""
LARGEST_EPSILON = 16.0
"""Up to here delta covers what sampling leaves inexact (`privacy.dp.noise`); beyond, a contract promises nothing."""
DELTA_SHARE = 10
"""A contract's delta is at most one in this many times the number of patients."""

SiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Address = Annotated[
    str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")
]
ExchangeAddress = Annotated[
    str,
    StringConstraints(
        pattern=r"^((\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}|memory:[a-z0-9-]{1,40})$"
    ),
]
PASSWORD_IN_URL = re.compile(r"://[^/@]*:[^/@]*@|[?&;](password|passwd|pwd)=", re.IGNORECASE)
ONE_SELECT = re.compile(r"\s*(select|with)\b[^;]*;?\s*", re.IGNORECASE)
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataSource:
    """Where the site's table is: a text file, a Parquet file, or a database that SQLAlchemy can read."""

    kind: Literal["csv", "parquet", "database"]
    path: Path | None = None
    """The file, for `csv` (UTF-8, comma, header line) and `parquet`."""
    url: str | None = None
    """SQLAlchemy URL without a password, for `database`."""
    url_file: Path | None = None
    """File of mode 0600 that holds the SQLAlchemy URL, for a `database` whose URL has a password."""
    table: str | None = None
    """Table or view to read, `name` or `schema.name`, for `database`."""
    query: str | None = None
    """One SELECT to read instead of a table, for `database`."""
    patient_column: str | None = Field(default=None, min_length=1)
    """Column that says whose record a row is, where a patient may have several; it is never sent and no input of the
    model. Without it every row is a patient of its own."""

    def __post_init__(self) -> None:
        if self.kind != "database":
            if self.path is None or (self.url or self.url_file or self.table or self.query):
                raise ValueError(
                    f'kind = "{self.kind}" needs `path`, and no url, url_file, table or query'
                )
            return
        if self.path is not None:
            raise ValueError('kind = "database" takes url or url_file, not `path`')
        if (self.url is None) == (self.url_file is None):
            raise ValueError('kind = "database" needs exactly one of `url` and `url_file`')
        if (self.table is None) == (self.query is None):
            raise ValueError('kind = "database" needs exactly one of `table` and `query`')
        if self.query is not None and not ONE_SELECT.fullmatch(self.query):
            raise ValueError("`query` must be one SELECT (or WITH ... SELECT) without a semicolon")
        if self.url is not None and PASSWORD_IN_URL.search(self.url):
            raise ValueError(
                "`url` holds a password: put the URL into a file of mode 0600 and name it as `url_file`"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetContract:
    """What the institution promised about one data set: a total over all runs and jobs, for ever, never per round."""

    data_set: SiteName
    """Name of the data set; every job on the same patients uses the same name and the same budget file."""
    epsilon: float = Field(gt=0, le=LARGEST_EPSILON)
    """Largest total epsilon, at `delta`; above `WEAK_EPSILON` it is warned of."""
    delta: float = Field(gt=1e-12, lt=0.01)
    """Probability with which the epsilon bound may fail; at most 1 / (10 * number of patients)."""
    unit: Literal["patient", "customer"] = "patient"
    """Whose presence is protected: everything that the table holds about one of them counts as one."""
    adjacency: Literal["add-or-remove-one"] = "add-or-remove-one"
    """Neighbouring tables differ by one unit, added or removed."""
    rdp_order: float | None = Field(default=None, ge=1.125, le=1024)
    """Order of the Renyi divergence in which charges are added up, written into the budget file when that is made and
    never changed; None: the order that suits epsilon and delta."""
    honest_sites: int = Field(default=1, ge=1, le=64)
    """Where sites share the noise of a sum: how many sites, this one included, are trusted to add theirs."""
    valid_until: date | None = None
    """Last day (UTC) on which anything is charged; None: without end."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever answers for the records should know about the contract."""
        if self.epsilon <= WEAK_EPSILON:
            return ()
        return (
            f"The contract's epsilon of {self.epsilon:g} is weak: above {WEAK_EPSILON:g}, an attacker's odds about one "
            f"{self.unit} may change by a factor of more than {math.exp(WEAK_EPSILON):.0f}.",
        )


def require_delta_fits(contract: BudgetContract, patients: int) -> None:
    """Raises unless delta is at most 1 / (`DELTA_SHARE` * patients), before anything is charged or trained.

    With a delta near 1 / patients, publishing one patient's whole record would count as private.

    Raises:
        ContractError: whose text holds no number; its local message holds them.
    """
    if contract.delta * DELTA_SHARE * patients > 1.0 + 1e-9:
        raise ContractError(
            problem='it does not fit the site\'s table. The administrator sees why with "participant data check"',
            local_problem=f"delta = {contract.delta:g} is too large for {patients} {contract.unit}s: it may be "
            f"1 / ({DELTA_SHARE} * {patients}) = {1.0 / (DELTA_SHARE * max(patients, 1)):.3g} at most. "
            "Lower delta in site.toml",
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingSettings:
    """How this site computes what a plan asks for; the promise is the same."""

    dp_engine: Literal["bookkeeping", "opacus"] = "bookkeeping"
    """What clips every patient's gradient: the installed engine (one backward pass), or Opacus (slower), whose code
    another party wrote."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass. bfloat16 is faster where the processor knows it, and noised by 2 % more."""
    gradient_checkpointing: bool = False
    """Compute each block twice instead of keeping it: less memory, more time."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Processor threads."""

    def __post_init__(self) -> None:
        if self.dp_engine == "opacus" and (
            self.precision != "float32" or self.gradient_checkpointing
        ):
            raise ValueError(
                'dp_engine = "opacus" takes neither precision = "bfloat16" nor gradient_checkpointing'
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SiteConfig:
    """Everything in `site.toml`."""

    site: SiteName
    """Name of this site in the consortium, as in its certificate."""
    gateway: Address
    """host:port of the coordinator's gateway (control plane), reached by outbound connections only."""
    exchange: ExchangeAddress
    """host:port of the coordinator's exchange (data plane), reached by outbound connections only; "memory:NAME" is one
    in the same process, for rehearsals."""
    data: DataSource
    budget: BudgetContract
    training: TrainingSettings = TrainingSettings()
    schema: Path = Path("schema.toml")
    """The consortium's published table schema."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load_site(home: Path) -> SiteConfig:
    """Reads `site.toml` in the site folder; paths in the result are absolute.

    Raises:
        ConfigError: missing, unreadable, not TOML, an unknown or missing field, or a value out of range.
    """
    config = parse_toml(home / "site.toml", SiteConfig)

    def resolve(path: Path | None) -> Path | None:
        return None if path is None else (home / path).absolute()

    data = replace(
        config.data, path=resolve(config.data.path), url_file=resolve(config.data.url_file)
    )
    return replace(config, data=data, schema=(home / config.schema).absolute())


def parse_toml(path: Path, kind: type[Parsed]) -> Parsed:
    """A TOML file as the dataclass `kind`, strictly.

    Raises:
        ConfigError: with the file and every field that is wrong; values are left out, one may be a secret.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(
                path=path,
                problem=f"larger than {MAX_CONFIG_BYTES} bytes; this is no configuration.",
            )
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        # Through JSON, whose strict mode knows that a tuple is written as a list and a path as a string.
        return TypeAdapter(kind).validate_json(
            json.dumps(fields, allow_nan=False, default=str), strict=True
        )
    except FileNotFoundError:
        raise ConfigError(
            path=path,
            problem='does not exist. "participant join" writes it; --home names the site folder.',
        ) from None
    except OSError as error:
        raise ConfigError(path=path, problem=f"cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{_field(item['loc'])}: {item['msg']}" for item in error.errors(include_url=False)
        )
        raise ConfigError(
            path=path, problem=f"{wrong}. The comments in the file say what each field takes."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path=path, problem=f"is not TOML: {error}") from None
    except ValueError:
        raise ConfigError(path=path, problem="holds a number that is not finite.") from None


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "file"


SITE_TEMPLATE = Template("""\
# Configuration of this site. Relative paths are relative to the folder of this file.

site = "$site"                  # name in the consortium, as in the certificate
gateway = "$gateway"    # coordinator's gateway, host:port; only outbound connections are made
exchange = "$exchange"   # coordinator's exchange, host:port; only outbound connections are made
schema = "schema.toml"          # the consortium's published schema of the table
log_level = "info"              # debug, info, warning or error

# The table: one column per column of the schema. Other columns are ignored and never read.
[data]
kind = "csv"                    # csv (UTF-8, comma, header line), parquet or database
path = "patients.csv"           # the file, for csv and parquet
# kind = "database"
# url = "sqlite:////srv/patients.db"   # any SQLAlchemy URL without a password, or ...
# url_file = "database.url"            # ... a file (chmod 600) that holds the URL with its password
# table = "patients"                   # table or view (schema.name works too), or ...
# query = "SELECT * FROM patients WHERE consent = 1"   # ... one SELECT
# Without the next line every row counts as a patient of its own, and one with k rows is protected up to k times less.
# patient_column = "patient_id"        # column that says whose record a row is; never sent, no input of the model

# How this site computes; what is promised does not depend on it.
[training]
threads = 1                     # processor threads
dp_engine = "bookkeeping"       # what clips every patient's gradient: bookkeeping (fast) or opacus
precision = "float32"           # or bfloat16: faster on some processors, with 2 % more noise
gradient_checkpointing = false  # true: less memory, more time

# The privacy contract of this data set: a total over all runs, never per round. What is spent stands in budget.db,
# which only grows. Delete neither that file nor budget.high-water.
[budget]
data_set = "$data_set"          # one name and one budget for every job on the same patients
epsilon = 8.0                   # largest total epsilon; above 8 is weak
delta = 1e-5                    # at most 1 / (10 * number of patients); a larger one is refused
unit = "patient"                # whose presence is protected: patient or customer
# valid_until = 2027-12-31      # last day on which anything is charged
# honest_sites = 2              # where sites share noise: how many, you included, are trusted to add theirs
# rdp_order = 4.0               # how charges are added up; left out, it is chosen to suit. Fixed with the first run
""")

POLICY_TEMPLATE = Template("""\
# What this site agrees to. A plan that asks for more is refused with the name of the clause; nothing is then trained.

max_epsilon = 8.0               # largest total epsilon of one run
max_delta = 1e-5                # largest delta of a run
minimum_noise_multiplier = 0.3  # least noise on a clipped sum, in units of the clipping norm
minimum_cohort = 3              # fewest sites asked in a round: with two, each reads the other's update off the sum
minimum_quorum = 3              # fewest sites whose sum may be opened
# max_update_norm = 5.0         # largest L2 norm of this site's change; a longer one is shortened before it is sealed
# Secure sums that this site takes part in. "plain" shows its update to the coordinator: rehearsals on public data only.
secure_sum_schemes = ["mask", "ckks", "ckks-light", "paillier"]
paillier_key_holders = []       # sites trusted to make a Paillier key: with the coordinator, one can read every update
require_dp = true               # refuse plans without differential privacy
allow_fixed_seed = false        # allow a plan to fix randomness; only ever without differential privacy
max_rounds = 1000               # rounds and spare attempts of one run
max_local_steps = 10000         # training steps per round
max_model_bytes = 2147483648    # largest model file that is fetched: a bound on this site's disk and memory

# SHA-256 of the app bundles whose manifest this site agrees to serve. A bundle's code is never run: the installed one is.
bundles = [$bundles]
# SHA-256 of the table schemas this site agrees to; empty: the one in schema.toml only.
schemas = []
""")
