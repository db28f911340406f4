"""Seed search: try every seed of few bits as the key of the one mask that the coordinator cannot take off.

In a round that ends well the coordinator restores every survivor's self seed. With the help of all sites but two, what is
left on the victim's vector is the stream that it shares with the other honest site. Flower's SecAgg+ draws such a
stream from 32 bits, of which 28 ever vary; ours has a key of 128 bits. A seed fits if every coordinate lies in the range
that a plan allows: of 64 coordinates a wrong one passes with probability 2**-128.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from numpy.typing import NDArray

from privacy.secagg.key_store import MemoryKeyStore
from privacy.secagg.mask import MaskCoordinator, MaskSite
from privacy.secagg.plan import SumPlan
from privacy.secagg.schemes import Roster
from sims.attacks.secure_sum.finding import AttackRow, Finding
from sims.attacks.secure_sum.hostile_sum import (
    VICTIM,
    HostileSum,
    Software,
    compare,
    enrol,
    whole_vectors,
)
from sims.attacks.secure_sum.mask_opening import (
    masked_words,
    pair_key,
    secret_of,
    self_key,
    shares_disclosed,
    signed,
    unmask,
)
from sims.attacks.secure_sum.weak_masks import (
    NOWHERE,
    FewBitsMaskSite,
    key_of_seed,
)

ATTACK = "seed search"
SITES = 3
TRIED = 64
"""Coordinates that a seed must fit."""
KEYS_SAMPLED = 46
"""Sites, of which every two form a key: 1 035 keys, in which a bit that can vary stays the same with probability 2**-1034."""
PEERS_SAMPLED = 24
SEEDS_AT_ONCE = 4096
FEW_BITS = FewBitsMaskSite.SEED_BITS
WEAK = f"pair seeds of {FEW_BITS} bits"
KeyOf = Callable[[Any, str], bytes]
"""The key that a site's scheme forms for a peer."""


def search_seeds(seed: int) -> list[Finding]:
    """Search the space of the weak variant's seeds, on it and on ours, and count the bits that vary in keys."""
    row = AttackRow(attack=ATTACK, scheme="mask")
    ours, fitting = _search(MaskSite, _our_key, seed)
    weak, weakly_fitting = _search(FewBitsMaskSite, _weak_key, seed)
    return [
        row.ours(
            ours,
            note=f"{1 << FEW_BITS} seeds, {fitting} fit",
            figures={"seeds_searched": 1 << FEW_BITS, "seeds_that_fit": fitting},
        ),
        row.weak(
            weak,
            variant=WEAK,
            note=f"{1 << FEW_BITS} seeds, {weakly_fitting} fit",
            figures={"seeds_searched": 1 << FEW_BITS, "seeds_that_fit": weakly_fitting},
        ),
        *_count_bits(),
    ]


def _our_key(site: Any, peer: str) -> bytes:
    return pair_key(site._mask_key, site._site, peer, site._roster)


def _weak_key(site: Any, peer: str) -> bytes:
    key: bytes = site._pair_key(peer)
    return key


def _software(scheme: type[MaskSite]) -> Software:
    return Software(
        plan=SumPlan(
            scheme="mask",
            dimension=256,
            max_sites=SITES,
            quorum=SITES,
            threshold=SITES,
            value_range=1.0,
        ),
        scheme=lambda plan, site, _: scheme(plan, site),
        opening=MaskCoordinator,
        hostile_scheme=lambda plan, site, _: scheme(plan, site),
    )


def _search(scheme: type[MaskSite], key_of: KeyOf, seed: int) -> tuple[float, int]:
    """Share of the victim's coordinates recovered, and seeds that fit."""
    software = _software(scheme)
    enrolment = enrol(SITES, hostile=SITES - 2)
    vectors = whole_vectors(software.plan, enrolment.sites, np.random.default_rng(seed))
    attacked = HostileSum(software, enrolment, vectors).seal_all()
    attacked.open(enrolment.sites, asked=enrolment.sites)
    roster = attacked.roster_of(enrolment.sites)
    _, other = enrolment.honest
    # What a round that ends well gives away, and what the attacker's own sites know.
    shares = shares_disclosed(attacked.disclosed, enrolment.sites, VICTIM)
    known = {site: key_of(attacked.own(site), VICTIM) for site in enrolment.hostile}
    left = unmask(
        masked_words(attacked.sealed[VICTIM], software.plan),
        VICTIM,
        self_stream=self_key(secret_of(shares, roster), VICTIM, roster),
        pair_streams=known,
    )
    fitting = _fitting_keys(left[:TRIED], software.plan)
    guesses = [
        signed(unmask(left, VICTIM, self_stream=None, pair_streams={other: key}), software.plan)
        for key in fitting
    ]
    best = max(
        (compare(guess, vectors[VICTIM], software.plan).share for guess in guesses), default=0.0
    )
    return best, len(fitting)


def _fitting_keys(left: NDArray[np.uint32], plan: SumPlan) -> list[bytes]:
    """The keys of the searched seeds that leave nothing out of range of these words [coordinates]."""
    fitting = []
    for start in range(0, 1 << FEW_BITS, SEEDS_AT_ONCE):
        keys = [key_of_seed(seed) for seed in range(start, start + SEEDS_AT_ONCE)]
        streams = np.frombuffer(b"".join(_stream(key, len(left)) for key in keys), dtype="<u4")
        candidates = plan.encoding.signed(left - streams.reshape(len(keys), len(left)))
        fits = np.abs(candidates).max(axis=1) <= plan.encoding.limit
        fitting += [keys[place] for place in np.flatnonzero(fits)]
    return fitting


def _stream(key: bytes, count: int) -> bytes:
    """So many words of a key's stream, as bytes."""
    return Cipher(algorithms.AES128(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * count))


def _count_bits() -> list[Finding]:
    """How many bits of 128 a searcher is spared, by keys that real pairs of sites form."""
    row = AttackRow(
        attack=ATTACK,
        scheme="mask",
        measure="bits of 128 never vary in a pair key",
        hidden=0.0,
        found=96.0,
    )
    ours = _pair_keys(_software(MaskSite), _our_key)
    few = _pair_keys(_software(FewBitsMaskSite), _weak_key)
    peer, rate = _flower_seeds()
    findings = [
        row.ours(
            128.0 - varying_bits(ours),
            note=f"{len(ours)} keys; a bit is 1 in {_most_uneven(ours):.3f} of them at the most uneven",
            figures={"keys": len(ours), "most_uneven_bit": _most_uneven(ours)},
        ),
        row.weak(
            128.0 - varying_bits(few),
            variant=WEAK,
            note=f"{len(few)} keys",
            figures={"keys": len(few)},
        ),
    ]
    bits = varying_bits(peer)
    hours = (1 << bits) / rate / 3600.0
    findings.append(
        row.weak(
            128.0 - bits,
            target="peer",
            variant="Flower's SecAgg+ mask generator",
            note=f"{len(peer)} seeds, {bits} bits vary: all of them take {hours:.0f} hours of one core with its own generator",
            figures={"keys": len(peer), "seeds_per_second": rate, "core_hours": hours},
        )
    )
    return findings


def varying_bits(keys: Sequence[bytes]) -> int:
    """Bits that are 0 in one of the keys and 1 in another."""
    numbers = [int.from_bytes(key, "big") for key in keys]
    ever, always = numbers[0], numbers[0]
    for number in numbers:
        ever |= number
        always &= number
    return (ever ^ always).bit_count()


def _most_uneven(keys: Sequence[bytes]) -> float:
    """Share of ones of the bit whose share is farthest from one half."""
    bits = np.unpackbits(
        np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1), axis=1
    )
    shares = bits.mean(axis=0)
    return float(shares[np.argmax(np.abs(shares - 0.5))])


def _pair_keys(software: Software, key_of: KeyOf) -> list[bytes]:
    """The key of every two of so many sites, as the first of them forms it."""
    names = [f"site-{number:02}" for number in range(KEYS_SAMPLED)]
    sites: dict[str, Any] = {
        name: software.scheme(software.plan, name, MemoryKeyStore()) for name in names
    }
    roster = Roster(scope=NOWHERE, public={name: site.public() for name, site in sites.items()})
    for site in sites.values():
        site.deal(roster, np.zeros(software.plan.dimension, dtype=np.int32))
    return [key_of(sites[own], peer) for own in names for peer in names if own < peer]


def _flower_seeds() -> tuple[list[bytes], float]:
    """The 32-bit seeds that Flower's own code makes of the keys of real pairs, and seeds tried per second.

    Raises:
        RuntimeError: its generator does not fold keys as it did; the finding would not be about its code.
    """
    pairs = [generate_key_pairs() for _ in range(PEERS_SAMPLED)]
    keys = [
        generate_shared_key(pairs[own][0], pairs[peer][1])
        for own in range(PEERS_SAMPLED)
        for peer in range(own)
    ]
    seeds = [_folded(key) for key in keys]
    for key, seed in zip(keys[:8], seeds, strict=False):
        if not np.array_equal(_flower_stream(key), _flower_stream(seed)):
            raise RuntimeError("Flower's mask generator no longer folds its key to 32 bits.")
    started = time.perf_counter()
    for number in range(256):
        _flower_stream(number.to_bytes(4, "little"))
    return seeds, 256 / (time.perf_counter() - started)


def _flower_stream(seed: bytes) -> NDArray[np.signedinteger[Any]]:
    dimensions: list[tuple[int, ...]] = [(TRIED,)]
    return pseudo_rand_gen(seed, 1 << 24, dimensions)[0]


def _folded(key: bytes) -> bytes:
    """A key's words of four bytes, combined by exclusive or."""
    words = np.frombuffer(key, dtype="<u4")
    return bytes(np.bitwise_xor.reduce(words).tobytes())
