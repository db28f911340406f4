"""Weak variants of `ckks` and `ckks-light`, each with one weakness. For attacks and their tests only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from privacy.ckks import sharing
from privacy.ckks.ring import Residues
from privacy.ckks.vectors import opening
from privacy.secagg.ckks import CkksSite
from privacy.secagg.ckks_light import CkksLightSite
from privacy.secagg.key_epoch import RING
from privacy.secagg.key_store import KeyStore
from privacy.secagg.plan import SumPlan
from privacy.secagg.ring_sum import polynomial_seed, sum_of_shares
from privacy.secagg.schemes import Roster
from sims.attacks.secure_sum.weak_masks import NOWHERE


class RememberingLightSite(CkksLightSite):
    """Gives its shares for as many survivor sets as it is asked."""

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """As ours; nothing is forgotten."""
        held = dict(self._held)
        disclosed = list(super().disclose(survivors, responders, relayed))
        self._held = held
        return iter(disclosed)


class LowThresholdCkksSite(CkksSite):
    """Deals shares of which one fewer than planned opens its key."""

    def __init__(self, plan: SumPlan, site: str, key_store: KeyStore) -> None:
        super().__init__(replace(plan, threshold=plan.threshold - 1), site, key_store)


class LowThresholdLightSite(CkksLightSite):
    """Deals shares of which one fewer than planned opens its key."""

    def __init__(self, plan: SumPlan, site: str) -> None:
        super().__init__(replace(plan, threshold=plan.threshold - 1), site)


class FractionalReleaseSite(CkksSite):
    """Releases its share times a Lagrange weight, flooded, and nothing that only the sum of all helpers cancels."""

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """The flooding hides the errors of the sum if the weight is 1, and not if it is a fraction."""
        epoch = self._held_epoch()
        share = sharing.weighted(
            RING,
            sum_of_shares(RING, epoch.shares, survivors),
            point=epoch.points[self._site],
            points=[epoch.points[site] for site in responders],
        )
        seed = polynomial_seed(self._roster)
        return self._blocks.pack(
            opening(self._blocks, self._sizes, key=share, seed=seed, random=self._random)
        )


class SamePolynomialSite(CkksSite):
    """Encrypts every round with the same public polynomials."""

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """As ours, bound to no roster."""
        if self._is_new:
            self._begin_epoch(boxes)
            self._is_new = False
        roster, self._roster = self._roster, replace(self._roster, scope=NOWHERE)
        sealed = list(super().protect({}))
        self._roster = roster
        return iter(sealed)


class JointKeyLightSite(CkksLightSite):
    """Encrypts under one key that all sites have in common, as a joint public key has it."""

    def __init__(self, plan: SumPlan, site: str, key: Residues) -> None:
        super().__init__(plan, site)
        self._key = key


class JointKeyCkksSite(CkksSite):
    """As `JointKeyLightSite`, dealt for an epoch."""

    def __init__(self, plan: SumPlan, site: str, key_store: KeyStore, key: Residues) -> None:
        super().__init__(plan, site, key_store)
        self._joint_key = key

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        """Shares of the common key."""
        super().deal(roster, integers)
        self._key = self._joint_key
        points = [roster.point(site) for site in roster.sites]
        shares = sharing.split(
            RING, self._key, threshold=self._plan.threshold, points=points, random=self._random
        )
        dealt = dict(zip(roster.sites, shares, strict=True))
        self._held = {self._site: dealt.pop(self._site)}
        boxes = {
            site: self._channel.lock(RING.pack(share), roster=roster, recipient=site)
            for site, share in dealt.items()
        }
        return {site: boxes.get(site, b"") for site in roster.sites}
