import pytest
import torch
from torch import Tensor

from privacy.dp.unit_sampler import UnitSampler
from privacy.randomness import SeededRandom

# Patients with 1, 3, 1, 5 and 2 records.
UNITS = torch.tensor([0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 4])


def drawn(
    units: Tensor | None, rate: float, size: int, seed: int = 1
) -> list[tuple[Tensor, Tensor | None]]:
    return list(UnitSampler(12, units, rate=rate, batch_records=size).draw(SeededRandom(seed)))


@pytest.mark.parametrize("size", [1, 2, 4, 6, 100])
def test_everybody_s_records_come_once_and_a_patient_is_never_split(size: int) -> None:
    batches = drawn(UNITS, 1.0, size)
    records = torch.cat([records for records, _ in batches])
    assert records.tolist() == list(range(12))
    patients = [set(UNITS[records].tolist()) for records, _ in batches]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 5


@pytest.mark.parametrize("size", [1, 4, 100])
def test_owners_number_the_patients_of_a_batch_from_zero(size: int) -> None:
    for records, owners in drawn(UNITS, 1.0, size):
        assert owners is not None
        _, expected = UNITS[records].unique_consecutive(return_inverse=True)
        assert owners.tolist() == expected.tolist()


def test_a_patient_joins_with_all_records_or_none() -> None:
    for seed in range(20):
        records = [r for batch, _ in drawn(UNITS, 0.5, 3, seed) for r in batch.tolist()]
        assert len(records) == sum(int((u == UNITS).sum()) for u in set(UNITS[records].tolist()))


def test_the_sample_does_not_depend_on_the_size_of_the_batches() -> None:
    small = torch.cat([records for records, _ in drawn(UNITS, 0.5, 2)])
    large = torch.cat([records for records, _ in drawn(UNITS, 0.5, 100)])
    assert small.tolist() == large.tolist()


def test_without_units_every_record_is_a_patient() -> None:
    batches = drawn(None, 1.0, 5)
    assert [len(records) for records, _ in batches] == [5, 5, 2]
    assert all(owners is None for _, owners in batches)


@pytest.mark.parametrize("units", [None, torch.zeros(0, dtype=torch.int64)])
def test_an_empty_table_gives_no_batch(units: Tensor | None) -> None:
    sampler = UnitSampler(0, units, rate=0.5, batch_records=4)
    assert list(sampler.draw(SeededRandom(1))) == []


@pytest.mark.parametrize("units", [[1, 1, 2], [0, 2, 2], [0, 1, 0], [0, 1], [-1, 0, 1]], ids=str)
def test_units_with_gaps_out_of_order_or_of_another_length_are_refused(units: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        UnitSampler(3, torch.tensor(units), rate=0.5, batch_records=4)
