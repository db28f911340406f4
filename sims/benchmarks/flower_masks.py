"""Flower's SecAgg+ as the installed package has it: its mask generator, its masked vectors, its unmasking.

`FlowerUnmasking` drives `SecAggPlusWorkflow.unmask_stage` in process. The stages before it are not run; what they leave
behind is put in their place: a masked sum, and the share that every client sends of every client's seed. Nobody dropped
out, which is the cheapest case. All clients have the same seed, so that it is dealt once: restoring it takes the same work
for each of them.
"""

from collections.abc import Iterable

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Parameters, Status, ndarray_to_bytes, parameters_to_ndarrays
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_combine
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common.recorddict_compat import arrayrecord_to_parameters
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from numpy.typing import NDArray

from sims.grid import InProcessGrid

SEED_BYTES = 32
"""As `secaggplus_mod` draws it."""
MODULUS = 1 << 32
CLIPPING_RANGE, QUANTIZATION_RANGE = 8.0, 1 << 22
"""Flower's defaults, the modulus included."""


def draw_mask(seed: bytes, count: int) -> NDArray[np.int64]:
    """One of Flower's masks."""
    return pseudo_rand_gen(seed, MODULUS, [(count,)])[0]


def masked_vector_bytes(count: int) -> int:
    """Bytes in which a Flower client sends a masked vector."""
    mask = pseudo_rand_gen(bytes(SEED_BYTES), MODULUS, [(count,)])[0]
    return len(ndarray_to_bytes(mask))


class FlowerUnmasking:
    """A round of Flower's in which all clients have sent their masked vectors; `run` may be called once.

    Args:
        clients: how many, in a complete graph.
        threshold: shares that restore a seed.
        values: what every client sent, the same vector from each [dimension].
    """

    def __init__(self, *, clients: int, threshold: int, values: NDArray[np.float64]) -> None:
        nodes = list(range(1, clients + 1))
        seed = bytes(range(SEED_BYTES))
        self._workflow = SecAggPlusWorkflow(
            num_shares=1.0,
            reconstruction_threshold=threshold / clients,
            clipping_range=CLIPPING_RANGE,
            quantization_range=QUANTIZATION_RANGE,
            modulus_range=MODULUS,
        )
        self._state = WorkflowState(
            sampled_node_ids=set(nodes),
            active_node_ids=set(nodes),
            num_shares=clients,
            threshold=threshold,
            clipping_range=CLIPPING_RANGE,
            quantization_range=QUANTIZATION_RANGE,
            mod_range=MODULUS,
            nid_to_neighbours={node: set(nodes) for node in nodes},
            aggregate_ndarrays=_masked_sum(values, seed, clients),
        )
        answer = FitRes(Status(Code.OK, ""), Parameters([], ""), 1, {})
        # The strategy turns the sum over into the mean of one result, which is the mean itself.
        self._state.legacy_results = [(None, answer)]  # type: ignore[list-item]
        self._context = _legacy_context()
        self._grid = _SharesGrid(
            dict(zip(nodes, create_shares(seed, threshold, clients), strict=True))
        )

    def run(self) -> NDArray[np.float64]:
        """Flower's last stage: ask for shares, restore every seed, take the masks off; the mean of the clients' vectors.

        Raises:
            RuntimeError: Flower gave up.
        """
        is_done = self._workflow.unmask_stage(self._grid, self._context, self._state)
        self._grid.close()
        if not is_done:
            raise RuntimeError("Flower's unmask stage did not succeed.")
        record = self._context.state.array_records[MAIN_PARAMS_RECORD]
        return parameters_to_ndarrays(arrayrecord_to_parameters(record, keep_input=True))[0]


class _SharesGrid(InProcessGrid):
    """Answers for every client with its share of every seed."""

    def __init__(self, shares: dict[int, bytes]) -> None:
        super().__init__(ClientApp(), {})
        self._shares = shares

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One reply to each message."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        own = self._shares[message.metadata.dst_node_id]
        configs = ConfigRecord(
            {Key.NODE_ID_LIST: list(self._shares), Key.SHARE_LIST: [own] * len(self._shares)}
        )
        return Message(RecordDict({RECORD_KEY_CONFIGS: configs}), reply_to=message)


def _masked_sum(values: NDArray[np.float64], seed: bytes, clients: int) -> list[NDArray[np.int64]]:
    """The sum that Flower's third stage leaves behind: weights first, then the vector; pair masks have cancelled."""
    quantized = quantize([values], CLIPPING_RANGE, QUANTIZATION_RANGE)
    sent = factor_combine(QUANTIZATION_RANGE, quantized)
    masks = pseudo_rand_gen(seed, MODULUS, [array.shape for array in sent])
    return [
        (array.astype(np.int64) + mask) * clients % MODULUS
        for array, mask in zip(sent, masks, strict=True)
    ]


def _legacy_context() -> LegacyContext:
    context = LegacyContext(
        Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    return context
