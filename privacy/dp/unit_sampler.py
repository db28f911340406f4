"""Poisson samples of units (patients) as batches of their records.

Every unit joins a sample independently, with all its records or none (Abadi et al. 2016, Alg. 1, "lot"). A sample is cut
into batches that fit the memory; the cut depends on the sample alone and changes no sum.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from privacy.randomness import Random

# U units


class UnitSampler:
    """Poisson samples of units, as batches of records that fit the memory; a unit is never split."""

    def __init__(
        self, records: int, units: Tensor | None, *, rate: float, batch_records: int
    ) -> None:
        """Prepares sampling.

        Args:
            records: rows of the table.
            units: whose record each is, int64, ascending from 0 without gaps; None: every record is a unit of its own.
            rate: probability with which each unit joins a sample, in (0, 1].
            batch_records: records of a batch; more only where one unit has more.

        Raises:
            ValueError: units that do not fit.
        """
        self._rate, self._size = rate, batch_records
        if units is None:
            self._records_U = None
            self._units = records
            return
        steps = units.diff(prepend=units.new_zeros(1)) if records else units
        is_ascending = len(units) == records and bool(((steps == 0) | (steps == 1)).all())
        if not is_ascending or (records and units[0] != 0):
            raise ValueError(
                "Expected units as one ascending number per record, from 0 without gaps."
            )
        self._records_U = torch.bincount(units)
        self._starts_U = self._records_U.cumsum(0) - self._records_U
        self._units = len(self._records_U)

    def draw(self, random: Random) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Records of the sampled units, and the unit of each within its batch; nothing for an empty sample."""
        sample = torch.from_numpy(random.poisson_sample(self._units, self._rate))
        if len(sample) == 0:
            return
        if self._records_U is None:
            yield from ((records, None) for records in sample.split(self._size))
            return
        ends = self._records_U[sample].cumsum(0)
        _, sizes = torch.unique_consecutive((ends - 1) // self._size, return_counts=True)
        for batch in sample.split(sizes.tolist()):
            counts = self._records_U[batch]
            owners = torch.arange(len(batch)).repeat_interleave(counts)
            within = torch.arange(len(owners)) - (counts.cumsum(0) - counts)[owners]
            yield self._starts_U[batch][owners] + within, owners
