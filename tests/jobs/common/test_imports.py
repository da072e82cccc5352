"""What a job must not pay for."""

from __future__ import annotations

import subprocess
import sys


def test_scoring_models_imports_no_scikit_learn_and_leaves_it_importable() -> None:
    code = """
import importlib.util, sys
from jobs.common.causal_lm import import_transformers
import_transformers()
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig
import jobs.evaluate.measure
assert "sklearn" not in sys.modules, "scikit-learn was imported"
assert importlib.util.find_spec("sklearn") is not None, "scikit-learn stayed hidden"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
