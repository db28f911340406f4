"""Records that nobody lived: rows of a table drawn from its published schema alone.

They serve where a model has to be run before, or without, a look at real data: to probe whether records influence each
other, to rehearse an attack, to test. They follow no real distribution, so nothing learnt from them is about anybody.
"""

import torch

from model.schema import CategoryColumn, Column, TableSchema

# C columns

MISSING_SHARE = 0.1
LABEL_SLOPE = 4.0
"""Log-odds per standard deviation of the planted score: labels that can be learnt, though not without error."""


def synthetic_rows(table: TableSchema, count: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of values as the model takes them [count, C], float32.

    Quantities are uniform over the column's range, categories over its codes, all independent; in columns that may be
    missing a tenth of the values is NaN.

    Raises:
        ValueError: a negative count.
    """
    if count < 0:
        raise ValueError(f"Expected count={count} >= 0.")
    uniform_NC = torch.rand(count, len(table.columns), generator=generator)
    is_missing_NC = torch.rand(uniform_NC.shape, generator=generator) < MISSING_SHARE
    is_missing_NC &= torch.tensor([column.nullable for column in table.columns])
    limits = [_limits(column) for column in table.columns]
    low_C, high_C = torch.tensor(limits).unbind(1)
    values_NC = low_C + uniform_NC * (high_C - low_C)
    is_category_C = torch.tensor([isinstance(c, CategoryColumn) for c in table.columns])
    # A draw of 1 - 2^-24 may round up to the number of codes, which is no code.
    codes_NC = values_NC.floor().minimum(high_C - 1.0)
    return torch.where(is_category_C, codes_NC, values_NC).masked_fill_(is_missing_NC, torch.nan)


def synthetic_labels(
    values_NC: torch.Tensor, table: TableSchema, generator: torch.Generator
) -> torch.Tensor:
    """Labels of such rows [count], 0.0 or 1.0 and about as many of each: drawn from a planted linear score."""
    low_C, high_C = torch.tensor([_limits(column) for column in table.columns]).unbind(1)
    places_NC = ((values_NC - low_C) / (high_C - low_C) - 0.5).nan_to_num(nan=0.0)
    weights_C = torch.randn(len(table.columns), generator=generator)
    # A uniform draw has variance 1/12.
    scores_N = places_NC @ weights_C * (12.0**0.5 / weights_C.norm())
    chances_N = torch.sigmoid(LABEL_SLOPE * scores_N)
    return (torch.rand(chances_N.shape, generator=generator) < chances_N).float()


def _limits(column: Column) -> tuple[float, float]:
    """Where values begin and end; of a category, the indices of its codes and the number after the last."""
    if isinstance(column, CategoryColumn):
        return 0.0, float(len(column.categories))
    return column.minimum, column.maximum
