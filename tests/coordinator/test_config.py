"""A coordinator's settings: strict, explained by the error, never overwritten."""

from pathlib import Path

import pytest

from coordinator.config import (
    CoordinatorConfig,
    CoordinatorHome,
    free_port,
    load_config,
    reachable_host,
    write_config,
)
from coordinator.errors import ConfigError

PORTS = "gateway_port = 1\nexchange_port = 2\nenrolment_port = 3\n"


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome(folder=tmp_path)


def test_what_was_written_is_read_back(home: CoordinatorHome) -> None:
    config = CoordinatorConfig(
        public_host='quo"te.example',
        bind_host="0.0.0.0",  # noqa: S104
        gateway_port=8443,
        exchange_port=8444,
        enrolment_port=8445,
        ledger_url="postgresql+psycopg://concord@db/ledger",
    )

    write_config(home, config)

    assert load_config(home) == config
    assert home.config_file.stat().st_mode & 0o777 == 0o600


def test_settings_are_never_overwritten(home: CoordinatorHome) -> None:
    config = CoordinatorConfig(gateway_port=1, exchange_port=2, enrolment_port=3)
    write_config(home, config)

    with pytest.raises(FileExistsError):
        write_config(home, config)


def test_by_default_everything_stays_on_this_machine(home: CoordinatorHome) -> None:
    home.config_file.write_text(PORTS)

    config = load_config(home)

    assert (config.public_host, config.bind_host) == ("127.0.0.1", "127.0.0.1")
    assert home.ledger_url(config) == f"sqlite:///{home.folder}/ledger.db"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (PORTS + "surprise = 1\n", "surprise"),
        ("gateway_port = 1\n", "exchange_port"),
        (PORTS.replace("= 1", "= 70000"), "gateway_port"),
        (PORTS.replace("= 1", '= "high"'), "gateway_port"),
        (PORTS + 'public_host = ""\n', "public_host"),
        ("not toml", "coordinator.toml"),
    ],
)
def test_a_wrong_setting_is_named(home: CoordinatorHome, text: str, named: str) -> None:
    home.config_file.write_text(text)

    with pytest.raises(ConfigError, match=named):
        load_config(home)


def test_a_missing_home_says_how_to_make_one(home: CoordinatorHome) -> None:
    with pytest.raises(ConfigError, match="coordinator init --home"):
        load_config(home)


def test_a_wildcard_address_is_reached_over_loopback() -> None:
    assert reachable_host("0.0.0.0") == "127.0.0.1"  # noqa: S104
    assert reachable_host("192.0.2.7") == "192.0.2.7"


def test_a_free_port_can_be_bound() -> None:
    assert 1024 <= free_port("127.0.0.1") <= 65535
