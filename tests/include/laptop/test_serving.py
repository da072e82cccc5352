from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.errors import ConfigurationError
from include.home import serving_ports
from include.laptop import up
from include.laptop.components import all_services, claim_port, down
from include.laptop.home import make_home, run_folder
from include.laptop.serving import controller_url, keeper, router_url, supervised_services, token
from include.platforms import load_platform
from tests.ports import free_home_port


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, free_block: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    load_platform.cache_clear()
    yield make_home()
    down()
    load_platform.cache_clear()


def test_the_token_is_made_once_and_is_private(own_home: Path) -> None:
    assert token() == token()
    assert len(token()) >= 40
    assert stat.S_IMODE((own_home / "serving" / "token").stat().st_mode) == 0o600


def test_every_service_is_told_the_ports_of_the_others() -> None:
    ports = {name: str(number) for name, number in serving_ports().items()}
    assert len(set(ports.values())) == 6
    triton, router, controller = (kept.command for kept in supervised_services())
    assert {ports["triton_http"], ports["triton_grpc"], ports["triton_metrics"]} <= set(triton)
    assert f"http://127.0.0.1:{ports['triton_http']}" in router
    assert f"http://127.0.0.1:{ports['router_admin']}" in controller
    assert f"127.0.0.1:{ports['triton_grpc']}" in controller


def test_airflow_is_told_the_same_addresses_and_token() -> None:
    serving = load_platform("laptop").serving
    token()
    assert (serving.url, serving.controller_url) == (router_url(), controller_url())
    assert Path(serving.token_file).read_text() == token()
    assert f"file://{Path(os.environ['ANEMONE_HOME'])}/store" == load_platform("laptop").store
    assert load_platform("laptop").store in supervised_services()[2].command


def test_serving_gets_a_jobs_environment_and_nothing_of_airflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    settings = up.environment()
    assert not {"AIRFLOW__API__SECRET_KEY", "PYTHONPATH"} & set(settings)
    assert settings["OMP_NUM_THREADS"] == "1"


def test_the_keeper_ends_first_and_what_answers_last() -> None:
    names = [service.name for service in all_services()]
    assert names[:3] == ["keeper", "traffic", "scheduler"]
    assert names[-3:] == ["controller", "router", "triton"]
    assert len(set(names)) == len(names) == 9


def test_down_ends_serving_too() -> None:
    services = [keeper(), *(kept.service for kept in supervised_services())]
    for service in services:
        service.start(["sleep", "60"], os.environ)
    assert down()
    assert not any(service.running() for service in services)
    assert not down()


def test_the_port_stays_for_as_long_as_anything_runs(free_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder().mkdir()
    claim_port()
    service = supervised_services()[1].service
    service.start(["sleep", "60"], os.environ)
    claim_port()
    another = str(free_home_port())
    monkeypatch.setenv("ANEMONE_PORT", another)
    with pytest.raises(ConfigurationError, match=str(free_block)):
        claim_port()
    service.stop(grace=5)
    claim_port()
    assert (run_folder() / "port").read_text() == another


def test_a_service_that_does_not_come_up_is_named_with_its_last_words() -> None:
    triton = supervised_services()[0].service
    triton.start([sys.executable, "-c", "print('error: no such backend')"], os.environ)
    with pytest.raises(up.TryAgainError, match=r"(?s)no such backend.*The service triton ended on its own"):
        up.wait_for_serving()


def serving_sleeps(home: Path) -> None:
    """Put an interpreter that only sleeps in the place of the environment `serving`."""
    python = home / "venvs" / "serving" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)


def test_starting_twice_starts_each_service_once(own_home: Path) -> None:
    serving_sleeps(own_home)
    up.start_serving()
    up.start_keeper()
    records = {service.name: service.record.read_text() for service in all_services() if service.record.exists()}
    assert set(records) == {"keeper", "triton", "router", "controller"}
    up.start_serving()
    up.start_keeper()
    assert {name: (run_folder() / f"{name}.json").read_text() for name in records} == records
