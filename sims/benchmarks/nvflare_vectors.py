"""TenSEAL as NVIDIA FLARE 2.9 uses it: its parameters, one vector for each tensor, each sent with its context.

NVIDIA FLARE itself is not installed here. Its choices are repeated (nvflare/lighter/impl/he.py, app_opt/he): CKKS of
degree 8192 with primes of 60, 40 and 40 bits, scale 2**40, encryption under the secret key, which all clients share;
a `CKKSVector` for every tensor, serialised together with the public part of its context.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

DEGREE, PRIME_BITS, SCALE = 8192, (60, 40, 40), 2.0**40
SLOTS = DEGREE // 2
MLP_TENSORS = (64 * 29, 64, 32 * 64, 32, 2 * 32, 2)
"""Values of the tensors of a perceptron with layers of 29, 64, 32 and 2: 4066 parameters."""


class NvflareVectors:
    """A client of a federation under CKKS."""

    def __init__(self) -> None:
        self._context: Any = ts.context(
            ts.SCHEME_TYPE.CKKS,
            poly_modulus_degree=DEGREE,
            coeff_mod_bit_sizes=list(PRIME_BITS),
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )
        self._context.generate_relin_keys()
        self._context.global_scale = SCALE

    def seal(self, tensor: NDArray[np.float64]) -> bytes:
        """One tensor, encrypted and serialised.

        In vectors of one ciphertext: of longer ones TenSEAL says on standard output what they cannot do, to the same cost.
        """
        vectors = [
            ts.ckks_vector(self._context, tensor[start : start + SLOTS].tolist())
            for start in range(0, len(tensor), SLOTS)
        ]
        return b"".join(vector.serialize() for vector in vectors)

    def uplink(self, tensors: Sequence[NDArray[np.float64]]) -> int:
        """Bytes that a client sends for a model: every tensor with its context."""
        context = len(self._context.serialize())
        return sum(len(self.seal(tensor)) + context for tensor in tensors)
