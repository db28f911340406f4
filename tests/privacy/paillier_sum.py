"""Three sites and a coordinator of the scheme `paillier`, without the legs around them, to see and change every byte."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gmpy2 import mpz

from privacy.paillier.ciphertexts import encode_ciphertexts
from privacy.paillier.encrypt import encrypt
from privacy.secagg.envelopes import Scope
from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.paillier import PaillierSite
from privacy.secagg.paillier_coordinator import PaillierCoordinator
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster
from tests.privacy.paillier_keys import STORED

SITES = ("anna", "bern", "cara")
HOLDER = "bern"


def sum_plan(**changes) -> SumPlan:
    facts: dict[str, Any] = {
        "scheme": "paillier",
        "dimension": 5,
        "max_sites": 3,
        "quorum": 2,
        "threshold": 2,
        "value_range": 1.0,
        "key_holder": HOLDER,
        "obfuscation": "subgroup",
    }
    return SumPlan(**(facts | changes))


def new_site(plan, site, scheme=PaillierSite):
    key = STORED[f"{plan.obfuscation}-3072"]
    return scheme(plan, site, MemoryKeyStore(key if site == plan.key_holder else None))


@dataclass
class Dealt:
    """A sum of which the first legs were played as they should be."""

    plan: SumPlan
    schemes: Mapping[str, type[PaillierSite]] = field(default_factory=dict)
    sites: dict[str, PaillierSite] = field(default_factory=dict)
    boxes: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sealed: dict[str, list[bytes]] = field(default_factory=dict)

    def __post_init__(self):
        self.sites = {
            site: new_site(self.plan, site, self.schemes.get(site, PaillierSite)) for site in SITES
        }
        public = {name: site.public() for name, site in self.sites.items()}
        scope = Scope(sum_digest=bytes(32), roster_digest=bytes([1]) * 32)
        self.roster = Roster(scope=scope, public=public)
        limit = self.plan.encoding.limit
        self.vectors = np.random.default_rng(1).integers(
            -limit, limit + 1, (3, self.plan.dimension), dtype=np.int32
        )
        for (name, site), vector in zip(self.sites.items(), self.vectors, strict=True):
            self.boxes[name] = site.deal(self.roster, vector)

    def dealt_to(self, site, **changes):
        """What the others dealt to a site, or something else from some of them."""
        boxes = {dealer: boxes[site] for dealer, boxes in self.boxes.items() if dealer != site}
        return boxes | changes

    def seal(self):
        for name, site in self.sites.items():
            self.sealed[name] = list(site.protect(self.dealt_to(name)))
        return self

    def relayed(self, **changes):
        """All that was sealed, in order, or something else from some sites."""
        sealed = self.sealed | changes
        return [part for site in SITES for part in sealed[site]]

    def coordinator(self, *, until="seal"):
        """A coordinator that has seen everything up to a leg."""
        coordinator = PaillierCoordinator(self.plan, None)
        for name in SITES:
            coordinator.require_public(name, self.roster.public[name])
        for name in SITES if until != "hello" else ():
            coordinator.require_boxes(name, self.boxes[name], self.roster)
        for name in SITES if until == "seal" else ():
            for index, part in enumerate(self.sealed[name]):
                coordinator.require_part(name, index, memoryview(part))
                coordinator.add(name, index, memoryview(part))
        return coordinator


def flipped(part, place):
    changed = bytearray(part)
    changed[place] ^= 1
    return bytes(changed)


def some_ciphertext(dealt, plaintext=0):
    """Of the same length as what a site seals."""
    public = dealt.sites["anna"]._key
    return encode_ciphertexts(encrypt([mpz(plaintext)], public), public)
