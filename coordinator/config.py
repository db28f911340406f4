"""Settings of one coordinator: `coordinator.toml` in its home folder, read once, strictly.

`coordinator init` writes the file; an operator edits it; every command reads it. A field that is unknown, missing or
out of range is an error that names it. Paths inside the home are fixed and are not settings.
"""

import os
import socket
import tomllib
from dataclasses import dataclass as plain_dataclass
from pathlib import Path

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from coordinator.errors import ConfigError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
FILE_NAME = "coordinator.toml"
HOME_VARIABLE = "CONCORD_COORDINATOR_HOME"
"""Environment variable by which commands and the ServerApp find the home."""
EXCHANGE_VARIABLE = "CONCORD_EXCHANGE"
"""Environment variable by which the ServerApp finds the exchange; whoever starts it sets it."""
HEADER = "# Settings of this coordinator. Every field is explained in coordinator/config.py.\n"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CoordinatorConfig:
    """What an operator may set."""

    public_host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    """Name or address under which sites reach this machine; it stands in the server's certificate."""
    bind_host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    """Address that the three public ports listen on; "0.0.0.0" for all interfaces."""
    gateway_port: int = Field(ge=1, le=65535)
    """TCP port of the gateway (Flower's fleet calls, client certificate required)."""
    exchange_port: int = Field(ge=1, le=65535)
    """TCP port of the exchange (models and secure sums, client certificate required)."""
    enrolment_port: int = Field(ge=1, le=65535)
    """TCP port where an invited site exchanges its token for a certificate."""
    ledger_url: str | None = None
    """SQLAlchemy URL of the ledger; absent: SQLite in the home folder. May name a password file, never hold one."""


@plain_dataclass(frozen=True, kw_only=True)
class CoordinatorHome:
    """Where everything of one coordinator lies."""

    folder: Path

    @property
    def pki(self) -> Path:
        """Certificates and their keys."""
        return self.folder / "pki"

    @property
    def config_file(self) -> Path:
        """The operator's settings."""
        return self.folder / FILE_NAME

    @property
    def signing_key(self) -> Path:
        """Ed25519 key that signs round plans."""
        return self.folder / "signing.key"

    @property
    def superexec_secret(self) -> Path:
        """Shared by SuperLink and SuperExec, so that nobody else can take a task."""
        return self.folder / "superexec.secret"

    @property
    def models(self) -> Path:
        """Model files, named by their hash."""
        return self.folder / "models"

    @property
    def logs(self) -> Path:
        """One log per child process."""
        return self.folder / "logs"

    @property
    def flower(self) -> Path:
        """Flower's own folder: state, unpacked bundles, its command line's settings."""
        return self.folder / "flower"

    @property
    def issued(self) -> Path:
        """Certificates that were issued to sites."""
        return self.pki / "issued"

    @property
    def serve_file(self) -> Path:
        """Written by a serving coordinator: process id and addresses."""
        return self.folder / "serve.json"

    @property
    def lock_file(self) -> Path:
        """Locked while a coordinator serves this home."""
        return self.folder / "serve.lock"

    def ledger_url(self, config: CoordinatorConfig) -> str:
        """SQLAlchemy URL of the ledger."""
        return config.ledger_url or f"sqlite:///{self.folder / 'ledger.db'}"


def reachable_host(bind_host: str) -> str:
    """Where a process of this machine reaches what listens on `bind_host`."""
    return "127.0.0.1" if bind_host in {"0.0.0.0", "::", "localhost"} else bind_host  # noqa: S104


def load_config(home: CoordinatorHome) -> CoordinatorConfig:
    """The settings in the home folder.

    Raises:
        ConfigError: no such home, or a file that does not parse; the text names file and field.
    """
    path = home.config_file
    try:
        return TypeAdapter(CoordinatorConfig).validate_python(
            tomllib.loads(path.read_text(encoding="utf-8"))
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f'{path} does not exist. Make a coordinator with "coordinator init --home {home.folder}".'
        ) from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in detail["loc"])
        raise ConfigError(f"{path}: {field}: {detail['msg']}. Correct the file.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}. Correct the file.") from error


def write_config(home: CoordinatorHome, config: CoordinatorConfig) -> None:
    """Writes a new settings file, 0600; never overwrites one."""
    lines = [
        f"{name} = {_toml(value)}\n"
        for name, value in TypeAdapter(CoordinatorConfig).dump_python(config).items()
        if value is not None
    ]
    descriptor = os.open(home.config_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines([HEADER, *lines])


def free_port(host: str) -> int:
    """A TCP port that is free on this address now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _toml(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
