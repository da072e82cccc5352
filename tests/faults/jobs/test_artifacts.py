"""Artifacts and models that are not what they say, read through the doors of those who read them."""

# ruff: noqa: F811 (pytest's fixtures, imported by name)
from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from include.home import PROJECT
from include.laptop.home import python_of
from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.conftest import Outcome
from tests.jobs.evaluate.conftest import KNOWN, folders  # noqa: F401
from tests.jobs.models import jsonl

Damage = Callable[[Path], object]

# ------------------------------------------------------------------------------------------------ damaged on disk

ROWS = jsonl(KNOWN)


@pytest.fixture
def curated(make_artifact: Callable[..., Artifact]) -> Artifact:
    """A data set of two files."""
    return make_artifact("curate-1", {"heldout.jsonl": ROWS, "parts/train.jsonl": ROWS})


@pytest.fixture
def read(
    run_job: Callable[..., Outcome], make_artifact: Callable[..., Artifact], curated: Artifact
) -> Callable[..., Outcome]:
    """Merge with the data set, planned before it was damaged: the job verifies it before it loads a model."""
    settings = {"chat_template": "{% generation %}{% endgeneration %}", "max_tokens": 8}
    base, tuned = (make_artifact(name, {"README.md": name}) for name in ("base-1", "tuned-1"))

    def run(expect: int) -> Outcome:
        return run_job("merge", settings, {"base": base, "tuned": tuned, "data": curated}, expect=expect)

    return run


def files_of(artifact: Path) -> Path:
    (folder,) = artifact.glob("attempts/*/files")
    return folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link_elsewhere(path: Path) -> None:
    """Move a file or folder out of the store, and leave a link to it."""
    target = path.parents[len(path.parents) - 3] / f"elsewhere-{os.getpid()}-{path.name}"
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True)
    shutil.move(path, target)
    path.symlink_to(target)


def in_files(name: str, change: Damage) -> Damage:
    return lambda artifact: change(files_of(artifact) / name)


def in_manifest(change: Callable[[dict[str, Any]], dict[str, Any]], sealed: bool = True) -> Damage:
    """Change the manifest's document; whoever does it knows how to seal it again, unless he does not."""

    def spoil(artifact: Path) -> None:
        from include.artifacts.naming import digest

        path = artifact / "manifest.json"
        document = json.loads(path.read_bytes())
        seal = document.pop("seal")
        document = change(document)
        path.write_text(json.dumps({**document, "seal": digest(document) if sealed else seal}))

    return spoil


def with_path(path: str) -> Damage:
    return in_manifest(lambda document: {**document, "files": [{**document["files"][0], "path": path}]})


def manifest_file(change: Damage) -> Damage:
    return lambda artifact: change(artifact / "manifest.json")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def exchange(artifact: Path) -> None:
    """Another artifact's folder in its place."""
    shutil.rmtree(artifact)
    shutil.copytree(artifact.with_name("base-1"), artifact)


ARTIFACT = "a data set that a merge was planned with"
REFUSED = "the job ends with 65, names it, and says what to do"
DAMAGES = [
    (
        "truncated",
        in_files("heldout.jsonl", lambda path: os.truncate(path, 100)),
        "a file is truncated",
        "has 100 bytes",
    ),
    ("flipped", in_files("heldout.jsonl", flip), "one bit of a file is flipped", "heldout.jsonl was altered"),
    ("missing", in_files("parts/train.jsonl", Path.unlink), "a file is missing", "parts/train.jsonl is missing"),
    (
        "doubled",
        in_files("train (copy).jsonl", lambda path: path.write_text(ROWS)),
        "there is a file more than the manifest lists",
        "'train (copy).jsonl' was added after its commit",
    ),
    (
        "link",
        in_files("heldout.jsonl", link_elsewhere),
        "a file is a link to the same bytes",
        "heldout.jsonl is a link",
    ),
    ("folder-link", in_files("parts", link_elsewhere), "a folder is a link to the same files", "parts is a link"),
    ("pipe", in_files("heldout.jsonl", make_pipe), "a file is a named pipe", "heldout.jsonl is a link or a special"),
    (
        "dot-dot",
        with_path("../../../../etc/passwd"),
        "the manifest lists ../../../../etc/passwd",
        "not a plain relative",
    ),
    ("absolute", with_path("/etc/passwd"), "the manifest lists /etc/passwd", "not a plain relative path"),
    (
        "twice",
        in_manifest(lambda document: {**document, "files": document["files"] * 2}),
        "the manifest lists a file twice",
        "is listed twice",
    ),
    (
        "attempt",
        in_manifest(lambda document: {**document, "attempt": "../../base-1/attempts/x"}),
        "the manifest points to an attempt outside its folder",
        "attempt: String should match pattern",
    ),
    (
        "newer",
        in_manifest(lambda document: {**document, "schema_version": 4}),
        "the manifest is of a newer schema",
        "has schema 4, this Anemone reads up to 3: update Anemone",
    ),
    (
        "lineage",
        in_manifest(lambda document: {**document, "inputs": {"data": {"uri": "x", "digest": "0" * 64}}}, sealed=False),
        "the manifest tells of other inputs than at its commit",
        "its seal does not follow from its fields",
    ),
    ("not-json", manifest_file(lambda path: path.write_text("{")), "the manifest is not JSON", "is not a manifest"),
    ("empty", manifest_file(lambda path: path.write_bytes(b"")), "the manifest is empty", "is not a manifest"),
    (
        "deep",
        manifest_file(lambda path: path.write_text("[" * 10**6)),
        "the manifest nests a million lists",
        "is not a",
    ),
    (
        "huge",
        manifest_file(lambda path: os.truncate(path, 2**40)),
        "the manifest has a terabyte",
        "bytes long)",
    ),
    ("manifest-link", manifest_file(link_elsewhere), "the manifest is a link", "was committed (a link"),
    ("exchanged", exchange, "another artifact's folder stands in its place", "names 'base-1': it was moved or copied"),
]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(damage, says, marks=scenario(given=ARTIFACT, when=when, then=REFUSED), id=name)
        for name, damage, when, says in DAMAGES
    ],
)
def test_a_damaged_artifact_is_refused(
    curated: Artifact,
    read: Callable[..., Outcome],
    told: Callable[[Outcome], str],
    damage: Damage,
    says: str,
) -> None:
    damage(Path(curated.uri.removeprefix("file://")))
    assert says in told(read(expect=65))


def hard_link(artifact: Path) -> None:
    (artifact.parent / "backup").hardlink_to(files_of(artifact) / "heldout.jsonl")


def second_attempt(artifact: Path) -> None:
    other = artifact / "attempts" / "0123456789ab" / "files"
    other.mkdir(parents=True)
    (other / "heldout.jsonl").write_text("another try's rows")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            second_attempt,
            marks=scenario(
                given=ARTIFACT,
                when="another attempt lies beside the one that was committed",
                then="it is read as it is",
            ),
            id="attempts",
        ),
        pytest.param(
            hard_link,
            marks=scenario(given=ARTIFACT, when="a backup links its files hard", then="it is read as it is"),
            id="hard-link",
        ),
    ],
)
def test_what_does_no_harm_is_no_damage(curated: Artifact, change: Damage) -> None:
    change(Path(curated.uri.removeprefix("file://")))
    store, name = Store.of(curated.uri)
    with store.open_files(name, digest=curated.digest) as folder:
        assert (folder / "heldout.jsonl").read_text() == ROWS


@scenario(
    given="files whose names are equal but for case or for their Unicode form",
    when="they are committed as one artifact",
    then="each is read back with its own bytes",
)
def test_names_that_look_alike_are_not_mixed_up(make_artifact: Callable[..., Artifact]) -> None:
    names = ["Data.txt", "data.txt", "caf\u00e9.txt", "cafe\u0301.txt"]
    store, name = Store.of(make_artifact("alike-1", {path: f"bytes of {path}" for path in names}).uri)
    with store.open_files(name) as folder:
        assert {path: (folder / path).read_text() for path in names} == {path: f"bytes of {path}" for path in names}
    assert [store.read_bytes(name, path).decode() for path in names] == [f"bytes of {path}" for path in names]


# -------------------------------------------------------------------------------------- a model from somewhere else


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


WEIGHTS = "model.safetensors"
HOSTILE = "import os, pathlib\npathlib.Path({marker!r}).touch()\nclass Hostile: pass\n"


def pickled(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, marker: (folder / name).write_bytes(pickle.dumps(Touch(marker)))  # type: ignore[return-value]


def nemo_archive(folder: Path, marker: Path) -> None:
    pickled("model_weights.ckpt")(folder, marker)
    with tarfile.open(folder / "model.nemo", "w") as archive:
        archive.add(folder / "model_weights.ckpt", "model_weights.ckpt")
    (folder / "model_weights.ckpt").unlink()


def own_code(unknown: bool) -> Callable[[Path, Path], None]:
    """Python files beside the weights, which the configuration names as the model's and the tokenizer's code."""

    def write(folder: Path, marker: Path) -> None:
        for name in ("configuration_x", "modeling_x", "tokenization_x"):
            (folder / f"{name}.py").write_text(HOSTILE.format(marker=str(marker)))
        classes = {"AutoConfig": "configuration_x.Hostile", "AutoModelForCausalLM": "modeling_x.Hostile"}
        edit_json(folder / "config.json", auto_map=classes, **({"model_type": "hostile"} if unknown else {}))
        edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.Hostile", None]})

    return write


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def configured(**changes: Any) -> Callable[[Path, Path], None]:
    return lambda folder, marker: edit_json(folder / "config.json", **changes)


def headed(header: dict[str, Any] | bytes, data: int = 64, length: int | None = None) -> Callable[[Path, Path], None]:
    """Weights with a header of one's own, and a length that need not be its."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)
    return lambda folder, marker: (folder / WEIGHTS).write_bytes(content)  # type: ignore[return-value]


def tensor(begin: int, end: int, shape: tuple[int, ...] = (4, 2)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def huge_header(folder: Path, marker: Path) -> None:
    with (folder / WEIGHTS).open("wb") as stream:
        stream.write(struct.pack("<Q", 2**30))
        stream.truncate(2**30 + 100)


def rubbish(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, marker: (folder / name).write_bytes(os.urandom(5000))  # type: ignore[return-value]


FOREIGN = "a base model that somebody gave us as a folder"
UNREAD = "the import ends with 65, names the file, and none of its code runs"
FOREIGN_MODELS = [
    ("bin", pickled("pytorch_model.bin"), "it holds a pickle, pytorch_model.bin", "pytorch_model.bin is a pickle"),
    ("pt", pickled("weights.PT"), "it holds a pickle, weights.PT", "weights.PT is a pickle"),
    ("pkl", pickled("tokenizer.pkl"), "it holds a pickle, tokenizer.pkl", "tokenizer.pkl is a pickle"),
    ("nemo", nemo_archive, "it holds a .nemo archive", "model.nemo is a pickle"),
    ("in-truth", pickled(WEIGHTS), "its model.safetensors is a pickle in truth", "is not a whole safetensors file"),
    ("auto-map", own_code(unknown=False), "it brings Python code of its own", "config.json has auto_map"),
    ("unknown", own_code(unknown=True), "it brings Python code for a kind of model of its own", "has auto_map"),
    ("length", headed({"a": tensor(0, 32)}, length=2**62), "the header's length is a lie", "not a whole safetensors"),
    (
        "overlap",
        headed({"a": tensor(0, 32), "b": tensor(16, 48)}),
        "two tensors share their bytes",
        "not a whole safetensors file",
    ),
    ("beyond", headed({"a": tensor(0, 2**40)}), "a tensor lies beyond the file's end", "not a whole safetensors file"),
    (
        "shape",
        headed({"a": tensor(0, 64, (2**40, 2**40))}),
        "a tensor's shape overflows",
        "not a whole safetensors file",
    ),
    ("huge-header", huge_header, "the header has a gigabyte", "not a whole safetensors file"),
    ("nan", configured(hidden_size=float("nan")), "config.json holds NaN", "is not JSON (it holds NaN)"),
    ("layers", configured(num_hidden_layers=10**9), "config.json asks for 10^9 layers", "num_hidden_layers 1000000000"),
    ("vocabulary", configured(vocab_size=10**12), "config.json asks for 10^12 tokens", "vocab_size 1000000000000"),
    ("negative", configured(hidden_size=-1), "config.json names a negative size", "hidden_size -1"),
    ("text", configured(vocab_size="many"), "config.json names a size in words", "vocab_size 'many'"),
    ("tokenizer", rubbish("tokenizer.json"), "its tokenizer.json is rubbish", "tokenizer.json is not a tokenizer"),
    ("config", rubbish("config.json"), "its config.json is rubbish", "config.json is not JSON"),
]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(spoil, says, marks=scenario(given=FOREIGN, when=when, then=UNREAD), id=name)
        for name, spoil, when, says in FOREIGN_MODELS
    ],
)
def test_a_model_that_could_harm_is_not_taken(
    run_job: Callable[..., Outcome],
    told: Callable[[Outcome], str],
    folders: dict[str, Path],
    tmp_path: Path,
    spoil: Callable[[Path, Path], object],
    says: str,
) -> None:
    folder = shutil.copytree(folders["random"] / "model", tmp_path / "given")
    marker = tmp_path / "it-ran"
    spoil(folder, marker)
    outcome = run_job("import_model", {"source": str(folder)}, expect=65)
    assert says in told(outcome)
    assert outcome.manifest is None
    assert not marker.exists()


# ------------------------------------------------------------- a model that got past the door, or was made by hand


@pytest.fixture
def evaluate(
    run_job: Callable[..., Outcome],
    make_artifact: Callable[..., Artifact],
    folders: dict[str, Path],
    chat_template: str,
    tmp_path: Path,
) -> Callable[..., Outcome]:
    """Evaluate a tuned model whose folder was spoilt before it was committed."""

    def run(spoil: Callable[[Path, Path], object], marker: Path, expect: int) -> Outcome:
        folder = shutil.copytree(folders["trained"], tmp_path / "spoilt")
        spoil(folder / "model", marker)
        inputs = {
            "base": make_artifact("base-1", folder=folders["random"]),
            "tuned": make_artifact("merge-1", folder=folder),
            "data": make_artifact("curate-1", {"heldout.jsonl": ROWS, "train.jsonl": ROWS}),
        }
        settings = {"chat_template": chat_template, "max_tokens": 80, "max_new_tokens": 24, "few_shot": 1}
        return run_job("evaluate", settings, inputs, expect=expect)

    return run


def template_with_tricks(folder: Path, marker: Path) -> None:
    trick = "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(trick + template)


MADE = "a model artifact that was made by hand, with digests that are right"


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        pytest.param(
            pickled(WEIGHTS),
            65,
            "cannot be loaded",
            marks=scenario(
                given=MADE,
                when="its model.safetensors is a pickle in truth",
                then="the job ends with 65, and it never runs",
            ),
            id="pickle",
        ),
        pytest.param(
            own_code(unknown=True),
            65,
            "has auto_map: this model runs Python code that comes with it",
            marks=scenario(
                given=MADE, when="it brings Python code of its own", then="the job ends with 65, and it never runs"
            ),
            id="code",
        ),
        pytest.param(
            template_with_tricks,
            64,
            "it reaches for what a template must not",
            marks=scenario(
                given=MADE,
                when="its chat template reaches for os.system",
                then="the job ends with 64: templates are rendered in a sandbox",
            ),
            id="template",
        ),
        pytest.param(
            rubbish("tokenizer.json"),
            65,
            "holds no tokenizer that can be loaded",
            marks=scenario(
                given=MADE, when="its tokenizer.json is rubbish", then="the job ends with 65 and one sentence"
            ),
            id="tokenizer",
        ),
        pytest.param(
            configured(num_attention_heads=0),
            65,
            "cannot be loaded",
            marks=scenario(
                given=MADE, when="its config.json names no attention head", then="the job ends with 65 and one sentence"
            ),
            id="heads",
        ),
    ],
)
def test_no_code_of_a_model_runs(
    evaluate: Callable[..., Outcome],
    told: Callable[[Outcome], str],
    tmp_path: Path,
    spoil: Callable[[Path, Path], object],
    code: int,
    says: str,
) -> None:
    marker = tmp_path / "it-ran"
    outcome = evaluate(spoil, marker, expect=code)
    assert says in told(outcome)
    assert outcome.manifest is None
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param(
            "adapter_model.bin",
            "adapter_model.bin is a pickle",
            marks=scenario(
                given="an adapter that somebody tuned elsewhere",
                when="its weights are a pickle",
                then="the merge ends with 65, and it never runs",
            ),
            id="pickle",
        ),
        pytest.param(
            "adapter_model.safetensors",
            "adapter_model.safetensors is not a whole safetensors file",
            marks=scenario(
                given="an adapter that somebody tuned elsewhere",
                when="its safetensors file is a pickle in truth",
                then="the merge ends with 65, and it never runs",
            ),
            id="in-truth",
        ),
    ],
)
def test_an_adapter_that_is_a_pickle_is_not_merged(
    run_job: Callable[..., Outcome],
    make_artifact: Callable[..., Artifact],
    told: Callable[[Outcome], str],
    folders: dict[str, Path],
    chat_template: str,
    tmp_path: Path,
    name: str,
    says: str,
) -> None:
    marker = tmp_path / "it-ran"
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    files = {
        "adapter/adapter_config.json": json.dumps(settings),
        f"adapter/{name}": pickle.dumps(Touch(marker)),
    }
    inputs = {
        "base": make_artifact("base-1", folder=folders["random"]),
        "tuned": make_artifact("tuned-1", files),
        "data": make_artifact("curate-1", {"heldout.jsonl": ROWS}),
    }
    outcome = run_job("merge", {"chat_template": chat_template, "max_tokens": 80}, inputs, expect=65)
    assert says in told(outcome)
    assert not marker.exists()


# --------------------------------------------------------------------------------------------- an engine at serving

_SERVE = """
import json, sys
from pathlib import Path
from include.artifacts.store import Store
from include.release.rollouts import Release
from jobs.common.engine_runtime.hardware import require_hardware
from jobs.serving.triton.repository import install
from tests.jobs.serving.triton.engine_fixture import commit_engine, make_engine
folder = Path(sys.argv[1])
artifact = commit_engine(Store(f"file://{folder}/store"), "engine-1", make_engine(folder / "made"))
release = Release(model="kubectl", version="1", engine=artifact)
(weights,) = (folder / "store").rglob("model.bin")
whole = weights.read_bytes()
def refusal(act):
    try:
        act()
    except Exception as error:
        return str(error)
def flipped(path):
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
flipped(weights)
said = {"altered": refusal(lambda: install(folder / "serving", release))}
weights.write_bytes(whole)
name = install(folder / "serving", release)
(copy,) = (folder / "serving" / "engines").rglob("model.bin")
flipped(copy)
said["copy"] = refusal(lambda: install(folder / "serving", release.model_copy(update={"version": "2"})))
build = json.loads((folder / "made" / "build.json").read_text())
said["more"] = refusal(lambda: require_hardware({**build, "cpu_flags": [*build["cpu_flags"], "amx_bf16x"]}))
said["arch"] = refusal(lambda: require_hardware({**build, "arch": "aarch64"}))
said["version"] = refusal(lambda: require_hardware({**build, "version": "1.0"}))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the serving side says to engines that are not what was proven; in its own environment."""
    folder = tmp_path_factory.mktemp("serving")
    done = subprocess.run(
        [str(python_of("serving")), "-c", _SERVE, str(folder)], cwd=PROJECT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return {key: sentence.replace(f"{folder}/", "") for key, sentence in said.items()}


ENGINE = "an engine that was proven against its model"


@pytest.mark.parametrize(
    ("case", "says"),
    [
        pytest.param(case, says, marks=scenario(given=ENGINE, when=when, then="it is not loaded"), id=case)
        for case, when, says in [
            ("altered", "one bit of its weights is flipped before its release", "engine/model.bin was altered"),
            ("copy", "one bit of the serving side's copy is flipped", "was altered after it was copied"),
            ("more", "it was built for a CPU feature that this machine lacks", "with amx_bf16x, which this CPU lacks"),
            ("arch", "it was built for another architecture", "with the architecture aarch64, this is"),
            ("version", "it was built by another version of the library", "with ctranslate2 1.0, here is"),
        ]
    ],
)
def test_an_engine_that_is_not_the_proven_one_is_not_served(
    refusals: dict[str, str], reads: Callable[[str], None], case: str, says: str
) -> None:
    assert says in refusals[case]
    reads(refusals[case])
