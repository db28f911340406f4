"""Paillier keys for tests, made once: 3072 bits, and 1152 bits where only arithmetic is tested."""

import json
from pathlib import Path

from gmpy2 import mpz

from privacy.fixed_point import FixedPoint
from privacy.paillier.keys import KeyPair, decode_key_pair

VECTORS = Path(__file__).parents[1] / "vectors"
STORED = {
    name: bytes.fromhex(key)
    for name, key in json.loads((VECTORS / "paillier_keys.json").read_text())["keys"].items()
}
PAIRS: dict[str, KeyPair] = {
    name: decode_key_pair(stored, is_for_tests=True) for name, stored in STORED.items()
}
SMALL = [name for name in PAIRS if name.endswith("1152")]
FULL = [name for name in PAIRS if name.endswith("3072")]
ANSWERS = json.loads((VECTORS / "paillier_answers.json").read_text())


def encoding_of(value_bits: int = 22, max_addends: int = 4) -> FixedPoint:
    """A range of one, so that the limit is one step less than half of 2**value_bits."""
    return FixedPoint(value_range=1.0, max_addends=max_addends, value_bits=value_bits)


def outside_subgroup(pair: KeyPair) -> mpz:
    """A ciphertext of 1 under an obfuscator from the whole group: 2**n is an n-th power like any other."""
    n = pair.public.n
    return (1 + n) * pow(mpz(2), n, n * n) % (n * n)
