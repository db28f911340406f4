"""OpenDP's exact sampler of discrete Gaussian noise, where it is installed (the extra `opendp`)."""

import importlib
import time

from sims.benchmarks.benchmark import Absent, Figure

MILLION = 1_000_000


def opendp_seconds_per_million(deviation: float, count: int = 20_000) -> Figure | Absent:
    """Processor time for a million numbers, from `count` of them.

    Args:
        deviation: of the noise on integers.
        count: numbers to noise.
    """
    try:
        opendp = importlib.import_module("opendp.prelude")
    except ImportError:
        return Absent(reason="opendp is not installed (pip install opendp)")
    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
    noise = opendp.m.make_gaussian(*space, scale=deviation)
    values = [0] * count
    noise(values)
    started = time.process_time()
    noise(values)
    found = time.process_time() - started
    return Figure(value=found * MILLION / count, note=f"{count} numbers")
