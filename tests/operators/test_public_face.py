"""What `operators` offers to DAG files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import operators


def test_every_public_name_is_there():
    for name in operators.__all__:
        assert getattr(operators, name) is not None
    assert set(operators.__all__) <= set(dir(operators))


def test_type_checkers_see_the_names_where_they_are_imported_from():
    (block,) = [node for node in ast.parse(Path(operators.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {node.names[0].asname: node.module.removeprefix("operators.") for node in block.body}
    assert seen == operators._MODULES


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'operators' has no attribute 'GateSensors'"):
        operators.GateSensors  # noqa: B018


def test_nothing_is_imported_before_it_is_used():
    program = """
import sys
import operators
assert not [name for name in sys.modules if name.startswith(("airflow", "include", "operators."))]
from operators import LONG_RETRIES
assert "operators.defaults" in sys.modules and "operators.stages" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
