"""`sims bench secure-sum`: speed and size of the secure sums, beside the peers' own code in the same call.

Peers: Flower's SecAgg+ (masks), TenSEAL as NVIDIA FLARE uses it (CKKS), phe with gmpy2 (Paillier), OpenDP (noise). What a
site and the coordinator do is measured in whole sums of the product's own parts, with all framing and signatures; times
are processor time of one thread. A promise that is no ratio stands as a baseline of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sims.benchmarks.benchmark import Benchmark, Comparison, describe_machine
from sims.benchmarks.secure_sum_ckks import compare_ckks
from sims.benchmarks.secure_sum_mask import compare_masks
from sims.benchmarks.secure_sum_memory import compare_memory
from sims.benchmarks.secure_sum_noise import compare_noise
from sims.benchmarks.secure_sum_paillier import compare_paillier
from sims.benchmarks.secure_sum_workload import FULL, Progress, Workload

Compare = Callable[[Workload, Progress], Iterator[Comparison]]
PARTS: dict[str, Compare] = {
    "mask": compare_masks,
    "ckks": compare_ckks,
    "paillier": compare_paillier,
    "noise": compare_noise,
    "memory": compare_memory,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    workload: Workload = FULL
    skipped: frozenset[str] = frozenset()
    """Names of `PARTS` to leave out."""


def measure_secure_sum(options: Options, progress: Progress) -> Benchmark:
    """Measures all that is asked for, one after the other."""
    machine = describe_machine()
    results: list[Comparison] = []
    for name, compare in PARTS.items():
        if name not in options.skipped:
            results.extend(compare(options.workload, progress))
    return Benchmark(name="secure-sum", machine=machine, results=tuple(results))
