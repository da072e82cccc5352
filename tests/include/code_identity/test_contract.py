from __future__ import annotations

from include.code_identity.contract import MODULES, covers
from include.home import PROJECT
from tests.include.code_identity.contract_imports import contract_imports


def test_names_and_packages() -> None:
    assert covers("include.errors") and covers("include.artifacts") and covers("include.artifacts.s3.bucket")
    assert covers("include.specs") and covers("include.specs.base") and not covers("include.specs.finetune")
    assert not covers("jobs.common") and not covers("jobs.common.chat") and not covers("include.artifacts_of_mine")


def test_every_name_stands_for_something() -> None:
    for name in MODULES:
        base = PROJECT.joinpath(*name.removesuffix(".*").split("."))
        assert base.is_dir() or base.with_suffix(".py").is_file(), f"{name} is gone: take it out of the list"


def test_nothing_is_hidden_behind_it() -> None:
    """What a module behind the contract imports is not followed, so it has to be behind the contract, too."""
    ours = {(name, item.module) for name, item in contract_imports() if item.module.startswith(("include.", "jobs."))}
    assert ours
    assert {(name, module) for name, module in ours if not covers(module)} == set()
