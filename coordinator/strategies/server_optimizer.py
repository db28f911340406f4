"""Server optimisers: Flower's own strategies, fed the securely summed mean as if it were a single site's reply.

The moments of FedAdam and FedYogi are part of a round's result: they are exported after every step and restored
when a run resumes, so that a resumed run is the same run.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from coordinator.errors import AggregationError
from coordinator.run_spec import ServerOptimizerSpec

WEIGHTS = "weights"
MOMENTS = ("first_moment", "second_moment")
AdaptiveStrategy = FedAdam | FedYogi


class ServerOptimizer:
    """Turns base weights and a mean change into the next weights."""

    def __init__(
        self, spec: ServerOptimizerSpec, state: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        """Builds the strategy that `spec` names, with the moments of an earlier round if there are any."""
        self._strategy: FedAvg | AdaptiveStrategy
        if spec.name == "fedavg":
            self._strategy = FedAvg()
            return
        kind = FedAdam if spec.name == "fedadam" else FedYogi
        self._strategy = kind(
            eta=spec.learning_rate, beta_1=spec.beta_1, beta_2=spec.beta_2, tau=spec.tau
        )
        self._restore(state or {})

    def step(
        self, *, round_number: int, base: NDArray[np.float32], change: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The next weights [P].

        Args:
            round_number: 1 for the first round; the bias correction of the adaptive optimisers counts rounds.
            base: weights that the sites started from [P].
            change: weighted mean of the sites' changes [P].

        Raises:
            AggregationError: the result has another length or is not finite; the moments are as before.
        """
        moments = self.state()
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            weights = self._aggregate(round_number, base, change)
        if weights.shape != base.shape or not np.isfinite(weights).all():
            self._restore(moments)
            raise AggregationError(
                f"Round {round_number}: {type(self._strategy).__name__} returned weights of shape {weights.shape} "
                f"(base {base.shape}), all finite: {bool(np.isfinite(weights).all())}. The round is aborted."
            )
        return weights

    def _aggregate(
        self, round_number: int, base: NDArray[np.float32], change: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        if isinstance(self._strategy, FedAdam | FedYogi):
            # What Flower's configure_train would have remembered when it sent the base model.
            self._strategy.current_arrays = {WEIGHTS: base}
        arrays, _ = self._strategy.aggregate_train(round_number, [_as_reply(base + change)])
        if arrays is None:
            raise AggregationError(
                f"Round {round_number}: {type(self._strategy).__name__} returned no weights."
            )
        return np.asarray(arrays[WEIGHTS].numpy(), np.float32)

    def _restore(self, moments: Mapping[str, NDArray[np.float32]]) -> None:
        if isinstance(self._strategy, FedAdam | FedYogi):
            self._strategy.m_t = {WEIGHTS: moments["first_moment"]} if moments else None
            self._strategy.v_t = {WEIGHTS: moments["second_moment"]} if moments else None

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Moments to keep with the round; empty for FedAvg."""
        if (
            not isinstance(self._strategy, FedAdam | FedYogi)
            or not self._strategy.m_t
            or not self._strategy.v_t
        ):
            return {}
        return {
            "first_moment": np.asarray(self._strategy.m_t[WEIGHTS], np.float32),
            "second_moment": np.asarray(self._strategy.v_t[WEIGHTS], np.float32),
        }


def save_moments(moments: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The moments as the bytes of a safetensors file."""
    return bytes(save(dict(moments)))


def load_moments(path: Path) -> dict[str, NDArray[np.float32]]:
    """The moments in a file that `save_moments` made.

    Raises:
        AggregationError: another file.
    """
    try:
        moments: dict[str, NDArray[np.float32]] = load_file(path)
    except SafetensorError as error:
        raise AggregationError(
            f"{path} holds no moments of a server optimiser: {error}. Restore it from a backup."
        ) from error
    if sorted(moments) != sorted(MOMENTS):
        raise AggregationError(
            f"{path} holds {sorted(moments)} instead of {sorted(MOMENTS)}. Restore it from a backup."
        )
    return moments


def _as_reply(weights: NDArray[np.float32]) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({WEIGHTS: Array(weights)}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content=content, dst_node_id=0, message_type=MessageType.TRAIN)
