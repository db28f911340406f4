"""What both sides of the privacy benchmark do: one step of training on the same model and the same records.

Models are the product's own, on a table of quantities: a CLS token and one token per column. Weights are moved from where
they begin, because a head of zeros sends no gradient into the trunk. The records are drawn and belong to nobody.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from model.build import TabularModel, build_model
from model.config import ModelConfig
from model.gradient_rules import MODEL_RULES
from model.schema import LabelColumn, NumericColumn, TableSchema
from privacy.dp.rules import STANDARD_RULES, LayerRule

RULES: Mapping[type[nn.Module], LayerRule] = {**STANDARD_RULES, **MODEL_RULES}
CLIPPING_NORM = 1.0
MODEL_SEED, RECORD_SEED = 1, 2


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and a batch."""

    model: ModelConfig
    columns: int
    """Of the table; a record has one token more."""
    batch: int
    """Records, each of a patient of its own."""

    @property
    def title(self) -> str:
        """What distinguishes it, for a line of the benchmark."""
        model = self.model
        return f"d={model.width}, {model.experts} experts, T={self.columns + 1}, batch {self.batch}"


SIZES: dict[str, Size] = {
    "d128": Size(
        model=ModelConfig(
            width=128, layers=2, heads=4, kv_heads=4, experts=8, top_k=2, expert_width=256
        ),
        columns=15,
        batch=256,
    ),
    "d256": Size(
        model=ModelConfig(
            width=256, layers=2, heads=8, kv_heads=8, experts=16, top_k=2, expert_width=256
        ),
        columns=15,
        batch=256,
    ),
    "t64": Size(
        model=ModelConfig(
            width=128, layers=2, heads=4, kv_heads=4, experts=8, top_k=2, expert_width=128
        ),
        columns=63,
        batch=256,
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A model and its batch, on a device."""

    model: TabularModel
    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(cls, size: Size, device: str) -> "Workload":
        """The same numbers at every call."""
        model = build_model(size.model, _table(size.columns), seed=MODEL_SEED)
        generator = torch.Generator().manual_seed(RECORD_SEED)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        inputs = torch.rand(size.batch, size.columns, generator=generator)
        labels = (inputs[:, 0] > 0.5).float()
        return cls(model=model.to(device), inputs=inputs.to(device), labels=labels.to(device))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each record."""
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def seconds(work: Callable[[], object], device: str) -> float:
    """Processor time of the work; on an accelerator the time until it is done."""
    if device == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def least_seconds(
    works: Mapping[str, Callable[[], object]], device: str, repetitions: int
) -> dict[str, float]:
    """The least time of each of several works that take turns, after one turn that is not counted.

    What else the machine does adds to a time and never takes from it, so the least is nearest to the truth.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: min(found) for name, found in times.items()}


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products, those included that torch's counter does not know."""
    operators = torch.ops.aten
    unknown = {
        operators._grouped_mm: _grouped_flops,
        operators._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        operators._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        work()
    return int(counter.get_total_flops())


def _grouped_flops(rows: Sequence[int], others: Sequence[int], *_: Any, **__: Any) -> int:
    """Rows [N, I] times [E, I, O], or [I, N] times [N, O] in groups: every row meets one matrix."""
    return 2 * int(rows[0]) * int(rows[1]) * int(others[-1])


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(
    grad: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


def _table(columns: int) -> TableSchema:
    return TableSchema(
        name="benchmark",
        version=1,
        columns=tuple(
            NumericColumn(
                name=f"c{place}",
                unit="1",
                minimum=0.0,
                maximum=1.0,
                bins=(0.0, 0.25, 0.5, 0.75, 1.0),
            )
            for place in range(columns)
        ),
        label=LabelColumn(name="ill", positive_above=0.5),
    )
