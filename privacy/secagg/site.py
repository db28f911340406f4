"""One site's side of a secure sum, whatever the scheme: what it checks before it says anything more.

start    a plan that is safe for the cohort, of which every roster is a part.
share    every hello is signed by the key pinned for its site, its own is unchanged; there are enough of them.
seal     enough sites shared; what they dealt opens; this attempt was never sealed before (the journal).
confirm  the survivors all shared, this site is one of them, there are enough; it signs one such set, ever.
release  enough survivors signed exactly this set, this site included; of those, enough are asked to help.

A leg is taken once, `release` again only for fewer helpers, where the scheme needs that. A message that is refused ends
the part: there is no second try for whoever made it up.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.randomness import Random
from privacy.secagg.envelopes import bind, identities, scope_of, signature, verify
from privacy.secagg.errors import MessageRefused
from privacy.secagg.messages import (
    FRAME_HEADER,
    decode_sites,
    encode_sites,
    parse_frame,
    read_frames,
    read_map,
    split,
)
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import COORDINATOR, SealJournal, SumContext, seal_key
from privacy.secagg.schemes import Roster, SiteScheme

ASKED, NOT_ASKED = b"\x01", b"\x00"
"""First byte behind a site's name in `release`: whether it is asked to help; then its signed confirmation."""


class Site:
    """The part of one site in one sum; see `SitePart` for the legs."""

    def __init__(
        self,
        plan: SumPlan,
        *,
        site: str,
        context: SumContext,
        identity: Ed25519PrivateKey,
        keys: Mapping[str, bytes],
        journal: SealJournal,
        scheme: SiteScheme,
        rounding: Random,
    ) -> None:
        plan.require_cohort(keys)
        if keys.get(site) != identity.public_key().public_bytes_raw():
            raise ValueError(f'Expected this site\'s own identity key under "{site}" in keys.')
        self._plan = plan
        self._site = site
        self._context = context
        self._scope = scope_of(plan, context)
        self._identity = identity
        self._keys = identities(keys)
        self._journal = journal
        self._scheme = scheme
        self._rounding = rounding
        self._confirmations = plan.confirmations(len(keys))
        self._fewest = plan.fewest_survivors(len(keys))
        self._next_leg = "hello"
        self._shared: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()
        self._responders: tuple[str, ...] = ()

    def hello(self) -> Iterator[bytes]:
        """Fresh public keys, signed."""
        self._take("hello")
        (self._hello,) = self._signed("hello", [self._scheme.public()])
        self._next_leg = "share"
        return iter((self._hello,))

    def share(self, roster: Iterable[bytes], values: NDArray[np.floating]) -> Iterator[bytes]:
        """Check everybody's keys, take this site's vector, and deal."""
        if values.shape != (self._plan.dimension,):
            raise ValueError(
                f"Expected values of shape ({self._plan.dimension},), got {values.shape}."
            )
        integers = self._plan.encoding.encode(values, self._rounding)
        self._take("share")
        hellos = read_map(roster, leg="share", sender=COORDINATOR)
        if hellos.get(self._site) != self._hello:
            self._refuse("share", "the roster does not hold this site's own hello unchanged.")
        self._require_enough("share", hellos)
        strangers = sorted(set(hellos) - set(self._keys))
        if strangers:
            self._refuse(
                "share", f"the roster names {strangers[0]!r}, whose key is not pinned here."
            )
        public = {site: self._opened("hello", site, hello) for site, hello in hellos.items()}
        self._scope = self._scope.with_roster(encode_sites(hellos))
        self._roster = Roster(scope=self._scope, public=public)
        boxes = self._scheme.deal(self._roster, integers)
        self._next_leg = "seal"
        return iter(self._signed("share", split(encode_sites(boxes))))

    def seal(self, dealt: Iterable[bytes]) -> Iterator[bytes]:
        """Seal the vector for those who shared; journalled before the iterator is returned."""
        self._take("seal")
        boxes = read_map(dealt, leg="seal", sender=COORDINATOR)
        if self._site in boxes or not set(boxes) <= set(self._roster.sites):
            self._refuse("seal", "shares of this site itself, or of sites outside the roster.")
        self._shared = tuple(sorted({*boxes, self._site}))
        self._require_enough("seal", self._shared)
        # A signature covers its part, and by the scope plan, context and roster: together they are what is sealed.
        frames = list(self._framed("seal", self._scheme.protect(boxes), self._scheme.sealed_parts))
        digest = hashlib.sha256()
        for signed, _, _ in frames:
            digest.update(signed)
        self._journal.record(
            seal_key(self._context.run_id, self._context.round, self._context.attempt),
            digest.digest(),
        )
        self._next_leg = "confirm"
        return map(b"".join, frames)

    def confirm(self, survivors: Iterable[bytes]) -> Iterator[bytes]:
        """Sign the set of survivors, the only one that this site will ever sign in this sum."""
        self._take("confirm")
        names = read_map(survivors, leg="confirm", sender=COORDINATOR)
        if any(names.values()):
            self._refuse("confirm", "the survivor set carries more than names.")
        if self._site not in names:
            self._refuse("confirm", "this site sealed but is not among the survivors.")
        if not set(names) <= set(self._shared):
            self._refuse("confirm", "the survivors include a site that did not share.")
        self._require_enough("confirm", names)
        self._survivors = tuple(names)
        statement = survivor_statement(self._roster, self._shared, self._survivors)
        self._next_leg = "release"
        return iter(self._signed("confirm", [statement]))

    def release(self, confirmations: Iterable[bytes]) -> Iterator[bytes]:
        """Help to open the sum, once enough survivors have signed the same set."""
        self._take("release")
        parts = read_frames(confirmations, leg="release", sender=COORDINATOR)
        entries = decode_sites(next(parts), leg="release", sender=COORDINATOR)
        responders = tuple(site for site, entry in entries.items() if entry[:1] == ASKED)
        self._require_confirmed(entries)
        self._require_responders(responders)
        self._responders = responders
        disclosed = self._scheme.disclose(self._survivors, responders, map(bytes, parts))
        if self._scheme.asks_all:
            self._next_leg = "release"
        return map(b"".join, self._framed("release", disclosed, self._scheme.disclosure_parts))

    def _require_confirmed(self, entries: Mapping[str, bytes]) -> None:
        """Raise unless enough survivors, this site included, have signed the set that this site signed."""
        strangers = sorted(set(entries) - set(self._survivors))
        if strangers:
            self._refuse("release", f"{strangers[0]!r} confirmed but is not among the survivors.")
        if self._site not in entries or len(entries) < self._confirmations:
            self._refuse(
                "release",
                f"{len(entries)} confirmations; {self._confirmations} are needed, this site's among them.",
            )
        statement = survivor_statement(self._roster, self._shared, self._survivors)
        for site, entry in entries.items():
            if self._opened("confirm", site, entry[1:]) != statement:
                raise MessageRefused(
                    site=site,
                    leg="confirm",
                    reason="it signed other survivors or other sharers than this site: the coordinator shows "
                    "different sites different sets. Nothing was released.",
                )

    def _require_responders(self, responders: Sequence[str]) -> None:
        if self._site not in responders or len(responders) < self._plan.threshold:
            self._refuse(
                "release",
                f"{len(responders)} sites are asked to help; {self._plan.threshold} are needed, this one among them.",
            )
        if self._responders and not set(responders) < set(self._responders):
            self._refuse("release", "asked again, and not with fewer sites than before.")

    def _take(self, leg: str) -> None:
        if leg != self._next_leg:
            self._refuse(
                leg, f"out of turn or for the second time; the next leg here is {self._next_leg}."
            )
        # Whatever fails below cannot be tried again with other bytes: a leg that is done opens the next one.
        self._next_leg = "none"

    def _require_enough(self, leg: str, sites: Collection[str]) -> None:
        if len(sites) < self._fewest:
            self._refuse(leg, f"{len(sites)} sites, {self._fewest} are needed.")

    def _refuse(self, leg: str, reason: str) -> NoReturn:
        raise MessageRefused(site=COORDINATOR, leg=leg, reason=f'at site "{self._site}": {reason}')

    def _signed(self, leg: str, parts: Sequence[bytes]) -> list[bytes]:
        return [b"".join(pieces) for pieces in self._framed(leg, iter(parts), len(parts))]

    def _framed(
        self, leg: str, parts: Iterator[bytes], count: int
    ) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Signature, header and part of every frame of one message."""
        for index, part in enumerate(parts):
            header = FRAME_HEADER.pack(index, count)
            signed = signature(
                header, part, leg=leg, site=self._site, scope=self._scope, identity=self._identity
            )
            yield signed, header, part

    def _opened(self, leg: str, site: str, message: bytes) -> bytes:
        """The body of a message of one frame that another site signed."""
        frame = verify(message, leg=leg, site=site, scope=self._scope, key=self._keys[site])
        total, part = parse_frame(frame, expected=0, leg=leg, sender=site)
        if total != 1:
            raise MessageRefused(site=site, leg=leg, reason=f"{total} frames, expected one.")
        return bytes(part)


def survivor_statement(
    roster: Roster, shared: tuple[str, ...], survivors: tuple[str, ...]
) -> bytes:
    """What a site signs in `confirm`: who shared and who sealed, under this roster."""
    return bind(
        "survivors",
        roster.scope,
        encode_sites(dict.fromkeys(shared, b"")),
        encode_sites(dict.fromkeys(survivors, b"")),
    )
