"""Random draws: from the operating system in use, from a seed in rehearsals and tests.

Both sources are AES-256 in counter mode (NIST SP 800-38A); only the keys differ:

1. `OsRandom` takes its keys from the operating system. Privacy rests on it. There is no way to give it a seed.
2. `SeededRandom` derives its keys from a seed and labels. Whoever knows the seed can subtract the noise, so it serves
   rehearsals without differential privacy and tests only.

A key serves `BYTES_PER_KEY` bytes: the blocks of counter mode are all different, which random blocks are not, and after
q of them an ideal cipher is at most q**2 / 2**129 away from random bits. `privacy.dp.noise.SAMPLING_REMAINDER` books it.

Every draw is a function of the key stream's bytes: the two sources share the sampling code and therefore its tests.
Noise is made from the stream's words (`privacy.dp.noise`) and not by a `torch.Generator`: torch's CPU generator keeps 32
bits of its seed, so 2**32 trials would find the noise of a whole release.
"""

import hashlib
import itertools
import math
import os
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

if TYPE_CHECKING:
    # Imported where a generator is made: accounting and budgets draw noise and have no use for the second it takes.
    import torch

BYTES_PER_KEY = 1 << 18
"""Key stream from one key: 2**14 blocks. A new key every so often costs a fifth of the stream's time."""

TWISTER_WORDS = 624
"""32-bit words of a Mersenne twister (Matsumoto and Nishimura 1998), each stored in 8 bytes after 24 others."""

NewKey = Callable[[], bytes]
ZEROS = memoryview(bytes(BYTES_PER_KEY))


class Random(Protocol):
    """Source of every random choice of training."""

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        """Indices below `count`, each chosen independently with probability `rate`: sorted int64, perhaps none."""
        ...

    def randbelow(self, bound: int) -> int:
        """A uniform integer in [0, bound), for any `bound` >= 1."""
        ...

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` independent uniform 64-bit words, in an array of the caller's own."""
        ...

    def fill(self, words: NDArray[np.uint64]) -> None:
        """Overwrites a contiguous array with independent uniform 64-bit words."""
        ...

    def torch_generator(self) -> "torch.Generator":
        """A fresh torch CPU generator for a model's own choices, such as routing noise. Not a cryptographic stream."""
        ...


class OsRandom:
    """Draws keyed by the operating system; a forked child gets a key of its own."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._own_stream = _KeyStream(_key_of_the_system)

    @property
    def _stream(self) -> "_KeyStream":
        if self._process != os.getpid():
            self._own_stream = _KeyStream(_key_of_the_system)
            self._process = os.getpid()
        return self._own_stream

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        """See `Random.poisson_sample`."""
        return _poisson_sample(self._stream, count, rate)

    def randbelow(self, bound: int) -> int:
        """See `Random.randbelow`."""
        return _randbelow(self._stream, bound)

    def words(self, count: int) -> NDArray[np.uint64]:
        """See `Random.words`."""
        return self._stream.words(count)

    def fill(self, words: NDArray[np.uint64]) -> None:
        """See `Random.fill`."""
        self._stream.fill(words.view(np.uint8).reshape(-1).data)

    def torch_generator(self) -> "torch.Generator":
        """See `Random.torch_generator`."""
        return _torch_generator(self._stream)


class SeededRandom:
    """Reproducible draws; equal seeds and labels give equal draws, different labels independent ones.

    Never for a differentially private release.
    """

    def __init__(self, seed: int, *labels: str) -> None:
        root = hashlib.sha256(b"concord/seeded-random/v1\0")
        for part in (str(seed), *labels):
            encoded = part.encode()
            root.update(len(encoded).to_bytes(8, "big") + encoded)
        self._stream = _KeyStream(_keys_after(root.digest()).__next__)

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        """See `Random.poisson_sample`."""
        return _poisson_sample(self._stream, count, rate)

    def randbelow(self, bound: int) -> int:
        """See `Random.randbelow`."""
        return _randbelow(self._stream, bound)

    def words(self, count: int) -> NDArray[np.uint64]:
        """See `Random.words`."""
        return self._stream.words(count)

    def fill(self, words: NDArray[np.uint64]) -> None:
        """See `Random.fill`."""
        self._stream.fill(words.view(np.uint8).reshape(-1).data)

    def torch_generator(self) -> "torch.Generator":
        """See `Random.torch_generator`."""
        return _torch_generator(self._stream)


class _KeyStream:
    """AES-256-CTR under one key after another, each from `new_key` and never used for two streams."""

    def __init__(self, new_key: NewKey) -> None:
        self._new_key = new_key
        self._left = 0

    def fill(self, target: memoryview) -> None:
        """Overwrites all of `target`, a flat view of bytes."""
        done = 0
        while done < len(target):
            if self._left == 0:
                cipher = Cipher(algorithms.AES(self._new_key()), modes.CTR(bytes(16)))
                self._encryptor = cipher.encryptor()
                self._left = BYTES_PER_KEY
            size = min(self._left, len(target) - done)
            self._encryptor.update_into(ZEROS[:size], target[done : done + size])
            self._left -= size
            done += size

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        target = bytearray(count)
        self.fill(memoryview(target))
        return bytes(target)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` little-endian 64-bit words."""
        if count < 0:
            raise ValueError(f"Expected count={count} >= 0.")
        target = np.empty(8 * count, dtype=np.uint8)
        self.fill(target.data)
        return target.view("<u8")


def _key_of_the_system() -> bytes:
    return secrets.token_bytes(32)


def _keys_after(root: bytes) -> Iterator[bytes]:
    """`root` itself, then one derived key after another."""
    yield root
    for index in itertools.count(1):
        yield hashlib.sha256(
            b"concord/seeded-random/next-key/v1\0" + root + index.to_bytes(8, "big")
        ).digest()


def _poisson_sample(stream: _KeyStream, count: int, rate: float) -> np.ndarray:
    """Compares 64 random bits per index with floor(rate * 2**64): the true rate is below `rate` by less than 2**-64."""
    if count < 0:
        raise ValueError(f"Expected count={count} >= 0.")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"Expected rate={rate} in [0, 1].")
    if rate == 1.0:
        return np.arange(count, dtype=np.int64)
    threshold = np.uint64(math.floor(math.ldexp(rate, 64)))
    return np.flatnonzero(stream.words(count) < threshold).astype(np.int64)


def _randbelow(stream: _KeyStream, bound: int) -> int:
    """Rejection from the next power of two; exact for integers of any size."""
    if bound < 1:
        raise ValueError(f"Expected bound={bound} >= 1.")
    bits = (bound - 1).bit_length()
    size = (bits + 7) // 8
    while True:
        value = int.from_bytes(stream.read(size), "little") & ((1 << bits) - 1)
        if value < bound:
            return value


def _torch_generator(stream: _KeyStream) -> "torch.Generator":
    """A Mersenne twister whose whole state of 19937 bits is drawn, where `manual_seed` would keep 32."""
    import torch

    generator = torch.Generator().manual_seed(1)
    state = generator.get_state().numpy()
    words = state[24 : 24 + 8 * TWISTER_WORDS].view("<u8")
    if words[0] != 1:
        raise RuntimeError(
            f"torch {torch.__version__} keeps the state of its CPU generator elsewhere than torch 2.13 does: "
            "routing noise would not be secret. Install the pinned release."
        )
    words[:] = np.frombuffer(stream.read(4 * TWISTER_WORDS), dtype="<u4")
    generator.set_state(torch.from_numpy(state))
    return generator
