"""A PostgreSQL server of our own for the tests of the ledger: one server per session, one schema per test."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError


def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`, of the newest version where Debian keeps several."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


class PostgresServer:
    """A running server that listens on a Unix socket only, so no port is taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def new_schema(self) -> str:
        """SQLAlchemy URL of an empty schema; a database for each test would take 8 MB and a second."""
        name = f"ledger_{next(self._numbers)}"
        self._execute(f"CREATE SCHEMA {name}")
        return f"{self._url()}&options=-csearch_path%3D{name}"

    def accepts_connections(self) -> bool:
        """Whether a query works yet."""
        try:
            self._execute("SELECT 1")
        except OperationalError:
            return False
        return True

    def _url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self._folder}"

    def _execute(self, statement: str) -> None:
        engine = create_engine(self._url(), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(statement))


@contextmanager
def running_postgres(binaries: Path) -> Iterator[PostgresServer]:
    """Starts a server in a folder of its own and stops it at the end. As root it runs as `nobody`."""
    # A short path, because a Unix socket's name has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    identity: dict[str, object] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        shutil.chown(folder, nobody.pw_uid, nobody.pw_gid)
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    start = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **identity}
    data = folder / "data"
    subprocess.run(  # type: ignore[call-overload]
        [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"],
        check=True,
        timeout=120,
        **start,
    )
    process = subprocess.Popen(  # type: ignore[call-overload]
        [
            binaries / "postgres",
            "-D",
            data,
            "-k",
            folder,
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ],
        **start,
    )
    try:
        server = PostgresServer(folder)
        deadline = time.monotonic() + 60
        while not server.accepts_connections():
            assert process.poll() is None, "PostgreSQL ended while starting"
            assert time.monotonic() < deadline, "PostgreSQL did not start within 60 s"
            time.sleep(0.1)
        yield server
    finally:
        process.send_signal(
            signal.SIGINT
        )  # PostgreSQL's fast shutdown: it does not wait for clients
        process.wait(timeout=60)
        shutil.rmtree(folder)
