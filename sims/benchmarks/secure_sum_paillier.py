"""Lines of `sims bench secure-sum` about Paillier."""

from collections.abc import Iterator

from sims.benchmarks.benchmark import Comparison
from sims.benchmarks.secure_sum_workload import Progress, Workload


def compare_paillier(workload: Workload, progress: Progress) -> Iterator[Comparison]:
    """All lines about Paillier."""
    raise NotImplementedError
