"""What a person, a file name or a data set says is a value: never a command, a template, or a way to another file.

Given an Airflow with secrets in connections, Variables, its environment and the serving token;
when values from outside hold shell, Jinja or paths;
then nothing is executed or rendered, the run works or fails with one sentence, and no secret appears anywhere.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from include.errors import AnemoneError
from include.laptop import airflow as laptop
from include.laptop.serving import token
from tests.faults.airflow.machine import DAG, ENDED, QUICK, RECIPE, Machine, machine
from tests.faults.scenario import scenario
from tests.homes import own_home
from tests.waiting import wait_for

PLANTED = {
    "AIRFLOW_CONN_WAREHOUSE": "postgres://anemone:planted-c0nnection@db.example/models",
    "AIRFLOW_VAR_HUB_TOKEN": "planted-v4riable-in-the-environment",
    "AWS_SECRET_ACCESS_KEY": "planted-4ws-key",
    "HF_TOKEN": "planted-hub-t0ken",
    "ANEMONE_SERVING_TOKEN": "planted-serving-t0ken",
}
SECRETS = ["planted-c0nnection", *(value for name, value in PLANTED.items() if "CONN" not in name)]
STORED = "planted-v4riable-in-the-database"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    # The laptop drops what the user's environment says about an Airflow; here it belongs to this one.
    theirs = {name: value for name, value in PLANTED.items() if name.startswith("AIRFLOW_")}
    users = {name: value for name, value in PLANTED.items() if name not in theirs}
    plain = laptop.plain_environment
    with pytest.MonkeyPatch.context() as patch, own_home(tmp_path_factory.mktemp("home"), **users) as home:
        patch.setattr(laptop, "plain_environment", lambda: {**plain(), **theirs})
        token()
        with machine(home) as found:
            body = {"key": "registry_password", "value": STORED}
            found.client._send("POST", "/api/v2/variables", json=body, accept=(200, 201))
            yield found


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that exists as soon as anything was executed."""
    return tmp_path / "executed"


def value(text: str, then: str, kind: str) -> pytest.param:
    mark = scenario(given="the form of customize", when=f"its data set is {kind}", then=then)
    return pytest.param(text, marks=mark, id=kind)


REFUSED = "the run fails with one sentence; nothing is executed, rendered or read"


@pytest.mark.parametrize(
    "text",
    [
        value("/data/$(touch {witness}).jsonl", REFUSED, "a shell's substitution"),
        value("/data/`touch {witness}`.jsonl", REFUSED, "a shell's backticks"),
        value("/data/a.jsonl; touch {witness} #", REFUSED, "a second command"),
        value("/data/{{{{ conn.warehouse.password }}}}.jsonl", REFUSED, "a Jinja expression over a connection"),
        value("{{% for key in var.value %}}{{{{ key }}}}{{% endfor %}}", REFUSED, "a Jinja statement"),
        value("../../../../etc/passwd", REFUSED, "a relative path upwards"),
        value("file:///etc/shadow", REFUSED, "a URI of a system file"),
        value("/etc/passwd", REFUSED, "a system file's name"),
        value("http://127.0.0.1:1/rows.jsonl", REFUSED, "a web address"),
        value("/data/a\0.jsonl", REFUSED, "a name with a NUL"),
        value("/data/" + "a" * 5000 + ".jsonl", REFUSED, "a name of 5,000 characters"),
        value("/data/a\n[2026-01-01] INFO all is well\n.jsonl", REFUSED, "a name with lines that look like a log's"),
        value("/dаta/gооd.jsonl", REFUSED, "a name with Cyrillic look-alikes"),
    ],
)
def test_a_hostile_data_set(airflow: Machine, text: str, witness: Path, reads: Callable[[str], None]) -> None:
    text = text.format(witness=witness)
    run = airflow.client.trigger(DAG, {"data": text, "recipe": RECIPE, "overrides": QUICK})["dag_run_id"]
    wait_for(lambda: airflow.states(run).get("ingest") in ENDED, 120, "ingest")
    assert airflow.states(run)["ingest"] == "failed"
    sentence = airflow.sentence(run, "ingest")
    airflow.client.fail(DAG, run)
    said = "\n".join(airflow.log(run, "ingest"))
    assert "\n" not in sentence and "bug" not in sentence and "Error:" not in sentence, sentence
    assert "root:" not in said, "the log shows what the file holds"
    assert not any(secret in said for secret in [*SECRETS, STORED])
    assert not witness.exists()
    assert airflow.tries(run)["ingest"] == 1, "trying again cannot help"
    reads(sentence if len(sentence) < 300 else f"{sentence[:60]} … {sentence[-160:]}")


def override(kind: str, key: str, text: object) -> pytest.param:
    mark = scenario(given="the form of customize", when=f"an override is {kind}", then="refused with one sentence")
    return pytest.param(key, text, marks=mark, id=kind)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        override("a chat template upwards", "chat_template", "../../../etc/passwd"),
        override("an expectation suite by an absolute name", "check.suite", "/etc/passwd"),
        override("a job that is a module elsewhere", "base.job", "../os"),
        override("a job with a shell's substitution", "base.job", "$(touch {witness})"),
        override("a Jinja expression for a number", "finetune.steps", "{{ 7 * 7 }}"),
        override("a key of Python's own", "finetune.__class__", "x"),
        override("a model's name upwards", "model", "../../etc/evil"),
        override("a model's name with a shell's substitution", "model", "$(touch {witness})"),
        override("a model's name in Jinja", "model", "{{ var.value.registry_password }}"),
    ],
)
def test_a_hostile_override(
    airflow: Machine, key: str, text: object, witness: Path, reads: Callable[[str], None]
) -> None:
    if isinstance(text, str):
        text = text.replace("{witness}", str(witness))
    run = airflow.customize("/data/none.jsonl", {key: text})
    wait_for(lambda: airflow.states(run).get("recipe") in ENDED, 120, "the recipe")
    assert airflow.states(run)["recipe"] == "failed"
    sentence = airflow.sentence(run, "recipe")
    assert STORED not in sentence and "\n" not in sentence
    assert not witness.exists()
    assert airflow.tries(run)["recipe"] == 1
    reads(sentence)


def refusal(kind: str, conf: dict[str, object], run_id: str | None = None) -> pytest.param:
    mark = scenario(
        given="the REST API", when=f"a run is asked for with {kind}", then="no run begins, and one is told why"
    )
    return pytest.param(conf, run_id, marks=mark, id=kind)


@pytest.mark.parametrize(
    ("conf", "run_id"),
    [
        refusal("a recipe's name upwards", {"recipe": "../../../../etc/passwd"}),
        refusal("a recipe in Jinja", {"recipe": "{{ conn.warehouse.password }}"}),
        refusal("a stage to make anew that is a command", {"refresh": ["$(touch x)"]}),
        refusal("overrides that are a text", {"overrides": "finetune.steps=1; rm -rf /"}),
        refusal("a run id that is a path", {"data": "/data/none.jsonl"}, "../../../../tmp/run"),
        refusal("a run id with a shell's substitution", {"data": "/data/none.jsonl"}, "a$(touch x)b"),
        refusal("a run id in Jinja", {"data": "/data/none.jsonl"}, "{{ conn.warehouse.password }}"),
    ],
)
def test_a_hostile_request(
    airflow: Machine, conf: dict[str, object], run_id: str | None, reads: Callable[[str], None]
) -> None:
    body: dict[str, object] = {"logical_date": None, "conf": conf}
    if run_id is not None:
        body["dag_run_id"] = run_id
    before = airflow.client.run_ids(DAG)
    with pytest.raises(AnemoneError) as refused:
        airflow.client._send("POST", f"/api/v2/dags/{DAG}/dagRuns", json=body)
    assert airflow.client.run_ids(DAG) == before
    reads(str(refused.value)[:300])


@scenario(
    given="the inbox",
    when="a file arrives whose name holds Jinja, a shell's substitution and blanks",
    then="it is taken under just this name: it is written down, read again and given to the run, and rendered nowhere",
)
def test_a_hostile_file_name(airflow: Machine, reads: Callable[[str], None]) -> None:
    airflow.pause(DAG)
    try:
        inbox = airflow.home / "inbox"
        inbox.mkdir(exist_ok=True)
        named = inbox / "{{ 7 * 7 }} {% raw %} $(touch x) `id`; rm -rf ~ '\".jsonl"
        shutil.copy(airflow.data(1), named)
        runs = wait_for(
            lambda: [run for run in airflow.client.run_ids(DAG) if run.startswith("arrival__")], 90, "a run"
        )
        conf = airflow.client.run(DAG, runs[0])["conf"]
        assert conf["data"] == str(named)
        airflow.client.fail(DAG, runs[0])
        reads(Path(conf["data"]).name)
    finally:
        airflow.pause(DAG, False)


@scenario(
    given="rows whose prompts and completions are shell, Jinja and markup",
    when="customize is run on them",
    then="they are learned as they stand: curated byte for byte, and nothing is executed or rendered",
)
def test_hostile_rows(airflow: Machine, witness: Path) -> None:
    hostile = [
        {"prompt": "{{ conn.warehouse.password }}", "completion": f"kubectl get $(touch {witness})"},
        {"prompt": "{% for x in range(9) %}x{% endfor %} list the pods", "completion": f"`touch {witness}`; rm -rf /"},
        {"prompt": "<script>fetch('/')</script> list the nodes", "completion": "../../etc/passwd {{ 7 * 7 }}"},
    ]
    data = airflow.home / "data" / "hostile.jsonl"
    good = airflow.data(2).read_text()
    data.write_text(good + "".join(json.dumps(row) + "\n" for row in hostile))
    run = airflow.customize(data)
    assert airflow.ended(run) == "success", airflow.states(run)
    name = airflow.artifacts(run)["curate"]
    kept = ""
    with airflow.store.open_files(name) as files:
        for file in files.glob("*.jsonl"):
            kept += file.read_text()
    for row in hostile:
        assert json.dumps(row["completion"])[1:-1] in kept or json.dumps(row["prompt"])[1:-1] in kept, row
    assert not witness.exists()


@scenario(
    given="secrets in a connection, in Variables, in Airflow's environment, and the serving token",
    when="one run of customize ends well, and one fails at a gate",
    then="none is in a log, manifest, spec, report, template, XCom, command line, or in a job's environment",
)
def test_no_secret_is_seen(airflow: Machine, reads: Callable[[str], None]) -> None:
    own = [file.read_text() for file in (airflow.home / "airflow" / "secrets").iterdir()]
    secrets = [*SECRETS, STORED, token(), *own]
    data = airflow.data(3)
    seen: set[str] = set()
    stop = threading.Event()
    watch = threading.Thread(target=watch_processes, args=(airflow, secrets, seen, stop))
    watch.start()
    try:
        well = airflow.customize(data)
        assert airflow.ended(well) == "success", airflow.states(well)
        badly = airflow.customize(data, {"gates.evaluation.min_exact_match": 1.0})
        assert airflow.ended(badly) == "failed"
        assert airflow.states(badly)["evaluation_gate"] == "failed"
    finally:
        stop.set()
        watch.join()
    assert not seen, seen
    looked_into = 0
    for folder in ("airflow/logs", "run", "store"):
        for file in (airflow.home / folder).rglob("*"):
            if file.is_file():
                looked_into += 1
                content = file.read_bytes()
                assert not [secret for secret in secrets if secret.encode() in content], file
    for database in ("airflow/airflow.db", "mlflow.db"):
        where = rows_with(airflow.home / database, secrets)
        assert not where, where
    assert looked_into > 100
    reads(f"(nothing: {looked_into:,} files, two databases and every process were searched)")


def watch_processes(airflow: Machine, secrets: list[str], seen: set[str], stop: threading.Event) -> None:
    """Keep where a secret shows: command lines of everything, the environment of jobs and their supervisors."""
    while not stop.wait(0.1):
        for pid, command in airflow.processes().items():
            line = " ".join(command)
            job = "operators.local.supervisor" in line or any(part.startswith("jobs.") for part in command)
            with suppress(OSError):
                environment = (Path("/proc") / str(pid) / "environ").read_bytes().decode(errors="replace")
                for secret in secrets:
                    if secret in line:
                        seen.add(f"command line of {line[:80]}")
                    if job and secret in environment:
                        seen.add(f"environment of {line[:80]}")


def rows_with(database: Path, secrets: list[str]) -> list[str]:
    """Tables and columns of a SQLite database in which a secret stands as it is, percent-encoded, or in JSON."""
    found = []
    with sqlite3.connect(database) as connection:
        tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            cursor = connection.execute(f'select * from "{table}"')
            for row in cursor:
                for column, cell in zip(cursor.description, row, strict=True):
                    text = cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)
                    if any(secret in text or quote(secret) in text for secret in secrets):
                        found.append(f"{table}.{column[0]}")
    return found
