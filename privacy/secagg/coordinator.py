"""The coordinator's side of a secure sum, whatever the scheme.

It relays what sites say to each other, adds sealed vectors as they stream in, and opens the sum at the end. It holds no
secret and decides only who is waited for. Whatever it might lie about, the sites check (`site`). It checks every
message itself as well, so that a bad one is refused on arrival, with the name of its sender, and changes nothing.

Not for several threads at a time.
"""

import hmac
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from privacy.secagg.envelopes import SIGNATURE_BYTES, identities, scope_of, verify
from privacy.secagg.errors import MessageRefused, QuorumLost, SumImpossible
from privacy.secagg.messages import (
    FRAME_HEADER,
    PART_BYTES,
    decode_sites,
    encode_sites,
    frames_of,
    parse_frame,
    split,
)
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS, SumContext, SumResult
from privacy.secagg.schemes import CoordinatorScheme, Roster
from privacy.secagg.site import ASKED, NOT_ASKED, survivor_statement
from privacy.secagg.spool import Spool

MOST_FRAME_BYTES = SIGNATURE_BYTES + FRAME_HEADER.size + PART_BYTES


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
        self._spool = Spool(scheme.sealed_parts, folder=spool_folder)
        self._open_leg: str | None = "hello"
        self._asked = tuple(sorted(keys))
        self._delivered: dict[str, set[str]] = {leg: set() for leg in LEGS}
        self._received: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._hellos: dict[str, bytes] = {}
        self._dealing: dict[str, bytearray] = {}
        self._boxes: dict[str, dict[str, bytes]] = {}
        self._confirmations: dict[str, bytes] = {}
        self._result: SumResult | None = None

    def absorb(self, leg: str, site: str, frame: bytes) -> None:
        """Take in one frame of a site; a refused one changes nothing."""
        if leg not in LEGS or leg != self._open_leg:
            raise MessageRefused(site=site, leg=leg, reason=f"the open leg is {self._open_leg}.")
        if site not in self._asked:
            raise MessageRefused(site=site, leg=leg, reason="not, or no longer, in this sum.")
        if self.is_complete(leg, site):
            raise MessageRefused(site=site, leg=leg, reason="delivered before.")
        if len(frame) > MOST_FRAME_BYTES:
            raise MessageRefused(
                site=site, leg=leg, reason=f"{len(frame)} bytes, at most {MOST_FRAME_BYTES}."
            )
        body = verify(frame, leg=leg, site=site, scope=self._scope, key=self._keys[site])
        index = self._received.get(site, 0)
        total, part = parse_frame(body, expected=index, leg=leg, sender=site)
        self._require_total(leg, site, index=index, total=total)
        if leg == "seal":
            self._absorb_sealed(site, index, part)
        elif leg == "share":
            self._absorb_dealt(site, part, is_last=index + 1 == total)
        else:
            self._absorb_control(leg, site, frame, index, bytes(part))
        self._received[site], self._totals[site] = index + 1, total
        if index + 1 == total:
            self._delivered[leg].add(site)

    def is_complete(self, leg: str, site: str) -> bool:
        """Whether the site has delivered everything of the leg."""
        return site in self._delivered[leg]

    def close_leg(self, leg: str) -> dict[str, Iterator[bytes]]:
        """End the leg without those who have not delivered; the next message's frames for each site still in."""
        if leg != self._open_leg:
            raise ValueError(f"Expected the open leg {self._open_leg}, got leg={leg!r}.")
        present = tuple(sorted(self._delivered[leg]))
        # Closed before anything else, so that no error leaves a leg half open.
        self._open_leg = None
        self._spool.close()
        needed = self._needed(leg)
        holder = self._plan.key_holder
        is_keyless = leg in ("hello", "share") and bool(holder) and holder not in present
        if len(present) < needed or is_keyless:
            raise QuorumLost(
                leg=leg, present=present, needed=needed, lacking=holder if is_keyless else ""
            )
        is_whole = present == self._asked
        self._asked = present
        self._received, self._totals = {}, {}
        if leg != "release":
            messages = self._messages_after(leg, present)
            self._open_leg = LEGS[LEGS.index(leg) + 1]
            return messages
        if self._scheme.asks_all and not is_whole:
            # Those who answered, answer once more, for themselves alone.
            self._delivered["release"] = set()
            messages = self._begin_release(present)
            self._open_leg = "release"
            return messages
        self._open_sum(present)
        return {}

    def result(self) -> SumResult:
        """The sum, after `release` is closed."""
        if self._result is None:
            raise ValueError("Expected result() after release was closed: there is no sum yet.")
        return self._result

    def _needed(self, leg: str) -> int:
        """Fewest sites with which the sum can go on after a leg."""
        if leg == "release":
            return self._plan.threshold
        if leg == "confirm":
            return self._plan.confirmations(len(self._keys))
        return self._plan.fewest_survivors(len(self._keys))

    def _require_total(self, leg: str, site: str, *, index: int, total: int) -> None:
        """Raise unless a message has the frames that it must have."""
        # A box comes with its site's name.
        most = 1 + len(self._keys) * (self._scheme.largest_box + 64) // PART_BYTES
        expected = {
            "hello": 1,
            "share": self._totals[site] if index else min(total, most),
            "seal": self._scheme.sealed_parts,
            "confirm": 1,
            "release": self._scheme.disclosure_parts,
        }[leg]
        if total != expected:
            raise MessageRefused(
                site=site, leg=leg, reason=f"frame {index} of {total}, expected {expected} frames."
            )

    def _absorb_sealed(self, site: str, index: int, part: memoryview) -> None:
        self._scheme.require_part(site, index, part)
        try:
            parts = self._spool.put(site, part)
            if parts is not None:
                for position, sealed in enumerate(parts):
                    self._scheme.add(site, position, sealed)
        except OSError:
            # The sum may hold half a vector: it must never be opened.
            self._open_leg = None
            raise

    def _absorb_dealt(self, site: str, part: memoryview, *, is_last: bool) -> None:
        if not is_last:
            self._dealing.setdefault(site, bytearray()).extend(part)
            return
        message = bytes(self._dealing.get(site, b"")) + part
        boxes = decode_sites(message, leg="share", sender=site)
        if tuple(boxes) != self._roster.sites:
            raise MessageRefused(
                site=site, leg="share", reason="shares for other sites than the roster's."
            )
        longest = max(map(len, boxes.values()))
        if longest > self._scheme.largest_box:
            raise MessageRefused(
                site=site,
                leg="share",
                reason=f"{longest} bytes for one site, at most {self._scheme.largest_box}.",
            )
        self._scheme.require_boxes(site, boxes, self._roster)
        self._dealing.pop(site, None)
        self._boxes[site] = boxes

    def _absorb_control(self, leg: str, site: str, frame: bytes, index: int, part: bytes) -> None:
        if leg == "hello":
            self._scheme.require_public(site, part)
            self._hellos[site] = frame
        elif leg == "confirm":
            if not hmac.compare_digest(part, self._statement):
                raise MessageRefused(
                    site=site, leg=leg, reason="it signed other survivors than it was sent."
                )
            self._confirmations[site] = frame
        else:
            self._scheme.require_disclosure(site, index, part, self._survivors)

    def _messages_after(self, leg: str, present: tuple[str, ...]) -> dict[str, Iterator[bytes]]:
        if leg == "hello":
            roster = encode_sites(self._hellos)
            self._scope = self._scope.with_roster(roster)
            skipped = SIGNATURE_BYTES + FRAME_HEADER.size
            public = {site: self._hellos[site][skipped:] for site in present}
            self._roster = Roster(scope=self._scope, public=public)
            return {site: frames_of(split(roster)) for site in present}
        if leg == "share":
            self._shared = present
            boxes, self._boxes = self._boxes, {}
            return {site: _dealt_to(site, boxes) for site in present}
        if leg == "seal":
            self._survivors = present
            self._statement = survivor_statement(self._roster, self._shared, present)
            names = encode_sites(dict.fromkeys(present, b""))
            return {site: frames_of([names]) for site in present}
        return self._begin_release(present)

    def _begin_release(self, confirmed: tuple[str, ...]) -> dict[str, Iterator[bytes]]:
        helpers = tuple(self._scheme.begin_release(confirmed))
        if len(helpers) < self._plan.threshold:
            raise QuorumLost(leg="release", present=helpers, needed=self._plan.threshold)
        self._asked = helpers
        return self._release_messages(helpers)

    def _release_messages(self, responders: Sequence[str]) -> dict[str, Iterator[bytes]]:
        control = encode_sites(
            {
                site: (ASKED if site in responders else NOT_ASKED) + confirmation
                for site, confirmation in self._confirmations.items()
            }
        )
        return {site: self._with_relayed(control) for site in responders}

    def _with_relayed(self, control: bytes) -> Iterator[bytes]:
        count, relayed = self._scheme.relay(self._survivors)
        yield FRAME_HEADER.pack(0, 1 + count) + control
        for index, part in enumerate(relayed, start=1):
            yield FRAME_HEADER.pack(index, 1 + count) + part

    def _open_sum(self, responders: Sequence[str]) -> None:
        integers = self._scheme.open(self._survivors, responders)
        reach = len(self._survivors) * self._plan.encoding.limit
        if integers.max() > reach or integers.min() < -reach:
            raise SumImpossible(
                f"The sum over {len(self._survivors)} sites ({', '.join(self._survivors)}) exceeds what they could "
                f"reach within value_range={self._plan.value_range}: at least one sealed something else. It was "
                "discarded; start a new attempt, in smaller groups to find the site."
            )
        self._result = SumResult(
            integers=integers,
            scale=self._plan.encoding.scale,
            sites=self._survivors,
            evidence=self._scheme.evidence(),
        )


def _dealt_to(recipient: str, boxes: Mapping[str, Mapping[str, bytes]]) -> Iterator[bytes]:
    """Made when it is sent: what everybody dealt to everybody exists once."""
    yield from frames_of(
        split(
            encode_sites(
                {dealer: dealt[recipient] for dealer, dealt in boxes.items() if dealer != recipient}
            )
        )
    )
