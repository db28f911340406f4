"""The interface of a secure sum: many sites, one coordinator, and only the sum comes out.

| leg     | coordinator -> site                             | site -> coordinator                                |
|---------|-------------------------------------------------|----------------------------------------------------|
| hello   | (nothing)                                       | fresh public keys, signed                          |
| share   | roster: every site's signed keys                | for every site what only it can read               |
| seal    | what the others dealt to this site              | its vector, sealed                                 |
| confirm | survivors: the sites that sealed                | its signature over exactly this set                |
| release | everybody's signatures, what the scheme relays  | its help in opening the sum over exactly this set  |

A message travels in one or more frames, each signed where a site sends it.

A site may drop out in any leg. The coordinator closes a leg when it will not wait any longer; whoever has not delivered
by then is out. Messages are bytes and all schemes speak the same legs: whoever drives a sum needs not know the scheme.
Some schemes open a sum only if all who are asked answer: then closing `release` may ask those who did once more.
`privacy.secagg.secure_sum.run_secure_sum` executes all of it in memory, in order.

What the coordinator learns: who took part, and the sum over the survivors. What it must be trusted for: to finish.
What a sum does not hide: the sum itself, which is why noise is added to what is sealed.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

LEGS = ("hello", "share", "seal", "confirm", "release")
COORDINATOR = "coordinator"
SITE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class SumContext:
    """Which sum this is. Bound into every signature and every key, so no message serves any other sum."""

    run_id: str
    round: int
    attempt: int
    """Another cohort is another attempt, with new keys."""
    plan_digest: bytes
    """SHA-256 of the signed plan's payload: all sites work on the same plan or on none."""
    model: str
    """Hash of the model that the vectors are updates of."""
    group: int = 0
    """Which of the attempt's sums, if the cohort is split into groups."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.run_id) <= 200:
            raise ValueError(f"Expected run_id of 1 to 200 characters, got {len(self.run_id)}.")
        if min(self.round, self.attempt, self.group) < 0:
            raise ValueError(
                f"Expected round={self.round}, attempt={self.attempt} and group={self.group} >= 0."
            )
        if len(self.plan_digest) != 32:
            raise ValueError(f"Expected plan_digest of 32 bytes, got {len(self.plan_digest)}.")
        if len(self.model) > 200:
            raise ValueError(f"Expected model of at most 200 characters, got {len(self.model)}.")

    @property
    def name(self) -> str:
        """Run, round and attempt: what is sealed once."""
        return f"{self.run_id}/{self.round}/{self.attempt}"


def seal_key(run_id: str, round_number: int, attempt: int) -> str:
    """Under which key a site's journal remembers that it sealed in this sum."""
    return f"secure-sum/{run_id}/{round_number}/{attempt}/seal"


@dataclass(frozen=True, kw_only=True, eq=False)
class SumResult:
    """The sum over the survivors, exactly as their integers add up."""

    integers: NDArray[np.int32] = field(repr=False)
    scale: float
    """Integer steps per unit, a power of two."""
    sites: tuple[str, ...]
    """The survivors, sorted: whose vectors are in the sum."""
    evidence: dict[str, float] = field(default_factory=dict)
    """What the scheme wants the ledger to know: uses of a key."""

    @property
    def values(self) -> NDArray[np.float64]:
        """The sum in real numbers, newly formed on every access (8 bytes a coordinate)."""
        return np.multiply(self.integers, 1.0 / self.scale, dtype=np.float64)


class SealJournal(Protocol):
    """Durable memory of what a site has sealed. It outlives the process."""

    def record(self, key: str, digest: bytes) -> None:
        """Remember, before it is sent, that `key` was sealed with these bytes; raise if with any others before."""


class SitePart(Protocol):
    """One site's side of one sum. Each leg is taken once, in order; a refused message ends the part.

    Every leg takes the frames of the coordinator's message, as they arrive, and gives the frames of the answer. It is
    checked and worked out before the first frame of the answer is given, `release` of large schemes excepted.
    """

    def hello(self) -> Iterator[bytes]:
        """Fresh public keys, signed."""

    def share(self, roster: Iterable[bytes], values: NDArray[np.floating]) -> Iterator[bytes]:
        """Check everybody's keys, take this site's vector, and deal.

        Raises:
            ValueError: the values are of wrong length or type, NaN or infinite. Nothing has been done.
        """

    def seal(self, dealt: Iterable[bytes]) -> Iterator[bytes]:
        """Seal the vector for those who shared, and journal it.

        Raises:
            SealedTwice, or what else the journal raises: nothing has been sent.
        """

    def confirm(self, survivors: Iterable[bytes]) -> Iterator[bytes]:
        """Sign the set of survivors, the only one that this site will ever sign in this sum."""

    def release(self, confirmations: Iterable[bytes]) -> Iterator[bytes]:
        """Help to open the sum, once enough survivors have signed the same set.

        May be taken again where the scheme says so: for the same set, with fewer sites that help.
        """


class CoordinatorPart(Protocol):
    """The coordinator's side of one sum. It holds no secret."""

    def absorb(self, leg: str, site: str, frame: bytes) -> None:
        """Take in one frame of a site. A refused frame changes nothing.

        Raises:
            MessageRefused: the leg is not open, the site is not in it, has delivered before, or the message is bad.
            OSError: no room for a vector of several parts; the attempt cannot go on.
        """

    def is_complete(self, leg: str, site: str) -> bool:
        """Whether the site has delivered everything of the leg."""

    def close_leg(self, leg: str) -> dict[str, Iterator[bytes]]:
        """End the leg without those who have not delivered.

        Returns:
            The frames of the next leg's message for each site still in. After `release`: of one more message of the same
            leg, to be answered again, or nothing, and the sum is open.

        Raises:
            QuorumLost: too few sites are left.
            MessageRefused: in `release`, what a site dealt out contradicts its hello.
            SumImpossible: in `release`, the sum cannot stem from honest sites.
        """

    def result(self) -> SumResult:
        """The sum, after `release` is closed."""
