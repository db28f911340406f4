"""Double unmask against Flower's SecAgg+, with Flower's own functions for everything that a client and a server do.

Three clients run its four stages. In the last one the server lies: it names node 1 as active and as dead. Every client
answers with its shares of node 1's self seed and of its private key, and the server takes off all of its masks.
"""

from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from numpy.typing import NDArray

NODES = (1, 2, 3)
DIMENSION = 512
TARGET_RANGE = 1 << 20
MODULUS = 1 << 24
CLIP = 1.0
EXAMPLES = 1000


def flower_double_unmask(seed: int) -> float:
    """Share of a client's quantised parameters that a lying server recovers, exactly."""
    generator = np.random.default_rng(seed)
    quantised = {node: generator.integers(0, TARGET_RANGE, DIMENSION) for node in NODES}
    states = {node: _started(node) for node in NODES}
    masked = _masked(states, quantised)[1]
    request = ConfigRecord({Key.ACTIVE_NODE_ID_LIST: list(NODES), Key.DEAD_NODE_ID_LIST: [1]})
    answers = [
        cast(list[bytes], _unmask(state, request)[Key.SHARE_LIST]) for state in states.values()
    ]
    # Node 1 is the first of the active nodes and the only dead one.
    self_seed = combine_shares([shares[0] for shares in answers])
    private = combine_shares([shares[-1] for shares in answers])
    opened = masked - _mask(self_seed)
    for node in NODES[1:]:
        # The server has relayed every public key.
        public = states[node].pk1
        key = generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))
        opened = opened + _mask(key)
    return float(np.mean(opened % MODULUS == quantised[1]))


def _started(node: int) -> SecAggPlusState:
    """A client that has made its keys."""
    state = SecAggPlusState()
    state.nid = node
    _setup(
        state,
        ConfigRecord(
            {
                Key.SAMPLE_NUMBER: len(NODES),
                Key.SHARE_NUMBER: len(NODES),
                Key.THRESHOLD: len(NODES) - 1,
                Key.CLIPPING_RANGE: CLIP,
                Key.TARGET_RANGE: TARGET_RANGE,
                Key.MOD_RANGE: MODULUS,
                Key.MAX_WEIGHT: float(EXAMPLES),
            }
        ),
    )
    return state


def _masked(
    states: dict[int, SecAggPlusState], quantised: dict[int, NDArray[np.int64]]
) -> dict[int, NDArray[Any]]:
    """Every client's masked parameters [DIMENSION], after it shared its keys."""
    keys = ConfigRecord({str(node): [state.pk1, state.pk2] for node, state in states.items()})
    dealt: dict[int, dict[int, bytes]] = {node: {} for node in states}
    for node, state in states.items():
        answer = _share_keys(state, keys)
        targets = cast(list[int], answer[Key.DESTINATION_LIST])
        boxes = cast(list[bytes], answer[Key.CIPHERTEXT_LIST])
        for target, box in zip(targets, boxes, strict=True):
            dealt[target][node] = box
    masked = {}
    for node, state in states.items():
        boxes_to = ConfigRecord(
            {
                Key.CIPHERTEXT_LIST: list(dealt[node].values()),
                Key.SOURCE_LIST: list(dealt[node]),
            }
        )
        # Whole steps: Flower's rounding, which is random, leaves them as they are.
        values = quantised[node] * (2.0 * CLIP / TARGET_RANGE) - CLIP
        answer = _collect_masked_vectors(
            state, boxes_to, EXAMPLES, ndarrays_to_parameters([values])
        )
        parts = cast(list[bytes], answer[Key.MASKED_PARAMETERS])
        masked[node] = bytes_to_ndarray(parts[1])
    return masked


def _mask(seed: bytes) -> NDArray[Any]:
    """The part of a stream that masks the parameters; one value before it masks the weight."""
    dimensions: list[tuple[int, ...]] = [(1,), (DIMENSION,)]
    return pseudo_rand_gen(seed, MODULUS, dimensions)[1]
