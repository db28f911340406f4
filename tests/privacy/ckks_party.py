"""One party of a secure sum in a process of its own, told what to do over its standard input: for tests of its memory.

A message is a line of JSON and the pieces whose lengths are in it. Site and coordinator are the real parts. The party never
learns what its memory is searched for: it only gives its memory away.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from participant.sum_keys import StoredKeys
from privacy.ckks.parameters import STANDARD
from privacy.ckks.ring import Residues
from privacy.secagg.key_epoch import RING
from privacy.secagg.protocol import CoordinatorPart, SitePart
from privacy.secagg.secure_sum import MemoryJournal, answer_of, coordinator_part, site_part
from tests.privacy.secagg_cohort import make_context, plan_of

PIECE_BYTES = 1 << 20
ZEROS = bytes(PIECE_BYTES)
WRITABLE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw")


def send(stream: IO[bytes], pieces: Sequence[bytes], **header: object) -> None:
    """One message."""
    stream.write(json.dumps(header | {"lengths": list(map(len, pieces))}).encode() + b"\n")
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict, list[bytes]]:
    """The next message: its header and pieces."""
    header = json.loads(stream.readline())
    return header, [stream.read(length) for length in header["lengths"]]


def memory() -> Iterator[bytes]:
    """All that this process has written to: heap, stack, data, every anonymous mapping."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    with open("/proc/self/mem", "rb", buffering=0) as own:
        for start, end in (found.groups() for found in map(WRITABLE.match, maps) if found):
            own.seek(int(start, 16))
            left = int(end, 16) - int(start, 16)
            while left:
                piece = own.read(min(PIECE_BYTES, left))
                left -= len(piece)
                if piece != ZEROS[: len(piece)]:
                    yield piece


class Party:
    """What the party does with each message."""

    def __init__(self, settings: dict) -> None:
        plan = plan_of(
            settings["kind"], count=len(settings["keys"]), dimension=settings["dimension"]
        )
        keys = {site: bytes.fromhex(key) for site, key in settings["keys"].items()}
        folder = Path(settings["folder"])
        self._site: SitePart | None = None
        self._coordinator: CoordinatorPart | None = None
        self._planted: Residues | None = None
        self._values = np.full(plan.dimension, settings["value"])
        if name := settings["site"]:
            self._site = site_part(
                plan,
                site=name,
                context=make_context(),
                identity=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(settings["identity"])),
                keys=keys,
                journal=MemoryJournal(),
                key_store=StoredKeys(folder, "ckks"),
            )
        else:
            self._coordinator = coordinator_part(
                plan, context=make_context(), keys=keys, spool_folder=folder
            )

    def answer(self, header: dict, pieces: list[bytes]) -> tuple[dict, list[bytes]]:
        """Do as told."""
        match header["do"]:
            case "leg":
                assert self._site is not None
                return {}, list(answer_of(self._site, header["leg"], iter(pieces), self._values))
            case "absorb":
                assert self._coordinator is not None
                for piece in pieces:
                    self._coordinator.absorb(header["leg"], header["site"], piece)
                return {}, []
            case "close":
                assert self._coordinator is not None
                messages = self._coordinator.close_leg(header["leg"])
                frames = {site: list(told) for site, told in messages.items()}
                counts = {site: len(told) for site, told in frames.items()}
                return {"counts": counts}, [frame for told in frames.values() for frame in told]
            case "sum":
                assert self._coordinator is not None
                return {"values": self._coordinator.result().values.tolist()}, []
            case _:
                return self._plant(pieces)

    def _plant(self, pieces: list[bytes]) -> tuple[dict, list[bytes]]:
        """Do what no party may do: add up the keys."""
        total = np.zeros((STANDARD.primes, STANDARD.degree), dtype=np.uint64)
        for piece in pieces:
            RING.accumulate(total, RING.unpack(piece, STANDARD.degree))
        self._planted = total
        return {}, []


def main() -> None:
    """Serve until the input ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    party = Party(json.loads(source.readline()))
    send(sink, [])
    while line := source.readline():
        header = json.loads(line)
        pieces = [source.read(length) for length in header["lengths"]]
        if header["do"] == "memory":
            for piece in memory():
                send(sink, [piece])
            send(sink, [b""])
        else:
            answer, frames = party.answer(header, pieces)
            send(sink, frames, **answer)


if __name__ == "__main__":
    main()
