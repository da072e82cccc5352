from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.errors import ConfigurationError
from include.laptop import airflow
from include.laptop.home import make_home, run_folder
from include.platforms import load_platform


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ANEMONE_PORT", "18080")
    return make_home()


def test_no_other_airflows_settings_get_in(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://production/airflow")
    monkeypatch.setenv("AIRFLOW_CONN_PROD", "secret")
    monkeypatch.setenv("AIRFLOW_HOME", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    settings = airflow.environment()
    assert settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{own_home}/airflow/airflow.db?timeout=60"
    assert settings["AIRFLOW_HOME"] == f"{own_home}/airflow"
    assert not {"AIRFLOW_CONN_PROD", "PYTHONPATH"} & set(settings)
    assert settings["PATH"].endswith(os.environ["PATH"])


def test_only_this_machine_can_reach_it() -> None:
    settings = airflow.environment()
    assert settings["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert settings["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:18080/execution/"


def test_secrets_are_made_once_and_are_private(own_home: Path) -> None:
    first, password = airflow.environment(), airflow.password()
    assert airflow.environment() == first
    assert airflow.password() == password
    files = [path for path in (own_home / "airflow").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    keys = [first[f"AIRFLOW__{key}"] for key in ("CORE__FERNET_KEY", "API__SECRET_KEY", "API_AUTH__JWT_SECRET")]
    assert len({*keys, password}) == 4


@pytest.fixture
def nothing_to_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(airflow, "components", list)
    load_platform.cache_clear()
    yield
    load_platform.cache_clear()


@pytest.mark.usefixtures("nothing_to_start")
def test_the_inbox_is_there_as_soon_as_airflow_is_up(own_home: Path) -> None:
    for _ in range(2):
        airflow.up()
        (own_home / "inbox").rmdir()


@pytest.mark.usefixtures("nothing_to_start")
def test_an_inbox_that_cannot_be_made_says_so(own_home: Path) -> None:
    (own_home / "inbox").write_text("a file")
    with pytest.raises(ConfigurationError, match=rf"the folder {own_home}/inbox, in which data sets arrive, cannot be"):
        airflow.up()


def test_one_that_runs_on_another_port_is_not_started_twice() -> None:
    run_folder().mkdir()
    (run_folder() / "port").write_text("18081")
    component = airflow.components()[0]
    component.start(["sleep", "60"], os.environ)
    try:
        with pytest.raises(ConfigurationError, match="18081"):
            airflow.up()
    finally:
        component.stop(grace=5)


def test_a_component_that_died_is_named_with_its_last_words() -> None:
    component = airflow.components()[0]
    component.log.parent.mkdir()
    component.log.write_text("first\nsqlite3.OperationalError: disk I/O error\n")
    with pytest.raises(airflow.TryAgainError, match=r"(?s)disk I/O error.*api-server is not running"):
        airflow.check_alive()
