"""ServerApp of the plain Flower baseline: federated averaging as Flower's tutorials write it, with a clock.

It writes the time at which each round was complete; a round is the time between two of them. A round with a failed or
missing reply ends the run, where Flower's own strategy would count it as done.
"""

import json
import time
from collections.abc import Iterable

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sims.benchmarks.plain_flower.task import TIMES_FILE, Settings, new_model, workload_folder

app = ServerApp()


class TimedFedAvg(FedAvg):
    """Federated averaging that notes when each round was complete."""

    def __init__(self, *, sites: int) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=sites,
            min_evaluate_nodes=0,
            min_available_nodes=sites,
        )
        self._sites = sites
        self.completed: list[float] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the replies, and the time.

        Raises:
            RuntimeError: a site failed.
        """
        received = list(replies)
        failed = [reply.error.reason for reply in received if reply.has_error()]
        if failed or len(received) != self._sites:
            raise RuntimeError(
                f"Round {server_round}: {len(received)} of {self._sites} replies, failed: {failed}."
            )
        mean = super().aggregate_train(server_round, received)
        self.completed.append(time.time())
        return mean


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds, then the times; after a failure the times of the rounds before it."""
    folder = workload_folder()
    settings = Settings.read(folder)
    strategy = TimedFedAvg(sites=len(settings.sites))
    start = ArrayRecord(new_model(folder, settings).state_dict())
    try:
        strategy.start(grid=grid, initial_arrays=start, num_rounds=settings.rounds)
    finally:
        written = folder / f"{TIMES_FILE}.part"
        written.write_text(json.dumps(strategy.completed), encoding="utf-8")
        written.rename(folder / TIMES_FILE)
