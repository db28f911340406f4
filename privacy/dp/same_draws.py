"""Random draws that are the same for every record, so that two runs of a model can be compared record by record.

Noise in a model, such as dropout or Gumbel noise on router scores, is drawn for a whole batch at once: with another
number of records, each record gets other noise, and no comparison would be possible. While `SameDraws` is active, each
draw begins at the generator's state of the beginning and is made for one row of the first dimension, then repeated for
the others. What a record is given then depends neither on its place nor on who else is there. That is a fair trial
wherever noise does not depend on data; draws from data (`multinomial`) are made row by row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# B rows of the first dimension

ROW_BY_ROW = frozenset(
    f"aten::{name}"
    for name in (
        "bernoulli",
        "binomial",
        "multinomial",
        "native_dropout",
        "normal",
        "poisson",
        "rand_like",
        "randint_like",
        "randn_like",
    )
)
FACTORIES = frozenset({"aten::rand", "aten::randn", "aten::randint", "aten::normal"})


class SameDraws(TorchDispatchMode):
    """A context; when it ends, all generators are in the state in which they were first met."""

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[torch.Generator, Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for generator, state in self._states.items():
            generator.set_state(state)

    def __torch_dispatch__(
        self,
        operator: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Makes the random operators repeat themselves; all others run as they are."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in operator.tags:
            return operator(*args, **kwargs)
        name, first = operator._schema.name, args[0] if args else None
        if isinstance(first, Tensor):
            if first.dim() == 0 or not (operator._schema.is_mutable or name in ROW_BY_ROW):
                return self._draw(operator, first.device, args, kwargs)
            return self._row_by_row(operator, args, kwargs)
        place = next((i for i, value in enumerate(args) if isinstance(value, Sequence)), None)
        if name in FACTORIES and place is not None and len(args[place]) > 0:
            return self._one_row(operator, place, args, kwargs)
        return self._draw(operator, _device(kwargs), args, kwargs)

    def _row_by_row(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = len(args[0])
        drawn = [
            self._draw(operator, args[0].device, _row(args, row, rows), kwargs)
            for row in range(rows)
        ]
        if operator._schema.is_mutable:
            return args[0]
        if rows == 0:
            return operator(*args, **kwargs)
        if isinstance(drawn[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))
        return torch.cat(drawn)

    def _one_row(
        self, operator: Any, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        size = list(args[place])
        one = (*args[:place], [min(1, size[0]), *size[1:]], *args[place + 1 :])
        drawn: Tensor = self._draw(operator, _device(kwargs), one, kwargs)
        return drawn.expand(size).contiguous()

    def _draw(
        self, operator: Any, device: torch.device, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        generator = kwargs.get("generator") or _default_generator(device)
        state = self._states.setdefault(generator, generator.get_state())
        generator.set_state(state)
        return operator(*args, **kwargs)


def _row(args: tuple[Any, ...], row: int, rows: int) -> tuple[Any, ...]:
    """The arguments of one row: slices of tensors that have as many rows as the first."""
    return tuple(
        value[row : row + 1]
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        else value
        for value in args
    )


def _device(kwargs: dict[str, Any]) -> torch.device:
    return torch.device(kwargs.get("device") or "cpu")


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
