"""A store on S3: a real server process, and between it and the store a proxy that fails on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import Manifest, Provenance
from include.artifacts.s3 import Access, Bucket
from include.artifacts.s3.backend import scratch_folder
from include.artifacts.store import Store
from include.artifacts.uses import Run, note_uses
from include.errors import ArtifactError, ConfigurationError, TryAgainError
from include.retention import Policy, make_plan
from jobs.retention.inventory import take_inventory
from jobs.retention.sweep import sweep
from tests.ports import free_home_port
from tests.s3 import server
from tests.s3.proxy import Fault, Proxy, between

PART = 5 * 2**20
QUICK = Access(part_bytes=PART, attempts=3)


@pytest.fixture
def store(s3_bucket: str) -> Store:
    return Store(f"s3://{s3_bucket}/deep/store", existing=True, access=QUICK)


@pytest.fixture
def proxy(store: Store, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Yield the proxy through which `store` and every other client of this test goes from its first request on."""
    with between(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
def record(provenance: Provenance) -> dict[str, Any]:
    return {"job": "test", "code": "0", "provenance": provenance}


@pytest.fixture
def paths(s3_bucket: str, s3_server: str) -> Callable[[], list[str]]:
    """Return a function that lists the bucket past the proxy."""

    def listed() -> list[str]:
        direct = Bucket(f"s3://{s3_bucket}/deep/store", Access(client=lambda access: _direct(access, s3_server)))
        return sorted(found.path for found in direct.walk())

    return listed


def _direct(access: Access, url: str) -> Any:
    from botocore.session import Session

    return Session().create_client("s3", endpoint_url=url, config=access.config)


def large() -> bytes:
    """Return the bytes of three parts and a rest."""
    return os.urandom(2**20) * 15 + b"the rest"


def test_an_artifact_comes_back_as_it_was_committed(store: Store, commit: Callable[..., Manifest]) -> None:
    content = {"empty": b"", "a b/ü.txt": "one", "weights.safetensors": large()}
    manifest = commit("model-1", content, metrics={"loss": 0.5})
    assert store.manifest("model-1") == manifest
    with store.open_files("model-1", digest=manifest.content_digest) as folder:
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"empty": b"", "a b/ü.txt": b"one", "weights.safetensors": content["weights.safetensors"]}
    assert not folder.exists()
    assert store.read_bytes("model-1", "a b/ü.txt") == b"one"
    assert store.manifest("model-2") is None
    assert Store.of(store.uri("model-1"))[0].manifest("model-1") == manifest


def test_a_bucket_without_prefix_is_a_store(s3_bucket: str, record: dict[str, Any]) -> None:
    store = Store(f"s3://{s3_bucket}", access=QUICK)
    with store.attempt("data-1") as attempt:
        (attempt.files / "a").write_text("one")
        attempt.commit(**record)
    assert store.names() == ["data-1"]
    assert store.read_bytes("data-1", "a") == b"one"
    assert {entry.path.split("/")[0] for entry in store.listing()} == {"data-1"}


def test_large_files_go_in_parts_and_come_in_ranges(
    store: Store, proxy: Proxy, commit: Callable[..., Manifest]
) -> None:
    commit("model-1", {"weights": large()})
    parts = [path for method, path in proxy.seen if method == "PUT" and "partNumber=" in path]
    assert len(parts) == 4
    before = len(proxy.seen)
    with store.open_files("model-1") as folder:
        assert (folder / "weights").stat().st_size == 15 * 2**20 + 8
    assert Counter(method for method, path in proxy.seen[before:] if path.endswith("/weights")) == {"GET": 4}


def test_a_commit_makes_progress_with_each_piece_read_and_each_part_stored(
    store: Store, proxy: Proxy, record: dict[str, Any]
) -> None:
    parts: list[int] = []

    def count() -> None:
        parts.append(sum("partNumber=" in path for _, path in proxy.seen))

    with store.attempt("model-1", on_progress=count) as attempt:
        (attempt.files / "weights").write_bytes(large())
        attempt.commit(**record)
    assert parts.count(0) >= 15, "MiB of which the digest was computed"
    assert sum(number > 0 for number in parts) == 4


def test_a_copy_takes_the_memory_of_its_parts_and_not_of_its_files(
    store: Store, commit: Callable[..., Manifest], tmp_path: Path
) -> None:
    size = 96 * 2**20
    with store.attempt("model-1") as attempt:
        with (attempt.files / "weights").open("wb") as stream:
            stream.truncate(size)
        program = textwrap.dedent(
            """
            import resource, sys
            from pathlib import Path
            from include.artifacts.naming import file_digest
            from include.artifacts.s3 import Access, Bucket
            from include.artifacts.s3.transfer import Download, Upload, download, upload
            root, file, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
            bucket = Bucket(root, Access(part_bytes=5 * 2**20, threads=4))
            bucket.file("warm")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            upload(bucket, [Upload(file, "large", file.stat().st_size, file_digest(file))])
            download(bucket, [Download("large", target, file.stat().st_size)])
            assert file_digest(target) == file_digest(file)
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
            """
        )
        grown = subprocess.run(
            [sys.executable, "-c", program, store.root, attempt.files / "weights", tmp_path / "copy"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert int(grown.stdout) < 64, "MiB; the file has 96"


def test_of_many_processes_exactly_one_commits(store: Store, paths: Callable[[], list[str]]) -> None:
    program = textwrap.dedent(
        """
        import sys
        from datetime import UTC, datetime
        from include.artifacts.manifest import Provenance
        from include.artifacts.store import Store
        now = datetime.now(UTC)
        cost = {"wall_seconds": 0, "cpu_seconds": 0, "peak_rss_bytes": 0}
        provenance = Provenance(started=now, finished=now, **cost, host="h", python="3")
        with Store(sys.argv[1]).attempt("race") as attempt:
            (attempt.files / "writer").write_text(sys.argv[2])
            Store(sys.argv[1]).names()
            print("ready", flush=True)
            sys.stdin.readline()
            _, ours = attempt.commit(job="race", code="0", provenance=provenance)
        print(sys.argv[2] if ours else "lost")
        """
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [
        subprocess.Popen([sys.executable, "-c", program, store.root, str(number)], **pipes) for number in range(3)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    printed = []
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        printed.append(writer.communicate()[0].strip())
        assert writer.returncode == 0
    (winner,) = (line for line in printed if line != "lost")
    assert store.read_bytes("race", "writer") == winner.encode()
    assert len(paths()) == 2, "the losers' files are gone"


def test_a_manifest_whose_answer_was_lost_is_our_own(
    store: Store, proxy: Proxy, record: dict[str, Any], paths: Callable[[], list[str]]
) -> None:
    proxy.faults.append(Fault("PUT", "manifest.json", "lose answer"))
    with store.attempt("model-1") as attempt:
        (attempt.files / "a").write_text("one")
        manifest, ours = attempt.commit(**record)
    assert ours
    assert manifest.attempt == attempt.id
    asked = [method for method, path in proxy.seen if path.endswith("manifest.json")]
    assert asked[:3] == ["PUT", "PUT", "HEAD"]
    with store.open_files("model-1") as folder:
        assert (folder / "a").read_text() == "one"


def test_an_attempt_that_may_have_been_committed_keeps_its_files(
    store: Store, proxy: Proxy, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, s3_server: str
) -> None:
    proxy.faults += [Fault("PUT", "manifest.json", "lose answer", times=3)]
    says = "gives no whole answer to put_object"
    with pytest.raises(TryAgainError, match=says), store.attempt("model-1") as attempt:
        (attempt.files / "a").write_text("one")
        attempt.commit(**record)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    again = Store(store.root)
    assert again.manifest("model-1").attempt == attempt.id
    assert again.read_bytes("model-1", "a") == b"one"


def test_a_conflict_of_writers_is_tried_again(store: Store, proxy: Proxy) -> None:
    proxy.faults.append(Fault("PUT", "claims/one", "refuse", status=409, code="ConditionalRequestConflict"))
    assert store.create("claims/one", b"first")
    assert not store.create("claims/one", b"first"), "equal bytes, another writer"
    assert store.read_file("claims/one") == b"first"


@pytest.mark.remedy("is created and deleted by others meanwhile: clear this task")
@pytest.mark.remedy("was made and removed meanwhile: clear this task")
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("PUT", "manifest.json", "refuse", 3, 412, "PreconditionFailed"), "created and deleted by others"),
        (Fault("GET", "manifest.json", "refuse", 1, 404, "NoSuchKey"), "made and removed"),
    ],
    ids=["before it is asked for", "before it is read"],
)
def test_what_others_make_and_remove_is_made_by_the_cleared_task(
    store: Store, proxy: Proxy, record: dict[str, Any], commit: Callable[..., Manifest], fault: Fault, says: str
) -> None:
    if fault.method == "GET":
        commit("model-1", {"a": "another's"})
    proxy.faults.append(replace(fault))
    with store.attempt("model-1") as attempt, pytest.raises(TryAgainError, match=f"{says} meanwhile: clear this task"):
        attempt.commit(**record)
    store.remove_path("model-1/manifest.json")
    with store.attempt("model-1") as attempt:
        assert attempt.commit(**record)[1]


def test_a_server_without_conditional_writes_is_refused(store: Store, proxy: Proxy) -> None:
    proxy.faults.append(Fault("PUT", "claims/one", "refuse", times=2, status=200, body=""))
    with pytest.raises(ConfigurationError, match="in spite of If-None-Match"):
        store.create("claims/one", b"first")
    assert store.create("claims/two", b"first")
    before = len(proxy.seen)
    assert store.create("claims/three", b"first")
    assert len(proxy.seen) == before + 1, "asked once a bucket"


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable")])
def test_an_error_that_passes_is_waited_out(
    store: Store, proxy: Proxy, commit: Callable[..., Manifest], status: int, code: str
) -> None:
    proxy.faults += [Fault(method, "/model-1/", "refuse", 2, status, code) for method in ("PUT", "GET")]
    commit("model-1", {"a": "one", "weights": large()})
    with store.open_files("model-1") as folder:
        assert (folder / "a").read_text() == "one"
    assert all(fault.done == 2 for fault in proxy.faults)


def test_an_error_that_stays_is_one_sentence_and_leaves_nothing(
    store: Store, proxy: Proxy, record: dict[str, Any], paths: Callable[[], list[str]]
) -> None:
    proxy.faults.append(Fault("PUT", "partNumber=2", "refuse", 99, 503, "SlowDown"))
    says = rf"{store.root}: {proxy.url} answers UploadPart with SlowDown again and again"
    with pytest.raises(TryAgainError, match=says), store.attempt("model-1") as attempt:
        (attempt.files / "a").write_text("one")
        (attempt.files / "weights").write_bytes(large())
        attempt.commit(**record)
    assert proxy.faults[0].done == QUICK.attempts
    assert paths() == []
    assert any(method == "DELETE" and "uploadId=" in path for method, path in proxy.seen), "the upload was given up"


@pytest.mark.parametrize("action", ["cut answer", "stall"])
@pytest.mark.parametrize("after", [0, 2**20 + 7])
def test_a_shard_that_breaks_off_is_continued(
    store: Store, proxy: Proxy, commit: Callable[..., Manifest], action: Any, after: int
) -> None:
    data = large()
    commit("model-1", {"weights": data})
    proxy.faults.append(Fault("GET", "/files/weights", action, times=2, after=after))
    impatient = Store(store.root, access=Access(part_bytes=PART, read_seconds=2))
    with impatient.open_files("model-1") as folder:
        assert (folder / "weights").read_bytes() == data
    assert proxy.faults[0].done == 2


def test_a_shard_that_comes_in_many_pieces_comes(store: Store, proxy: Proxy, commit: Callable[..., Manifest]) -> None:
    data, pieces = "a thousand bytes " * 600, QUICK.attempts + 3
    commit("model-1", {"weights": data})
    proxy.faults.append(Fault("GET", "/files/weights", "cut answer", times=pieces, after=1000))
    with store.open_files("model-1") as folder:
        assert (folder / "weights").read_text() == data
    assert proxy.faults[0].done == pieces


def test_a_shard_that_always_breaks_off_is_given_up_in_one_sentence(
    store: Store, proxy: Proxy, commit: Callable[..., Manifest]
) -> None:
    commit("model-1", {"weights": "thousands of bytes"})
    proxy.faults.append(Fault("GET", "/files/weights", "cut answer", times=99, after=0))
    with pytest.raises(TryAgainError, match="gives no whole answer to GetObject"), store.open_files("model-1"):
        pass
    assert proxy.faults[0].done == QUICK.attempts


def test_bytes_that_arrive_altered_are_fetched_once_more(
    store: Store, proxy: Proxy, commit: Callable[..., Manifest]
) -> None:
    commit("model-1", {"a": "one", "b": "two"})
    proxy.faults.append(Fault("GET", "/files/a", "garble"))
    with store.open_files("model-1") as folder:
        assert (folder / "a").read_text() == "one"
    proxy.faults.append(Fault("GET", "/files/a", "garble", times=2))
    with pytest.raises(ArtifactError, match="a was altered after its commit"), store.open_files("model-1"):
        pass


def test_a_cut_body_becomes_no_object(store: Store, proxy: Proxy, commit: Callable[..., Manifest]) -> None:
    data = large()
    proxy.faults += [Fault("PUT", "/files/a", "cut request", after=2), Fault("PUT", "partNumber=3", "cut request")]
    commit("model-1", {"a": "one", "weights": data})
    assert all(fault.done for fault in proxy.faults)
    with store.open_files("model-1") as folder:
        assert (folder / "a").read_text() == "one"
        assert (folder / "weights").read_bytes() == data


def test_a_completion_whose_answer_was_lost_counts(
    store: Store, proxy: Proxy, commit: Callable[..., Manifest], paths: Callable[[], list[str]]
) -> None:
    proxy.faults.append(Fault("POST", "uploadId=", "lose answer"))
    proxy.faults.append(Fault("POST", "uploadId=", "refuse", status=404, code="NoSuchUpload"))
    commit("model-1", {"weights": large()})
    assert all(fault.done for fault in proxy.faults)
    assert len(paths()) == 2
    assert store.read_bytes("model-1", "weights")[-8:] == b"the rest"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda bucket, path: bucket.delete(path), "weights is missing"),
        (lambda bucket, path: bucket.put(path, b"shorter"), "has 7 bytes, its manifest says"),
        (lambda bucket, path: bucket.put(path, b""), "weights.* its manifest says"),
        (lambda bucket, path: bucket.put(path, large() + b"X"), "weights has .* bytes, its manifest says"),
        (lambda bucket, path: bucket.put(path, b"X" + large()[1:]), "weights was altered after its commit"),
    ],
    ids=["missing", "short", "empty", "long", "altered"],
)
def test_what_was_damaged_after_its_commit_is_refused(
    store: Store, commit: Callable[..., Manifest], spoil: Callable[[Bucket, str], None], says: str
) -> None:
    manifest = commit("model-1", {"weights": large()})
    spoil(Bucket(store.root, QUICK), f"model-1/attempts/{manifest.attempt}/files/weights")
    with pytest.raises(ArtifactError, match=says), store.open_files("model-1"):
        pass
    with pytest.raises(ArtifactError, match="weights is missing or was altered"):
        store.read_bytes("model-1", "weights")


def test_every_page_is_listed_and_removed(store: Store) -> None:
    bucket = Bucket(store.root, Access())
    bucket.each([lambda number=number: bucket.put(f"data-1/attempts/x/files/{number}", b"") for number in range(1030)])
    bucket.put("data-10/attempts/y/files/0", b"")
    assert len(store.listing("data-1")) == 1030
    assert len(store.listing()) == 1031
    store.remove_path("data-1/attempts/x")
    assert [entry.path for entry in store.listing()] == ["data-10/attempts/y/files/0"]


def test_names_are_those_of_what_was_committed(store: Store, commit: Callable[..., Manifest]) -> None:
    for name in ("data-1", "data-1.step00000002", "model-1"):
        commit(name, {"a": "one"})
    store.create("data-2/attempts/x/files/a", b"not committed")
    store.write_spec("data-3", "{}")
    assert store.names() == ["data-1", "data-1.step00000002", "model-1"]
    assert store.names("data-1.step") == ["data-1.step00000002"]
    assert store.names("none") == []


def test_what_another_wrote_is_seen_at_once(store: Store, commit: Callable[..., Manifest]) -> None:
    assert store.manifest("data-1") is None
    assert store.names() == []
    commit("data-1", {"a": "one"})
    assert store.names() == ["data-1"]
    store.remove("data-1", unless_used_after=datetime.now(UTC))
    assert store.manifest("data-1") is None


def test_a_use_within_the_same_second_keeps_it(store: Store, commit: Callable[..., Manifest]) -> None:
    commit("data-1", {"a": "one"})
    time.sleep(1.1 - time.time() % 1)
    moment = datetime.now(UTC)
    note_uses(store, Run(dag_id="customize", run_id="x"), ["data-1"])
    assert store.last_use("data-1") <= moment, "S3 rounds down"
    assert not store.remove("data-1", unless_used_after=moment)
    assert store.remove("data-1", unless_used_after=moment + timedelta(seconds=2))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, "<Error><Code>AccessDenied</Code></Error>"),
        (200, "<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code></Error></DeleteResult>"),
    ],
    ids=["nothing", "some of it"],
)
def test_what_cannot_be_deleted_is_reported(
    store: Store, proxy: Proxy, commit: Callable[..., Manifest], status: int, body: str
) -> None:
    commit("data-1", {"a": "one"})
    proxy.faults.append(Fault("POST", "?delete", "refuse", 9, status, body=body))
    with pytest.raises(ConfigurationError, match="denies DeleteObjects .* need s3:GetObject"):
        store.remove("data-1", unless_used_after=datetime.now(UTC))


def test_a_bucket_that_is_missing_is_one_sentence(s3_bucket: str, record: dict[str, Any]) -> None:
    store = Store("s3://of-nobody/store", existing=True, access=QUICK)
    says = "s3://of-nobody/store: there is no bucket 'of-nobody' at http://127.0.0.1:.*: make it"
    for use in (
        lambda: store.manifest("data-1"),
        lambda: store.names(),
        lambda: store.listing(),
        lambda: store.read_bytes("data-1", "a"),
        lambda: store.create("claims/one", b""),
        lambda: store.touch("uses/one"),
        lambda: store.remove_path("claims/one"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            use()
    with pytest.raises(ConfigurationError, match=says), store.attempt("data-1") as attempt:
        (attempt.files / "a").write_bytes(large())
        attempt.commit(**record)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, r"does not accept the credentials \(InvalidAccessKeyId"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, r"does not accept the credentials \(SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "this process has no credentials for it"),
        ({"AWS_ENDPOINT_URL_S3": "nonsense"}, "Invalid endpoint: nonsense; correct its endpoint"),
        ({"AWS_PROFILE": "missing"}, r"The config profile \(missing\) could not be found; correct it"),
    ],
    ids=["key", "secret", "none", "endpoint", "profile"],
)
def test_credentials_that_are_not_accepted_are_one_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str | None], says: str
) -> None:
    for name, value in environment.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=says) as caught:
        store.manifest("data-1")
    assert "\n" not in str(caught.value)
    assert server.SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (
            403,
            "AccessDenied",
            ConfigurationError,
            "denies GetObject .* credentials need s3:GetObject, s3:PutObject",
        ),
        (400, "ExpiredToken", TryAgainError, "the credentials have expired"),
        (403, "RequestTimeTooSkewed", ConfigurationError, "clock differs from the server's"),
        (400, "AuthorizationHeaderMalformed", ConfigurationError, "in another region .* set AWS_DEFAULT_REGION"),
        (501, "NotImplemented", ConfigurationError, "a store needs a server with conditional writes"),
        (400, "InvalidArgument", ConfigurationError, "refuses GetObject .InvalidArgument"),
        (429, "TooManyRequests", TryAgainError, "answers GetObject with TooManyRequests again and again"),
    ],
)
def test_each_refusal_says_what_to_do(
    store: Store, proxy: Proxy, status: int, code: str, kind: type[Exception], says: str
) -> None:
    proxy.faults.append(Fault("GET", "data-1", "refuse", 9, status, code))
    with pytest.raises(kind, match=says) as caught:
        store.manifest("data-1")
    assert type(caught.value) is kind


def test_an_endpoint_that_is_away_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_home_port()}")
    with pytest.raises(TryAgainError, match="Could not connect to the endpoint URL"):
        store.manifest("data-1")


def test_a_copy_needs_room_in_the_scratch_folder(
    store: Store, commit: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit("model-1", {"a": "one"})
    monkeypatch.setenv("ANEMONE_SCRATCH", str(tmp_path / "made" / "when-needed"))
    with store.open_files("model-1") as folder:
        assert folder.parent == tmp_path / "made" / "when-needed" == scratch_folder()
    usage = type("Usage", (), {"free": 2})
    monkeypatch.setattr("include.artifacts.s3.backend.shutil.disk_usage", lambda _: usage)
    says = "model-1 needs 3 bytes in .*/when-needed, where 2 are free: free some space there, or name another folder in"
    with pytest.raises(TryAgainError, match=says), store.open_files("model-1"):
        pass
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANEMONE_SCRATCH", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="ANEMONE_SCRATCH names .* correct it"):
        store.attempt("model-2")


def test_files_are_laid_out_where_they_are_wanted(
    store: Store, commit: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = commit("model-1", {"weights": large(), "sub/a": "one"})
    store.lay_out("model-1", tmp_path / "here")
    assert (tmp_path / "here" / "sub" / "a").read_text() == "one"
    Bucket(store.root, QUICK).delete(f"model-1/attempts/{manifest.attempt}/files/sub/a")
    with pytest.raises(ArtifactError, match="sub/a is missing"):
        store.lay_out("model-1", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_sweep_takes_what_nothing_needs_and_leaves_what_it_cannot_read(
    store: Store, commit: Callable[..., Manifest]
) -> None:
    commit("curate-1", {"a": "one"})
    commit("merge-1", {"a": "one"})
    store.create("merge-1/attempts/dead/files/a", b"left by a crash")
    store.write_spec("gone-1", "{}")
    note_uses(store, Run(dag_id="customize", run_id="x"), ["merge-1", "never"])
    store.create("broken-1/manifest.json", b"{")
    inventory = take_inventory(store, lambda artifacts: [])
    plan = make_plan(inventory, Policy(keep_days=30), datetime.now(UTC) + timedelta(days=60), store=store.root)
    assert sweep(store, plan, plan, lambda *_, **__: None).spared == []
    assert [entry.path for entry in store.listing()] == ["broken-1/manifest.json"]
