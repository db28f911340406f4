"""Makes a coordinator's home: keys, certificates, settings and an empty ledger. All of it, or nothing."""

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from coordinator.config import CoordinatorConfig, CoordinatorHome, write_config
from coordinator.enrolment.authority import create_authority, create_signing_key, write_secret
from coordinator.errors import ConfigError
from coordinator.ledger.store import open_ledger

SECRET_BYTES = 48


def initialise(home: CoordinatorHome, config: CoordinatorConfig, *, hosts: tuple[str, ...]) -> None:
    """Makes the home, which must not exist or be empty.

    Args:
        home: folder to make, 0700.
        config: settings to write.
        hosts: names and addresses for the server's certificate; the first is the public one.

    Raises:
        ConfigError: the folder holds something, or cannot be written.
        LedgerError: the database of the ledger cannot be used.
    """
    target = home.folder.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{target} exists and is not an empty folder. Keys are never overwritten; name another --home."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Made beside the target and renamed, so that an interrupted init leaves no half a home behind.
        partial = CoordinatorHome(
            folder=Path(tempfile.mkdtemp(prefix=".coordinator-", dir=target.parent))
        )
    except OSError as error:
        raise ConfigError(
            f"Cannot make {target}: {error.strerror}. Name another --home."
        ) from error
    try:
        for folder in (partial.pki, partial.issued, partial.models, partial.logs, partial.flower):
            folder.mkdir(mode=0o700)
        create_authority(partial.pki, hosts=hosts)
        create_signing_key(partial.signing_key)
        write_secret(partial.superexec_secret, secrets.token_hex(SECRET_BYTES).encode())
        write_config(partial, config)
        open_ledger(partial.ledger_url(config)).close()
        os.rename(partial.folder, target)
    except BaseException:
        shutil.rmtree(partial.folder, ignore_errors=True)
        raise
