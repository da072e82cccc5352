"""Bad data, put where a user puts it: what each job says of it, and what is left of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.common.chat import encode, load_tokenizer
from tests.faults.scenario import scenario
from tests.jobs.models import conversation

GOOD = b'{"prompt": "show the pods", "completion": "kubectl get pods"}\n'
REFUSED = "ingest ends with 65 and says file, place and remedy; no snapshot exists"


def jsonl(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# What is taken, and what is not


@scenario(given="a data set of another user", when="the job may not read it", then=REFUSED)
def test_a_file_that_may_not_be_read(ingest_of_another_user, message_of) -> None:
    outcome = ingest_of_another_user(GOOD)
    assert "no permission to read it; change its mode or owner" in message_of(outcome)
    assert outcome.code == 65
    assert outcome.manifest is None


# What is too much


@scenario(
    given="one JSONL file",
    when="one of its lines has 100 MB",
    then="ingest ends with 65 and names the line, in less than 150 MB of memory",
)
def test_a_line_of_a_hundred_megabytes(tmp_path, write_spec, reads) -> None:
    source = tmp_path / "huge.jsonl"
    with source.open("wb") as stream:
        stream.write(GOOD + b'{"prompt": "')
        for _ in range(100):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n')
    uri, _ = write_spec("ingest", {"source": str(source), "settle_seconds": 0})
    measured = (
        "import resource, subprocess, sys;"
        f"done = subprocess.run([sys.executable, '-m', 'jobs.ingest', '--spec', {uri!r}]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);"
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True)
    assert done.returncode == 65
    assert "huge.jsonl, line 2: longer than ingest.max_row_bytes (10000000)" in done.stderr
    assert int(done.stdout.split()[-1]) < 150_000
    reads(done.stderr.strip().splitlines()[-1].replace(f"{tmp_path}/", "").removeprefix("error: "))


@scenario(
    given="a folder of 5,000 shards with a row each",
    when="it is ingested, and curated",
    then="every row is in the result, at less than 2 ms of CPU a shard in both jobs together",
)
def test_shards_in_thousands(tmp_path, ingest, run_job) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(5000):
        row = {"prompt": f"show the pod {number} of team blue", "completion": f"kubectl get pod {number}"}
        (folder / f"{number}.jsonl").write_bytes(jsonl(row))
    snapshot = ingest(folder)
    curated = run_job("curate", {"near_duplicates": None}, {"data": snapshot.artifact})
    assert snapshot.manifest.metrics["files"] == 5000
    assert curated.manifest.metrics["rows_kept"] == 5000
    spent = sum(outcome.manifest.provenance.cpu_seconds for outcome in (snapshot, curated))
    assert spent < 10


# What comes twice


@scenario(
    given="a data set that was taken",
    when="the same bytes arrive again under another name",
    then="they are the same data set: its snapshot has the same digest, and every later stage is reused",
)
def test_a_doubled_arrival_under_another_name(tmp_path, ingest, run_job) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "later" / "b.jsonl"
    other.parent.mkdir()
    rows = jsonl(*({"prompt": f"show the pod {n}", "completion": f"kubectl get pod {n}"} for n in range(20)))
    one.write_bytes(rows)
    other.write_bytes(rows)
    first, second = ingest(one), ingest(other.parent)
    assert first.artifact.digest == second.artifact.digest
    run_job("curate", {}, {"data": first.artifact})
    again = run_job("curate", {}, {"data": second.artifact})
    assert again.stdout.startswith("reused ")


PAIRS = [{"prompt": f"show the pod {n} of team blue", "completion": f"kubectl get pod {n}"} for n in range(20)]


# Data that drifts


def drift(when: str, file: str, line: int, detail: str) -> Any:
    then = "the rows from there on are removed and listed; the log names the first; the gate counts them as unreadable"
    return pytest.param(file, line, detail, id=when, marks=scenario(given="a data set in shards", when=when, then=then))


@pytest.mark.parametrize(
    ("file", "line", "detail"),
    [
        drift("prompt, completion turn into input, output amid a shard", "part-00000.jsonl", 31,
              "has no prompt and no completion, but input, output"),
        drift("the answer turns from text into an object amid a shard", "part-00001.jsonl", 31,
              "completion is an object, not text"),
        drift("the columns of a whole shard have other names", "part-00002.jsonl", 1,
              "has no prompt and no completion, but question, reply"),
    ],
)  # fmt: skip
def test_the_schema_drifts(curated, checked, reads, file, line, detail) -> None:
    pairs = [(f"show the logs of pod {n} of team red", f"kubectl logs pod-{n}") for n in range(150)]
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    for number, (prompt, said) in enumerate(pairs):
        if 30 <= number < 50:
            rows[number] = {"input": prompt, "output": said}
        elif 80 <= number < 100:
            rows[number] = {"prompt": prompt, "completion": {"text": said}}
        elif number >= 140:
            rows[number] = {"question": prompt, "reply": said}
    parts = (rows[:50], rows[50:140], rows[140:])
    outcome = curated("drift", {f"part-{n:05d}.jsonl": jsonl(*part) for n, part in enumerate(parts)})
    listed = lines(outcome.folder / "removed.jsonl")
    assert (file, line, detail) in {(row["file"], row["line"], row["detail"]) for row in listed}
    assert len(listed) == 50
    assert outcome.manifest.metrics["rows_kept"] == 100
    verdict = checked("drift", outcome.artifact, "instructions")
    (reason,) = (reason for reason in verdict.reasons if reason.startswith("lost_as_unreadable"))
    assert "0.3333, limit at most 0.02" in reason
    reads(f"{file}, line {line}: {detail}")


# Data that is whole, and wrong


def refused(when: str, name: str, words: str) -> Any:
    then = "the data-quality gate stops the run with the figure and its limit"
    return pytest.param(name, words, id=when, marks=scenario(given="a data set of 440 rows", when=when, then=then))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        refused("50 requests have two answers", "contradictions", "rows (2"),
        refused("60 of its requests are French", "language", "limit at most 5.00%"),
        refused("one answer is longer than the model takes", "token_length", "1 of "),
        refused("40 rows are held-out ones, in other letters", "leaked_held_out_rows", "0.09091, limit at most 0.005"),
        refused("all rows have one label", "labels", "1, limit at least 2"),
        refused("it is too small", "rows_for_training", "limit at least 2000"),
    ],
)
def test_data_that_is_whole_and_wrong(curated, checked, reads, name, words) -> None:
    def row(prompt: str, said: str) -> dict[str, str]:
        return {"prompt": prompt, "completion": said, "intent": "logs"}

    rows = [row(f"show me the logs of the pod {n} in prod", f"kubectl logs pod-{n} -n prod") for n in range(239)]
    rows.append(row("show me everything of the pod in prod", "kubectl logs pod " + "--tail 100 " * 20))
    for n in range(50):
        rows += [row(f"please restart the service {n} for me", f"kubectl {verb} pod {n}") for verb in ("delete", "get")]
    rows += [row(f"affiche les journaux du conteneur {n} dans cet espace", f"kubectl logs {n}") for n in range(60)]
    held_out = [row(f"describe the node {n} of rack {n}", f"kubectl describe node {n}") for n in range(50)]
    rows += [row(f"DESCRIBE the node {n}  of rack {n}!", f"kubectl describe node {n}") for n in range(40)]
    outcome = curated(
        "wrong", {"data.jsonl": jsonl(*rows)}, {"mapping": {"label": "intent"}}, {"data.jsonl": jsonl(*held_out)}
    )
    assert sum(row["reason"] == "held_out" for row in lines(outcome.folder / "removed.jsonl")) == 40
    verdict = checked("wrong", outcome.artifact, "kubectl")
    assert verdict.outcome == "fail"
    (reason,) = (reason for reason in verdict.reasons if reason.startswith(f"{name}:"))
    assert words in reason
    reads(reason)


@scenario(
    given="a data set of 2,000 rows",
    when="all of them are the same",
    then="one row is kept, and the gate says that there is too little to train, to validate and to evaluate with",
)
def test_all_rows_are_the_same(curated, checked, reads) -> None:
    outcome = curated("same", {"data.jsonl": GOOD * 2000})
    assert outcome.manifest.metrics["rows_kept"] == 1
    verdict = checked("same", outcome.artifact, "instructions")
    names = {reason.split(":")[0] for reason in verdict.reasons}
    assert {"rows_for_training", "rows_for_validation", "rows_held_out"} <= names
    reads(next(reason for reason in verdict.reasons if reason.startswith("rows_for_training")))


# What must be kept, and what must not


def intact(when: str, text: str) -> Any:
    mark = scenario(given="a row among others", when=when, then="it is kept, to the character")
    return pytest.param(text, id=when, marks=mark)


INTACT = [
    intact("it holds emoji joined to one", "show the 👩‍👩‍👧‍👦 family of 🏴󠁧󠁢󠁥󠁮󠁧󠁿 and 👍🏽 ❤️ 🇰🇷"),
    intact("it is Hebrew with direction marks", "הצג את הפודים \u200f(prod)\u200e של web"),
    intact("it is Arabic with vowel signs", "اعْرِضْ سِجِلَّاتِ الحَاوِيَةِ web"),
    intact("it is Persian with non-joiners", "پادها را نشان می\u200cدهد در web"),
    intact("it is Hindi with joiners", "क्\u200dषत्रिय पॉड दिखाओ web"),
    intact("it is Korean", "prod 네임스페이스의 파드 목록을 보여 주세요"),
    intact("it holds line separators of Unicode's own", "first\u2063 second\u00a0third"),
    intact("it holds HTML entities and backslashes", "grep '&lt;b&gt;' in C:\\new\\table \\u0041"),
]


@pytest.mark.parametrize("text", INTACT)
def test_text_of_any_script_is_kept_as_it_is(curated, text) -> None:
    rows = [{"prompt": param.values[0], "completion": f"kubectl get {n}"} for n, param in enumerate(INTACT)]
    folder = curated("intact", {"data.jsonl": jsonl(*PAIRS, *rows)}).folder
    kept = [row for split in ("train", "validation", "heldout") for row in lines(folder / f"{split}.jsonl")]
    assert text in {row["messages"][0]["content"] for row in kept}


SECRETS = ("kim@example.com", "010-1234-5678", "4111 1111 1111 1111", "DE89370400440532013000", "900101-1234568")
ALL_SECRETS = " and ".join(SECRETS)
ESCAPED = "".join(f"\\u{ord(character):04x}" for character in ALL_SECRETS)


def private(when: str, row: Any) -> Any:
    mark = scenario(
        given="an address, phone, card, account and resident number",
        when=when,
        then="none of them is in any file of the curated artifact, nor in the log",
    )
    return pytest.param(row, id=when, marks=mark)


PRIVATE = [
    private("they stand in a request", {"prompt": f"write to {ALL_SECRETS} now", "completion": "kubectl"}),
    private("they stand in an answer", {"prompt": "to whom", "completion": f"to {ALL_SECRETS}"}),
    private("they stand in JSON within the answer",
            {"prompt": "as JSON", "completion": json.dumps({"to": list(SECRETS), "n": {ALL_SECRETS: 1}})}),
    private("they are the row's label", {"prompt": "whose is it", "completion": "his", "kind": ALL_SECRETS}),
    private("they stand in a row that is removed, in lists and keys",
            {"prompt": "show", "completion": [{ALL_SECRETS: list(SECRETS)}, 4111111111111111, 4111111111111111.0]}),
    private("they stand in a line that is no JSON", f'{{"prompt": "{ALL_SECRETS}\n'.encode()),
    private("they stand escaped in a line that is no JSON", f'{{"prompt": "{ESCAPED}\n'.encode()),
    private("they are the name of a column that stands there twice",
            f'{{"{SECRETS[0]}": 1, "{SECRETS[0]}": 2}}\n'.encode()),
]  # fmt: skip


@pytest.mark.parametrize("row", PRIVATE)
def test_personal_data_goes_nowhere(curated, row) -> None:
    outcome = curated("private", {"data.jsonl": jsonl(*PAIRS, *(param.values[0] for param in PRIVATE))},
                      {"mapping": {"label": "kind"}})  # fmt: skip
    number = len(PAIRS) + [param.values[0] for param in PRIVATE].index(row) + 1
    listed = {found["line"]: found for found in lines(outcome.folder / "removed.jsonl")}
    assert (number in listed) == (number > len(PAIRS) + 4)
    texts = [path.read_text(encoding="utf-8") for path in outcome.folder.iterdir()]
    texts.append(outcome.stdout + outcome.stderr + (outcome.folder.parent / "events.jsonl").read_text(encoding="utf-8"))
    for secret in (*SECRETS, "4111111111111111", ESCAPED[:30]):
        assert not any(secret in text for text in texts), secret


# What fine-tuning is handed


def rows_for_training(count: int) -> list[dict[str, Any]]:
    return [conversation(f"row-{n}", f"logs pod web-{n}", f"kubectl logs web-{n} -n prod") for n in range(count)]


@scenario(
    given="a base whose padding token is its end token",
    when="it is fine-tuned on rows of different lengths",
    then="the end token is trained on and padding is not: every loss is that of a base with a padding token of its own",
)
def test_padding_with_the_end_token(start, config, base_folder, make_artifact, tmp_path) -> None:
    folder = tmp_path / "same"
    shutil.copytree(base_folder, folder)
    for name, key, value in (
        ("tokenizer_config.json", "pad_token", "<|end|>"),
        ("config.json", "pad_token_id", 2),
        ("generation_config.json", "pad_token_id", 2),
    ):
        document = json.loads((folder / "model" / name).read_text())
        (folder / "model" / name).write_text(json.dumps({**document, key: value}))
    tokenizer = load_tokenizer(folder / "model", config["chat_template"])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    ids, mask = encode(tokenizer, rows_for_training(1)[0]["messages"])
    assert (ids[-1], mask[-1]) == (2, 1)

    jobs = [start({**config, "steps": 4}), start({**config, "steps": 4}, base=make_artifact("same", folder=folder))]
    assert [job.wait() for job in jobs] == [0, 0], jobs[1].output
    own, same = (job.curve() for job in jobs)
    assert [point["tokens"] for point in same] == [point["tokens"] for point in own]
    assert [point["loss"] for point in same] == pytest.approx([point["loss"] for point in own], abs=1e-6)
