from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from include.laptop import setup
from include.laptop.components import components

TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    for name in ("PIP_FIND_LINKS", "UV_TORCH_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def make_ready(environment: str) -> None:
    python = setup.python_of(environment)
    python.parent.mkdir(parents=True)
    python.touch()
    setup._stamp_file(environment).write_text(setup._stamp(environment))


@pytest.mark.parametrize("environment", (*setup.ENVIRONMENTS, *setup.ON_REQUEST))
def test_a_lock_pins_everything_with_hashes_and_nothing_of_cuda(environment: str) -> None:
    text = setup.lock_file(environment).read_text()
    blocks = re.split(r"\n(?=\S)", text[text.index("\n", text.index("# download")) + 1 :].strip())
    names = {block.partition("==")[0] for block in blocks}
    assert len(names) == len(blocks) == setup.download(environment)[1] > 70
    unhashed = {block.partition("==")[0] for block in blocks if "--hash=sha256:" not in block}
    assert unhashed == ({"torch"} if environment in ("jobs", "bench") else set())
    assert not {name for name in names - {"nvidia-pytriton"} if name.startswith(("nvidia", "cuda", "quack"))}
    assert "+cpu" not in text
    assert "://" not in text


@pytest.mark.parametrize("environment", setup.ENVIRONMENTS)
def test_an_environment_is_ready_once_its_stamp_is_there(environment: str) -> None:
    assert not setup.is_ready(environment)
    make_ready(environment)
    assert setup.is_ready(environment)
    setup.python_of(environment).unlink()
    assert not setup.is_ready(environment)


def test_another_lock_makes_it_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text("one==1\n")
    monkeypatch.setattr(setup, "lock_file", lambda _: lock)
    make_ready("jobs")
    assert setup.is_ready("jobs")
    lock.write_text("one==2\n")
    assert not setup.is_ready("jobs")


def test_nothing_is_done_where_all_is_ready(capfd: pytest.CaptureFixture[str]) -> None:
    for environment in setup.ENVIRONMENTS:
        make_ready(environment)
    (setup.home() / ".anemone-home").touch()
    setup.set_up()
    assert capfd.readouterr().out == ""


def test_what_compares_with_the_jobs_holds_their_versions() -> None:
    jobs, bench = (
        dict(re.findall(r"^([\w.-]+)==(\S+)", setup.lock_file(name).read_text(), re.MULTILINE))
        for name in ("jobs", "bench")
    )
    common = jobs.keys() & bench.keys()
    assert len(common) > 150
    assert {name: jobs[name] for name in common} == {name: bench[name] for name in common}


def test_an_environment_in_use_is_not_changed(own_home: Path) -> None:
    setup.make_home()
    service = components()[0]
    service.start(["sleep", "60"], os.environ)
    try:
        with pytest.raises(setup.SetupError, match="make down"):
            setup.set_up()
    finally:
        service.stop(grace=5)


@pytest.mark.parametrize(
    ("wheel", "local"),
    [
        (f"torch-2.13.0+cpu-{TAG}-{TAG}-manylinux_2_28_x86_64.whl", True),
        (f"torch-2.13.0%2Bcpu-{TAG}-{TAG}-manylinux_2_28_x86_64.whl", True),
        (f"torch-2.13.0-{TAG}-{TAG}-manylinux_2_28_x86_64.whl", True),
        (f"torch-2.12.0+cpu-{TAG}-{TAG}-manylinux_2_28_x86_64.whl", False),
        ("torch-2.13.0+cpu-cp39-cp39-manylinux_2_28_x86_64.whl", False),
        (f"torchdata-2.13.0-{TAG}-none-any.whl", False),
    ],
)
def test_a_local_torch_wheel_is_taken_where_it_fits(
    wheel: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text("torch==2.13.0\n")
    links = tmp_path / "wheels"
    links.mkdir()
    (links / wheel).touch()
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    expected = ["--find-links", str(links)] if local else ["--torch-backend", "auto"]
    assert setup._torch_options(lock) == expected


def test_the_users_choice_of_torch_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text("torch==2.13.0\n")
    assert setup._torch_options(lock) == ["--torch-backend", "auto"]
    monkeypatch.setenv("UV_TORCH_BACKEND", "cpu")
    assert setup._torch_options(lock) == []
