import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import phe
import pytest
from rich.console import Console

from privacy.secagg.key_store import KeyStore, MemoryKeyStore
from privacy.secagg.plan import Scheme
from sims.bench_cli import SECURE_SUM_SKIPPABLE
from sims.benchmarks.benchmark import Absent, Comparison, print_benchmark
from sims.benchmarks.driven_sum import drive_sum, site_names
from sims.benchmarks.flower_masks import FlowerUnmasking, draw_mask, masked_vector_bytes
from sims.benchmarks.nvflare_vectors import MLP_TENSORS, NvflareVectors
from sims.benchmarks.phe_numbers import inner_products, measure_phe
from sims.benchmarks.secure_sum import PARTS, Options, measure_secure_sum
from sims.benchmarks.secure_sum_ckks import ckks_plan
from sims.benchmarks.secure_sum_mask import mask_plan
from sims.benchmarks.secure_sum_workload import FULL, QUICK, least_seconds, million_seconds

TINY = replace(
    QUICK,
    parameters=5000,
    generator_values=2000,
    neighbours=4,
    unmask_sites=3,
    unmask_parameters=20,
    ckks_values=4096,
    paillier_values=127 * 3,
    phe_numbers=2,
    products=2,
    noise_values=2000,
    opendp_values=20,
    memory_sites=4,
    few_memory_sites=3,
    repetitions=1,
)


@pytest.fixture(autouse=True)
def quiet_flower() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def measured(part: str) -> list[Comparison]:
    options = Options(workload=TINY, skipped=frozenset(PARTS) - {part})
    return list(measure_secure_sum(options, progress=print).results)


def by_promise(lines: list[Comparison]) -> list[tuple[str, float | None]]:
    return [(line.unit, line.aim) for line in lines]


def test_flower_unmasks_the_mean_of_what_its_clients_sent() -> None:
    values = np.linspace(-1.0, 1.0, 50)
    mean = FlowerUnmasking(clients=4, threshold=3, values=values).run()
    # Half a step of its quantiser, and what stochastic rounding may add.
    np.testing.assert_allclose(mean, values, atol=2 * 16.0 / 2**22)


def test_flower_draws_masks_of_its_own_size() -> None:
    mask = draw_mask(bytes(32), 1000)
    assert mask.shape == (1000,)
    assert 0 <= mask.min() < mask.max() < 1 << 32
    assert masked_vector_bytes(1000) >= 8 * 1000


def test_nvflare_sends_a_context_with_every_tensor() -> None:
    client = NvflareVectors()
    tensors = [np.zeros(size) for size in MLP_TENSORS]
    one = client.uplink(tensors[-1:])
    assert sum(MLP_TENSORS) == 4066
    assert client.uplink(tensors) == pytest.approx(len(tensors) * one, rel=0.01)
    assert one > 800_000


def test_tenseal_prints_nothing_where_the_one_object_goes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert len(NvflareVectors().seal(np.zeros(5000))) > 2 * 200_000
    assert capfd.readouterr().out == ""


def test_inner_products_under_phe_are_the_plain_ones() -> None:
    public, private = phe.generate_paillier_keypair(n_length=256)
    encrypted = [public.encrypt(value) for value in (3, 5, 7)]
    products = inner_products(np.array([[10, 1, 2], [1, 0, 1]]), encrypted)
    assert [private.raw_decrypt(product) for product in products] == [49, 10]


def test_phe_is_timed_in_every_operation() -> None:
    public, private = phe.generate_paillier_keypair(n_length=256)
    times = measure_phe(public, private, numbers=3)
    assert min(times.encrypt, times.decrypt, times.add) > 0.0
    assert times.number_bytes == 64


@pytest.mark.slow
def test_paillier_stands_beside_phe_and_beside_what_was_promised() -> None:
    lines = measured("paillier")
    assert [line.aim for line in lines] == [1.0, None] * 5 + [1 / 4]
    assert all(line.ours.value > 0 and line.ratio is not None for line in lines)
    assert [line.unit for line in lines] == ["s"] * 8 + ["B"] * 2 + ["s"]


@pytest.mark.parametrize("scheme", ["ckks", "ckks-light"])
def test_a_driven_sum_is_the_sum_and_knows_what_was_sent(scheme: Scheme) -> None:
    plan = ckks_plan(scheme, sites=3, dimension=100)
    vectors = dict.fromkeys(site_names(3), np.full(100, 0.25))
    driven = drive_sum(plan, vectors)
    np.testing.assert_allclose(driven.result.values, 0.75, atol=1e-5)
    assert driven.site_bytes["seal"] > 4 * 100
    assert all(seconds > 0.0 for seconds in driven.site_seconds.values())


def test_a_second_sum_with_kept_keys_sends_no_shares() -> None:
    plan = ckks_plan("ckks", sites=3, dimension=100)
    vectors = dict.fromkeys(site_names(3), np.zeros(100))
    stores: dict[str, KeyStore] = {site: MemoryKeyStore() for site in vectors}
    first, second = drive_sum(plan, vectors, stores), drive_sum(plan, vectors, stores)
    assert second.site_bytes["share"] < 1000 < first.site_bytes["share"]


def test_a_masked_sum_sends_the_bits_of_its_plan() -> None:
    plan = mask_plan(sites=5, dimension=100_000)
    driven = drive_sum(plan, dict.fromkeys(site_names(5), np.zeros(100_000)))
    assert driven.site_bytes["seal"] / 100_000 == pytest.approx((24 + 3) / 8, rel=0.01)


def test_masks_stand_beside_flower_and_beside_what_was_promised() -> None:
    lines = measured("mask")
    aims = [line.aim for line in lines if line.baseline_name.startswith("Flower")]
    assert aims == [1 / 5, None, None]
    assert [line.aim for line in lines if "Flower" not in line.baseline_name] == [1.0] * 5
    assert all(line.ours.value > 0 and line.ratio is not None for line in lines)


def test_both_kinds_of_ckks_stand_beside_nvflare_and_beside_what_was_promised() -> None:
    lines = measured("ckks")
    beside = [line for line in lines if "NVIDIA" in line.baseline_name]
    assert [line.aim for line in beside] == [None, None, None, None, 0.1, 0.1]
    assert sum("error" in line.what for line in lines) == 2
    assert sum("partial decryption" in line.what for line in lines) == 1
    assert all(line.ratio is not None for line in lines)


def test_noise_stands_beside_opendp_and_beside_what_was_promised() -> None:
    lines = measured("noise")
    assert by_promise(lines) == [("s", 1.0), ("s", None)] * 2
    opendp = [line.baseline for line in lines[1::2]]
    assert all(isinstance(figure, Absent) or figure.value > 0 for figure in opendp)


@pytest.mark.slow
@pytest.mark.processes
def test_memory_is_measured_in_a_process_of_the_coordinator() -> None:
    beside_the_sum, beside_few = measured("memory")
    assert by_promise([beside_the_sum, beside_few]) == [("MB", 1.0), ("MB", 1.1)]
    assert beside_few.baseline_name == "the same with 3 sites"
    assert beside_the_sum.ours.value > 0


def test_works_take_turns_and_the_first_turn_does_not_count() -> None:
    turns: list[str] = []
    least_seconds({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 2)
    assert turns == ["a", "b"] * 3


def test_a_rate_is_given_as_seconds_of_a_million_values() -> None:
    figure = million_seconds(2.0, 4_000_000, "twice")
    assert figure.value == 0.5
    assert figure.note == "2e+06 values/s; twice"


def test_the_full_size_is_that_of_the_promise() -> None:
    assert (FULL.parameters, FULL.neighbours, FULL.unmask_sites) == (10_000_000, 100, 60)
    assert (FULL.memory_sites, FULL.noise_values) == (20, 10_000_000)


def test_the_command_knows_all_parts() -> None:
    assert set(SECURE_SUM_SKIPPABLE) == set(PARTS)


def test_the_table_has_every_line() -> None:
    lines = measure_secure_sum(
        Options(workload=TINY, skipped=frozenset(PARTS) - {"noise"}), progress=print
    )
    out = io.StringIO()
    print_benchmark(lines, Console(file=out, width=200))
    assert out.getvalue().count("OpenDP") >= 2


@pytest.mark.slow
def test_the_command_prints_one_json_object() -> None:
    skips = [word for name in SECURE_SUM_SKIPPABLE if name != "ckks" for word in ("--skip", name)]
    command = (sys.executable, "-m", "sims.cli", "bench", "secure-sum", "--quick", "--json", *skips)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["name"] == "secure-sum"
    assert {"what", "ours", "baseline", "ratio", "aim", "met"} <= set(result["results"][0])


def test_the_command_refuses_what_it_does_not_know() -> None:
    command = (sys.executable, "-m", "sims.cli", "bench", "secure-sum", "--skip", "nothing")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "none of" in done.stderr
