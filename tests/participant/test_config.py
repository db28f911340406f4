from datetime import date
from pathlib import Path

import pytest

from participant.config import (
    POLICY_TEMPLATE,
    SITE_TEMPLATE,
    BudgetContract,
    load_site,
    require_delta_fits,
)
from participant.errors import ConfigError, ContractError
from participant.policy import load_policy

SITE_TOML = SITE_TEMPLATE.substitute(
    site="st-anna", gateway="fl.example.org:8443", exchange="fl.example.org:8444", data_set="heart"
)


def write(home: Path, text: str) -> Path:
    (home / "site.toml").write_text(text, encoding="utf-8")
    return home


def test_template_of_join_loads_and_resolves_paths(tmp_path: Path) -> None:
    config = load_site(write(tmp_path, SITE_TOML))

    assert (config.site, config.gateway, config.exchange) == (
        "st-anna",
        "fl.example.org:8443",
        "fl.example.org:8444",
    )
    assert config.data.path == tmp_path / "patients.csv"
    assert config.schema == tmp_path / "schema.toml"
    assert (config.budget.data_set, config.budget.epsilon, config.budget.delta) == (
        "heart",
        8.0,
        1e-5,
    )
    assert config.budget == BudgetContract(data_set="heart", epsilon=8.0, delta=1e-5)
    assert (config.training.dp_engine, config.budget.unit) == ("bookkeeping", "patient")


def test_settings_that_the_template_only_mentions_can_be_switched_on(tmp_path: Path) -> None:
    text = SITE_TOML
    for setting in ("valid_until", "honest_sites", "rdp_order"):
        text = text.replace(f"# {setting} =", f"{setting} =")

    contract = load_site(write(tmp_path, text)).budget

    assert contract.valid_until == date(2027, 12, 31)
    assert (contract.honest_sites, contract.rdp_order) == (2, 4.0)


def test_customers_and_opacus_can_be_chosen(tmp_path: Path) -> None:
    text = SITE_TOML.replace('unit = "patient"', 'unit = "customer"').replace(
        'dp_engine = "bookkeeping"', 'dp_engine = "opacus"'
    )

    config = load_site(write(tmp_path, text))

    assert (config.budget.unit, config.training.dp_engine) == ("customer", "opacus")


@pytest.mark.parametrize(("delta", "patients"), [(1e-5, 10_000), (1e-3, 100), (1e-5, 0)])
def test_delta_of_a_tenth_of_one_in_the_number_of_patients_fits(
    delta: float, patients: int
) -> None:
    require_delta_fits(BudgetContract(data_set="heart", epsilon=8.0, delta=delta), patients)


@pytest.mark.parametrize(("delta", "patients"), [(1e-5, 10_001), (1e-3, 303)])
def test_larger_delta_is_refused_and_the_figure_stays_at_the_site(
    delta: float, patients: int
) -> None:
    contract = BudgetContract(data_set="heart", epsilon=8.0, delta=delta)

    with pytest.raises(ContractError) as caught:
        require_delta_fits(contract, patients)

    assert not any(character.isdigit() for character in str(caught.value))
    assert f"{patients} patients" in caught.value.local_message


@pytest.mark.parametrize(("epsilon", "warnings"), [(0.5, 0), (8.0, 0), (8.5, 1), (16.0, 1)])
def test_epsilon_above_8_is_warned_of(epsilon: float, warnings: int) -> None:
    contract = BudgetContract(data_set="heart", epsilon=epsilon, delta=1e-5)

    assert len(contract.warnings) == warnings


def test_policy_template_of_join_loads_with_its_defaults(tmp_path: Path) -> None:
    digest = "ab" * 32
    (tmp_path / "policy.toml").write_text(POLICY_TEMPLATE.substitute(bundles=f'"{digest}"'))

    policy = load_policy(tmp_path)

    assert policy.bundles == (digest,)
    assert policy == type(policy)(bundles=(digest,))


def test_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    text = SITE_TOML.replace('"patients.csv"', '"/srv/heart.csv"')

    assert load_site(write(tmp_path, text)).data.path == Path("/srv/heart.csv")


def test_database_with_a_url_file_is_resolved(tmp_path: Path) -> None:
    text = SITE_TOML.replace('kind = "csv" ', 'kind = "database" ').replace(
        'path = "patients.csv"', 'url_file = "database.url"\ntable = "patients"'
    )

    assert load_site(write(tmp_path, text)).data.url_file == tmp_path / "database.url"


def test_missing_file_says_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="participant join"):
        load_site(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('site = "st-anna"', 'site = "St. Anna"', "site:"),
        ("fl.example.org:8443", "fl.example.org", "gateway:"),
        ("epsilon = 8.0", "epsilon = 0.0", "budget.epsilon:"),
        ("epsilon = 8.0", 'epsilon = "8"', "budget.epsilon:"),
        ("epsilon = 8.0", "epsilon = nan", "not finite"),
        ("epsilon = 8.0", "epsilon = inf", "not finite"),
        ("epsilon = 8.0", "epsilon = -1.0", "budget.epsilon:"),
        ("delta = 1e-5", "delta = 0.5", "budget.delta:"),
        ("delta = 1e-5", "delta = 0.0", "budget.delta:"),
        ("delta = 1e-5", "delta = -1e-5", "budget.delta:"),
        ("delta = 1e-5", "delta = 1e-12", "budget.delta:"),
        ('unit = "patient"', 'unit = "visit"', "budget.unit:"),
        ('unit = "patient"', 'adjacency = "replace-one"', "budget.adjacency:"),
        ('unit = "patient"', "rdp_order = 1.0", "budget.rdp_order:"),
        ('unit = "patient"', "honest_sites = 0", "budget.honest_sites:"),
        ('unit = "patient"', 'valid_until = "soon"', "budget.valid_until:"),
        ('dp_engine = "bookkeeping"', 'dp_engine = "fast"', "dp_engine:"),
        ("delta = 1e-5", "", "budget.delta:"),
        ("threads = 1", "threads = 0", "training.threads:"),
        ("threads = 1", "torch_threads = 1", "training.torch_threads:"),
        ('log_level = "info"', 'log_level = "loud"', "log_level:"),
        ('kind = "csv"', 'kind = "excel"', "data.kind:"),
        ('path = "patients.csv"', "", "needs `path`"),
        (
            'path = "patients.csv"',
            'path = "p.csv"\ntable = "x"',
            "no url, url_file, table or query",
        ),
        ('site = "st-anna"', 'site = "st-anna', "is not TOML"),
    ],
)
def test_bad_field_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in SITE_TOML

    with pytest.raises(ConfigError, match=r"site\.toml: ") as caught:
        load_site(write(tmp_path, SITE_TOML.replace(old, new)))

    assert named in str(caught.value)


def test_a_password_in_the_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    text = SITE_TOML.replace('kind = "csv" ', 'kind = "database" ').replace(
        'path = "patients.csv"', 'url = "postgresql://site:hunter2@db/heart"\ntable = "patients"'
    )

    with pytest.raises(ConfigError, match="url_file") as caught:
        load_site(write(tmp_path, text))

    assert "hunter2" not in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_bytes(b'site = "\xff"')

    with pytest.raises(ConfigError, match="is not TOML"):
        load_site(tmp_path)


def test_file_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration"):
        load_site(write(tmp_path, "#" * (1 << 20) + "\n"))


def test_policy_with_an_unknown_clause_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("bundles = []\nmax_epsilons = 1.0\n")

    with pytest.raises(ConfigError, match="max_epsilons"):
        load_policy(tmp_path)


def test_policy_without_bundles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("max_epsilon = 1.0\n")

    with pytest.raises(ConfigError, match="bundles"):
        load_policy(tmp_path)
