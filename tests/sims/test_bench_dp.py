import json
import subprocess
import sys
from functools import partial

import pytest
import torch

from model.config import ModelConfig
from privacy.dp.clipping import PlainSum, clipped_sum
from sims.bench_cli import DP_SKIPPABLE
from sims.benchmarks.benchmark import Absent, Comparison
from sims.benchmarks.dp import PARTS, Options, measure_dp
from sims.benchmarks.dp_workload import (
    CLIPPING_NORM,
    RULES,
    SIZES,
    Size,
    Workload,
    count_flops,
    loss,
)
from sims.benchmarks.opacus_hooks import OpacusHooks

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

TINY = Size(
    # Without routing noise, so that all engines see the same choices.
    model=ModelConfig(
        width=16,
        layers=2,
        heads=2,
        kv_heads=2,
        experts=4,
        top_k=2,
        expert_width=8,
        gumbel_scale=0.0,
    ),
    columns=3,
    batch=6,
)


def measured(*parts: str) -> list[Comparison]:
    options = Options(
        repetitions=1,
        skipped=frozenset(PARTS) - set(parts),
        offered={"tiny": TINY},
        noise_count=1000,
    )
    return list(measure_dp(options, progress=print).results)


def test_the_baselines_compute_the_same_clipped_sum() -> None:
    workload = Workload.of(TINY, "cpu")
    with clipped_sum(workload.model, loss, clipping_norm=CLIPPING_NORM, rules=RULES) as ours:
        expected = list(ours(workload.inputs, workload.labels).gradients)
    hooks = OpacusHooks(workload.model, loss, clipping_norm=CLIPPING_NORM, batch=TINY.batch)
    found = hooks(workload.inputs, workload.labels)
    hooks.close()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_operations_of_grouped_products_and_attention_are_counted() -> None:
    workload = Workload.of(TINY, "cpu")
    plain = PlainSum(workload.model, loss)
    counted = count_flops(partial(workload.model, workload.inputs))
    tokens, width, inner = TINY.batch * 4, 16, 8
    # The first block's expert rows alone: two of them per token, gate and up, and down.
    assert counted > 2 * 2 * tokens * (width * 2 * inner + inner * width)
    trained = count_flops(partial(plain, workload.inputs, workload.labels))
    assert 2.5 * counted < trained < 3.5 * counted


def test_steps_are_compared_in_operations_and_time() -> None:
    lines = measured("steps")
    assert [line.unit for line in lines] == ["GFLOP", "s", "s"]
    assert [line.aim for line in lines] == [1.25, 1.5, 2.0]
    assert all(line.ours.value > 0 and line.ratio is not None for line in lines)


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own() -> None:
    (line,) = measured("memory")
    assert line.unit == "MB"
    assert line.ours.value >= 0


def test_both_modes_of_opacus_are_baselines() -> None:
    ghost, hooks = measured("opacus")
    assert "ghost" in ghost.baseline_name
    assert "every record" in hooks.baseline_name
    assert ghost.ratio is not None
    assert hooks.ratio is not None


def test_noise_budget_and_accountant_stand_beside_what_was_promised() -> None:
    noise, opendp, budget, accountant = measured("noise", "budget", "accountant")
    assert [line.aim for line in (noise, opendp, budget, accountant)] == [1.0, None, 1.0, 1.0]
    assert isinstance(opendp.baseline, Absent) or opendp.baseline.value > 0
    assert all(line.ours.value > 0 for line in (noise, budget, accountant))


def test_the_command_knows_all_parts_and_sizes() -> None:
    assert set(DP_SKIPPABLE) == {*PARTS, *SIZES}


@pytest.mark.slow
def test_the_command_prints_one_json_object() -> None:
    kept = {"accountant"}
    skips = [part for name in DP_SKIPPABLE if name not in kept for part in ("--skip", name)]
    command = (sys.executable, "-m", "sims.cli", "bench", "dp", "--repetitions", "1", *skips)
    done = subprocess.run((*command, "--json"), capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["name"] == "dp"
    assert [line["baseline_name"] for line in result["results"]] == ["1 s"]


def test_the_command_refuses_what_it_does_not_know() -> None:
    command = (sys.executable, "-m", "sims.cli", "bench", "dp", "--skip", "nothing")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "none of" in done.stderr
