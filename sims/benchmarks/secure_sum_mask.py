"""Lines of `sims bench secure-sum` about masks: generator, one site, the coordinator, bytes, and the unmasking."""

import secrets
from collections.abc import Iterator

import numpy as np

from privacy.secagg.integer_parts import IntegerParts
from privacy.secagg.masking import KEY_BYTES, apply_streams
from privacy.secagg.plan import SumPlan, smallest_threshold
from sims.benchmarks.benchmark import Comparison, Figure
from sims.benchmarks.driven_sum import DrivenSum, drive_sum, site_names
from sims.benchmarks.flower_masks import (
    SEED_BYTES,
    FlowerUnmasking,
    draw_mask,
    masked_vector_bytes,
)
from sims.benchmarks.secure_sum_workload import (
    Progress,
    Workload,
    beside,
    least_seconds,
    million_seconds,
    promised,
    seconds_of,
)

GENERATOR_AIM = 1 / 5
NEIGHBOURS_AT_ONCE = 10
"""Streams of which the generator line takes the mean: a site has as many at least."""
SITE_SECONDS = 0.7
COORDINATOR_SECONDS = 0.01
"""For ten million parameters, both."""
AIMED_PARAMETERS = 10_000_000
BYTES_MARGIN = 1.01
UNMASK_SECONDS = 0.1
SUMMED_SITES = 5
VALUE_BITS = 24
FLOWER = "Flower SecAgg+"


def compare_masks(workload: Workload, progress: Progress) -> Iterator[Comparison]:
    """All lines about masks."""
    progress("mask generators")
    yield _generators(workload)
    progress(f"a site with {workload.neighbours} neighbours")
    yield _site(workload)
    progress(f"{SUMMED_SITES} sites, {workload.parameters:,} parameters")
    yield from _coordinator(workload)
    progress(f"unmasking with {workload.unmask_sites} sites")
    yield from _unmasking(workload)


def _generators(workload: Workload) -> Comparison:
    count = workload.generator_values
    vector = np.zeros(count, dtype=np.uint32)
    keys = _keys(NEIGHBOURS_AT_ONCE)
    seed = secrets.token_bytes(SEED_BYTES)
    times = least_seconds(
        {
            "ours": lambda: apply_streams(vector, plus=keys, minus=()),
            "flower": lambda: draw_mask(seed, count),
        },
        workload.repetitions,
    )
    ours = times["ours"] / NEIGHBOURS_AT_ONCE
    return beside(
        "mask: a million parameters for one neighbour",
        "s",
        million_seconds(ours, count, "made and added"),
        f"{FLOWER}, its generator alone",
        million_seconds(times["flower"], count),
        GENERATOR_AIM,
    )


def _site(workload: Workload) -> Comparison:
    """One self mask and half of the pair masks on either side of a site's name."""
    vector = np.zeros(workload.parameters, dtype=np.uint32)
    half = workload.neighbours // 2
    plus, minus = _keys(half + 1), _keys(workload.neighbours - half)
    found = least_seconds(
        {"ours": lambda: apply_streams(vector, plus=plus, minus=minus)}, repetitions=2
    )["ours"]
    return promised(
        f"mask: {workload.parameters:,} parameters for {workload.neighbours} neighbours",
        "s",
        Figure(value=found, note="self mask included"),
        _scaled(SITE_SECONDS, workload),
        f"{_scaled(SITE_SECONDS, workload):g} s",
    )


def _coordinator(workload: Workload) -> Iterator[Comparison]:
    plan = mask_plan(sites=SUMMED_SITES, dimension=workload.parameters)
    rng = np.random.default_rng(1)
    vectors = {
        site: rng.uniform(-1.0, 1.0, workload.parameters).astype(np.float32)
        for site in site_names(SUMMED_SITES)
    }
    driven = drive_sum(plan, vectors)
    taken = driven.absorb_seconds["seal"] + driven.close_seconds["release"]
    limit = _scaled(COORDINATOR_SECONDS, workload)
    yield promised(
        f"mask: the coordinator's work for one site, {workload.parameters:,} parameters",
        "s",
        Figure(value=taken / SUMMED_SITES, note=_coordinator_note(driven)),
        limit,
        f"{limit:g} s",
    )
    yield promised(
        f"mask: of this, adding and unmasking alone, {workload.parameters:,} parameters",
        "s",
        Figure(value=_adding_seconds(plan)),
        limit,
        f"{limit:g} s",
    )
    sent = driven.site_bytes["seal"] / workload.parameters
    least = plan.encoding.modulus_bits / 8
    ours = Figure(
        value=sent, note=f"{SUMMED_SITES} sites, {VALUE_BITS} bits a value, all framing included"
    )
    yield promised(
        "mask: bytes a parameter on the wire",
        "B",
        ours,
        BYTES_MARGIN * least,
        "(bits + log2 of the sites) / 8, and 1 %",
    )
    flower = masked_vector_bytes(workload.parameters) / workload.parameters
    yield beside("mask: bytes a parameter on the wire", "B", ours, FLOWER, Figure(value=flower))


def _coordinator_note(driven: DrivenSum) -> str:
    absorbed, opened = driven.absorb_seconds["seal"], driven.close_seconds["release"]
    return f"{absorbed / SUMMED_SITES:.3g} s to check, spool, unpack and add, {opened / SUMMED_SITES:.3g} s to unmask"


def _adding_seconds(plan: SumPlan) -> float:
    """Unpack and add one sealed vector, and take one self mask off."""
    parts = IntegerParts(dimension=plan.dimension, bits=plan.encoding.modulus_bits)
    total = np.zeros(plan.dimension, dtype=np.uint32)
    sealed = [memoryview(part) for part in parts.cut(total)]
    key = _keys(1)

    def add_and_unmask() -> None:
        for index, part in enumerate(sealed):
            parts.add(total, "site-000", index, part)
        apply_streams(total, plus=(), minus=key)

    return least_seconds({"ours": add_and_unmask}, repetitions=3)["ours"]


def _unmasking(workload: Workload) -> Iterator[Comparison]:
    sites, dimension = workload.unmask_sites, workload.unmask_parameters
    plan = mask_plan(sites=sites, dimension=dimension)
    vector = np.linspace(-1.0, 1.0, dimension)
    vectors = dict.fromkeys(site_names(sites), vector)
    driven = drive_sum(plan, vectors)
    ours = Figure(value=driven.close_seconds["release"], note=f"threshold {plan.threshold}")
    flower = FlowerUnmasking(clients=sites, threshold=plan.threshold, values=vector)
    baseline = Figure(value=seconds_of(flower.run), note="nobody dropped out; run once")
    what = f"mask: unmasking a sum of {sites} sites, {dimension:,} parameters"
    yield promised(what, "s", ours, UNMASK_SECONDS, f"{UNMASK_SECONDS:g} s")
    yield beside(what, "s", ours, f"{FLOWER}, its unmask stage", baseline)


def mask_plan(*, sites: int, dimension: int) -> SumPlan:
    """A plan of the scheme `mask` for exactly so many sites, values in [-1, 1]."""
    return SumPlan(
        scheme="mask",
        dimension=dimension,
        max_sites=sites,
        quorum=2,
        threshold=smallest_threshold(sites),
        value_range=1.0,
        value_bits=VALUE_BITS,
    )


def _keys(count: int) -> list[bytes]:
    return [secrets.token_bytes(KEY_BYTES) for _ in range(count)]


def _scaled(seconds: float, workload: Workload) -> float:
    return seconds * workload.parameters / AIMED_PARAMETERS
