from __future__ import annotations

import ctypes
import re
import shlex
import shutil
import subprocess

import pytest
import uvloop

from include.home import PROJECT

FOLDER = PROJECT / "include" / "deploy" / "docker"
FILES = sorted(path.name.removesuffix(".Dockerfile") for path in FOLDER.glob("*.Dockerfile"))
BUILT_ON_OURS = ("worker",)


def _instructions(name):
    """(instruction, rest) of a Dockerfile, continued lines joined, comments left out."""
    lines = (FOLDER / f"{name}.Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def _last_stage(name):
    instructions = _instructions(name)
    start = max(index for index, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[start:]


def test_there_is_one_for_every_image():
    assert FILES == ["airflow", "jobs", "nemo", "serving", "tensorrt-llm", "worker"]


@pytest.mark.parametrize("name", FILES)
def test_it_says_how_it_is_built(name):
    text = (FOLDER / f"{name}.Dockerfile").read_text(encoding="utf-8")
    assert f"--file include/deploy/docker/{name}.Dockerfile --tag anemone/{name}:0.1.0 ." in text


@pytest.mark.parametrize("name", FILES)
def test_its_bases_are_arguments(name):
    instructions = _instructions(name)
    arguments = {rest.split("=")[0] for word, rest in instructions if word == "ARG"}
    for word, rest in instructions:
        if word == "FROM":
            base = re.fullmatch(r"\$\{(\w+)\}( AS \w+)?", rest)
            assert base is not None, rest
            assert base[1] in arguments


@pytest.mark.parametrize("name", [name for name in FILES if name not in BUILT_ON_OURS])
def test_it_ends_as_a_user_without_rights_and_says_what_it_is(name):
    stage = _last_stage(name)
    assert [rest for word, rest in stage if word == "USER"][-1] == "10001:10001"
    label = " ".join(rest for word, rest in stage if word == "LABEL")
    for key in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{key}=" in label


@pytest.mark.parametrize("name", FILES)
def test_any_builder_can_build_it(name):
    # Docker's classic builder knows neither mounts nor here-documents.
    text = "\n".join(" ".join(instruction) for instruction in _instructions(name))
    assert "--mount" not in text
    assert "<<" not in text


@pytest.mark.parametrize("name", FILES)
def test_it_knows_no_place_and_no_secret_of_the_machine_that_builds_it(name):
    text = (FOLDER / f"{name}.Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"(?i)index-url|extra-index|_INDEX=|find-links=|password|_proxy", text)
    # The last stage takes from the one before it the environment and the project, and nothing else.
    for word, rest in _last_stage(name):
        if word == "COPY" and rest.startswith("--from=build"):
            assert rest.split()[1] in ("/opt/venvs", "/opt/anemone")


@pytest.mark.parametrize("name", FILES)
def test_what_it_copies_is_in_the_checkout_and_let_in(name):
    admitted = _admitted()
    for word, rest in _instructions(name):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                if source != ".":
                    assert (PROJECT / source).is_file(), source
                    assert source.split("/")[0] in admitted, source


def test_an_image_holds_what_a_jobs_identity_is_computed_from():
    admitted = _admitted()
    assert {"include", "jobs", "requirements"} <= admitted
    assert not {"tests", ".git", ".anemone", "docker-compose.yaml"} & admitted


def _admitted():
    """The top level's entries that .dockerignore lets in."""
    admitted = set()
    for line in (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line.startswith("!"):
            admitted |= {path.name for path in PROJECT.glob(line[1:])}
        elif line and not line.startswith(("#", "*")):
            admitted.discard(line)
    return admitted


@pytest.mark.parametrize("name", ("nemo", "tensorrt-llm"))
def test_what_is_added_to_somebody_elses_image_is_locked(name):
    run = next(rest for word, rest in _instructions(name) if word == "RUN" and "additions.sh" in rest)
    _, _, lock, *packages = shlex.split(run)
    locked = (PROJECT / lock).read_text(encoding="utf-8")
    assert "botocore" in packages
    for package in packages:
        assert re.search(rf"^{re.escape(package)}==", locked, re.MULTILINE), package
    assert not {"torch", "triton"} & set(packages)


@pytest.mark.parametrize("name", FILES)
def test_what_is_fetched_past_a_package_manager_is_compared_with_its_checksum(name):
    instructions = _instructions(name)
    for word, rest in instructions:
        if word == "RUN" and re.search(r"\b(curl|wget)\b", rest):
            (checksum,) = re.findall(r'echo "\$\{(\w+)\} .*\| sha256sum --check --strict', rest)
            (value,) = [text for keyword, text in instructions if keyword == "ARG" and text.startswith(f"{checksum}=")]
            assert re.fullmatch(rf"{checksum}=[0-9a-f]{{64}}", value)
            assert rest.index("sha256sum") < rest.index("tar x")


def _environment(folder, torch):
    """Files of an environment, each with a few bytes."""
    made = [
        *("triton/__init__.py", "triton-3.7.1.dist-info/METADATA", "triton/backends/nvidia/bin/ptxas"),
        *("torch/include/torch.h", "torch/test/test_api", "torch/bin/protoc", "torch/bin/torch_shm_manager"),
        *("torch/testing/_internal.py", "ray/jars/ray.jar", "pyarrow/include/arrow.h", "pandas/tests/test.py"),
        *("pandas/testing.py", "pytriton/tritonserver/python_backend_stubs/3.8/stub"),
    ]
    for name in made:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "torch" / "version.py").write_text(f"__version__ = {torch!r}\n")


def _slim(folder):
    subprocess.run(["sh", str(FOLDER / "slim.sh"), str(folder)], check=True, capture_output=True, text=True)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("torch", "keeps_triton"), [("2.13.0+cpu", False), ("2.13.0", True)])
def test_what_no_job_runs_without_a_gpu_is_left_out(tmp_path, torch, keeps_triton):
    _environment(tmp_path, torch)
    kept = {"torch/bin/torch_shm_manager", "torch/testing/_internal.py", "torch/version.py", "pandas/testing.py"}
    triton = {"triton/__init__.py", "triton-3.7.1.dist-info/METADATA"} if keeps_triton else set()
    assert _slim(tmp_path) == kept | triton
    assert _slim(tmp_path) == kept | triton, "again, it changes nothing"


@pytest.mark.skipif(shutil.which("strip") is None, reason="there is no strip")
def test_a_library_without_its_symbols_is_still_loaded_and_its_other_names_are_as_they_were(tmp_path):
    packages, cache = tmp_path / "packages", tmp_path / "cache.so"
    library = packages / "uvloop" / "loop.so"
    library.parent.mkdir(parents=True)
    shutil.copy(uvloop.loop.__file__, cache)
    library.hardlink_to(cache)
    before = cache.stat()
    _slim(packages)
    assert library.stat().st_size < before.st_size and library.stat().st_mode == before.st_mode
    assert cache.stat().st_size == before.st_size
    ctypes.CDLL(str(library))


def test_airflow_can_bring_dags_from_git():
    assert any(word == "RUN" and "apt-get install" in rest and " git " in rest for word, rest in _last_stage("airflow"))
    locked = (PROJECT / "requirements/deploy.txt").read_text(encoding="utf-8")
    for package in ("apache-airflow-providers-git", "gitpython", "statsd"):
        assert re.search(rf"^{package}==", locked, re.MULTILINE), package


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.sh")))
def test_its_scripts_parse(script):
    result = subprocess.run(["sh", "-n", str(FOLDER / script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
