"""The scheme `paillier` at the coordinator: it keeps ciphertexts for those who decrypt, and combines what they send.

It holds no secret. It checks on arrival what the sites will check again, so that a bad message is refused with the name
of its sender: a key that is not as the plan says, different commitments for different sites, ciphertexts outside the group or
other than committed to, and partial decryptions that were not made with the share that was dealt.

Ciphertexts wait in memory up to a few megabytes, then in a temporary file without a name; their product takes the
memory of one vector.
"""

import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from privacy.paillier.ciphertexts import add_ciphertexts, decode_ciphertexts
from privacy.paillier.keys import PublicKey
from privacy.paillier.partial_proof import is_proved
from privacy.paillier.threshold import combine
from privacy.secagg.boxes import require_distinct_channels
from privacy.secagg.errors import MessageRefused, SumImpossible
from privacy.secagg.paillier_parts import (
    COMMITMENT_BYTES,
    Layout,
    RunningDigest,
    largest_box,
    proof_scope,
    read_public,
)
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster

MEMORY_BYTES = 8 << 20


class PaillierCoordinator:
    """Checks what sites send, relays ciphertexts, and opens the sum from t partial decryptions."""

    asks_all = False

    def __init__(self, plan: SumPlan, spool_folder: Path | None = None) -> None:
        self._plan = plan
        self._layout = Layout(plan=plan)
        self.sealed_parts = self.disclosure_parts = self._layout.parts
        self.largest_box = largest_box(plan)
        self._spool_folder = spool_folder
        self._public: dict[str, bytes] = {}
        self._key: PublicKey | None = None
        self._commitments: dict[str, bytes] = {}
        self._verification_keys: dict[str, mpz] = {}
        self._digests: dict[str, RunningDigest] = {}
        self._kept: dict[str, list[tuple[int, int]]] = {}
        self._product: list[mpz] = []
        self._partials: dict[str, list[mpz]] = {}

    def require_public(self, site: str, public: bytes) -> None:
        """A channel key of its own; from the key holder also a Paillier key as the plan says."""
        key = read_public(site, public, self._plan)
        require_distinct_channels({**self._public, site: public})
        self._public[site] = public
        self._key = key or self._key

    def require_boxes(self, site: str, boxes: Mapping[str, bytes], roster: Roster) -> None:
        """Boxes of the right length with one commitment in all; from the key holder a verification key for every site."""
        for recipient, box in boxes.items():
            expected = self._layout.box_bytes(site, recipient, len(roster.sites))
            if len(box) != expected:
                raise MessageRefused(
                    site=site,
                    leg="share",
                    reason=f'{len(box)} bytes for site "{recipient}", expected {expected}.',
                )
        commitments = {box[:COMMITMENT_BYTES] for box in boxes.values()}
        if len(commitments) != 1:
            raise MessageRefused(
                site=site, leg="share", reason="different commitments for different sites."
            )
        if site == self._plan.key_holder:
            shown = slice(COMMITMENT_BYTES, self._layout.open_bytes(site))
            keys = self._units(site, "share", [box[shown] for box in boxes.values()])
            self._verification_keys = dict(zip(boxes, keys, strict=True))
        self._commitments[site] = commitments.pop()
        self._roster = roster

    def require_part(self, site: str, index: int, part: memoryview) -> None:
        """Ciphertexts, and with the last of them exactly those that the site committed to."""
        _, encoded = self._split(site, index, part)
        self._decoded(site, "seal", encoded, self._layout.part_count(index))
        digest = self._digests.get(site, RunningDigest()).after(encoded)
        is_last = index + 1 == self._layout.parts
        if is_last and digest.commitment(self._roster.scope, site) != self._commitments[site]:
            raise MessageRefused(
                site=site, leg="seal", reason="ciphertexts other than those it committed to."
            )
        self._digests[site] = digest

    def add(self, site: str, index: int, part: memoryview) -> None:
        """Keep the part for those who decrypt, and multiply its ciphertexts into the product."""
        file = self._file
        start = file.seek(0, 2)
        file.write(part)
        self._kept.setdefault(site, []).append((start, len(part)))
        _, encoded = self._split(site, index, part)
        ciphertexts = self._decoded(site, "seal", encoded, self._layout.part_count(index))
        where = self._layout.part(index)
        if where.start == len(self._product):
            self._product += ciphertexts
        else:
            self._product[where] = add_ciphertexts(
                self._product[where], ciphertexts, self._known_key
            )

    def begin_release(self, confirmed: Sequence[str]) -> Sequence[str]:
        """Everybody but the key holder, who alone could open all that is relayed; of two sites, both.

        Either of two sites can take its own vector off the sum anyway.
        """
        if len(self._roster.sites) <= 2:
            return confirmed
        return [site for site in confirmed if site != self._plan.key_holder]

    def relay(self, survivors: Sequence[str]) -> tuple[int, Iterator[bytes]]:
        """All that the survivors sealed, site by site."""
        return len(survivors) * self._layout.parts, self._read_back(survivors)

    def require_disclosure(
        self, site: str, index: int, part: bytes, survivors: Sequence[str]
    ) -> None:
        """Partial decryptions of the product, with a proof that the site used the share that it was dealt."""
        where = self._layout.part(index)
        length = self._layout.part_count(index) * self._layout.ciphertext_bytes
        sites = len(self._roster.sites)
        expected = length + self._layout.proof_bytes(sites)
        if len(part) != expected:
            raise MessageRefused(
                site=site,
                leg="release",
                reason=f"part {index} holds {len(part)} bytes, expected {expected}.",
            )
        partials = self._decoded(site, "release", part[:length], self._layout.part_count(index))
        if not is_proved(
            part[length:],
            self._product[where],
            partials,
            key=self._verification_keys[site],
            public=self._known_key,
            scope=proof_scope(self._roster.scope),
            share_bits=self._layout.share_bits(sites),
        ):
            raise MessageRefused(
                site=site,
                leg="release",
                reason="partial decryptions of something else, or not with the key share that was dealt to it.",
            )
        self._partials.setdefault(site, []).extend(partials)

    def open(self, survivors: Sequence[str], responders: Sequence[str]) -> NDArray[np.int32]:
        """Combine the partial decryptions of the first t helpers and unpack the sum."""
        helpers = responders[: self._plan.threshold]
        try:
            plaintexts = combine(
                {self._roster.point(site): self._partials[site] for site in helpers},
                self._known_key,
                threshold=self._plan.threshold,
                count=len(self._roster.sites),
            )
            return self._layout.slots.unpack(plaintexts, addends=len(survivors))
        except ValueError as error:
            raise SumImpossible(
                f"The product of the ciphertexts of {len(survivors)} sites ({', '.join(survivors)}) does not open to a sum "
                f"within value_range={self._plan.value_range}: at least one sealed something else, or the shares that site "
                f'"{self._plan.key_holder}" dealt do not fit together. It was discarded; start a new attempt, in smaller '
                "groups to find the site."
            ) from error

    def evidence(self) -> dict[str, float]:
        """Nothing: the sum is exact."""
        return {}

    @property
    def _known_key(self) -> PublicKey:
        if self._key is None:
            raise MessageRefused(
                site=self._plan.key_holder,
                leg="hello",
                reason="it holds the key and said no hello. Start a new attempt when it is online.",
            )
        return self._key

    @property
    def _file(self) -> "tempfile.SpooledTemporaryFile[bytes]":
        """Where ciphertexts are kept; closed with this object."""
        if not hasattr(self, "_spool"):
            folder = str(self._spool_folder) if self._spool_folder else None
            self._spool = tempfile.SpooledTemporaryFile(MEMORY_BYTES, dir=folder)  # noqa: SIM115
            weakref.finalize(self, self._spool.close)
        return self._spool

    def _read_back(self, survivors: Sequence[str]) -> Iterator[bytes]:
        for site in survivors:
            for start, length in self._kept[site]:
                self._file.seek(start)
                part = self._file.read(length)
                if len(part) != length:
                    raise OSError(
                        "The spool of ciphertexts is shorter than what was written to it."
                    )
                yield part

    def _split(self, site: str, index: int, part: memoryview) -> tuple[bytes, bytes]:
        try:
            return self._layout.split_sealed(part, index, others=len(self._commitments) - 1)
        except ValueError as error:
            raise MessageRefused(site=site, leg="seal", reason=f"{error}.") from error

    def _decoded(self, site: str, leg: str, encoded: bytes, count: int) -> list[mpz]:
        try:
            return decode_ciphertexts(encoded, self._known_key, count=count)
        except ValueError as error:
            raise MessageRefused(site=site, leg=leg, reason=f"{error}.") from error

    def _units(self, site: str, leg: str, encoded: Sequence[bytes]) -> list[mpz]:
        return self._decoded(site, leg, b"".join(encoded), len(encoded))
