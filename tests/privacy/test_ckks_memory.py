"""No process ever holds the joint key of a `ckks` sum: coordinator and sites run for themselves, then give their memory away.

Only the test forms what it searches for, after the sum, from the key files that the sites left.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.ckks.ring import Residues
from privacy.secagg.key_epoch import RING, read_epoch
from privacy.secagg.protocol import LEGS
from tests.privacy.ckks_party import receive, send

SITES = ("site-0", "site-1", "site-2")
DIMENSION = 9000
ROOT = Path(__file__).parents[2]
WINDOW_BYTES = 48
"""Bytes of a key that are searched for: 200 bits of one in transformed form, more than 100 of one in coefficient form."""
LONGEST = 512
OWN_FORMS = ("transformed, first prime", "transformed, packed")
"""In which the sites' own keys are searched for; the joint one in all."""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux"),
]


class Process:
    """One party in a process of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        folder.mkdir(mode=0o700)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.privacy.ckks_party"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._told, self._said = self._child.stdin, self._child.stdout
        self._told.write(json.dumps(settings | {"folder": str(folder)}).encode() + b"\n")
        self._told.flush()

    def greeted(self) -> "Process":
        """Once the party is ready."""
        receive(self._said)
        return self

    def ask(self, pieces: list[bytes] | None = None, **header: object) -> tuple[dict, list[bytes]]:
        send(self._told, pieces or [], **header)
        return receive(self._said)

    def memory(self) -> Iterator[bytes]:
        """Its writable memory in pieces that overlap, so that nothing short falls between two."""
        send(self._told, [], do="memory")
        tail = b""
        while piece := receive(self._said)[1][0]:
            yield tail + piece
            tail = piece[-LONGEST:]

    def end(self) -> None:
        self._told.close()
        self._said.close()
        self._child.wait(timeout=30)


class Federation:
    """A coordinator and three sites that have opened one sum, each still running."""

    def __init__(self, folder: Path, started: contextlib.ExitStack) -> None:
        identities = {site: Ed25519PrivateKey.generate() for site in SITES}
        shared = {
            "kind": "ckks-3-of-5",
            "dimension": DIMENSION,
            "keys": {
                site: identity.public_key().public_bytes_raw().hex()
                for site, identity in identities.items()
            },
        }
        self.folder = folder
        self.processes: dict[str, Process] = {}
        for name in (*SITES, "coordinator"):
            own = {"site": "", "value": 0.0, "identity": ""}
            if name in identities:
                identity = identities[name].private_bytes_raw().hex()
                own = {"site": name, "value": 0.25, "identity": identity}
            self.processes[name] = Process(folder / name, **shared, **own)
            started.callback(self.processes[name].end)
        for process in self.processes.values():
            process.greeted()

    def open_sum(self) -> list[float]:
        coordinator = self.processes["coordinator"]
        inbox: dict[str, list[bytes]] = {site: [] for site in SITES}
        for leg in LEGS:
            for site, frames in inbox.items():
                _, answer = self.processes[site].ask(frames, do="leg", leg=leg)
                coordinator.ask(answer, do="absorb", leg=leg, site=site)
            header, frames = coordinator.ask(do="close", leg=leg)
            told = iter(frames)
            inbox = {
                site: [next(told) for _ in range(count)] for site, count in header["counts"].items()
            }
        values: list[float] = coordinator.ask(do="sum")[0]["values"]
        return values

    def key_of(self, site: str) -> Residues:
        """A site's key, from its file."""
        stored = (self.folder / site / "ckks.key").read_bytes()
        epoch = read_epoch(stored, member=site)
        assert epoch is not None
        return epoch.key


def forms_of(key: Residues) -> dict[str, list[bytes]]:
    """Pieces of a key in every form in which a process could hold it."""
    coefficients, _ = RING.coefficients(key, key)
    prime = RING.primes[0]
    small = coefficients[0].astype(np.int64)
    small = np.where(small > prime // 2, small - prime, small)
    arrays = {
        "transformed, first prime": key[0],
        "transformed, second prime": key[1],
        "coefficients modulo the first prime": coefficients[0],
        "coefficients modulo the second prime": coefficients[1],
        "small coefficients, 8 bytes": small,
        "small coefficients, 4 bytes": small.astype(np.int32),
        "small coefficients, 1 byte": small.astype(np.int8),
        "transformed, packed": np.frombuffer(RING.pack(key), np.uint8),
        "coefficients, packed": np.frombuffer(RING.pack(coefficients), np.uint8),
    }
    return {name: windows(array.tobytes()) for name, array in arrays.items()}


def windows(data: bytes) -> list[bytes]:
    """From the first and the last third, in case one was overwritten; longer where the bytes hold little."""
    length = WINDOW_BYTES if len(set(data[:4096])) > 100 else LONGEST
    return [data[len(data) // 3 :][:length], data[len(data) // 5 * 4 :][:length]]


def found_in(pieces: Iterator[bytes], forms: dict[str, list[bytes]]) -> set[str]:
    """Forms of which a window stands in any piece. All are read: the other end waits to be heard out."""
    return {
        name
        for piece in pieces
        for name, parts in forms.items()
        if any(part in piece for part in parts)
    }


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with contextlib.ExitStack() as started:
        yield Federation(tmp_path_factory.mktemp("federation"), started)


@pytest.fixture(scope="module")
def searched(federation):
    """Which keys' forms were found where, after a sum: (holder, whose key) -> names of forms."""
    assert federation.open_sum() == pytest.approx([0.75] * DIMENSION, abs=1e-5)
    keys = {site: federation.key_of(site) for site in SITES}
    keys["joint"] = functools.reduce(RING.add, keys.values())
    forms = {
        f"{owner}|{name}": parts
        for owner, key in keys.items()
        for name, parts in forms_of(key).items()
        if owner == "joint" or name in OWN_FORMS
    }
    places = {name: process.memory() for name, process in federation.processes.items()}
    places |= {
        f"files of {name}": (path.read_bytes() for path in (federation.folder / name).rglob("*"))
        for name in federation.processes
    }
    return {place: found_in(pieces, forms) for place, pieces in places.items()}


def owners(found: set[str]) -> set[str]:
    return {name.split("|")[0] for name in found}


@pytest.mark.parametrize("site", SITES)
def test_a_site_holds_its_own_key_and_no_other_and_not_the_joint_one(searched, site):
    assert owners(searched[site]) == {site}
    assert f"{site}|transformed, first prime" in searched[site]


def test_the_coordinator_holds_no_key(searched):
    assert searched["coordinator"] == set()


@pytest.mark.parametrize("site", SITES)
def test_a_site_leaves_its_own_key_in_its_files_and_no_other(searched, site):
    assert searched[f"files of {site}"] == {f"{site}|transformed, packed"}


def test_the_coordinator_leaves_no_key_in_its_files(searched):
    assert searched["files of coordinator"] == set()


def test_a_process_that_adds_up_the_keys_would_be_found(searched, federation):
    keys = [federation.key_of(site) for site in SITES]
    forms = forms_of(functools.reduce(RING.add, keys))
    federation.processes["coordinator"].ask([RING.pack(key) for key in keys], do="plant")
    found = found_in(federation.processes["coordinator"].memory(), forms)
    assert {"transformed, first prime", "transformed, second prime"} <= found
