"""A child of the privacy benchmark: how much memory steps of training add to a process that has loaded everything.

Run as `python -m sims.benchmarks.dp_memory SIZE KIND DEVICE`, the size as JSON; prints the bytes.
"""

import sys

import torch
from pydantic import TypeAdapter

from privacy.dp.clipping import PlainSum, clipped_sum
from sims.benchmarks.dp_workload import CLIPPING_NORM, RULES, Size, Workload, loss
from sims.benchmarks.memory import peak_bytes

STEPS = 3


def added_bytes(size: str, kind: str, device: str) -> int:
    """Peak after some steps less peak before them: resident pages (proc(5)), or an accelerator's own count."""
    torch.set_num_threads(1)
    workload = Workload.of(TypeAdapter(Size).validate_json(size), device)
    clipped = clipped_sum(workload.model, loss, clipping_norm=CLIPPING_NORM, rules=RULES)
    plain = PlainSum(workload.model, loss)
    with clipped as gradient_sum:
        before = _peak(device)
        for _ in range(STEPS):
            chosen = plain if kind == "plain" else gradient_sum
            chosen(workload.inputs, workload.labels)
        return _peak(device) - before


def _peak(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


if __name__ == "__main__":
    print(added_bytes(*sys.argv[1:]))  # noqa: T201 - the answer
