"""The versions of the libraries behind imports, read from a lock file."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.code_identity.libraries import every_version, versions

LOCK = """\
# Made by `make lock`.
charset-normalizer==3.4 \\
    --hash=sha256:0
    # via requests
mlflow==3.17 ; python_version >= '3.12' \\
    --hash=sha256:0 \\
    --hash=sha256:1
pyyaml==6.0 \\
    --hash=sha256:0
    # via mlflow, transformers
requests==2.1 \\
    --hash=sha256:0
    # via mlflow
tokenizers==0.23 \\
    --hash=sha256:0
    # via transformers
torch==2.13
transformers==5.18 \\
    --hash=sha256:0
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.txt"
    path.write_text(LOCK)
    return path


def test_a_library_counts_with_all_that_it_needs(lock: Path) -> None:
    assert versions(lock, ["torch"]) == ["torch==2.13"]
    assert versions(lock, ["transformers", "json"]) == ["pyyaml==6.0", "tokenizers==0.23", "transformers==5.18"]
    assert versions(lock, ["mlflow"]) == ["charset-normalizer==3.4", "mlflow==3.17", "pyyaml==6.0", "requests==2.1"]
    assert versions(lock, []) == []


def test_modules_are_found_by_their_distributions_name(lock: Path) -> None:
    assert versions(lock, ["charset_normalizer"]) == ["charset-normalizer==3.4"]
    assert versions(lock, ["yaml"]) == ["pyyaml==6.0"]


def test_text_counts_where_it_begins_with_a_library(lock: Path) -> None:
    assert versions(lock, [], ["torch.optim.AdamW", "README.md"]) == ["torch==2.13"]


def test_a_module_of_no_known_distribution_counts_as_all(lock: Path) -> None:
    assert versions(lock, ["torch", "unknown"]) == every_version(lock)
    assert len(every_version(lock)) == 7


def test_a_lock_file_that_says_nothing_of_needs_counts_as_a_whole(lock: Path) -> None:
    lock.write_text("".join(line for line in LOCK.splitlines(keepends=True) if "# via" not in line))
    assert versions(lock, ["torch"]) == every_version(lock)


def test_hashes_do_not_count(lock: Path) -> None:
    before = every_version(lock)
    lock.write_text(LOCK.replace("sha256:1", "sha256:2"))
    assert every_version(lock) == before
