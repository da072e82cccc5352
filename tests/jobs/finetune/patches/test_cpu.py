"""The CPU patch fits the AutoModel that is installed: a failure here says what to look at after an update."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from jobs.finetune.patches import cpu


def test_the_patch_fits_the_installed_automodel(automodel: None) -> None:
    from nemo_automodel._transformers import auto_model
    from nemo_automodel.recipes.llm import train_ft

    advice = (
        f"jobs/finetune/patches/cpu.py was written for nemo-automodel {cpu.PINNED}; {version('nemo-automodel')} differs"
    )
    assert version("nemo-automodel") == cpu.PINNED, advice
    assert "device" in inspect.signature(auto_model.apply_model_infrastructure).parameters, advice
    assert "torch.cuda.current_device()" in inspect.getsource(auto_model), f"{advice}: current_device is not needed now"
    recipe = inspect.getsource(train_ft)
    for asked in ("torch.cuda.reset_peak_memory_stats()", "torch.cuda.max_memory_allocated()"):
        assert asked in recipe, f"{advice}: {asked} is not needed now"
