"""The scheme `paillier` at a site: encrypted under the key of a named site, opened by any t for the sum alone.

The plan names the key holder. It keeps one key pair for many sums; the decryption exponent is dealt anew in each.

1. hello: a channel key (X25519); from the key holder also n and the obfuscation base.
2. share: every site encrypts its packed vector under n, keeps it, and gives every other site a commitment to it. The key
   holder gives every site a share of the decryption exponent besides, encrypted for it, and shows its verification key.
3. seal: the ciphertexts; and for every other site an authenticated digest of all commitments that this site has seen.
4. release: the coordinator passes on all survivors' ciphertexts. Whoever is asked checks them against the commitments, checks
   that all survivors saw the same commitments, multiplies the ciphertexts, and sends partial decryptions of the product,
   with a proof that they were made with the share that it was dealt.

No ciphertext was shown before every commitment was fixed: a site cannot choose its ciphertext in answer to another's. What
is decrypted is the product over the signed survivors, formed by whoever decrypts it: nobody answers questions about other
ciphertexts. A wrong partial decryption is refused with its sender's name.

What must be trusted: the key holder. It knows the whole key, so the key holder AND the coordinator together read every
vector; shares protect from everybody else. It forgets the shares that it dealt, and may drop out once it has dealt. It is
not asked in release, where it would be sent every ciphertext, unless there are only two sites.
Vectors are exact and take 2 * key_bits / 8 bytes for each (key_bits - 1) / modulus_bits values. Whoever is asked in release
downloads every survivor's vector, and a partial decryption takes a tenth of a second for 127 values: for short vectors.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from privacy.paillier.ciphertexts import (
    add_ciphertexts,
    decode_ciphertexts,
    encode_ciphertexts,
)
from privacy.paillier.encrypt import encrypt, encrypt_seconds
from privacy.paillier.keys import (
    KeyPair,
    PublicKey,
    decode_key_pair,
    encode_key_pair,
    encode_public,
    generate_key_pair,
)
from privacy.paillier.partial_proof import is_own_share, prove, verification_keys
from privacy.paillier.threshold import deal, partial_decryptions, partial_seconds
from privacy.paillier.workers import Workers
from privacy.secagg.boxes import Channel, require_distinct_channels
from privacy.secagg.errors import MessageRefused
from privacy.secagg.key_store import KeyStore
from privacy.secagg.paillier_parts import (
    AGREEMENT_BYTES,
    COMMITMENT_BYTES,
    Layout,
    RunningDigest,
    agreement,
    proof_scope,
    read_public,
)
from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import COORDINATOR
from privacy.secagg.schemes import Roster


class PaillierSite:
    """What one site knows in one sum."""

    asks_all = False

    def __init__(self, plan: SumPlan, site: str, key_store: KeyStore) -> None:
        self._plan = plan
        self._site = site
        self._layout = Layout(plan=plan)
        self.sealed_parts = self.disclosure_parts = self._layout.parts
        self._channel = Channel(site)
        self._pair: KeyPair | None = None
        if site == plan.key_holder:
            self._pair = _stored_pair(plan, key_store)
        self._share: mpz | None = None
        self._share_key = mpz(0)
        self._commitments: dict[str, bytes] = {}

    def public(self) -> bytes:
        """Channel key; from the key holder also its Paillier key."""
        if self._pair is None:
            return self._channel.public
        return self._channel.public + encode_public(self._pair.public)

    def deal(self, roster: Roster, integers: NDArray[np.int32]) -> dict[str, bytes]:
        """Encrypt the vector and commit to it, towards everybody; the key holder deals shares of the key besides."""
        self._roster = roster
        self._key = _roster_key(roster, self._plan)
        self._sealed = self._encrypted(integers)
        digest = RunningDigest()
        for part in self._sealed:
            digest = digest.after(part)
        own = self._commitments[self._site] = digest.commitment(roster.scope, self._site)
        shown, hidden = self._dealt_shares()
        boxes = {}
        for recipient in roster.sites:
            public = own + shown.get(recipient, b"")
            boxes[recipient] = public
            if recipient != self._site:
                boxes[recipient] += self._channel.lock(
                    hidden.get(recipient, b""), roster=roster, recipient=recipient, public=public
                )
        return boxes

    def protect(self, boxes: Mapping[str, bytes]) -> Iterator[bytes]:
        """Keep what the others dealt, and show the ciphertexts."""
        if self._plan.key_holder not in {*boxes, self._site}:
            raise MessageRefused(
                site=self._plan.key_holder,
                leg="share",
                reason="it holds the key and did not deal it: nobody could open a sum. Nothing was sealed; start a new "
                "attempt when it is online.",
            )
        for dealer, box in boxes.items():
            self._open_box(dealer, box)
        self._seen = agreement(self._roster.scope, self._commitments)
        agreements = [
            self._channel.lock(b"", roster=self._roster, recipient=peer, public=self._seen)
            for peer in sorted(boxes)
        ]
        sealed, self._sealed = self._sealed, []
        return iter([b"".join((*agreements, sealed[0])), *sealed[1:]])

    def disclose(
        self, survivors: Sequence[str], responders: Sequence[str], relayed: Iterator[bytes]
    ) -> Iterator[bytes]:
        """Partial decryptions of the product of the survivors' ciphertexts, once, after every check."""
        if self._share is None:
            raise ValueError("Expected disclose() once, after protect().")
        product: list[mpz] = []
        for site in survivors:
            ciphertexts = self._checked(site, relayed)
            product = add_ciphertexts(product, ciphertexts, self._key) if product else ciphertexts
        if next(relayed, None) is not None:
            raise _refused(COORDINATOR, "it passed on more than the survivors sealed.")
        share, self._share = self._share, None
        with Workers.for_seconds(partial_seconds(len(product), self._key)) as workers:
            partials = partial_decryptions(product, share, self._key, workers)
        return iter(
            [
                self._proved(product[part], partials[part], share)
                for part in map(self._layout.part, range(self._layout.parts))
            ]
        )

    def _encrypted(self, integers: NDArray[np.int32]) -> list[bytes]:
        """Ciphertexts, part by part."""
        plaintexts = self._layout.slots.pack(integers)
        with Workers.for_seconds(encrypt_seconds(len(plaintexts), self._key)) as workers:
            ciphertexts = encrypt(plaintexts, self._key, workers)
        return [
            encode_ciphertexts(ciphertexts[self._layout.part(index)], self._key)
            for index in range(self._layout.parts)
        ]

    def _dealt_shares(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """For every site what everybody may see and what only it may; nothing but at the key holder."""
        if self._pair is None:
            return {}, {}
        pair, self._pair = self._pair, None
        sites = self._roster.sites
        shares = deal(pair, threshold=self._plan.threshold, count=len(sites))
        keys = verification_keys(shares, pair, proof_scope(self._roster.scope))
        own = sites.index(self._site)
        self._share, self._share_key = shares[own], keys[own]
        size = self._layout.share_bytes(len(sites))
        return (
            {
                site: bytes(key.to_bytes(self._layout.ciphertext_bytes, "big"))
                for site, key in zip(sites, keys, strict=True)
            },
            {
                site: bytes(share.to_bytes(size, "big"))
                for site, share in zip(sites, shares, strict=True)
            },
        )

    def _open_box(self, dealer: str, box: bytes) -> None:
        length = self._layout.open_bytes(dealer)
        public = box[:length]
        hidden = self._channel.unlock(
            box[length:], roster=self._roster, dealer=dealer, public=public
        )
        self._commitments[dealer] = public[:COMMITMENT_BYTES]
        is_holder = dealer == self._plan.key_holder
        expected = self._layout.share_bytes(len(self._roster.sites)) if is_holder else 0
        if len(public) != length or len(hidden) != expected:
            raise MessageRefused(
                site=dealer, leg="share", reason="a box of another length. Nothing was sealed."
            )
        if is_holder:
            share, key = mpz.from_bytes(hidden, "big"), mpz.from_bytes(public[32:], "big")
            if not is_own_share(share, key, self._key, proof_scope(self._roster.scope)):
                raise MessageRefused(
                    site=dealer,
                    leg="share",
                    reason="the key share that it dealt here is not the one it announced. Nothing was sealed.",
                )
            self._share, self._share_key = share, key

    def _checked(self, site: str, relayed: Iterator[bytes]) -> list[mpz]:
        """The ciphertexts that a survivor committed to, from the next relayed parts."""
        peers = sorted(self._commitments)
        digest, ciphertexts = RunningDigest(), []
        for index in range(self._layout.parts):
            part = next(relayed, b"")
            try:
                agreements, encoded = self._layout.split_sealed(part, index, others=len(peers) - 1)
                count = self._layout.part_count(index)
                ciphertexts += decode_ciphertexts(encoded, self._key, count=count)
            except ValueError as error:
                raise _refused(
                    COORDINATOR, f'what it passed on from site "{site}": {error}.'
                ) from error
            digest = digest.after(encoded)
            if index == 0 and site != self._site:
                others = [peer for peer in peers if peer != site]
                self._require_agreement(site, agreements, others.index(self._site))
        if digest.commitment(self._roster.scope, site) != self._commitments[site]:
            raise _refused(
                COORDINATOR,
                f'what it passed on from site "{site}" is not what that site committed to.',
            )
        return ciphertexts

    def _require_agreement(self, site: str, agreements: bytes, position: int) -> None:
        box = agreements[position * AGREEMENT_BYTES : (position + 1) * AGREEMENT_BYTES]
        try:
            self._channel.unlock(box, roster=self._roster, dealer=site, public=self._seen)
        except MessageRefused as error:
            raise _refused(
                site,
                "it sealed under other commitments than those seen here: it, the coordinator or a third shows different "
                "sites different ones.",
            ) from error

    def _proved(self, ciphertexts: Sequence[mpz], partials: Sequence[mpz], share: mpz) -> bytes:
        proof = prove(
            ciphertexts,
            partials,
            share=share,
            key=self._share_key,
            public=self._key,
            scope=proof_scope(self._roster.scope),
            share_bits=self._layout.share_bits(len(self._roster.sites)),
        )
        return encode_ciphertexts(partials, self._key) + proof


def _stored_pair(plan: SumPlan, key_store: KeyStore) -> KeyPair:
    """The key pair that is kept here; a new one, kept from now on, if there is none of the kind that the plan asks for."""
    stored = key_store.load()
    if stored is not None:
        pair = decode_key_pair(stored)
        if pair.public.bits == plan.key_bits and pair.public.obfuscation == plan.obfuscation:
            return pair
    pair = generate_key_pair(bits=plan.key_bits, obfuscation=plan.obfuscation)
    key_store.store(encode_key_pair(pair))
    return pair


def _roster_key(roster: Roster, plan: SumPlan) -> PublicKey:
    """The key holder's key; every site's public bytes are checked."""
    keys = [read_public(site, public, plan) for site, public in roster.public.items()]
    require_distinct_channels(roster.public)
    for key in keys:
        if key is not None:
            return key
    raise MessageRefused(
        site=plan.key_holder,
        leg="hello",
        reason="it holds the key and is not in the roster: nothing can be encrypted. Start a new attempt when it is online.",
    )


def _refused(site: str, reason: str) -> MessageRefused:
    return MessageRefused(site=site, leg="release", reason=f"{reason} Nothing was released.")
