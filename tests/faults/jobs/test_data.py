"""Bad data, put where a user puts it: what each job says of it, and what is left of it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.sources.data_set import fingerprints
from jobs.common.chat import encode, load_tokenizer
from tests.faults.scenario import scenario
from tests.jobs.models import conversation

GOOD = b'{"prompt": "show the pods", "completion": "kubectl get pods"}\n'
REFUSED = "ingest ends with 65 and says file, place and remedy; no snapshot exists"
REMOVED = "curate removes the row, lists it with line and reason, and keeps all others"
TOLD = "the job ends with 65 and says which row, why, and what to do; no artifact exists"
ZSTD = b"\x28\xb5\x2f\xfd\x04\x00"


def jsonl(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# What is no data set at all


def file(when: str, data: bytes, *words: str) -> Any:
    return pytest.param(data, words, id=when, marks=scenario(given="one JSONL file", when=when, then=REFUSED))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        file("it is empty", b"", "the file is empty", "remove it"),
        file("it holds blank lines only", b"\n \r\n\n", "only blank lines"),
        file(
            "it is CSV",
            b"prompt,completion\na,b\n",
            "none of the first lines is a JSON object",
            "one JSON object a line",
        ),
        file("it is a JSON array", b'[{"prompt": "a"}]\n', "JSON array"),
        file("an object is spread over its lines", b'{\n "prompt": "a"\n}\n', "spread over several lines"),
        file("all its lines are lists, numbers and null", b"[1]\n2\nnull\n" * 9, "JSON array"),
        file("its last line is cut off", GOOD * 2 + b'{"prompt": "show', "line 3", "cut off"),
        file("it is cut off inside a character", GOOD + "파".encode()[:2], "line 2", "inside a UTF-8 character"),
        file("it is random bytes", bytes(range(128, 256)) * 50, "line 1", "not UTF-8"),
        file("its disk left NUL bytes in it", GOOD + b"\0" * 512, "line 2", "NUL at byte 62", "damaged"),
        file("it is Latin-1", GOOD + b'{"prompt": "caf\xe9"}\n', "line 2", "byte 0xe9 at 77", "convert the file"),
        file("it is UTF-16 with a BOM", GOOD.decode().encode("utf-16"), "UTF-16; convert it to UTF-8"),
        file("it is UTF-16 without a BOM", GOOD.decode().encode("utf-16-le"), "line 1", "NUL at byte 1"),
        file("a surrogate is encoded in it", GOOD + b'{"prompt": "\xed\xa0\x80"}\n', "line 2", "not UTF-8"),
        file("it is gzip", gzip.compress(GOOD), "gzip; unpack it first"),
        file("it is gzip, cut off", gzip.compress(GOOD)[:20], "gzip; unpack it first"),
        file("it is zstandard, and rubbish", ZSTD + b"rubbish", "zstandard; unpack it first"),
        file("it is bzip2", bz2.compress(GOOD), "bzip2; unpack it first"),
        file("it is xz", lzma.compress(GOOD), "xz; unpack it first"),
        file("it is Parquet", b"PAR1" + bytes(60) + b"PAR1", "Parquet; convert it"),
    ],
)
def test_a_file_that_is_no_json_lines(tmp_path, ingest, told, data, words) -> None:
    (tmp_path / "bad.jsonl").write_bytes(data)
    outcome = ingest(tmp_path / "bad.jsonl", expect=65)
    assert all(word in told(outcome) for word in ["bad.jsonl", *words]), outcome.error
    assert outcome.manifest is None


def _link_to_itself(folder: Path) -> None:
    (folder / "a.jsonl").symlink_to(folder / "a.jsonl")


def _link_to_nothing(folder: Path) -> None:
    (folder / "a.jsonl").symlink_to(folder / "gone" / "b.jsonl")


def _socket(folder: Path) -> None:
    home = Path.cwd()
    os.chdir(folder)  # a socket's path may have 107 characters
    try:
        socket.socket(socket.AF_UNIX).bind("a.jsonl")
    finally:
        os.chdir(home)


def _packed_beside(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(GOOD)
    (folder / "b.jsonl.zst").write_bytes(ZSTD)


def _one_empty(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(GOOD)
    (folder / "b.jsonl").touch()


def _name_that_is_not_text(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.jsonl")).write_bytes(GOOD)


def place(when: str, make: Callable[[Path], object], below: str, *words: str) -> Any:
    mark = scenario(given="a path given as the data set", when=when, then=REFUSED)
    return pytest.param(make, below, words, id=when, marks=mark)


@pytest.mark.parametrize(
    ("make", "below", "words"),
    [
        place("nothing is there", lambda folder: None, "a.jsonl", "there is no such file"),
        place("the folder holds no shard", lambda folder: None, "", "holds no *.jsonl file"),
        place("a file stands where a folder should", lambda f: (f / "a").touch(), "a/b.jsonl", "Not a directory"),
        place("its name is too long", lambda folder: None, "a" * 300, "File name too long"),
        place("one of its shards is empty", _one_empty, "", "b.jsonl: the file is empty"),
        place("one of its shards is packed", _packed_beside, "", "b.jsonl.zst: packed shards are not read"),
        place("a folder is named like a shard", lambda f: (f / "a.jsonl").mkdir(), "", "a.jsonl: not a regular file"),
        place("a link leads back to itself", _link_to_itself, "", "a.jsonl: a link that leads back to itself"),
        place("a link leads nowhere", _link_to_nothing, "", "a.jsonl: there is no such file"),
        place("it is a FIFO", lambda f: os.mkfifo(f / "a.jsonl"), "a.jsonl", "not a regular file"),
        place("it is a socket", _socket, "a.jsonl", "not a regular file"),
        place("it is a device", lambda f: (f / "a.jsonl").symlink_to("/dev/zero"), "a.jsonl", "not a regular file"),
        place("a shard's name is not UTF-8", _name_that_is_not_text, "", r"\xff.jsonl: the name is not UTF-8"),
    ],
)
def test_a_path_at_which_no_data_set_is(tmp_path, ingest, told, make, below, words) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    outcome = ingest(folder / below if below else folder, expect=65)
    assert all(word in told(outcome) for word in words), outcome.error
    assert outcome.manifest is None


@scenario(given="a data set of another user", when="the job may not read it", then=REFUSED)
def test_a_file_that_may_not_be_read(ingest_of_another_user, told) -> None:
    outcome = ingest_of_another_user(GOOD)
    assert "no permission to read it; change its mode or owner" in told(outcome)
    assert outcome.code == 65
    assert outcome.manifest is None


@scenario(
    given="a folder with a link to a shard outside of it",
    when="it is the data set, and the shard is removed afterwards",
    then="the snapshot holds the shard's bytes, and no link",
)
def test_a_link_to_outside_is_taken_as_its_content(tmp_path, ingest) -> None:
    (tmp_path / "elsewhere.jsonl").write_bytes(GOOD)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    outcome = ingest(tmp_path / "data")
    (tmp_path / "elsewhere.jsonl").unlink()
    taken = outcome.folder / "data.jsonl"
    assert stat.S_ISREG(taken.lstat().st_mode)
    assert taken.read_bytes() == GOOD


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
    assert "huge.jsonl, line 2: longer than max_row_bytes (10000000)" in done.stderr
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


# What does not stand still

MOVING = "ingest ends with 75: the next try takes what is there then; no snapshot exists"


def _grow(source: Path) -> None:
    with source.open("ab") as stream:
        stream.write(GOOD)


def _replace(source: Path) -> None:
    other = source.with_suffix(".new")
    other.write_bytes(GOOD * 3)
    other.replace(source)


def _damage_the_end(source: Path) -> None:
    with source.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"\xff")


def _shorten(source: Path) -> None:
    os.truncate(source, source.stat().st_size // 2)


def _rewrite_and_set_back_its_time(source: Path) -> None:
    before = source.stat().st_mtime_ns
    with source.open("r+b") as stream:
        stream.write(GOOD.replace(b"show", b"list"))
    os.utime(source, ns=(before, before))


def moving(when: str, deed: Callable[[Path], object]) -> Any:
    return pytest.param(deed, id=when, marks=scenario(given="ingest reading a file", when=when, then=MOVING))


@pytest.mark.parametrize(
    "deed",
    [
        moving("the file grows", _grow),
        moving("the file is replaced by another", _replace),
        moving("the file is cut short", _shorten),
        moving("its end is overwritten with rubbish", _damage_the_end),
        moving("it is removed", Path.unlink),
        moving("it is rewritten in place, with the old time set back", _rewrite_and_set_back_its_time),
    ],
)
def test_a_file_that_changes_while_it_is_read(tmp_path, ingesting, reads, deed) -> None:
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD * 2_000_000)
    job = ingesting(source)
    job.wait_for("source ")
    deed(source)
    assert job.wait() == 75
    assert "data.jsonl" in job.error
    assert "it was read" in job.error
    assert job.manifest is None
    reads(job.error.replace(f"{tmp_path}/", "").removeprefix("error: "))


@scenario(given="a file that a writer adds to, row by row", when="it is ingested meanwhile", then=MOVING)
def test_a_file_that_is_still_being_written(tmp_path, ingest, told) -> None:
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    writing = (
        "import sys, time\nwhile True: open(sys.argv[1], 'ab').write(bytes.fromhex(sys.argv[2])); time.sleep(0.05)"
    )
    writer = subprocess.Popen([sys.executable, "-c", writing, str(source), GOOD.hex()])
    try:
        while source.stat().st_size == len(GOOD):
            time.sleep(0.01)
        outcome = ingest(source, settle_seconds=0.5, expect=75)
    finally:
        writer.kill()
        writer.wait()
    assert "still being written" in told(outcome)
    assert outcome.manifest is None


@scenario(given="a run planned with a file", when="the file is replaced before the job starts", then=MOVING)
def test_a_file_replaced_between_plan_and_start(tmp_path, ingest, told) -> None:
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    planned = [found.model_dump() for found in fingerprints(str(source))]
    _replace(source)
    outcome = ingest(source, files=planned, expect=75)
    assert "data.jsonl changed after the run was planned" in told(outcome)
    assert outcome.manifest is None


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


# Rows that are wrong on their own

PAIRS = [{"prompt": f"show the pod {n} of team blue", "completion": f"kubectl get pod {n}"} for n in range(20)]
LONG = {"prompt": " ".join(f"word{number}" for number in range(60)), "completion": "kubectl get pods"}


def turns(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def removed(when: str, row: Any, reason: str, detail: str) -> Any:
    mark = scenario(given="a row among good ones", when=when, then=REMOVED)
    return pytest.param(row, reason, detail, id=when, marks=mark)


def deep(levels: int) -> bytes:
    return b'{"prompt": "show", "completion": ' + b"[" * levels + b"]" * levels + b"}\n"


def answer(literal: bytes) -> bytes:
    return b'{"prompt": "show the answer", "completion": ' + literal + b"}\n"


BAD_PAIRS = [
    removed("it is cut off", b'{"prompt": "show the\n', "broken_json", "not valid JSON (Unterminated string"),
    removed("it is not JSON", b"show the pods\n", "broken_json", "not valid JSON (Expecting value at character 1)"),
    removed("it is a list", [1, 2], "not_an_object", "a list, not an object"),
    removed("it is a number", 7, "not_an_object", "a number, not an object"),
    removed("it is null", None, "not_an_object", "null, not an object"),
    removed("it has no answer", {"prompt": "show"}, "missing_column", "has no completion, but prompt"),
    removed("its answer is an object", answer(b'{"a": 1}'), "wrong_type", "completion is an object, not text"),
    removed("its answer is a list", answer(b'["a"]'), "wrong_type", "completion is a list, not text"),
    removed("its answer is a number", answer(b"1"), "wrong_type", "completion is a number, not text"),
    removed("its answer is null", answer(b"null"), "wrong_type", "completion is null, not text"),
    removed("its answer is NaN", answer(b"NaN"), "broken_json", "NaN is no number"),
    removed("its answer is -Infinity", answer(b"-Infinity"), "broken_json", "-Infinity is no number"),
    removed("its answer is 1e999", answer(b"1e999"), "wrong_type", "completion is a number, not text"),
    removed("its answer is a number of 4,000 digits", answer(b"7" * 4000), "wrong_type", "a number, not text"),
    removed("its answer is a number of 5,000 digits", answer(b"7" * 5000), "broken_json", "thousands of digits"),
    removed("a column stands in it twice", b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', "broken_json",
            "prompt stands there twice"),
    removed("its answer is nested in 900 brackets", deep(900), "broken_json", "nested deeper than 100 levels"),
    removed("its answer is nested in 10,000 brackets", deep(10_000), "broken_json", "nested deeper than 100 levels"),
    removed("its request is blank", {"prompt": " \n", "completion": "kubectl"}, "empty_request", "holds no text"),
    removed("its answer is invisible", {"prompt": "show", "completion": "\u200b\u2060"}, "empty_answer", "no text"),
    removed("its label is half a character", {"prompt": "show the", "completion": "pod", "kind": "\ud800"},
            "wrong_type", "kind holds half a character"),
    removed("it is an exact duplicate", PAIRS[3], "exact_duplicate", "same as data.jsonl, line 4"),
    removed("it is nearly a duplicate", LONG | {"prompt": LONG["prompt"].replace("word59", "Word 59!")},
            "near_duplicate", "nearly the same as data.jsonl, line 21"),
]  # fmt: skip
BAD_CONVERSATIONS = [
    removed("its messages are text", {"messages": "show"}, "bad_messages", "text, not a list of messages"),
    removed("its messages are an empty list", {"messages": []}, "bad_messages", "an empty list"),
    removed("its roles are another tool's", turns(("human", "a"), ("gpt", "b")), "bad_messages", "0 has no role of"),
    removed("the system speaks in the middle", turns(("user", "a"), ("system", "b"), ("assistant", "c")),
            "bad_messages", "message 1 is the system's, where it is the assistant's turn"),
    removed("two users speak in a row", turns(("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c")),
            "bad_messages", "message 2 is the user's, where it is the assistant's turn"),
    removed("the assistant speaks first", turns(("assistant", "a"), ("user", "b"), ("assistant", "c")),
            "bad_messages", "message 0 is the assistant's, where it is the user's turn"),
    removed("the user has the last word", turns(("user", "a")), "bad_messages", "last message is not the assistant's"),
    removed("a content is a list of parts", turns(("user", [{"type": "text"}]), ("assistant", "c")),
            "bad_messages", "message 0 has a list as its content"),
    removed("the assistant says nothing", turns(("user", "show it"), ("assistant", "")), "empty_answer",
            "message 1 holds no text"),
    removed("an assistant's turn amid others is empty",
            turns(("user", "show it"), ("assistant", "\x00 "), ("user", "please"), ("assistant", "kubectl get")),
            "empty_answer", "message 1 holds no text"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "detail"), BAD_PAIRS)
def test_a_bad_row_among_good_ones(curated, reads, row, reason, detail) -> None:
    """All of them stand in one data set, with a BOM and Windows' line ends: one process, every row its own reason."""
    good = [*PAIRS, LONG]
    bad = [param.values[0] for param in BAD_PAIRS]
    data = b"\xef\xbb\xbf" + jsonl(*good, *bad).replace(b"\n", b"\r\n")
    outcome = curated("pairs", {"data.jsonl": data}, {"mapping": {"label": "kind"}})
    _is_removed(outcome, len(good) + bad.index(row) + 1, reason, detail, reads)
    assert outcome.manifest.metrics["rows_kept"] == len(good)
    assert f"reason={reason} " in outcome.stdout


@pytest.mark.parametrize(("row", "reason", "detail"), BAD_CONVERSATIONS)
def test_a_bad_conversation_among_good_ones(curated, reads, row, reason, detail) -> None:
    good = [turns(("user", pair["prompt"]), ("assistant", pair["completion"])) for pair in PAIRS]
    bad = [param.values[0] for param in BAD_CONVERSATIONS]
    outcome = curated("conversations", {"data.jsonl": jsonl(*good, *bad)})
    _is_removed(outcome, len(good) + bad.index(row) + 1, reason, detail, reads)
    assert outcome.manifest.metrics["rows_kept"] == len(good)


def _is_removed(outcome: Any, line: int, reason: str, detail: str, reads: Callable[[str], None]) -> None:
    strict = json.JSONDecoder(parse_constant=lambda name: pytest.fail(f"removed.jsonl holds {name}"))
    listed = [
        strict.decode(text) for text in (outcome.folder / "removed.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    (found,) = (row for row in listed if row["line"] == line)
    assert (found["file"], found["reason"]) == ("data.jsonl", reason)
    assert detail in found["detail"]
    reads(f"{found['file']}, line {found['line']}: {found['reason']}: {found['detail']}")


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


def useless(when: str, rows: list[Any], held_out: list[Any] | None, *words: str) -> Any:
    mark = scenario(given="a data set that curate reads", when=when, then=TOLD)
    return pytest.param(rows, held_out, words, id=when, marks=mark)


@pytest.mark.parametrize(
    ("rows", "held_out", "words"),
    [
        useless("every output is an object", [{"input": "show", "output": {"a": n}} for n in range(9)], None,
                "none of the 9 rows is left", "wrong_type 9 (first: data.jsonl, line 1: output is an object"),
        useless("its columns have unknown names", [{"question": "a", "reply": "b"}], None,
                "columns found: question, reply", "set mapping.prompt"),
        useless("it is the held-out set itself", PAIRS, PAIRS, "none of the 20 rows is left", "held_out 20"),
        useless("a row of the held-out set has no answer", PAIRS, [*PAIRS[:2], {"prompt": "a", "completion": None}],
                "held-out set: data.jsonl, line 3: completion is null", "correct the row"),
    ],
)  # fmt: skip
def test_data_of_which_nothing_can_be_used(make_artifact, run_job, told, rows, held_out, words) -> None:
    inputs = {"data": make_artifact("data", {"data.jsonl": jsonl(*rows)})}
    if held_out:
        inputs["heldout"] = make_artifact("heldout", {"data.jsonl": jsonl(*held_out)})
    outcome = run_job("curate", {}, inputs, expect=65)
    assert all(word in told(outcome) for word in words), outcome.error
    assert outcome.manifest is None


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


def untrainable(when: str, change: Callable[[list[dict[str, Any]]], object], *words: str, **config: Any) -> Any:
    mark = scenario(given="a curated data set and a base model", when=when, then=TOLD)
    return pytest.param(change, config, words, id=when, marks=mark)


def _lengthen(*rows: dict[str, Any]) -> None:
    for row in rows:
        row["messages"][0]["content"] = "pod " * 80


def _silence(row: dict[str, Any]) -> None:
    del row["messages"][1:]


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        untrainable("one row is longer than max_tokens", lambda rows: _lengthen(rows[4]),
                    "train.jsonl, row 5 (id row-4)", "max_tokens is 64", "take the row out"),
        untrainable("all rows are longer than max_tokens, so that no token would be trained on",
                    lambda rows: _lengthen(*rows), "train.jsonl, row 1 (id row-0)", "max_tokens is 64"),
        untrainable("a row has no assistant", lambda rows: _silence(rows[0]),
                    "row 1 (id row-0)", "no token to train on", "give it an assistant message"),
        untrainable("there are fewer rows than ranks", lambda rows: rows.__delitem__(slice(1, None)),
                    "train.jsonl has 1 rows for 2 processes", "lower processes", processes=2, local_batch_size=4),
        untrainable("there are no rows", list.clear, "train.jsonl has no rows", "what curation removed"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_on(start, config, make_artifact, reads, change, settings, words) -> None:
    rows = rows_for_training(12)
    change(rows)
    files = {"train.jsonl": jsonl(*rows), "validation.jsonl": jsonl(*rows_for_training(4))}
    job = start({**config, **settings}, data=make_artifact("changed", files))
    assert job.wait() == 65, job.output
    assert all(word in job.error for word in words), job.error
    assert job.manifest is None
    reads(job.error.removeprefix("error: "))


REPLY = "{% generation %}{{ messages[-1].content }}{% endgeneration %}"


def template(when: str, text: str, code: int, *words: str) -> Any:
    then = "fine-tuning ends with 64, or 65 where the row may be at fault, says what to do, and trains nothing"
    mark = scenario(given="a recipe with a chat template", when=when, then=then)
    return pytest.param(text, code, words, id=when, marks=mark)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        template("it is empty", " \n", 64, "chat_template: it is empty", "name a template"),
        template("it marks nothing to train on", "{{ messages }}", 64, "no {% generation %} block"),
        template("it does not parse", "{% generation %}{{ oops {% endgeneration %}", 64, "not valid Jinja"),
        template("it reaches for Python's inside", REPLY + "{{ ''.__class__.__mro__[1].__subclasses__() }}", 64,
                 "reaches for what a template must not", "__class__"),
        template("it changes the conversation", REPLY + "{{ messages.append(1) }}", 64, "must not"),
        template("it raises an error", REPLY + "{{ raise_exception('no system, please') }}", 65,
                 "row 1 (id row-0)", "no system, please", "correct the template, or take the row out"),
        template("it divides by zero", REPLY + "{{ 1 // 0 }}", 65, "row 1 (id row-0)", "ZeroDivisionError"),
        template("it counts to a billion", REPLY + "{% for n in range(10**9) %}{% endfor %}", 65, "Range too big"),
        template("it trains on blank text only", "{{ messages[0].content }}{% generation %}{% endgeneration %}", 65,
                 "no token to train on"),
    ],
)  # fmt: skip
def test_a_chat_template_that_cannot_be_used(start, config, reads, text, code, words) -> None:
    job = start({**config, "chat_template": text})
    assert job.wait() == code, job.output
    assert all(word in job.error for word in words), job.error
    assert "Traceback" not in job.output
    assert job.manifest is None
    reads(job.error.removeprefix("error: "))


@scenario(
    given="a check of curated data",
    when="the chat template raises an error",
    then="the check ends with 65 and names the row, before anything is trained",
)
def test_a_chat_template_that_raises_in_the_check(make_artifact, run_job, check_config, base, told) -> None:
    funnel = json.dumps({"read": 12, "kept": 12, "removed": {}, "splits": {"train": 12, "validation": 0, "heldout": 0}})
    files = {"train.jsonl": jsonl(*rows_for_training(12)), "validation.jsonl": b"", "heldout.jsonl": b""}
    data = make_artifact("curated", {**files, "funnel.json": funnel})
    config = check_config("instructions", chat_template=REPLY + "{{ raise_exception('no system, please') }}")
    outcome = run_job("check", config, {"curated": data, "base": base}, expect=65)
    assert "row row-0: the chat template cannot render the conversation that starts with 'logs pod web-0'" in told(
        outcome
    )
    assert "Traceback" not in outcome.stderr


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
