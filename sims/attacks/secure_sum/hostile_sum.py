"""A secure sum in the attacker's hands: it is the coordinator, and some of the sites are its own.

The attacker carries every message, so it may read it, withhold it, repeat it or put another in its place. It signs what
it likes in the name of its own sites. Honest sites run the product's code, or the weak variant of it that is attacked.
What an attack may look into: `public`, `boxes`, `sealed`, `disclosed`, and the schemes of its own sites. Nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.randomness import OsRandom
from privacy.secagg.envelopes import SIGNATURE_BYTES, scope_of
from privacy.secagg.errors import QuorumLost, SecureSumError
from privacy.secagg.key_store import KeyStore, MemoryKeyStore
from privacy.secagg.messages import FRAME_HEADER, decode_sites, encode_sites, frames_of, split
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import SumContext
from privacy.secagg.schemes import CoordinatorScheme, Roster, SiteScheme
from privacy.secagg.secure_sum import MemoryJournal
from privacy.secagg.site import ASKED, NOT_ASKED, Site

VICTIM = "site-0"
SKIPPED = SIGNATURE_BYTES + FRAME_HEADER.size
SiteSchemeType = Callable[[SumPlan, str, KeyStore], SiteScheme]


class ObedientSite(Site):
    """A site that checks no set, no number and no signature, and takes a leg as often as it is asked."""

    def _take(self, leg: str) -> None:
        del leg

    def _require_enough(self, leg: str, sites: Any) -> None:
        del leg, sites

    def _require_confirmed(self, entries: Mapping[str, bytes]) -> None:
        del entries

    def _require_responders(self, responders: Sequence[str]) -> None:
        del responders

    def _refuse(self, leg: str, reason: str) -> None:  # type: ignore[override]
        del leg, reason


@dataclass(frozen=True, kw_only=True)
class Software:
    """What the parties of one sum run."""

    plan: SumPlan
    scheme: SiteSchemeType
    """The honest sites' scheme: ours, or the weak variant."""
    opening: Callable[[SumPlan], CoordinatorScheme]
    hostile_scheme: SiteSchemeType
    """The attacker's sites': keeps to the scheme in what others see, and forgets nothing."""
    site: type[Site] = Site
    """The honest sites' legs: ours, or a weak variant."""

    def weakened(self, **changes: Any) -> "Software":
        """The same with something replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """Who takes part in several sums: identities, what is kept between sums, and which sites are the attacker's."""

    identities: Mapping[str, Ed25519PrivateKey]
    stores: Mapping[str, KeyStore]
    hostile: tuple[str, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites, in rising order."""
        return tuple(sorted(self.identities))

    @property
    def honest(self) -> tuple[str, ...]:
        """Those that are not the attacker's, the victim first."""
        return tuple(site for site in self.sites if site not in self.hostile)


def enrol(count: int, *, hostile: int) -> Enrolment:
    """So many sites, the last ones the attacker's."""
    sites = [f"site-{number}" for number in range(count)]
    return Enrolment(
        identities={site: Ed25519PrivateKey.generate() for site in sites},
        stores={site: MemoryKeyStore() for site in sites},
        hostile=tuple(sites[count - hostile :]),
    )


def whole_vectors(
    plan: SumPlan, sites: Sequence[str], generator: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """A uniformly random vector [dimension] for every site, of whole steps, so that rounding leaves it as it is."""
    limit, scale = plan.encoding.limit, plan.encoding.scale
    return {
        site: generator.integers(-limit, limit, plan.dimension, endpoint=True) / scale
        for site in sites
    }


class HostileSum:
    """One sum, as far as the attacker has taken it."""

    def __init__(
        self,
        software: Software,
        enrolment: Enrolment,
        vectors: Mapping[str, NDArray[np.float64]],
        *,
        number: int = 1,
        present: Sequence[str] | None = None,
    ) -> None:
        """Start every site's part.

        Args:
            software: what the parties run.
            enrolment: who could take part.
            vectors: each site's contribution [dimension].
            number: the round.
            present: who takes part; everybody by default. The plan is safe for the enrolled, not only for these.
        """
        self.software = software
        self.enrolment = enrolment
        self.vectors = vectors
        self.context = SumContext(
            run_id="attacked", round=number, attempt=1, plan_digest=bytes(32), model=""
        )
        self.public: dict[str, bytes] = {}
        self.boxes: dict[str, dict[str, bytes]] = {}
        self.sealed: dict[str, list[bytes]] = {}
        self.disclosed: dict[str, bytes] = {}
        """What each site gave when the sum was last opened."""
        self.confirmations: dict[str, bytes] = {}
        """Of the survivor set that was opened last."""
        self._hellos: dict[str, bytes] = {}
        self._schemes: dict[str, SiteScheme] = {}
        self._parts = {site: self._part(site) for site in present or enrolment.sites}

    def own(self, site: str) -> Any:
        """The scheme of one of the attacker's sites, with everything that it holds."""
        if site not in self.enrolment.hostile:
            raise ValueError(f"Expected a site of the attacker's, got site={site!r}.")
        return self._schemes[site]

    def greet(self) -> None:
        """Let every site say hello."""
        for site, part in self._parts.items():
            (self._hellos[site],) = part.hello()
        self.public = {site: hello[SKIPPED:] for site, hello in sorted(self._hellos.items())}

    def deal(self, shown: Mapping[str, Sequence[str]] | None = None) -> None:
        """Show every site a roster and let it deal.

        Args:
            shown: which sites each site is shown; all of them by default.
        """
        for site in shown or self._parts:
            names = shown[site] if shown else tuple(self._parts)
            roster = encode_sites({name: self._hellos[name] for name in names})
            frames = self._parts[site].share(frames_of(split(roster)), self.vectors[site])
            self.boxes[site] = decode_sites(
                b"".join(frame[SKIPPED:] for frame in frames), leg="share", sender=site
            )

    def dealt_to(self, site: str) -> dict[str, bytes]:
        """What the others dealt to a site that they were shown."""
        return {
            dealer: boxes[site]
            for dealer, boxes in self.boxes.items()
            if dealer != site and site in boxes
        }

    def seal(self, site: str, boxes: Mapping[str, bytes] | None = None) -> None:
        """Hand a site its boxes, or others, and take its sealed vector."""
        dealt = encode_sites(self.dealt_to(site) if boxes is None else boxes)
        frames = self._parts[site].seal(frames_of(split(dealt)))
        self.sealed[site] = [frame[SKIPPED:] for frame in frames]

    def seal_all(self) -> "HostileSum":
        """Carry the first three legs faithfully."""
        self.greet()
        self.deal()
        for site in self._parts:
            self.seal(site)
        return self

    def confirm(self, site: str, survivors: Sequence[str]) -> bytes:
        """Show a site a survivor set, and take its signed confirmation."""
        (frame,) = self._parts[site].confirm(
            frames_of([encode_sites(dict.fromkeys(survivors, b""))])
        )
        return frame

    def release(
        self,
        site: str,
        confirmations: Mapping[str, bytes],
        *,
        asked: Sequence[str],
        relayed: Sequence[bytes] = (),
    ) -> list[bytes]:
        """Show a site confirmations, and take what it discloses, in parts."""
        control = encode_sites(
            {
                name: (ASKED if name in asked else NOT_ASKED) + confirmation
                for name, confirmation in confirmations.items()
            }
        )
        frames = frames_of([control, *relayed])
        disclosed = [frame[SKIPPED:] for frame in self._parts[site].release(frames)]
        self.disclosed[site] = b"".join(disclosed)
        return disclosed

    def open(
        self,
        survivors: Sequence[str],
        *,
        asked: Sequence[str],
        sealed: Mapping[str, Sequence[bytes]] | None = None,
        roster: Sequence[str] | None = None,
        helpers: int | None = None,
    ) -> NDArray[np.int32]:
        """Have the sites that are `asked` confirm and release one survivor set, and open its sum.

        Args:
            survivors: names in rising order; what the sites are asked to sign.
            asked: who is shown this set; the threshold's number of them at least.
            sealed: the vectors to add up and to relay; those of the survivors, as they came, by default.
            roster: the sites of the roster that those who are asked were shown; all by default.
            helpers: how many of those who are asked are told to help; as many as it takes by default.

        Returns:
            The opened sum [dimension].

        Raises:
            SecureSumError: a site refused, or what it gave does not open anything.
        """
        self.disclosed = {}
        opening = self.opening(roster or tuple(self._parts))
        for site, parts in (sealed or {name: self.sealed[name] for name in survivors}).items():
            for index, part in enumerate(parts):
                opening.add(site, index, memoryview(part))
        confirmations = {site: self.confirm(site, survivors) for site in asked}
        self.confirmations = confirmations
        count = helpers or self.software.plan.threshold
        responders = _willing(opening, asked)[:count]
        for site in responders:
            _, relayed = opening.relay(survivors)
            disclosed = self.release(site, confirmations, asked=responders, relayed=list(relayed))
            for index, part in enumerate(disclosed):
                opening.require_disclosure(site, index, part, survivors)
        return opening.open(survivors, responders)

    def roster_of(self, names: Sequence[str]) -> Roster:
        """The roster of these sites, as it is bound into everything that they sign and encrypt."""
        message = encode_sites({name: self._hellos[name] for name in names})
        return Roster(
            scope=scope_of(self.software.plan, self.context).with_roster(message),
            public={name: self.public[name] for name in sorted(names)},
        )

    def opening(self, names: Sequence[str], plan: SumPlan | None = None) -> CoordinatorScheme:
        """A coordinator's scheme, for this plan or another, that has seen hello and share of these sites."""
        opening = self.software.opening(plan or self.software.plan)
        for name in names:
            opening.require_public(name, self.public[name])
        roster = self.roster_of(names)
        for name in names:
            opening.require_boxes(name, self.boxes[name], roster)
        return opening

    def _part(self, site: str) -> Site:
        is_hostile = site in self.enrolment.hostile
        scheme = self.software.hostile_scheme if is_hostile else self.software.scheme
        self._schemes[site] = scheme(self.software.plan, site, self.enrolment.stores[site])
        identities = self.enrolment.identities
        return (ObedientSite if is_hostile else self.software.site)(
            self.software.plan,
            site=site,
            context=self.context,
            identity=identities[site],
            keys={name: key.public_key().public_bytes_raw() for name, key in identities.items()},
            journal=MemoryJournal(),
            scheme=self._schemes[site],
            rounding=OsRandom(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What one request of the attacker's gave: a vector, or why not."""

    integers: NDArray[np.int32] | None
    refusal: str = ""

    @property
    def is_refused(self) -> bool:
        """Whether nothing came out."""
        return self.integers is None


def attempt(request: Callable[[], NDArray[np.int32]]) -> Outcome:
    """Make a request; a party that refuses is an outcome, anything else is a defect."""
    try:
        return Outcome(integers=request())
    except SecureSumError as error:
        return Outcome(integers=None, refusal=str(error))


def _willing(opening: CoordinatorScheme, asked: Sequence[str]) -> tuple[str, ...]:
    """Whom a coordinator would ask for help; where an honest one gives up, the attacker asks everybody nevertheless."""
    try:
        return tuple(opening.begin_release(asked))
    except QuorumLost:
        return tuple(asked)


def steps_of(values: NDArray[np.float64], plan: SumPlan) -> NDArray[np.int64]:
    """A vector of whole steps as integers."""
    return np.rint(values * plan.encoding.scale).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How much of a vector a guess gives."""

    share: float
    """Of coordinates within the tolerance."""
    correlation: float
    """NaN without a guess, like the error."""
    largest_error: float
    """In the units of the values."""

    @property
    def figures(self) -> dict[str, float]:
        """The numbers beside the share, without those that are none."""
        figures = {"correlation": self.correlation, "largest_error": self.largest_error}
        return {name: figure for name, figure in figures.items() if np.isfinite(figure)}


NOTHING = Recovery(share=0.0, correlation=float("nan"), largest_error=float("nan"))


def compare(
    found: NDArray[np.signedinteger[Any]] | None,
    true: NDArray[np.float64],
    plan: SumPlan,
    *,
    tolerance_steps: int = 0,
) -> Recovery:
    """Compare a guess [dimension], in steps, with a vector of whole steps; no guess recovers nothing."""
    if found is None:
        return NOTHING
    errors = np.abs(found.astype(np.int64) - steps_of(true, plan))
    return Recovery(
        share=float(np.mean(errors <= tolerance_steps)),
        correlation=float(np.corrcoef(found.astype(np.float64), true)[0, 1]),
        largest_error=float(errors.max()) / plan.encoding.scale,
    )
