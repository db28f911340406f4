"""The coordinator's side of a secure sum, whatever the scheme.

It relays what sites say to each other, adds sealed vectors as they stream in, and opens the sum at the end. It holds no
secret and decides only who is waited for. Whatever it might lie about, the sites check (`site`). It checks every
message itself as well, so that a bad one is refused on arrival, with the name of its sender, and changes nothing.

Not for several threads at a time.
"""

import hmac
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from privacy.secagg.envelopes import SIGNATURE_BYTES, identities, scope_of, verify
from privacy.secagg.errors import MessageRefused, QuorumLost, SumImpossible
from privacy.secagg.messages import (
    CHUNK_COORDINATES,
    MAX_CONTROL_BYTES,
    decode_chunk,
    decode_sites,
    encode_sites,
)
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS, SumContext, SumResult
from privacy.secagg.schemes import CoordinatorScheme, Roster
from privacy.secagg.sealed_sum import SealedSum
from privacy.secagg.site import survivor_statement


class Coordinator:
    """The coordinator's part in one sum; see `CoordinatorPart` for its methods."""

    def __init__(
        self,
        plan: SumPlan,
        *,
        context: SumContext,
        keys: Mapping[str, bytes],
        scheme: CoordinatorScheme,
        spool_folder: Path | None = None,
    ) -> None:
        plan.require_cohort(keys)
        self._plan = plan
        self._scope = scope_of(plan, context)
        self._keys = identities(keys)
        self._scheme = scheme
        self._spool_folder = spool_folder
        self._open_leg: str | None = "hello"
        self._asked = tuple(sorted(keys))
        self._delivered: dict[str, set[str]] = {leg: set() for leg in LEGS}
        self._hellos: dict[str, bytes] = {}
        self._boxes: dict[str, dict[str, bytes]] = {}
        self._confirmations: dict[str, bytes] = {}
        self._result: SumResult | None = None

    def absorb(self, leg: str, site: str, message: bytes) -> None:
        """Take in one message of a site; a refused message changes nothing."""
        if leg not in LEGS or leg != self._open_leg:
            raise MessageRefused(site=site, leg=leg, reason=f"the open leg is {self._open_leg}.")
        if site not in self._asked:
            raise MessageRefused(site=site, leg=leg, reason="not, or no longer, in this sum.")
        if self.is_complete(leg, site):
            raise MessageRefused(site=site, leg=leg, reason="delivered before.")
        limit = 4 * CHUNK_COORDINATES + 128 if leg == "seal" else MAX_CONTROL_BYTES
        if len(message) > limit:
            raise MessageRefused(
                site=site, leg=leg, reason=f"{len(message)} bytes, at most {limit}."
            )
        body = verify(message, leg=leg, site=site, scope=self._scope, key=self._keys[site])
        if leg == "seal":
            self._absorb_chunk(site, body)
            return
        self._absorb_control(leg, site, message, bytes(body))
        self._delivered[leg].add(site)

    def is_complete(self, leg: str, site: str) -> bool:
        """Whether the site has delivered everything of the leg."""
        return site in self._delivered[leg]

    def close_leg(self, leg: str) -> dict[str, bytes]:
        """End the leg without those who have not delivered; the next leg's message for each site still in."""
        if leg != self._open_leg:
            raise ValueError(f"Expected the open leg {self._open_leg}, got leg={leg!r}.")
        present = tuple(sorted(self._delivered[leg]))
        is_sealed = leg in ("confirm", "release")
        needed = self._plan.threshold if is_sealed else self._plan.fewest_survivors
        # Closed before anything else, so that no error leaves a leg half open.
        self._open_leg = None
        if leg == "seal":
            self._sealed.close()
        if len(present) < needed:
            raise QuorumLost(leg=leg, present=present, needed=needed)
        self._asked = present
        messages = self._messages_after(leg, present)
        if leg != LEGS[-1]:
            self._open_leg = LEGS[LEGS.index(leg) + 1]
        return messages

    def result(self) -> SumResult:
        """The sum, after `release` is closed."""
        if self._result is None:
            raise ValueError("Expected result() after release was closed: there is no sum yet.")
        return self._result

    def _absorb_control(self, leg: str, site: str, message: bytes, body: bytes) -> None:
        if leg == "hello":
            self._scheme.require_public(site, body)
            self._hellos[site] = message
        elif leg == "share":
            boxes = decode_sites(body, leg=leg, sender=site)
            if tuple(boxes) != self._roster.sites:
                raise MessageRefused(
                    site=site, leg=leg, reason="shares for other sites than the roster's."
                )
            self._scheme.require_boxes(site, boxes, self._roster)
            self._boxes[site] = boxes
        elif leg == "confirm":
            if not hmac.compare_digest(body, self._statement):
                raise MessageRefused(
                    site=site, leg=leg, reason="it signed other survivors than it was sent."
                )
            self._confirmations[site] = message
        else:
            self._scheme.require_disclosure(site, body, self._survivors)

    def _absorb_chunk(self, site: str, body: memoryview) -> None:
        words = decode_chunk(
            body,
            expected=self._sealed.received(site),
            dimension=self._plan.dimension,
            sender=site,
        )
        self._scheme.require_chunk(site, words)
        try:
            is_whole = self._sealed.add(site, words)
        except OSError:
            # The sum may hold half a vector: it must never be opened.
            self._open_leg = None
            raise
        if is_whole:
            self._delivered["seal"].add(site)

    def _messages_after(self, leg: str, present: tuple[str, ...]) -> dict[str, bytes]:
        if leg == "hello":
            roster_message = encode_sites(self._hellos)
            self._scope = self._scope.with_roster(roster_message)
            public = {site: self._hellos[site][SIGNATURE_BYTES:] for site in present}
            self._roster = Roster(scope=self._scope, public=public)
            return dict.fromkeys(present, roster_message)
        if leg == "share":
            self._shared = present
            self._sealed = SealedSum(self._plan.dimension, spool_folder=self._spool_folder)
            boxes, self._boxes = self._boxes, {}
            return {
                recipient: encode_sites(
                    {dealer: boxes[dealer][recipient] for dealer in present if dealer != recipient}
                )
                for recipient in present
            }
        if leg == "seal":
            self._survivors = present
            self._statement = survivor_statement(self._roster, self._shared, present)
            return dict.fromkeys(present, encode_sites(dict.fromkeys(present, b"")))
        if leg == "confirm":
            return dict.fromkeys(present, encode_sites(self._confirmations))
        self._open_sum()
        return {}

    def _open_sum(self) -> None:
        total = self._sealed.total
        self._scheme.open(total, self._survivors)
        integers = total.view(np.int32)
        reach = len(self._survivors) * self._plan.encoding.limit
        if integers.max() > reach or integers.min() < -reach:
            raise SumImpossible(
                f"The sum over {len(self._survivors)} sites ({', '.join(self._survivors)}) exceeds what they could "
                f"reach within value_range={self._plan.value_range}: at least one sealed something else. It was "
                "discarded; start a new attempt, in smaller groups to find the site."
            )
        self._result = SumResult(
            integers=integers, scale=self._plan.encoding.scale, sites=self._survivors
        )
