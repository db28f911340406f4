"""The coordinator's side of one secure sum, leg by leg, over the exchange.

For each leg in order: collect that leg's message from every site that is still in; drop a site that is lost, refuses,
misbehaves or misses the deadline; close the leg and hand every remaining site what it needs for the next one. Frames
of another leg, of a dropped site, or said before change nothing. The scheme decides whether those who remain are enough.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.errors import QuorumError
from coordinator.wire.channel import Channel, ChannelTimeout, Frame
from coordinator.wire.receipt import RoundReceipt, decode_receipt
from privacy.secagg.errors import MessageRefused, QuorumLost
from privacy.secagg.protocol import LEGS, CoordinatorPart, SumResult

log = logging.getLogger(__name__)

DONE = "done"
RECEIPT = "receipt"
REFUSE = "refuse"
MAX_REASON_CHARACTERS = 500


@dataclass
class SiteRecord:
    """What the coordinator saw of one site during the sum."""

    state: str = "asked"
    detail: str = ""
    receipt: RoundReceipt | None = None
    bytes_received: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True, kw_only=True)
class Summation:
    """The sum and what each site did."""

    result: SumResult
    sites: dict[str, SiteRecord] = field(default_factory=dict)


class SumDriver:
    """Runs one secure sum; one instance per attempt."""

    def __init__(
        self,
        channel: Channel,
        part: CoordinatorPart,
        *,
        cohort: tuple[str, ...],
        join_seconds: float,
        round_seconds: float,
        on_receipt: Callable[[str, RoundReceipt], object],
        on_sealed: Callable[[tuple[str, ...]], None],
    ) -> None:
        """Prepares the sum.

        Args:
            channel: the coordinator's endpoint in the attempt's session.
            part: the scheme's coordinator side.
            cohort: sites that were asked.
            join_seconds: how long the first leg may take.
            round_seconds: how long all legs together may take.
            on_receipt: told what a site has charged, as soon as it says so: a charge outlives the attempt.
            on_sealed: told which sites have sealed before anything is opened.
        """
        self._channel = channel
        self._part = part
        self._on_receipt = on_receipt
        self._on_sealed = on_sealed
        start = time.monotonic()
        self._join_until = start + join_seconds
        self._until = start + round_seconds
        self.sites = {site: SiteRecord() for site in cohort}
        self._in = set(cohort)

    def run(self) -> Summation:
        """All legs.

        Raises:
            QuorumError: too few sites were left; nothing was revealed.
            ChannelClosed: the exchange ended the session.
        """
        for leg in LEGS:
            self._collect(leg)
            try:
                messages = self._part.close_leg(leg)
            except QuorumLost as error:
                raise QuorumError(f"Secure sum, leg {leg}: {error} {self._absences()}") from error
            if leg == LEGS[-1]:
                break
            self._drop_all_but(set(messages), f"not part of the sum after leg {leg}")
            if leg == "seal":
                self._on_sealed(tuple(sorted(messages)))
            following = LEGS[LEGS.index(leg) + 1]
            for site, message in messages.items():
                self._channel.send(to=site, kind=following, payload=message)
                self.sites[site].bytes_sent += len(message)
        result = self._part.result()
        for site in result.sites:
            self.sites[site].state, self.sites[site].detail = "counted", ""
        return Summation(result=result, sites=self.sites)

    def _collect(self, leg: str) -> None:
        until = self._join_until if leg == LEGS[0] else self._until
        while waiting := [site for site in self._in if not self._part.is_complete(leg, site)]:
            remaining = until - time.monotonic()
            if remaining <= 0:
                for site in waiting:
                    self._drop(site, "lost", f"silent in leg {leg} until the deadline")
                return
            try:
                self._take(leg, self._channel.receive(timeout_seconds=remaining))
            except ChannelTimeout:
                continue
        for site in self._in:
            self.sites[site].state = (
                "sealed"
                if leg == "seal"
                else "joined"
                if leg == "hello"
                else self.sites[site].state
            )

    def _take(self, leg: str, frame: Frame) -> None:
        if frame.sender == "exchange":
            if frame.kind == "lost":
                self._drop(frame.payload.decode(errors="replace"), "lost", f"silent in leg {leg}")
            return
        record = self.sites.get(frame.sender)
        if record is None:
            return
        record.bytes_received += len(frame.payload)
        if frame.sender not in self._in:
            return
        if frame.kind == REFUSE:
            self._drop(
                frame.sender,
                "refused",
                frame.payload[:MAX_REASON_CHARACTERS].decode(errors="replace"),
            )
        elif frame.kind == RECEIPT and record.receipt is None:
            self._keep_receipt(frame)
        elif frame.kind == leg and not self._part.is_complete(leg, frame.sender):
            try:
                self._part.absorb(leg, frame.sender, frame.payload)
            except MessageRefused as error:
                log.warning("%s", error)
                self._drop(frame.sender, "refused", f"message refused in leg {leg}: {error}")

    def _keep_receipt(self, frame: Frame) -> None:
        try:
            receipt = decode_receipt(frame.payload)
        except ValueError as error:
            self._drop(frame.sender, "refused", str(error))
            return
        self.sites[frame.sender].receipt = receipt
        self._on_receipt(frame.sender, receipt)

    def _drop(self, site: str, state: str, detail: str) -> None:
        if site in self._in:
            self._in.discard(site)
            self.sites[site].state, self.sites[site].detail = state, detail[:MAX_REASON_CHARACTERS]
            log.warning("site %s is out of the sum: %s", site, detail)

    def _drop_all_but(self, remaining: set[str], reason: str) -> None:
        for site in self._in - remaining:
            self._drop(site, "lost", reason)

    def _absences(self) -> str:
        missing = [
            f"{site}: {r.state} ({r.detail})"
            for site, r in self.sites.items()
            if site not in self._in
        ]
        return "Missing: " + "; ".join(missing) if missing else ""
