"""The made-up card holders: the same for the same seed, different from bank to bank, and true to the schema."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from model.schema import load_schema
from sims import data as data_package
from sims.data.credit.population import BANKS, LABEL, Customers, draw_customers
from sims.scenario import read_site_data

SCHEMA = load_schema(Path(data_package.__path__[0]) / "credit" / "schema.toml")
PEOPLE = 40_000


@pytest.fixture(scope="module")
def customers() -> dict[str, Customers]:
    return draw_customers(3, people=PEOPLE)


def labels(customers: Customers) -> np.ndarray:
    return customers.table[LABEL].astype(int).to_numpy()


def test_the_same_seed_draws_the_same_people_and_another_seed_others() -> None:
    first, again, other = (draw_customers(seed, people=200)["harbour"] for seed in (5, 5, 6))

    assert first.table.equals(again.table)
    assert not first.table.equals(other.table)


def test_people_are_shared_out_among_four_banks_of_different_sizes(
    customers: dict[str, Customers],
) -> None:
    assert {bank: len(found.table) for bank, found in customers.items()} == {
        "harbour": 16_000,
        "northern": 12_000,
        "campus": 8_000,
        "traders": 4_000,
    }


def test_about_22_percent_default_and_every_bank_has_its_own_rate(
    customers: dict[str, Customers],
) -> None:
    rates = {bank: labels(found).mean() for bank, found in customers.items()}

    assert np.concatenate([labels(c) for c in customers.values()]).mean() == pytest.approx(
        0.22, abs=0.01
    )
    assert rates == pytest.approx(
        {"harbour": 0.185, "northern": 0.12, "campus": 0.40, "traders": 0.29}, abs=0.02
    )


def test_columns_shift_from_bank_to_bank(customers: dict[str, Customers]) -> None:
    age = {bank: c.table["age"].astype(float).mean() for bank, c in customers.items()}
    own = {bank: (c.table["work"] == "self-employed").mean() for bank, c in customers.items()}
    lost = {bank: (c.table["bill_6"] == "").mean() for bank, c in customers.items()}

    assert age["northern"] - age["campus"] > 15
    assert own["traders"] > 3 * own["northern"]
    assert lost["campus"] > 10 * lost["northern"]


def test_nobody_can_rank_the_people_better_than_an_auc_of_084(
    customers: dict[str, Customers],
) -> None:
    log_odds = np.concatenate([found.log_odds_N for found in customers.values()])
    defaults = np.concatenate([labels(found) for found in customers.values()])

    # The standard error of an AUC over 40 000 people is about 0.002.
    assert roc_auc_score(defaults, log_odds) == pytest.approx(0.84, abs=0.01)


@pytest.mark.parametrize("bank", [bank.name for bank in BANKS])
def test_every_row_fits_the_published_schema(
    tmp_path: Path, customers: dict[str, Customers], bank: str
) -> None:
    data = read_site_data(customers[bank].table, SCHEMA, tmp_path)

    assert data.values_NF.shape == (len(customers[bank].table), 23)
    assert data.ignored_columns == ()
    np.testing.assert_array_equal(data.labels_N, labels(customers[bank]))


def test_the_schema_names_the_columns_of_the_table_in_order(
    customers: dict[str, Customers],
) -> None:
    names = [*(column.name for column in SCHEMA.columns), SCHEMA.label.name]

    assert list(customers["campus"].table.columns) == names


@pytest.mark.parametrize(("seed", "people"), [(-1, 100), (0, 39)])
def test_too_few_people_and_a_negative_seed_are_refused(seed: int, people: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed} .* people={people}"):
        draw_customers(seed, people=people)


def test_no_person_shows_in_the_text_of_a_bank(customers: dict[str, Customers]) -> None:
    assert repr(customers["traders"]) == "Customers()"
