from __future__ import annotations

import pytest

from include import code_identity as module
from include import specs
from include.code_identity import code_identity
from include.errors import ConfigurationError


@pytest.fixture
def project(tmp_path, monkeypatch):
    files = {
        "requirements/jobs.txt": "torch==1\n",
        "jobs/__init__.py": "",
        "jobs/shared.py": "import include.tools.used\nfrom include.gates import find_gate\n",
        "jobs/unrelated.py": "",
        "jobs/train/__init__.py": "",
        "jobs/train/templates/page.jinja": "",
        "jobs/train/__main__.py": "def run():\n    from jobs import shared\n",
        "include/__init__.py": "",
        "include/specs/train.py": "",
        "include/tools/__init__.py": "",
        "include/gates/__init__.py": "",
        "include/gates/exam.py": "import include.tools.marks\n",
        "include/tools/marks.py": "",
        "include/tools/used.py": "",
        "include/tools/unused.py": "",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(specs, "_FOLDER", tmp_path / "include" / "specs")
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "jobs/train/__main__.py",
        "jobs/train/templates/page.jinja",
        "jobs/shared.py",
        "include/tools/used.py",
        "include/gates/exam.py",
        "include/tools/marks.py",
        "include/specs/train.py",
        "requirements/jobs.txt",
    ],
)
def test_follows_what_the_job_uses(project, path):
    before = code_identity("train", "jobs")
    assert code_identity("train", "jobs") == before
    (project / path).write_text((project / path).read_text() + "# changed\n")
    assert code_identity("train", "jobs") != before


@pytest.mark.parametrize("path", ["jobs/unrelated.py", "include/tools/unused.py"])
def test_ignores_what_it_does_not_use(project, path):
    before = code_identity("train", "jobs")
    (project / path).write_text("changed = True\n")
    assert code_identity("train", "jobs") == before


def test_an_unknown_job_and_a_missing_lock_are_named(project):
    with pytest.raises(ConfigurationError, match="no job 'other'"):
        code_identity("other", "jobs")
    with pytest.raises(ConfigurationError, match="requirements/serving.txt is missing"):
        code_identity("train", "serving")


def test_a_spec_without_its_package_is_refused_before_anything_starts(project):
    (project / "include/specs/lonely.py").write_text("")
    with pytest.raises(ConfigurationError, match="the job 'lonely' has a spec but no package: .*jobs/lonely"):
        code_identity("lonely", "jobs")


def test_an_image_stands_for_the_lock_file_and_the_python(project, monkeypatch):
    first = code_identity("train", "jobs", image="jobs@sha256:1")
    (project / "requirements/jobs.txt").unlink()
    monkeypatch.setattr(module.platform, "python_version", lambda: "3.12.1")
    assert code_identity("train", "jobs", image="jobs@sha256:1") == first
    assert code_identity("train", "jobs", image="jobs@sha256:2") != first
    (project / "jobs" / "shared.py").write_text("changed = True\n")
    assert code_identity("train", "jobs", image="jobs@sha256:1") != first
