"""Lines of `sims bench secure-sum` about Paillier: seal, open, add, bytes, inner products; beside phe under the same key.

A value has 16 bits and a sum is of 256 parties at most, so a slot has 24 bits and a ciphertext of 3072-bit keys 127 slots.
Everything is in one process. Sealing is packing, encrypting and writing bytes; opening is the reverse with all checks. A
process that seals makes a table of the key's powers once; the second run counts.
"""

from collections.abc import Iterator

import numpy as np
from gmpy2 import mpz

from privacy.fixed_point import FixedPoint
from privacy.paillier.ciphertexts import (
    add_ciphertexts,
    ciphertext_bytes,
    decode_ciphertexts,
    encode_ciphertexts,
)
from privacy.paillier.decrypt import decrypt
from privacy.paillier.encrypt import encrypt
from privacy.paillier.inner_product import inner_products
from privacy.paillier.keys import KeyPair, generate_key_pair
from privacy.paillier.slots import Slots
from privacy.secagg.plan import Obfuscation
from sims.benchmarks import phe_numbers
from sims.benchmarks.benchmark import Comparison, Figure
from sims.benchmarks.phe_numbers import PheTimes, measure_phe
from sims.benchmarks.secure_sum_workload import (
    MILLION,
    Progress,
    Workload,
    beside,
    least_seconds,
    million_seconds,
    promised,
    seconds_of,
)

KEY_BITS = 3072
ENCODING = FixedPoint(value_range=1.0, max_addends=256, value_bits=16)
SEAL_SECONDS: dict[Obfuscation, float] = {"subgroup": 5.0, "djn-half": 20.0}
OPEN_SECONDS, ADD_SECONDS = 12.5, 0.1
"""For a million values, all of them."""
VALUE_BYTES = 6.1
PRODUCT_AIM = 1 / 4
TERMS = 64
PHE = "phe with gmpy2"


def compare_paillier(workload: Workload, progress: Progress) -> Iterator[Comparison]:
    """All lines about Paillier."""
    pairs: dict[Obfuscation, KeyPair] = {}
    for obfuscation in SEAL_SECONDS:
        progress(f"a Paillier key of {KEY_BITS} bits, {obfuscation}")
        pairs[obfuscation] = generate_key_pair(bits=KEY_BITS, obfuscation=obfuscation)
    pair = pairs["subgroup"]
    progress(f"phe, {workload.phe_numbers} numbers")
    phe = measure_phe(pair.public.phe_key, pair.private, numbers=workload.phe_numbers)
    yield from _lines(workload, pairs, phe, progress)
    progress(f"{workload.products} inner products of {TERMS} terms")
    yield _products(workload.products, pair)


def _lines(
    workload: Workload, pairs: dict[Obfuscation, KeyPair], phe: PheTimes, progress: Progress
) -> Iterator[Comparison]:
    count = workload.paillier_values
    slots = Slots(dimension=count, encoding=ENCODING, key_bits=KEY_BITS)
    limit = ENCODING.limit
    integers = np.random.default_rng(1).integers(-limit, limit + 1, count, dtype=np.int32)
    sealed = {}
    for obfuscation, pair in pairs.items():
        progress(f"sealing {count:,} values, {obfuscation}")
        sealing = _Sealing(slots, pair, integers)
        first, second = (seconds_of(sealing) for _ in range(2))
        note = f"{count:,} values; the table of the key's powers was made before, in {first - second:.2g} s"
        ours = million_seconds(second, count, note)
        sealed[obfuscation] = sealing.sealed
        what, most = f"paillier {obfuscation}: sealing a million values", SEAL_SECONDS[obfuscation]
        yield promised(what, "s", ours, most, f"{MILLION / most:,.0f} values/s")
        yield beside(what, "s", ours, PHE, million_seconds(phe.encrypt, 1))
    pair = pairs["subgroup"]
    progress(f"opening {count:,} values")
    opening = _Opening(slots, pair, sealed["subgroup"])
    ours = million_seconds(seconds_of(opening), count, "by the holder of the whole key")
    if not np.array_equal(opening.integers, integers):
        raise RuntimeError("What was opened is not what was sealed.")
    what = "paillier subgroup: opening a million values"
    yield promised(what, "s", ours, OPEN_SECONDS, f"{MILLION / OPEN_SECONDS:,.0f} values/s")
    yield beside(what, "s", ours, PHE, million_seconds(phe.decrypt, 1))
    ciphertexts = decode_ciphertexts(sealed["subgroup"], pair.public, count=slots.count)
    found = least_seconds(
        {"ours": lambda: add_ciphertexts(ciphertexts, ciphertexts, pair.public)},
        workload.repetitions,
    )["ours"]
    what, ours = "paillier: adding a million values", million_seconds(found, count)
    yield promised(what, "s", ours, ADD_SECONDS, f"{MILLION / ADD_SECONDS:,.0f} values/s")
    yield beside(what, "s", ours, PHE, million_seconds(phe.add, 1, "numbers of one exponent"))
    size = Figure(
        value=len(sealed["subgroup"]) / count,
        note=f"{slots.in_plaintext} slots of {ENCODING.modulus_bits} bits in {ciphertext_bytes(KEY_BITS)} bytes",
    )
    yield promised("paillier: bytes a value", "B", size, VALUE_BYTES, f"{VALUE_BYTES:g} B")
    yield beside("paillier: bytes a value", "B", size, PHE, Figure(value=phe.number_bytes))


class _Sealing:
    """Packs, encrypts and writes a vector; what came of it stays here."""

    def __init__(self, slots: Slots, pair: KeyPair, integers: np.ndarray) -> None:
        self._slots, self._pair, self._integers = slots, pair, integers
        self.sealed = b""

    def __call__(self) -> None:
        public = self._pair.public
        self.sealed = encode_ciphertexts(encrypt(self._slots.pack(self._integers), public), public)


class _Opening:
    """Reads, decrypts and unpacks a vector; what came of it stays here."""

    def __init__(self, slots: Slots, pair: KeyPair, sealed: bytes) -> None:
        self._slots, self._pair, self._sealed = slots, pair, sealed
        self.integers = np.empty(0, dtype=np.int32)

    def __call__(self) -> None:
        slots, pair = self._slots, self._pair
        ciphertexts = decode_ciphertexts(self._sealed, pair.public, count=slots.count)
        self.integers = slots.unpack(decrypt(ciphertexts, pair), addends=1)


def _products(outputs: int, pair: KeyPair) -> Comparison:
    """Rows of 16 bits with an encrypted vector; both sides obfuscate what leaves."""
    rng = np.random.default_rng(1)
    rows = rng.integers(-(1 << 15), 1 << 15, (outputs, TERMS))
    plaintexts = [int(value) for value in rng.integers(0, 1 << 16, TERMS)]
    encrypted = encrypt([mpz(value) for value in plaintexts], pair.public)
    numbers = [pair.public.phe_key.encrypt(value) for value in plaintexts]
    ours = seconds_of(lambda: inner_products(rows, encrypted, pair.public))
    theirs = seconds_of(lambda: phe_numbers.inner_products(rows, numbers))
    terms = outputs * TERMS
    return beside(
        f"paillier: a million terms of inner products, {outputs} x {TERMS}, 16 bits",
        "s",
        million_seconds(ours, terms, "results obfuscated"),
        PHE,
        million_seconds(theirs, terms, "results obfuscated"),
        PRODUCT_AIM,
    )
