"""Weak variants of `paillier`, each with one weakness, and the attacker's coordinator. For attacks and their tests only."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gmpy2 import mpz

from privacy.paillier.ciphertexts import decode_ciphertexts
from privacy.secagg.key_store import KeyStore
from privacy.secagg.paillier import PaillierSite
from privacy.secagg.paillier_coordinator import PaillierCoordinator
from privacy.secagg.plan import SumPlan


class RememberingPaillierSite(PaillierSite):
    """Gives partial decryptions for as many survivor sets as it is asked."""

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """As ours; the share is not forgotten."""
        share = self._share
        disclosed = list(super().disclose(survivors, responders, relayed))
        self._share = share
        return iter(disclosed)


class TrustingPaillierSite(RememberingPaillierSite):
    """Decrypts whatever it is relayed, committed to or not."""

    def _checked(self, site: str, relayed: Iterator[bytes]) -> list[mpz]:
        found: list[mpz] = []
        for index in range(self.sealed_parts):
            others = len(self._commitments) - 1
            _, encoded = self._layout.split_sealed(next(relayed), index, others=others)
            count = self._layout.part_count(index)
            found += decode_ciphertexts(encoded, self._key, count=count)
        return found


class LowThresholdPaillierSite(PaillierSite):
    """Deals shares of which one fewer than planned opens."""

    def __init__(self, plan: SumPlan, site: str, key_store: KeyStore) -> None:
        super().__init__(replace(plan, threshold=plan.threshold - 1), site, key_store)


class CarelessPaillierCoordinator(PaillierCoordinator):
    """The attacker's own: it combines whatever it is given, without a look at the proofs."""

    def require_disclosure(
        self, site: str, index: int, part: bytes, survivors: Sequence[str]
    ) -> None:
        """Take the partial decryptions."""
        count = self._layout.part_count(index)
        encoded = part[: count * self._layout.ciphertext_bytes]
        partials = self._decoded(site, "release", encoded, count)
        self._partials.setdefault(site, []).extend(partials)
