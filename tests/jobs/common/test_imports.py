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


def test_a_jobs_module_leaves_its_numeric_libraries_to_the_job() -> None:
    """They count their threads when they are loaded, and `jobs.common.runtime.main` says before how many they take."""
    code = """
import importlib, sys
from include.specs import job_module, job_names
for name in job_names():
    importlib.import_module(f"{job_module(name)}.__main__")
    loaded = {"numpy", "torch", "pandas", "polars", "ctranslate2", "pyarrow"} & sys.modules.keys()
    assert not loaded, f"{name} loads {loaded}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
