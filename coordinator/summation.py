"""The coordinator's side of an attempt's secure sums, leg by leg, over the exchange: one sum for each group of the cohort.

For each leg in order: collect that leg's message from every site that is still in; drop a site that is lost, refuses,
misbehaves or misses the deadline; close the leg and hand every remaining site what it needs for the next one. Frames
of another leg, of a dropped site, or said before change nothing. The scheme decides whether those who remain are enough.

All groups take a leg together, so that nothing is opened before everything that will count is sealed. A group whose sum
fails is out, with its sites, and the others go on, as long as the caller finds enough of them.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.errors import QuorumError
from coordinator.wire.channel import Channel, ChannelTimeout, Frame
from coordinator.wire.receipt import RoundReceipt, decode_receipt
from privacy.secagg.envelopes import SIGNATURE_BYTES
from privacy.secagg.errors import MessageRefused, QuorumLost, SecureSumError, SumImpossible
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
class GroupPart:
    """One group: its sites, and the coordinator's part in their sum."""

    sites: tuple[str, ...]
    part: CoordinatorPart


@dataclass(frozen=True, kw_only=True)
class FailedGroup:
    """Why a group is out."""

    reason: str
    is_spoilt: bool
    """Its sum cannot stem from honest sites; otherwise it has merely lost too many of them."""


@dataclass(frozen=True, kw_only=True)
class Summation:
    """The sums that were opened, and what each site did."""

    sums: Mapping[int, SumResult]
    """By number of the group, in rising order."""
    sites: dict[str, SiteRecord] = field(default_factory=dict)
    failed: dict[int, FailedGroup] = field(default_factory=dict)
    """The groups without a sum."""

    @property
    def counted(self) -> tuple[str, ...]:
        """Sites whose vector is in one of the sums, sorted."""
        return tuple(sorted(site for result in self.sums.values() for site in result.sites))

    @property
    def spoilt(self) -> int:
        """Groups whose sums cannot stem from honest sites."""
        return sum(group.is_spoilt for group in self.failed.values())

    @property
    def evidence(self) -> dict[str, float]:
        """What the scheme wants known of the sums; the largest figure of any of them."""
        names = sorted({name for result in self.sums.values() for name in result.evidence})
        return {
            name: max(r.evidence[name] for r in self.sums.values() if name in r.evidence)
            for name in names
        }

    def without(self, spoilt: Mapping[int, str]) -> "Summation":
        """The same without the groups whose sums turned out not to stem from honest sites; their sites count as lost."""
        for group, reason in spoilt.items():
            for site in self.sums[group].sites:
                self.sites[site].state = "lost"
                self.sites[site].detail = f"group {group} is out: {reason}"[:MAX_REASON_CHARACTERS]
        failed = {g: FailedGroup(reason=r, is_spoilt=True) for g, r in spoilt.items()}
        return Summation(
            sums={group: result for group, result in self.sums.items() if group not in spoilt},
            sites=self.sites,
            failed=self.failed | failed,
        )


class SumDriver:
    """Runs the secure sums of one attempt; one instance per attempt."""

    def __init__(
        self,
        channel: Channel,
        groups: Sequence[GroupPart],
        *,
        join_seconds: float,
        round_seconds: float,
        problem_with: Callable[[int, int], str],
        on_receipt: Callable[[str, RoundReceipt], object],
        on_sealed: Callable[[tuple[str, ...]], None],
    ) -> None:
        """Prepares the sums.

        Args:
            channel: the coordinator's endpoint in the attempt's session.
            groups: sites that were asked, by group, with the scheme's coordinator side for each.
            join_seconds: how long the first leg may take.
            round_seconds: how long all legs together may take.
            problem_with: told how many groups are left, and how many are out because their sums cannot stem from honest
                sites; says why the attempt cannot go on with them, or nothing.
            on_receipt: told what a site has charged, as soon as it says so: a charge outlives the attempt.
            on_sealed: told which sites have sealed before anything is opened.
        """
        self._channel = channel
        self._parts = {number: group.part for number, group in enumerate(groups)}
        self._group_of = {site: n for n, group in enumerate(groups) for site in group.sites}
        self._problem_with = problem_with
        self._on_receipt = on_receipt
        self._on_sealed = on_sealed
        start = time.monotonic()
        self._join_until = start + join_seconds
        self._until = start + round_seconds
        self.sites = {site: SiteRecord() for site in sorted(self._group_of)}
        self._in = set(self._group_of)
        self._open = set(self._parts)
        self._failed: dict[int, FailedGroup] = {}
        self._seals = {site: hashlib.sha256() for site in self._group_of}

    def run(self) -> Summation:
        """All legs.

        Raises:
            QuorumError: too few sites or groups were left; nothing was revealed beyond the sums opened so far.
            SumImpossible, MessageRefused: the only group's sum cannot stem from honest sites.
            ChannelClosed: the exchange ended the session.
        """
        leg = LEGS[0]
        while messages := self._close(leg):
            if leg == "seal":
                self._on_sealed(tuple(sorted(messages)))
            # After the last leg: those who are left are asked once more.
            leg = LEGS[min(LEGS.index(leg) + 1, len(LEGS) - 1)]
            for site, frames in messages.items():
                for frame in frames:
                    self._channel.send(to=site, kind=leg, payload=frame)
                    self.sites[site].bytes_sent += len(frame)
        sums = {n: part.result() for n, part in self._parts.items() if n not in self._failed}
        for site in (site for result in sums.values() for site in result.sites):
            self._note(site, "counted")
        return Summation(sums=sums, sites=self.sites, failed=self._failed)

    def _close(self, leg: str) -> dict[str, Iterator[bytes]]:
        """Collects a leg and closes it for every group; what is to be sent next, nothing if all sums are open."""
        self._collect(leg)
        messages: dict[str, Iterator[bytes]] = {}
        for group in sorted(self._open):
            if answers := self._close_group(leg, group):
                self._drop_all_but(group, set(answers), f"not part of the sum after leg {leg}")
                messages.update(answers)
            else:
                self._open.discard(group)
        left = len(self._parts) - len(self._failed)
        spoilt = sum(failed.is_spoilt for failed in self._failed.values())
        if problem := self._problem_with(left, spoilt):
            raise QuorumError(f"Secure sums, leg {leg}: {problem} {self._absences()}".rstrip())
        return messages

    def _close_group(self, leg: str, group: int) -> dict[str, Iterator[bytes]]:
        """What the group's sites are to be sent next; nothing if its sum is open, or has failed."""
        try:
            return self._parts[group].close_leg(leg)
        except QuorumLost as error:
            if len(self._parts) == 1:
                raise QuorumError(f"Secure sum, leg {leg}: {error} {self._absences()}") from error
            self._fail(group, error, is_spoilt=False)
        except (MessageRefused, SumImpossible) as error:
            if len(self._parts) == 1:
                raise
            self._fail(group, error, is_spoilt=True)
        return {}

    def _fail(self, group: int, error: SecureSumError, *, is_spoilt: bool) -> None:
        log.warning("group %d is out: %s", group, error)
        self._failed[group] = FailedGroup(reason=str(error), is_spoilt=is_spoilt)
        self._drop_all_but(group, set(), f"group {group} is out: {error}")

    def _collect(self, leg: str) -> None:
        until = self._join_until if leg == LEGS[0] else self._until
        while waiting := [site for site in sorted(self._in) if self._is_awaited(leg, site)]:
            remaining = until - time.monotonic()
            if remaining <= 0:
                for site in waiting:
                    self._drop(site, "lost", f"silent in leg {leg} until the deadline")
                return
            try:
                self._take(leg, self._channel.receive(timeout_seconds=remaining))
            except ChannelTimeout:
                continue
        if reached := {"hello": "joined", "seal": "sealed"}.get(leg):
            for site in self._in:
                self._note(site, reached)

    def _note(self, site: str, state: str) -> None:
        """How far the site came; once it has sealed, with what it is committed to."""
        is_sealed = state != "joined"
        seal = f"sealed as sha256 {self._seals[site].hexdigest()}" if is_sealed else ""
        self.sites[site].state, self.sites[site].detail = state, seal

    def _is_awaited(self, leg: str, site: str) -> bool:
        """Whether the site's group is still at work, and the site has something to say in the leg."""
        group = self._group_of[site]
        return group in self._open and not self._parts[group].is_complete(leg, site)

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
        elif frame.kind == leg and self._is_awaited(leg, frame.sender):
            try:
                self._parts[self._group_of[frame.sender]].absorb(leg, frame.sender, frame.payload)
                if leg == "seal":
                    # The signatures cover the parts: the site's own journal keeps the same hash of them.
                    self._seals[frame.sender].update(frame.payload[:SIGNATURE_BYTES])
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

    def _drop_all_but(self, group: int, remaining: set[str], reason: str) -> None:
        """Drops the others of the group."""
        for site in sorted(self._in - remaining):
            if self._group_of[site] == group:
                self._drop(site, "lost", reason)

    def _absences(self) -> str:
        missing = [
            f"{site}: {r.state} ({r.detail})"
            for site, r in self.sites.items()
            if site not in self._in
        ]
        return "Missing: " + "; ".join(missing) if missing else ""
