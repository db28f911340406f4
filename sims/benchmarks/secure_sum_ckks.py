"""Lines of `sims bench secure-sum` about CKKS: sealing, bytes, partial decryption, error, and a small model's uplink."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.key_store import KeyStore, MemoryKeyStore
from privacy.secagg.plan import Scheme, SumPlan, sum_threshold
from sims.benchmarks.benchmark import Comparison, Figure
from sims.benchmarks.driven_sum import DrivenSum, drive_sum, site_names
from sims.benchmarks.nvflare_vectors import MLP_TENSORS, SLOTS, NvflareVectors
from sims.benchmarks.secure_sum_workload import (
    Progress,
    Workload,
    beside,
    least_seconds,
    million_seconds,
    promised,
)

SITES = 5
NVFLARE = "TenSEAL as NVIDIA FLARE uses it"
SEAL_SECONDS, LIGHT_SEAL_SECONDS = 1.0, 1 / 3
"""For a million values."""
VALUE_BYTES, LIGHT_VALUE_BYTES = 59.0, 15.5
PARTIAL_SECONDS = 0.0025
LARGEST_ERROR = 1e-5
UPLINK_AIM = 1 / 10
GRID = 2.0**-20
"""Values on it are whole steps of the encoding, so that nothing is rounded and the error is the scheme's alone."""


def compare_ckks(workload: Workload, progress: Progress) -> Iterator[Comparison]:
    """All lines about CKKS."""
    count = workload.ckks_values
    progress(f"TenSEAL, {count:,} values")
    peer, peer_bytes = _peer(workload)
    for scheme in ("ckks", "ckks-light"):
        progress(f"{scheme}, {SITES} sites, {count:,} values")
        vectors = _vectors(count)
        driven = _steady_sum(scheme, vectors)
        yield from _sealing(scheme, driven, count, peer, peer_bytes)
        if scheme == "ckks":
            yield _partial_decryption(driven, count)
        yield _error(scheme, driven, vectors)
    progress("uplink of a small model")
    yield from _uplink()


def _peer(workload: Workload) -> tuple[Figure, Figure]:
    """Seconds for a million values and bytes a value; one tensor, so its packing costs nothing here."""
    client = NvflareVectors()
    tensor = np.linspace(-1.0, 1.0, workload.ckks_values)
    found = least_seconds({"seal": lambda: client.seal(tensor)}, workload.repetitions)["seal"]
    size = len(client.seal(tensor)) / workload.ckks_values
    return million_seconds(found, workload.ckks_values, "one tensor"), Figure(value=size)


def _steady_sum(scheme: Scheme, vectors: Mapping[str, NDArray[np.float64]]) -> DrivenSum:
    """The second sum of a cohort: where a key serves many sums, it was dealt in the first."""
    stores: dict[str, KeyStore] = {site: MemoryKeyStore() for site in vectors}
    plan = ckks_plan(scheme, sites=len(vectors), dimension=len(next(iter(vectors.values()))))
    drive_sum(plan, vectors, stores)
    return drive_sum(plan, vectors, stores)


def _sealing(
    scheme: Scheme, driven: DrivenSum, count: int, peer: Figure, peer_bytes: Figure
) -> Iterator[Comparison]:
    is_light = scheme == "ckks-light"
    taken = driven.site_seconds["share"] + driven.site_seconds["seal"]
    ours = million_seconds(taken, count, "dealing, rounding and signatures included")
    limit = LIGHT_SEAL_SECONDS if is_light else SEAL_SECONDS
    what = f"{scheme}: sealing a million values"
    yield promised(what, "s", ours, limit, f"{1 / limit:g} million values/s")
    yield beside(what, "s", ours, NVFLARE, peer)
    sent = Figure(value=driven.site_bytes["seal"] / count, note="a sealed vector, framing included")
    most = LIGHT_VALUE_BYTES if is_light else VALUE_BYTES
    what = f"{scheme}: bytes a value of a sealed vector"
    yield promised(what, "B", sent, most, f"{most:g} B")
    yield beside(what, "B", sent, NVFLARE, peer_bytes)


def _partial_decryption(driven: DrivenSum, count: int) -> Comparison:
    return promised(
        f"ckks: one site's partial decryption of {SLOTS} values",
        "s",
        Figure(
            value=driven.site_seconds["release"] * SLOTS / count,
            note=f"flooding and signatures included; {driven.site_bytes['release'] / count:.3g} B a value",
        ),
        PARTIAL_SECONDS,
        f"{PARTIAL_SECONDS * 1000:g} ms",
    )


def _error(
    scheme: Scheme, driven: DrivenSum, vectors: Mapping[str, NDArray[np.float64]]
) -> Comparison:
    exact = sum(vectors[site] for site in driven.result.sites)
    return promised(
        f"{scheme}: largest error of a sum of values in [-1, 1]",
        "1",
        Figure(value=float(abs(driven.result.values - exact).max()), note=f"{SITES} sites"),
        LARGEST_ERROR,
        f"{LARGEST_ERROR:g}",
    )


def _uplink() -> Iterator[Comparison]:
    client = NvflareVectors()
    tensors = [np.linspace(-1.0, 1.0, size) for size in MLP_TENSORS]
    baseline = Figure(value=client.uplink(tensors), note="a context with every tensor")
    for scheme in ("ckks", "ckks-light"):
        driven = _steady_sum(scheme, _vectors(sum(MLP_TENSORS)))
        sent = sum(driven.site_bytes.values())
        yield beside(
            f"{scheme}: bytes that a site sends in a round, {sum(MLP_TENSORS):,} parameters",
            "B",
            Figure(value=sent, note=f"{SITES} sites, all legs, key dealt before if it is kept"),
            NVFLARE,
            baseline,
            UPLINK_AIM,
        )


def _vectors(count: int) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(1)
    return {
        site: np.rint(rng.uniform(-0.9, 0.9, count) / GRID) * GRID for site in site_names(SITES)
    }


def ckks_plan(scheme: Scheme, *, sites: int, dimension: int) -> SumPlan:
    """A plan for exactly so many sites, values in [-1, 1]."""
    return SumPlan(
        scheme=scheme,
        dimension=dimension,
        max_sites=sites,
        quorum=2,
        threshold=sum_threshold(scheme, sites),
        value_range=1.0,
    )
