"""Random draws: from the operating system in use, from a seed in rehearsals and tests.

Both sources are AES-256 in counter mode (NIST SP 800-38A); only the key differs:

1. `OsRandom` takes its key from the operating system. Privacy rests on it.
2. `SeededRandom` derives its key from a seed and labels. Whoever knows the seed can subtract the noise, so it serves
   rehearsals without differential privacy and tests only.

Every draw is a function of the key stream's bytes: the two sources share the sampling code and therefore its tests.
Gaussian draws come from the stream itself and not from a `torch.Generator`: torch's CPU generator keeps 32 bits of
its seed, so 2**32 trials would find the noise of a whole release.
"""

import hashlib
import math
import os
import secrets
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PAIRS_PER_CHUNK = 1 << 15
"""Gaussian pairs made at once: 1.5 MB of temporaries stay in the cache, 2.5 times faster than in one piece."""

TWISTER_WORDS = 624
"""32-bit words of a Mersenne twister (Matsumoto and Nishimura 1998), each stored in 8 bytes after 24 others."""

ReadBytes = Callable[[int], bytes]


class Random(Protocol):
    """Source of every random choice of training."""

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        """Indices below `count`, each chosen independently with probability `rate`: sorted int64, perhaps none."""
        ...

    def randbelow(self, bound: int) -> int:
        """A uniform integer in [0, bound), for any `bound` >= 1."""
        ...

    def standard_normal(self, count: int) -> torch.Tensor:
        """`count` independent N(0, 1) numbers, float32."""
        ...

    def torch_generator(self) -> torch.Generator:
        """A fresh torch CPU generator for a model's own choices, such as routing noise. Not a cryptographic stream."""
        ...


class OsRandom:
    """Draws keyed by the operating system; a forked child gets a key of its own."""

    def __init__(self) -> None:
        self._process = -1
        self._read: ReadBytes = _refuse

    def _bytes(self, count: int) -> bytes:
        if self._process != os.getpid():
            self._read = _keystream(secrets.token_bytes(32))
            self._process = os.getpid()
        return self._read(count)

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        """See `Random.poisson_sample`."""
        return _poisson_sample(self._bytes, count, rate)

    def randbelow(self, bound: int) -> int:
        """See `Random.randbelow`."""
        return _randbelow(self._bytes, bound)

    def standard_normal(self, count: int) -> torch.Tensor:
        """See `Random.standard_normal`."""
        return _standard_normal(self._bytes, count)

    def torch_generator(self) -> torch.Generator:
        """See `Random.torch_generator`."""
        return _torch_generator(self._bytes)


class SeededRandom:
    """Reproducible draws; equal seeds and labels give equal draws, different labels independent ones.

    Never for a differentially private release.
    """

    def __init__(self, seed: int, *labels: str) -> None:
        key = hashlib.sha256(b"concord/seeded-random/v1\0")
        for part in (str(seed), *labels):
            encoded = part.encode()
            key.update(len(encoded).to_bytes(8, "big") + encoded)
        self._bytes = _keystream(key.digest())

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        """See `Random.poisson_sample`."""
        return _poisson_sample(self._bytes, count, rate)

    def randbelow(self, bound: int) -> int:
        """See `Random.randbelow`."""
        return _randbelow(self._bytes, bound)

    def standard_normal(self, count: int) -> torch.Tensor:
        """See `Random.standard_normal`."""
        return _standard_normal(self._bytes, count)

    def torch_generator(self) -> torch.Generator:
        """See `Random.torch_generator`."""
        return _torch_generator(self._bytes)


def _refuse(count: int) -> bytes:
    raise AssertionError(f"{count} bytes were asked of a stream without a key")


def _keystream(key: bytes) -> ReadBytes:
    """The key stream of AES-256-CTR, read piece by piece; a key is never used for two streams."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: encryptor.update(bytes(count))


def _poisson_sample(read: ReadBytes, count: int, rate: float) -> np.ndarray:
    """Compares 64 random bits per index with floor(rate * 2**64): the true rate is below `rate` by less than 2**-64."""
    if count < 0:
        raise ValueError(f"Expected count={count} >= 0.")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"Expected rate={rate} in [0, 1].")
    if rate == 1.0:
        return np.arange(count, dtype=np.int64)
    threshold = np.uint64(math.floor(math.ldexp(rate, 64)))
    words = np.frombuffer(read(8 * count), dtype="<u8")
    return np.flatnonzero(words < threshold).astype(np.int64)


def _randbelow(read: ReadBytes, bound: int) -> int:
    """Rejection from the next power of two; exact for integers of any size."""
    if bound < 1:
        raise ValueError(f"Expected bound={bound} >= 1.")
    bits = (bound - 1).bit_length()
    size = (bits + 7) // 8
    while True:
        value = int.from_bytes(read(size), "little") & ((1 << bits) - 1)
        if value < bound:
            return value


def _standard_normal(read: ReadBytes, count: int) -> torch.Tensor:
    """Box and Muller 1958, in float64 from two 53-bit uniforms, rounded to float32.

    No draw exceeds sqrt(2 * 53 * ln 2) = 8.57 in absolute value; a true Gaussian does with probability 1e-17.
    """
    if count < 0:
        raise ValueError(f"Expected count={count} >= 0.")
    pairs = (count + 1) // 2
    normals = torch.empty(2 * pairs)
    for start in range(0, pairs, PAIRS_PER_CHUNK):
        size = min(PAIRS_PER_CHUNK, pairs - start)
        words = np.frombuffer(bytearray(read(16 * size)), dtype="<i8").reshape(2, size)
        uniform_bits = (torch.from_numpy(words) >> 11) & ((1 << 53) - 1)
        radius = ((uniform_bits[0] + 1).double() * 2.0**-53).log_().mul_(-2.0).sqrt_()
        angle = uniform_bits[1].double().mul_(2.0 * math.pi * 2.0**-53)
        normals[2 * start : 2 * start + size] = radius * angle.cos()
        normals[2 * start + size : 2 * (start + size)] = radius * angle.sin()
    return normals[:count]


def _torch_generator(read: ReadBytes) -> torch.Generator:
    """A Mersenne twister whose whole state of 19937 bits is drawn, where `manual_seed` would keep 32."""
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state().numpy()
    words = state[24 : 24 + 8 * TWISTER_WORDS].view("<u8")
    if words[0] != 1:
        raise RuntimeError(
            f"torch {torch.__version__} keeps the state of its CPU generator elsewhere than torch 2.13 does: "
            "routing noise would not be secret. Install the pinned release."
        )
    words[:] = np.frombuffer(read(4 * TWISTER_WORDS), dtype="<u4")
    generator.set_state(torch.from_numpy(state))
    return generator
