"""The plain Flower app in Flower's Ray simulation: `python -m sims.benchmarks.plain_flower.simulation SITES`."""

import sys

from flwr.simulation import run_simulation

from sims.benchmarks.plain_flower.client_app import app as client_app
from sims.benchmarks.plain_flower.server_app import app as server_app

if __name__ == "__main__":
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=int(sys.argv[1]),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
