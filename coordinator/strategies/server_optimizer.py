"""Server optimisers: Flower's own strategies, fed the securely summed mean as if it were a single site's reply.

The moments of FedAdam and FedYogi are part of a round's result: they are exported after every step and restored
when a run resumes, so that a resumed run is the same run.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from coordinator.errors import AggregationError
from coordinator.run_spec import ServerOptimizerSpec

WEIGHTS = "weights"
MOMENTS = ("first_moment", "second_moment")
BLOCK = 1 << 18
"""Weights handed to Flower at once. The strategies work on each weight by itself, so blocks change nothing but the
memory: Flower copies a reply about six times. At 25 M weights the peak of a round fell from 283 to 239 MB between
2**20 and 2**18; smaller blocks gain little more."""

Strategy = FedAvg | FedAdam | FedYogi
Moments = Mapping[str, NDArray[np.float32]]


class ServerOptimizer:
    """Turns base weights and a mean change into the next weights."""

    def __init__(self, spec: ServerOptimizerSpec, state: Moments | None = None) -> None:
        """Prepares the strategy that `spec` names, with the moments of an earlier round if there are any."""
        self._spec = spec
        self._moments: Moments = dict(state or {})

    def step(
        self, *, round_number: int, base: NDArray[np.float32], change: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The next weights [P].

        Args:
            round_number: 1 for the first round; the bias correction of the adaptive optimisers counts rounds.
            base: weights that the sites started from [P].
            change: weighted mean of the sites' changes [P]; overwritten, its memory becomes the result's.

        Raises:
            AggregationError: the result is not finite; the moments are as before.
        """
        if base.shape != change.shape:
            raise AggregationError(
                f"Round {round_number}: a change of shape {change.shape} does not fit weights of shape {base.shape}."
            )
        weights = change
        moments = {} if self._spec.name == "fedavg" else {m: np.empty_like(change) for m in MOMENTS}
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            for start in range(0, change.size, BLOCK):
                block = slice(start, start + BLOCK)
                strategy = self._strategy(base, block)
                reply = _as_reply(base[block] + change[block])
                arrays, _ = strategy.aggregate_train(round_number, [reply])
                weights[block] = _numbers(arrays)
                for name, values in _moments_of(strategy).items():
                    moments[name][block] = values
        if not np.isfinite(weights).all():
            raise AggregationError(
                f"Round {round_number}: {self._spec.name} returned weights that are not finite. The round is aborted."
            )
        self._moments = moments
        return weights

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Moments to keep with the round; empty for FedAvg."""
        return dict(self._moments)

    def _strategy(self, base: NDArray[np.float32], block: slice) -> Strategy:
        """Flower's strategy as it would stand before this round, for one block of the weights."""
        spec = self._spec
        if spec.name == "fedavg":
            return FedAvg()
        kind = FedAdam if spec.name == "fedadam" else FedYogi
        strategy = kind(
            eta=spec.learning_rate, beta_1=spec.beta_1, beta_2=spec.beta_2, tau=spec.tau
        )
        # What Flower's configure_train would have remembered when it sent the base model.
        strategy.current_arrays = {WEIGHTS: base[block]}
        if self._moments:
            strategy.m_t = {WEIGHTS: self._moments["first_moment"][block]}
            strategy.v_t = {WEIGHTS: self._moments["second_moment"][block]}
        return strategy


def _moments_of(strategy: Strategy) -> Moments:
    if isinstance(strategy, FedAdam | FedYogi) and strategy.m_t and strategy.v_t:
        return {"first_moment": strategy.m_t[WEIGHTS], "second_moment": strategy.v_t[WEIGHTS]}
    return {}


def _numbers(arrays: ArrayRecord | None) -> NDArray[np.float32]:
    if arrays is None:
        raise AggregationError("Flower's strategy returned no weights. The round is aborted.")
    return np.asarray(arrays[WEIGHTS].numpy(), np.float32)


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
    # With its metadata given, a message does not ask which Flower task this process is: baselines run in none.
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=DEFAULT_TTL,
        message_type=MessageType.TRAIN,
    )
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload, no-any-return]
