from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
import yaml

from include.deploy.compose import healthy, make_secrets
from include.home import PROJECT
from include.platforms import load_platform

HERE = Path(__file__).parent / "compose"
OWN = "anemone/"

READERS = {
    "airflow-secrets": {"api-server", "scheduler", "dag-processor", "triggerer", "worker", "database"},
    "grafana-secrets": {"grafana"},
    "postgres-secrets": {"postgres"},
    "redis-secrets": {"redis"},
    "store-secrets": {"store"},
}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((PROJECT / "docker-compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose):
    return compose["services"]


def test_it_is_what_the_compose_specification_allows(compose):
    # compose-spec/compose-spec 170098b (June 2026), schema/compose-spec.json.
    schema = json.loads((HERE / "compose-spec.json").read_text(encoding="utf-8"))
    errors = [
        f"{list(error.path)}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(compose)
    ]
    assert not errors
    wrong = {**compose, "services": {**compose["services"], "redis": {"image": "redis", "helthcheck": {}}}}
    assert not jsonschema.Draft7Validator(schema).is_valid(wrong)


def test_whoever_waits_for_health_or_an_end_waits_for_one_that_has_it(services):
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            match how["condition"]:
                case "service_healthy":
                    assert "healthcheck" in services[other], (name, other)
                case "service_completed_successfully":
                    assert services[other].get("restart", "no") == "no", (name, other)


def test_nothing_is_open_to_other_machines(services):
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_is_ours_runs_without_root_rights_and_without_a_writable_root(services):
    for name, service in services.items():
        if OWN in service["image"] and name != "secrets":
            assert service["user"] == "10001:10001", name
            assert service["read_only"] is True, name
        if name != "store":
            assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_a_secret_stands_in_no_environment_and_no_command(services):
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN|CREDENTIALS|CONN|BROKER_URL|RESULT_BACKEND", variable):
                assert re.fullmatch(r"(cat )?/run/anemone/\S+", value), (name, variable)
        assert not re.search(r"(?i)password=|secret=|requirepass", str(service.get("command"))), name


def test_a_secret_is_mounted_by_its_readers_only(services):
    mounts = {
        name: [str(volume).split(":")[0] for volume in service.get("volumes", ())] for name, service in services.items()
    }
    for volume, readers in READERS.items():
        assert {name for name, volumes in mounts.items() if volume in volumes} == readers | {"secrets"}


def test_the_files_that_it_names_are_there(services):
    named = set()
    for service in services.values():
        named |= {volume.split(":")[0] for volume in service.get("volumes", ()) if volume.startswith("./")}
        text = f"{service.get('command')} {service.get('environment')} {service.get('healthcheck')}"
        named |= {f".{path}" for path in re.findall(r"/opt/anemone(/[\w/.]+)", text)}
    assert {"./include/deploy/compose/healthy.py", "./include/deploy/compose/aws.ini"} <= named
    assert not [path for path in named if not (PROJECT / path).exists()]


def test_the_platform_names_the_addresses_and_interpreters_of_the_file(services):
    platform = load_platform("compose")
    aliases = services["serving"]["networks"]["default"]["aliases"]
    for url, service, flag in (
        (platform.serving.url, "router", "--port"),
        (platform.serving.controller_url, "canary-controller", "--port"),
    ):
        host, port = re.fullmatch(r"http://([\w-]+):(\d+)", url).groups()
        assert host in aliases
        assert f"{flag}={port}" in services[service]["command"]
    assert f"--store={platform.store}" in services["canary-controller"]["command"]
    assert platform.environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    worker = (PROJECT / "include/deploy/docker/worker.Dockerfile").read_text(encoding="utf-8")
    for python in platform.python.values():
        assert f" {python.removesuffix('/bin/python')}\n" in worker


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for user in ("ANEMONE", "POSTGRES", "REDIS", "GRAFANA", "STORE"):
        monkeypatch.setattr(make_secrets, user, os.getuid())
    for name in ("airflow", "grafana", "keys", "postgres", "redis", "serving", "store"):
        (tmp_path / name).mkdir()
    return tmp_path


def _read(root):
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_secrets_are_made_once_and_are_for_their_owner_only(folders, services):
    make_secrets.make(folders)
    made = _read(folders)
    make_secrets.make(folders)
    assert _read(folders) == made
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folders.rglob("*") if path.is_file())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in folders.iterdir())
    mounted = {str(volume).split(":")[1].removeprefix("/run/anemone/") for volume in services["secrets"]["volumes"]}
    assert {path.name for path in folders.iterdir()} == mounted


def test_what_opens_a_thing_is_what_locks_it_and_nothing_else_does(folders, tmp_path_factory, monkeypatch):
    make_secrets.make(folders)
    made = _read(folders)
    assert f":{made['postgres/password']}@postgres/" in made["airflow/database"]
    assert f":{made['redis/password']}@redis:" in made["airflow/broker"]
    assert made["redis/redis.conf"] == f"requirepass {made['redis/password']}\n"
    credentials = json.loads(made["store/s3.json"])["identities"][0]["credentials"][0]
    assert credentials["accessKey"] in made["keys/credentials"]
    assert credentials["secretKey"] in made["keys/credentials"]
    words = [made["postgres/password"], made["redis/password"], credentials["secretKey"], made["airflow/api"]]
    words += [made["airflow/jwt"], made["airflow/fernet"], made["serving/token"], made["grafana/password"]]
    assert len(set(words)) == len(words)
    other = tmp_path_factory.mktemp("other")
    for path in folders.iterdir():
        (other / path.name).mkdir()
    make_secrets.make(other)
    assert not set(_read(other).values()) & set(made.values())


def test_every_secret_that_a_service_reads_is_made(folders, services):
    make_secrets.make(folders)
    read = {path for service in services.values() for path in re.findall(r"/run/anemone/([\w/.-]+\w)", str(service))}
    files = {path for path in read if not (folders / path).is_dir()}
    assert {"airflow/database", "serving/token", "redis/redis.conf"} <= files
    assert not [path for path in files if not (folders / path).is_file()]


@pytest.fixture
def page():
    """A health page; gives its URL and the answer that it is to give."""
    answer = {"status": 200, "body": {"scheduler": {"status": "healthy"}, "triggerer": {"status": "unhealthy"}}}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(answer["body"]).encode()
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/health", answer
    server.shutdown()
    server.server_close()


def test_health_is_what_the_page_says_of_the_component(page):
    url, answer = page
    assert healthy.healthy(url)
    assert healthy.healthy(url, "scheduler")
    assert not healthy.healthy(url, "triggerer")
    answer["status"] = 500
    assert not healthy.healthy(url)


def test_nobody_there_is_not_healthy():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        assert not healthy.healthy(f"http://127.0.0.1:{bound.getsockname()[1]}/health")
