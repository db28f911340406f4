"""Lines of `sims bench secure-sum` about the noise of distributed differential privacy: one site's share of it."""

from collections.abc import Iterator
from functools import partial

from privacy.dp.noise import DiscreteGaussian
from privacy.randomness import OsRandom
from sims.benchmarks.benchmark import Comparison
from sims.benchmarks.opendp_noise import opendp_seconds_per_million
from sims.benchmarks.secure_sum_workload import (
    Progress,
    Workload,
    beside,
    least_seconds,
    million_seconds,
    promised,
)

DEVIATIONS = (100.0, 10_000.0)
"""In grid steps: a coarse grid, which saves bytes, and a fine one. From 256 on a number has a place in its cell."""
SECONDS_PER_MILLION = 0.01
"""1e8 values a second."""


def compare_noise(workload: Workload, progress: Progress) -> Iterator[Comparison]:
    """Exact discrete Gaussian noise beside what was promised and beside OpenDP's."""
    random = OsRandom()
    for deviation in DEVIATIONS:
        progress(f"discrete Gaussian noise of {deviation:g} steps")
        noise, count = DiscreteGaussian(deviation=deviation), workload.noise_values
        found = least_seconds({"ours": partial(noise.draw, count, random)}, workload.repetitions)
        ours = million_seconds(found["ours"], count, f"{count:,} at once")
        what = f"noise: a million exact discrete Gaussian numbers, deviation {deviation:g}"
        yield promised(what, "s", ours, SECONDS_PER_MILLION, "1e8 values/s")
        opendp = opendp_seconds_per_million(deviation, workload.opendp_values)
        yield beside(what, "s", ours, "OpenDP's exact sampler", opendp)
