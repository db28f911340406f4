"""How much memory one mask sum adds to the coordinator's process, and whether the number of sites matters.

The coordinator is a fresh process; the sites are here, and their frames reach it one by one, as from the network. It
tells by how much its peak (VmHWM, proc(5)) has grown from before the sum to after it. A peak never falls, so nothing in
between is missed.
"""

import multiprocessing
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection

import numpy as np

from privacy.secagg.plan import SumPlan
from privacy.secagg.protocol import LEGS, SumContext
from privacy.secagg.secure_sum import answer_of, coordinator_part
from sims.benchmarks.benchmark import Comparison, Figure
from sims.benchmarks.driven_sum import new_cohort, site_names, site_parts
from sims.benchmarks.memory import peak_bytes
from sims.benchmarks.secure_sum_mask import mask_plan
from sims.benchmarks.secure_sum_workload import Progress, Workload, promised

BYTES_PER_MB = 10**6
SUM_BYTES = 4
"""Of a coordinate in the running sum."""
MOST_SUMS = 2.0
"""The running sum once, and as much again for messages and their pieces."""
GROWTH_MARGIN = 1.1
STOP_SECONDS = 60.0


def compare_memory(workload: Workload, progress: Progress) -> Iterator[Comparison]:
    """Memory of many sites beside the running sum, and beside that of few sites."""
    added = {}
    for sites in (workload.few_memory_sites, workload.memory_sites):
        progress(f"memory of a coordinator with {sites} sites, {workload.parameters:,} parameters")
        added[sites] = added_bytes(sites, workload.parameters) / BYTES_PER_MB
    many, few = workload.memory_sites, workload.few_memory_sites
    ours = Figure(value=added[many], note=f"{many} sites")
    running_sum = SUM_BYTES * workload.parameters / BYTES_PER_MB
    what = f"mask: memory that a sum adds to the coordinator, {workload.parameters:,} parameters"
    yield promised(what, "MB", ours, MOST_SUMS * running_sum, f"{MOST_SUMS:g} running sums")
    yield Comparison(
        what=what,
        unit="MB",
        ours=ours,
        baseline_name=f"the same with {few} sites",
        baseline=Figure(value=added[few]),
        aim=GROWTH_MARGIN,
    )


def added_bytes(sites: int, dimension: int) -> int:
    """By how much the peak of a coordinator's process grows in one sum.

    Raises:
        EOFError: the process ended early.
    """
    plan, names = mask_plan(sites=sites, dimension=dimension), site_names(sites)
    cohort = new_cohort(names)
    parts = site_parts(plan, cohort)
    # Not a fork: a copy of this process would begin with its memory.
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    child = processes.Process(target=_coordinate, args=(plan, cohort.context, cohort.keys, there))
    child.start()
    there.close()
    try:
        values = np.zeros(dimension, dtype=np.float32)
        inbox: dict[str, list[bytes]] = {site: [] for site in names}
        for leg in LEGS:
            for site, frames in inbox.items():
                for frame in answer_of(parts[site], leg, iter(frames), values):
                    here.send((site, frame))
            here.send(None)
            inbox = here.recv()
        return int(here.recv())
    finally:
        here.close()
        child.join(STOP_SECONDS)


def _coordinate(
    plan: SumPlan, context: SumContext, keys: Mapping[str, bytes], sites: Connection
) -> None:
    """The coordinator's process."""
    before = peak_bytes()
    coordinator = coordinator_part(plan, context=context, keys=keys)
    for leg in LEGS:
        while (record := sites.recv()) is not None:
            site, frame = record
            coordinator.absorb(leg, site, frame)
        messages = coordinator.close_leg(leg)
        sites.send({site: list(frames) for site, frames in messages.items()})
    sites.send(peak_bytes() - before)
