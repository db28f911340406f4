"""One site's side of a secure sum, whatever the scheme: what it checks before it says anything more.

start    a threshold of more than two thirds of the cohort, of which every roster is a part.
share    every hello is signed by the key pinned for its site, its own is unchanged; there are enough of them.
seal     enough sites shared; what they dealt opens; this attempt was never sealed before (the journal).
confirm  the survivors all shared, this site is one of them, there are enough; it signs one such set, ever.
release  at least `threshold` survivors signed exactly this set, this site included.

A leg is taken once. A message that is refused ends the part: there is no second try for whoever made it up.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.secagg.envelopes import bind, identities, scope_of, signature, verify
from privacy.secagg.errors import MessageRefused
from privacy.secagg.messages import chunk_count, decode_sites, encode_chunk, encode_sites
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import COORDINATOR, LEGS, SealJournal, SumContext, seal_key
from privacy.secagg.schemes import Roster, SiteScheme


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
        self._next_leg = 0
        self._shared: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()

    def hello(self) -> bytes:
        """Fresh public keys, signed."""
        self._take("hello")
        self._hello = self._sign("hello", self._scheme.public())
        return self._hello

    def share(self, roster: bytes) -> bytes:
        """Check everybody's keys and deal out shares of this site's secrets."""
        self._take("share")
        hellos = decode_sites(roster, leg="share", sender=COORDINATOR)
        if hellos.get(self._site) != self._hello:
            self._refuse("share", "the roster does not hold this site's own hello unchanged.")
        self._require_enough("share", hellos)
        strangers = sorted(set(hellos) - set(self._keys))
        if strangers:
            self._refuse(
                "share", f"the roster names {strangers[0]!r}, whose key is not pinned here."
            )
        public = {site: bytes(self._verify("hello", site, hello)) for site, hello in hellos.items()}
        self._scope = self._scope.with_roster(roster)
        self._roster = Roster(scope=self._scope, public=public)
        return self._sign("share", encode_sites(self._scheme.deal(self._roster)))

    def seal(self, shares: bytes, values: NDArray[np.floating]) -> Iterator[bytes]:
        """Seal the vector for those who shared; journalled before the iterator is returned."""
        if values.shape != (self._plan.dimension,):
            raise ValueError(
                f"Expected values of shape ({self._plan.dimension},), got {values.shape}."
            )
        vector = self._plan.encoding.encode(values)
        self._take("seal")
        boxes = decode_sites(shares, leg="seal", sender=COORDINATOR)
        if self._site in boxes or not set(boxes) <= set(self._roster.sites):
            self._refuse("seal", "shares of this site itself, or of sites outside the roster.")
        self._shared = tuple(sorted({*boxes, self._site}))
        self._require_enough("seal", self._shared)
        self._scheme.protect(boxes, vector)
        # A signature covers its chunk, and by the scope plan, context and roster: together they are what is sealed.
        chunks = [encode_chunk(vector, index) for index in range(chunk_count(len(vector)))]
        signatures = [self._signature("seal", *chunk) for chunk in chunks]
        self._journal.record(
            seal_key(self._context.run_id, self._context.round, self._context.attempt),
            hashlib.sha256(b"".join(signatures)).digest(),
        )
        return (
            b"".join((signed, *chunk)) for signed, chunk in zip(signatures, chunks, strict=True)
        )

    def confirm(self, survivors: bytes) -> bytes:
        """Sign the set of survivors, the only one that this site will ever sign in this sum."""
        self._take("confirm")
        names = decode_sites(survivors, leg="confirm", sender=COORDINATOR)
        if any(names.values()):
            self._refuse("confirm", "the survivor set carries more than names.")
        if self._site not in names:
            self._refuse("confirm", "this site sealed but is not among the survivors.")
        if not set(names) <= set(self._shared):
            self._refuse("confirm", "the survivors include a site that did not share.")
        self._require_enough("confirm", names)
        self._survivors = tuple(names)
        return self._sign(
            "confirm", survivor_statement(self._roster, self._shared, self._survivors)
        )

    def release(self, confirmations: bytes) -> bytes:
        """Give one share of every site, once enough survivors have signed the same set."""
        self._take("release")
        signed = decode_sites(confirmations, leg="release", sender=COORDINATOR)
        strangers = sorted(set(signed) - set(self._survivors))
        if strangers:
            self._refuse("release", f"{strangers[0]!r} confirmed but is not among the survivors.")
        if self._site not in signed or len(signed) < self._plan.threshold:
            self._refuse(
                "release",
                f"{len(signed)} confirmations; {self._plan.threshold} are needed, this site's among them.",
            )
        statement = survivor_statement(self._roster, self._shared, self._survivors)
        for site, message in signed.items():
            if self._verify("confirm", site, message) != statement:
                raise MessageRefused(
                    site=site,
                    leg="confirm",
                    reason="it signed other survivors or other sharers than this site: the coordinator shows "
                    "different sites different sets. Nothing was released.",
                )
        return self._sign("release", self._scheme.disclose(self._survivors))

    def _take(self, leg: str) -> None:
        expected = LEGS[self._next_leg] if self._next_leg < len(LEGS) else "none"
        if leg != expected:
            self._refuse(
                leg, f"out of turn or for the second time; the next leg here is {expected}."
            )
        # Advanced before anything is checked: whatever fails below cannot be tried again with other bytes.
        self._next_leg += 1

    def _require_enough(self, leg: str, sites: Mapping[str, bytes] | tuple[str, ...]) -> None:
        if len(sites) < self._plan.fewest_survivors:
            self._refuse(leg, f"{len(sites)} sites, {self._plan.fewest_survivors} are needed.")

    def _refuse(self, leg: str, reason: str) -> NoReturn:
        raise MessageRefused(site=COORDINATOR, leg=leg, reason=f'at site "{self._site}": {reason}')

    def _sign(self, leg: str, body: bytes) -> bytes:
        return self._signature(leg, body) + body

    def _signature(self, leg: str, *body: bytes | memoryview) -> bytes:
        return signature(
            *body, leg=leg, site=self._site, scope=self._scope, identity=self._identity
        )

    def _verify(self, leg: str, site: str, message: bytes) -> memoryview:
        return verify(message, leg=leg, site=site, scope=self._scope, key=self._keys[site])


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
